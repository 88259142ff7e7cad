"""Cuts a scene that is too large for one run into tiles that overlap.

Every point belongs to the core of exactly one tile and takes its answer from that tile; the rest of
a tile is context. The cut depends on the points alone, so a scene is always cut the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dela.errors import InputError
from dela.families import family_of
from dela.model.contract import Contract

# Where the full context does not fit into a tile, the core may fill this share of it.
CORE_SHARE = 0.25
# A tower is cut across its height only when it is this much longer than wide.
TOWER = 3.0


@dataclass(frozen=True)
class Tile:
    """Rows of the scene that go through the network together.

    Attributes:
        rows: [T] int64, ascending: core and context.
        core: [T] bool: the rows that take their answer from this tile.
    """

    rows: np.ndarray
    core: np.ndarray


def whole_tile(size: int) -> Tile:
    """All rows of a scene of ``size`` rows, in one tile."""
    return Tile(np.arange(size), np.ones(size, dtype=bool))


def context_width(config: Contract) -> float:
    """Meters of context around a core: as far as the network reaches."""
    return family_of(config).reach(config)


def cut_tiles(points: np.ndarray, max_points: int, context: float) -> Iterator[Tile]:
    """Tiles of at most ``max_points`` rows whose cores cover every row once.

    The scene is halved at the median of its longer side until a part fits with ``context`` meters
    of surroundings. Where even a quarter of the limit does not fit with them (a dense column, a
    low limit), the tile keeps the context nearest to its core.

    Args:
        points: [N, 3] float32 meters, one per voxel.
        max_points: at least 1.
        context: meters.

    Raises:
        InputError: ``max_points`` below 1.
    """
    if max_points < 1:
        raise InputError(f"max points is {max_points}; a tile holds at least 1")
    if len(points) == 0:
        return
    whole = whole_tile(len(points))
    if len(points) <= max_points:
        yield whole
        return
    smallest_core = max(1, int(CORE_SHARE * max_points))
    # Each entry: rows of a core, and the rows among which its context lies.
    parts = [(whole.rows, whole.rows)]
    while parts:
        core, around = parts.pop()
        low, high = points[core].min(axis=0), points[core].max(axis=0)
        outside = np.maximum(low - points[around], points[around] - high).max(axis=1)
        around = around[outside <= context]
        if len(around) > max_points and len(core) > smallest_core:
            first, second = _halves(points, core, high - low)
            parts += [(second, around), (first, around)]
            continue
        yield _tile(core, around, outside[outside <= context], max_points)


def _halves(
    points: np.ndarray, core: np.ndarray, extent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    axis = int(np.argmax(extent * (1.0, 1.0, 1.0 / TOWER)))
    order = np.argsort(points[core, axis], kind="stable")
    middle = len(core) // 2
    return np.sort(core[order[:middle]]), np.sort(core[order[middle:]])


def _tile(core: np.ndarray, around: np.ndarray, outside: np.ndarray, max_points: int) -> Tile:
    is_core = np.zeros(len(around), dtype=bool)
    is_core[np.searchsorted(around, core)] = True
    if len(around) > max_points:
        # Points within the core's box but of another core count as nearest context.
        distance = np.where(is_core, -np.inf, np.maximum(outside, 0.0))
        nearest = np.sort(np.argsort(distance, kind="stable")[:max_points])
        around, is_core = around[nearest], is_core[nearest]
    return Tile(around, is_core)
