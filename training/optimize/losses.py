"""What the optimizer minimizes: smoothed cross-entropy and, when asked, the Lovász IoU loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dela.errors import ConfigError
from dela.scores.confusion import IGNORED


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, weight: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy over the labelled rows; zero, with a graph, when no row is labelled.

    Args:
        logits: [N, C], any floating dtype; computed in float32.
        labels: [N] int64; -1 rows count for nothing. Or [N, C] float32 shares of the classes,
            which add up to 1 in every row.
        smoothing: share of the target spread evenly over all classes.
        weight: [C] class weights; the mean is weighted by the true class's weight, or by the sum
            of the true classes' in their shares.
    """
    logits = logits.float()
    if labels.is_floating_point():
        total = torch.nn.functional.cross_entropy(
            logits, labels, weight, reduction="sum", label_smoothing=smoothing
        )
        return total / label_weight(labels, weight).clamp(min=1e-12)
    if not bool((labels != IGNORED).any()):
        return logits.sum() * 0.0
    return torch.nn.functional.cross_entropy(
        logits, labels, weight, ignore_index=IGNORED, label_smoothing=smoothing
    )


def label_weight(labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """What :func:`cross_entropy` divides by: labelled rows, or the sum of their classes' weights.

    Means over batches, weighted by it, add up to the mean over all of them.

    Args:
        labels: [N] int64, -1 rows left out, or [N, C] float32 shares; weight: [C].

    Returns:
        A float32 scalar.
    """
    if labels.is_floating_point():
        return labels.new_full((), len(labels)) if weight is None else (labels @ weight).sum()
    known = labels != IGNORED
    if weight is None:
        return known.sum().float()
    return (weight.index_select(0, labels.clamp(min=0)) * known).sum()


def gradient_norm(model: torch.nn.Module) -> Tensor:
    """Euclidean norm of all gradients of a model together; not finite if any of them is."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovász extension of the mean Jaccard loss over the classes present (Berman et al. 2018).

    Optimizes intersection over union itself, which cross-entropy weights by class size.

    Args:
        logits: [N, C]; labels: [N] int64, -1 rows left out.
    """
    rows = torch.nonzero(labels != IGNORED).squeeze(1)
    if not len(rows):
        return logits.float().sum() * 0.0
    probabilities = logits.float().index_select(0, rows).softmax(1)
    truth = torch.nn.functional.one_hot(labels.index_select(0, rows), logits.shape[1])
    truth = truth.to(probabilities.dtype)
    errors, order = (truth - probabilities).abs().sort(0, descending=True)
    sorted_truth = truth.gather(0, order)
    size = sorted_truth.sum(0)
    intersection = size - sorted_truth.cumsum(0)
    union = size + (1.0 - sorted_truth).cumsum(0)
    jaccard = 1.0 - intersection / union
    steps = torch.cat((jaccard[:1], jaccard[1:] - jaccard[:-1]))
    return (errors * steps).sum(0)[size > 0].mean()


def class_weights(counts: np.ndarray, power: float) -> np.ndarray:
    """Weights count^-power with mean 1 over the classes that occur; 0 for those that do not.

    Args:
        counts: [C] labelled points of each class in the training data.
        power: 0 gives 1 for every class that occurs, 1 inverse frequency; 0.4 suits lidar.

    Returns:
        [C] float32.

    Raises:
        ConfigError: no class has a point.
    """
    counts = np.asarray(counts, np.float64)
    present = counts > 0
    if not present.any():
        raise ConfigError("no training point has a class; check the label column and the class map")
    weights = np.zeros(len(counts))
    weights[present] = (counts[present] / counts[present].sum()) ** -power
    weights[present] /= weights[present].mean()
    return weights.astype(np.float32)
