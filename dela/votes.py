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

# How near, in voxels of stage 0, a vote's point must stand to a point to be told mostly by it, and
# how much votes farther away still count.
NEAR = 0.2
FAR_WEIGHT = 1e-3


@dataclass(frozen=True)
class Answer:
    """What a network says of a scan.

    Attributes:
        probabilities: [R, classes] float32: a row per voxel after one vote, a row per point after
            several; [1, classes] for classification.
        row_of_point: [N] integers: each point's row of ``probabilities``.
        voxels: the scan as it is, as vote 0 sees it.
        runs: how often the network ran.
    """

    probabilities: np.ndarray
    row_of_point: np.ndarray
    voxels: Voxels
    runs: int


def predict_voxels(
    forward: Forward,
    points: np.ndarray,
    look: Callable[[int], Voxels],
    config: ModelConfig,
    *,
    max_points: int,
    votes: int = 1,
    context: float | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Probabilities of every point of a scan.

    Vote 0 is the scan as it is; vote n takes the n-th point of every voxel and sees the scan
    transformed by :func:`vote_matrix` (objects of a known category stand upright in whatever axis
    theirs is, and are not turned). All votes use vote 0's tiles. Each point listens most to
    the votes whose point of its voxel stood near it: a vote at distance d from it weighs
    ``exp(-(d / (NEAR * grid[0])) ** 2) + FAR_WEIGHT``.

    Args:
        forward: a network in evaluation mode or a runtime backend.
        points: [N, 3] metres, the scan at full resolution in the frame of its voxels.
        look: the scan's voxels with the n-th point standing for each; their order is the same for
            every n.
        max_points: voxels in one run; more are cut into overlapping tiles.
        votes: at least 1.
        context: metres around a tile's core; None for :func:`dela.tiles.context_width`.
        progress: called as ``progress(voxels done, voxels in all)``, all votes counted.
    """
    plain = look(0)
    size = len(plain.points)
    tiles = plain.cut(config, max_points, context)
    rows = size if config.task == "segmentation" else 1
    done = 0

    def run(vote: int) -> tuple[np.ndarray, np.ndarray]:
        """One vote's probabilities [rows, classes] and its points [V, 3] before the turn."""
        nonlocal done
        seen = look(vote) if vote else plain
        turned = vote > 0 and not config.categories
        voxels = seen.turned(vote_matrix(vote, votes), config) if turned else seen
        answer = np.zeros((rows, config.num_classes), dtype=np.float32)
        for tile in tiles:
            probabilities = softmax(forward(voxels.pyramid(tile, config)))
            if config.task == "segmentation":
                answer[tile.rows[tile.core]] = probabilities[tile.core]
            else:
                answer += probabilities
            done += int(np.count_nonzero(tile.core))
            if progress is not None:
                progress(done, votes * size)
        return answer, seen.points

    runs = votes * len(tiles)
    of_point = plain.voxel_of_point
    if votes == 1 or config.task == "classification":
        total = run(0)[0]
        for vote in range(1, votes):
            total += run(vote)[0]
        return Answer(total / np.float32(votes), of_point, plain, runs)
    total = np.zeros((len(points), config.num_classes), dtype=np.float32)
    weights = np.zeros((len(points), 1), dtype=np.float32)
    reach = NEAR * config.grid[0]
    for vote in range(votes):
        answer, standing = run(vote)
        square = np.square(points - standing[of_point]).sum(axis=1, keepdims=True)
        weight = (np.exp(-square / reach**2) + FAR_WEIGHT).astype(np.float32)
        total += weight * answer[of_point]
        weights += weight
    return Answer(total / weights, np.arange(len(points)), plain, runs)


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
