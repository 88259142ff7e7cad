"""Scores of a network at full resolution: every input point through the voxel it fell into."""

from __future__ import annotations

import numpy as np

from dela.metrics import Confusion
from dela.pyramid import Pyramid
from dela.training.datasets import Dataset
from dela.votes import Forward, Progress, predict_voxels


def evaluate(
    forward: Forward,
    dataset: Dataset,
    votes: int = 1,
    progress: Progress | None = None,
) -> Confusion:
    """Label every point of a split and compare; ignored points are left out.

    Scans are answered as ``dela predict`` answers them, see :func:`dela.votes.predict_voxels`.

    Args:
        forward: from pyramid to logits; :func:`network_forward` makes one of a network.
        votes: passes over the data.
        progress: called as ``progress(voxels done, voxels in all)``, all votes counted.
    """
    confusion = Confusion(dataset.model.num_classes)
    total = votes * sum(len(scan.grid.kept) for scan in dataset.scans)
    before = 0
    for scan in dataset.scans:
        answer = predict_voxels(
            forward,
            scan.points,
            scan.voxels,
            dataset.model,
            max_points=dataset.data.eval_points,
            votes=votes,
            context=dataset.data.margin,
            progress=_shifted(progress, before, total) if progress else None,
        )
        confusion.add(scan.labels, answer.probabilities.argmax(1)[answer.row_of_point])
        before += votes * len(scan.grid.kept)
    return confusion


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def network_forward(model: object) -> Forward:
    """A torch network as the function :func:`evaluate` takes, put into evaluation mode, float32."""
    import torch

    assert isinstance(model, torch.nn.Module)
    model.eval()

    def forward(pyramid: Pyramid) -> np.ndarray:
        with torch.inference_mode():
            return model(pyramid).float().cpu().numpy()

    return forward
