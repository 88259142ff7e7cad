"""Scans that were cut apart, seen together: tiles of one survey as one scene or as context.

A network that sees a tile alone sees the world end at the tile's border, and labels badly there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dela.cloud import PointCloud
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


def surroundings(cloud: PointCloud, others: Sequence[PointCloud], width: float) -> PointCloud:
    """The points of other scans within ``width`` metres of a scan's ground plan.

    The ground plan is the box of the scan's x and y. Points of the others that are not finite are
    left out, so that they cannot spoil a sound scan.

    Args:
        cloud: the scan, in the same frame as the others.
        others: scans around it.
        width: metres, 0 or more.

    Returns:
        a cloud with the columns that all of the others have; empty where none is near.

    Raises:
        InputError: a negative width.
    """
    if not width >= 0:
        raise InputError(f"the width of the surroundings is {width}; give metres, 0 or more")
    finite = np.isfinite(cloud.points).all(axis=1)
    if not finite.any():
        return cloud.select(np.zeros(0, dtype=np.int64))
    plan = cloud.points[finite, :2]
    low, high = plan.min(axis=0) - width, plan.max(axis=0) + width
    near = []
    for other in others:
        where = other.points[:, :2]
        inside = ((where >= low) & (where <= high)).all(axis=1) & np.isfinite(other.points[:, 2])
        if inside.any():
            near.append(other.select(inside))
    return join_clouds(near) if near else cloud.select(np.zeros(0, dtype=np.int64))
