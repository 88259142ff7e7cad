"""Labelled scans in memory: read once, attributes computed at full resolution and kept.

Prepared data is mapped from disk instead (:mod:`dela.training.data.prepared`); :data:`AnyScan` is
what training and evaluation take, whichever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.geometry.cpu import VoxelGrid
from dela.model.contract import Contract
from dela.scan.attributes import compute_attributes
from dela.scan.context import context_points, join_clouds
from dela.scan.tiles import context_width
from dela.scan.voxels import Voxels, scan_grid
from dela.scores.confusion import IGNORED
from dela.training.data.prepared import ObjectScan, PreparedScan
from dela.training.settings.data import DataConfig
from dela.training.settings.splits import map_labels


@dataclass(frozen=True)
class Scan:
    """One labelled scan in memory, N points in V voxels.

    :mod:`~dela.training.data.prepared` has scans on disk with the same attributes.

    Attributes:
        name: file name, or ``room <seed>``.
        points: [N, 3] float32, meters, shifted near the origin.
        attributes: [N, F] float32, scaled.
        labels: [N] int16 class index, -1 ignored.
        origin: [3] float64: ``points + origin`` are the file's coordinates.
        grid: the finest voxels, and the point that stands for each in evaluation.
    """

    name: str
    points: np.ndarray
    attributes: np.ndarray
    labels: np.ndarray
    origin: np.ndarray
    grid: VoxelGrid

    @property
    def size(self) -> int:
        """How many voxels."""
        return len(self.grid.kept)

    def class_voxels(self, classes: int) -> np.ndarray:
        """[classes] int64: voxels of each class, told by the point that stands for each."""
        labels = self.labels[self.grid.kept]
        return np.bincount(labels[labels >= 0], minlength=classes)

    def voxels(self, pick: int = 0) -> Voxels:
        """The scan at stage 0's resolution, the ``pick``-th point of each voxel standing for it."""
        kept = self.grid.picked(pick) if pick else self.grid.kept
        return Voxels(self.points[kept], self.attributes[kept], self.grid.voxel_of_point)


AnyScan: TypeAlias = Scan | PreparedScan | ObjectScan


def label_scan(
    cloud: PointCloud,
    name: str,
    data: DataConfig,
    model: Contract,
    context: Sequence[PointCloud] = (),
) -> Scan:
    """A cloud with its label column mapped to class indices and its attributes computed.

    Args:
        context: scans around it; their nearest points become part of the scan, labelled as ignored.

    Raises:
        InputError: an empty cloud, non-finite coordinates, a missing column, or label values
            outside the class map (with their counts).
    """
    return _scan(name, cloud, _labels(cloud, name, data), data, model, context)


def join_scans(
    parts: Sequence[tuple[str, PointCloud]],
    data: DataConfig,
    model: Contract,
    context: Sequence[PointCloud],
) -> Scan:
    """One scan of several named clouds, each checked under its own name.

    Args:
        context: as for :func:`label_scan`.

    Raises:
        InputError: as :func:`label_scan`.
    """
    labels = np.concatenate([_labels(cloud, name, data) for name, cloud in parts])
    name = parts[0][0] if len(parts) == 1 else f"{len(parts)} joined scans"
    return _scan(name, join_clouds([cloud for _, cloud in parts]), labels, data, model, context)


def _labels(cloud: PointCloud, name: str, data: DataConfig) -> np.ndarray:
    """[N] int16 class indices of a file that can be trained on."""
    if not len(cloud):
        raise InputError(f"{name} has no points")
    broken = int((~np.isfinite(cloud.points)).any(1).sum())
    if broken:
        raise InputError(f"{name}: {broken} of {len(cloud)} points are not finite; remove them")
    try:
        return map_labels(_label_column(cloud, data), data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _scan(
    name: str,
    cloud: PointCloud,
    labels: np.ndarray,
    data: DataConfig,
    model: Contract,
    context: Sequence[PointCloud],
) -> Scan:
    try:
        if context:
            width = context_width(model) if data.margin is None else data.margin
            near = context_points(cloud, context, width)
            if len(near):
                cloud = join_clouds([cloud, near])
                labels = np.concatenate([labels, np.full(len(near), IGNORED, np.int16)])
        attributes = compute_attributes(cloud, model.input_columns)
        origin = cloud.points.min(axis=0)
        points = cloud.points - origin
        grid = scan_grid(points, model)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return Scan(name, points.astype(np.float32), attributes, labels, origin, grid)


def _label_column(cloud: PointCloud, data: DataConfig) -> np.ndarray:
    if data.label not in cloud.columns:
        present = ", ".join(sorted(cloud.columns)) or "none"
        raise InputError(f"no label column {data.label!r}; columns present: {present}")
    return cloud.columns[data.label]
