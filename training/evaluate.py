"""Scores of a network at full resolution: every input point through the voxel it fell into."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dela.metrics import Confusion
from dela.pyramid import Pyramid
from dela.training.datasets import Dataset

# Logits [N0, classes] float32 of one pyramid: a network in evaluation mode or a runtime backend.
Forward = Callable[[Pyramid], np.ndarray]


def evaluate(
    forward: Forward,
    dataset: Dataset,
    votes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Confusion:
    """Label every point of a split and compare; ignored points are left out.

    With several votes each sees another point of every voxel, turned about the vertical by another
    angle, every second one mirrored; their probabilities are summed.

    Args:
        forward: from pyramid to logits; :func:`network_forward` makes one of a network.
        votes: passes over the data.
        progress: called as ``progress(done, total)`` after each crop.
    """
    confusion = Confusion(dataset.model.num_classes)
    for index in range(len(dataset)):
        sample = dataset.evaluation_sample(index)
        scores = forward(sample.pyramid)
        if votes > 1:
            scores = _softmax(scores)
            for vote in range(1, votes):
                turned = dataset.evaluation_sample(index, vote, votes)
                scores += _softmax(forward(turned.pyramid))
        confusion.add(sample.truth, scores.argmax(1)[sample.voxel_of_point])
        if progress is not None:
            progress(index + 1, len(dataset))
    return confusion


def network_forward(model: object) -> Forward:
    """A torch network as the function :func:`evaluate` takes, put into evaluation mode, float32."""
    import torch

    assert isinstance(model, torch.nn.Module)
    model.eval()

    def forward(pyramid: Pyramid) -> np.ndarray:
        with torch.inference_mode():
            return model(pyramid).float().cpu().numpy()

    return forward


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponential = np.exp(logits - logits.max(1, keepdims=True))
    return exponential / exponential.sum(1, keepdims=True)
