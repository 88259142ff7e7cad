"""The published test protocols: a scene looked at several times, the logits of all looks added.

Unlike the votes of :mod:`dela.scan.votes`, each look has voxels of its own, every point of the
scene takes the logits of the voxel point nearest to it, and logits are added, not probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dela.geometry.cpu import nearest, voxel_grid
from dela.model.contract import Contract
from dela.scan.votes import Answer, Forward, VoteOptions, softmax
from dela.scan.voxels import Voxels


@dataclass(frozen=True)
class Look:
    """One way of seeing a scene.

    Attributes:
        pick: which point of every voxel stands for it.
        turn: radians about the vertical.
        scale: factor of all coordinates.
    """

    pick: int = 0
    turn: float = 0.0
    scale: float = 1.0

    @property
    def matrix(self) -> np.ndarray:
        """[3, 3] turn, without the scale."""
        cosine, sine = math.cos(self.turn), math.sin(self.turn)
        return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


# DeLA v2: S3DIS looks at every fifth point of a voxel, twelve times; ScanNet at four points of a
# voxel, each under four quarter turns and three scales.
PROTOCOLS: dict[str, tuple[Look, ...]] = {
    "s3dis": tuple(Look(5 * number) for number in range(12)),
    "scannet": tuple(
        Look(pick, quarter * math.pi / 2, scale)
        for pick in range(4)
        for quarter in range(4)
        for scale in (0.95, 1.0, 1.05)
    ),
}


def add_looks(
    forward: Forward,
    points: np.ndarray,
    attributes: Any,
    config: Contract,
    looks: Sequence[Look],
    options: VoteOptions,
) -> Answer:
    """Probabilities of every point of a scan: the softmax of the mean logits of all looks.

    Args:
        forward: a network in evaluation mode or a runtime backend.
        points: [N, 3] meters.
        attributes: [N, F] float32, scaled, of every point; an array or what is indexed like one.
        looks: at least one.
        options: tiles, and ``progress``, called as ``progress(looks done, looks in all)``; the
            votes are the looks.
    """
    total = np.zeros((len(points), config.num_classes), np.float32)
    runs = 0
    for number, look in enumerate(looks):
        voxels, moved = _seen(points, attributes, config, look)
        logits = np.zeros((len(voxels.points), config.num_classes), np.float32)
        for tile in voxels.cut(config, options.max_points, options.context):
            answer = forward(voxels.inputs(tile, config))
            logits[tile.rows[tile.core]] = answer[tile.core]
            runs += 1
        total += logits[nearest(voxels.points, moved)]
        if number == 0:
            first = voxels
        if options.progress is not None:
            options.progress(number + 1, len(looks))
    mean = total / np.float32(len(looks))
    return Answer(softmax(mean), np.arange(len(points)), first, runs)


def _seen(
    points: np.ndarray, attributes: Any, config: Contract, look: Look
) -> tuple[Voxels, np.ndarray]:
    """The voxels of a look, and where it sees every point [N, 3] float32."""
    moved = np.asarray(points, np.float64) @ (look.scale * look.matrix).T
    moved -= moved.min(axis=0)
    grid = voxel_grid(moved, config.grid[0], look.pick)
    columns = np.array(attributes[grid.kept], np.float32)
    for column, info in enumerate(config.input_columns):
        if info.name.startswith("height"):
            columns[:, column] = info.scaled(info.raw(columns[:, column]) * look.scale)
    if config.vector_columns:
        rows = list(config.vector_columns)
        columns[:, rows] = columns[:, rows] @ look.matrix.T.astype(np.float32)
    moved = moved.astype(np.float32)
    return Voxels(moved[grid.kept], columns, grid.voxel_of_point), moved
