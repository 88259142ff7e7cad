"""Scans that were cut apart, seen together: tiles of one survey as one scene or as context.

A network that sees a tile alone sees the world end at the tile's border, and labels badly there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dela.cloud.formats import read_cloud, read_extent
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError


def join_clouds(clouds: Sequence[PointCloud]) -> PointCloud:
    """Clouds one after the other, with the columns that all of them have.

    Raises:
        InputError: no cloud.
    """
    if not clouds:
        raise InputError("no scan to join; give at least one")
    names = set(clouds[0].columns).intersection(*(cloud.columns for cloud in clouds[1:]))
    return PointCloud(
        np.concatenate([cloud.points for cloud in clouds]),
        {
            name: np.concatenate([cloud.columns[name] for cloud in clouds])
            for name in clouds[0].columns
            if name in names
        },
    )


def context_points(cloud: PointCloud, scans: Iterable[PointCloud], width: float) -> PointCloud:
    """The points of other scans within ``width`` meters of a scan's ground plan.

    The ground plan is the box of the scan's x and y. Points of the scans that are not finite are
    left out, so that they cannot spoil a sound scan.

    Args:
        cloud: the scan, in the same frame as the others.
        scans: those around it.
        width: meters, 0 or more.

    Returns:
        a cloud with the columns that all of the others have; empty where none is near.

    Raises:
        InputError: a negative width.
    """
    if not width >= 0:
        raise InputError(f"the width of the surroundings is {width}; give metres, 0 or more")
    if not np.isfinite(cloud.points).all(axis=1).any():
        return cloud.select(np.zeros(0, dtype=np.int64))
    low, high = _plan(cloud, width)
    near = []
    for other in scans:
        where = other.points[:, :2]
        inside = ((where >= low) & (where <= high)).all(axis=1) & np.isfinite(other.points[:, 2])
        if inside.any():
            near.append(other.select(inside))
    return join_clouds(near) if near else cloud.select(np.zeros(0, dtype=np.int64))


class ContextFiles:
    """Files of one survey, each read only when a scan beside it is labelled.

    LAS and LAZ headers tell where a file lies; files of other formats are read to find out.
    """

    def __init__(self, files: Iterable[Path], columns: Sequence[str] | None = None) -> None:
        self._columns = columns
        self._extents = {path.resolve(): read_extent(path) for path in files}

    def points(self, path: Path, cloud: PointCloud, width: float) -> PointCloud:
        """:func:`context_points` of the scan read from ``path``, out of the other files.

        Raises:
            InputError: a neighboring file cannot be read.
        """
        return context_points(cloud, self._near(path, cloud, width), width)

    def _near(self, path: Path, cloud: PointCloud, width: float) -> Iterator[PointCloud]:
        """The other files that may reach the scan, read one at a time."""
        low, high = _plan(cloud, width)
        for other, extent in self._extents.items():
            apart = extent is not None and bool(
                (extent[0, :2] > high).any() or (extent[1, :2] < low).any()
            )
            if other != path.resolve() and not apart:
                yield read_cloud(other, self._columns)


def _plan(cloud: PointCloud, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Low and high x, y of the box of the finite points, widened."""
    plan = cloud.points[np.isfinite(cloud.points).all(axis=1), :2]
    return plan.min(axis=0) - width, plan.max(axis=0) + width
