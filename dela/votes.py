"""Class probabilities of a whole scan: its tiles through a network, looked at several times.

Validation, ``dela eval`` and ``dela predict`` all answer through :func:`predict_voxels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dela.config import ModelConfig
from dela.pyramid import Pyramid
from dela.scene import Voxels

# Logits [N0, classes] float32 of one pyramid ([1, classes] for classification).
Forward = Callable[[Pyramid], np.ndarray]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """What a network says of a scan.

    Attributes:
        probabilities: [V, classes] float32, mean over the votes; [1, classes] for classification.
        voxels: the scan as it is, as vote 0 sees it.
        runs: how often the network ran.
    """

    probabilities: np.ndarray
    voxels: Voxels
    runs: int


def predict_voxels(
    forward: Forward,
    look: Callable[[int], Voxels],
    config: ModelConfig,
    *,
    max_points: int,
    votes: int = 1,
    context: float | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Probabilities of every voxel of a scan.

    Vote 0 is the scan as it is; vote n takes the n-th point of every voxel and sees the scan
    transformed by :func:`vote_matrix`. All votes use vote 0's tiles.

    Args:
        forward: a network in evaluation mode or a runtime backend.
        look: the scan's voxels with the n-th point standing for each; their order is the same for
            every n.
        max_points: voxels in one run; more are cut into overlapping tiles.
        votes: at least 1.
        context: metres around a tile's core; None for :func:`dela.tiles.context_width`.
        progress: called as ``progress(voxels done, voxels in all)``, all votes counted.
    """
    voxels = plain = look(0)
    size = len(voxels.points)
    tiles = voxels.cut(config, max_points, context)
    rows = size if config.task == "segmentation" else 1
    total = np.zeros((rows, config.num_classes), dtype=np.float32)
    done = 0
    for vote in range(votes):
        if vote:
            voxels = look(vote).turned(vote_matrix(vote, votes), config)
        for tile in tiles:
            probabilities = softmax(forward(voxels.pyramid(tile, config)))
            if config.task == "segmentation":
                total[tile.rows[tile.core]] += probabilities[tile.core]
            else:
                total += probabilities
            done += int(np.count_nonzero(tile.core))
            if progress is not None:
                progress(done, votes * size)
    return Answer(total / np.float32(votes), plain, votes * len(tiles))


def vote_matrix(vote: int, votes: int) -> np.ndarray:
    """[3, 3]: a turn by ``vote / votes`` of a circle about the vertical, odd votes mirrored."""
    angle = 2 * math.pi * vote / votes
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return turn @ np.diag([-1.0 if vote % 2 else 1.0, 1.0, 1.0])


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, classes] of logits."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
