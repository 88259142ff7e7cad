"""The network's input columns: raw columns of a cloud, heights, scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.model.contract import CATEGORY, AttributeInfo

# Scaled values are cut to this range: see compute_attributes.
SCALED_LIMIT = 5.0

# Ground filter, meters; window and slope near SMRF's defaults (Pingel, Clarke, McBride 2013).
_CELL = 1.0
_MAX_WINDOW = 20.0
_SLOPE = 0.15
_LEAST_STEP = 0.2
_PIT = 1.0
# Then, in cells half as wide: this near above the lowest are ground, if the coarse ground is near.
_GROUND_BAND = 0.1
_HIGHEST_GROUND = 0.35
# Points that count towards a cell's ground; more say no more, and sparse cells are to be heard.
_MOST_COUNTED = 5
_MAX_CELLS = 4_000_000
# Points interpolated at once, which fit a processor's cache.
_BLOCK = 1 << 15


def compute_attributes(cloud: PointCloud, infos: Sequence[AttributeInfo]) -> np.ndarray:
    """The columns a network wants, scaled: :meth:`AttributeInfo.scaled`.

    ``height`` (above the cloud's lowest point) and ``height_above_ground`` are computed from the
    coordinates, never read from a column; ``category_3`` tells whether the column ``category`` is
    3; every other name is a column of the cloud. Scaled values
    are cut to [-5, 5]: raw lidar intensity is heavy-tailed (one retro-reflector reads a hundred
    times the median) and a few such points would swamp the distances SPSE takes, while the
    published scalings stay within about [-1, 3].

    Args:
        cloud: N points; rows with non-finite coordinates get NaN heights.
        infos: the columns in order, as ``Contract.input_columns``.

    Returns:
        [N, F] float32.

    Raises:
        InputError: a column is missing, or holds NaN.
    """
    result = np.empty((len(cloud), len(infos)), dtype=np.float32)
    for index, info in enumerate(infos):
        raw = _raw_column(cloud, info.name, [each.name for each in infos])
        result[:, index] = scale_column(raw, info)
    return result


def has_attributes(cloud: PointCloud, infos: Sequence[AttributeInfo]) -> np.ndarray:
    """Boolean mask [N] of the points whose columns among ``infos`` hold no NaN."""
    known = np.ones(len(cloud), bool)
    names = {CATEGORY if category_number(i.name) is not None else i.name for i in infos}
    for name in names - {"height", "height_above_ground"}:  # computed, never read
        column = cloud.columns.get(name)
        if column is not None and column.dtype.kind == "f":
            known &= ~np.isnan(column)
    return known


def scale_column(raw: np.ndarray, info: AttributeInfo) -> np.ndarray:
    """[N] float32: :meth:`AttributeInfo.scaled`, cut as :func:`compute_attributes` says."""
    scaled = info.scaled(raw.astype(np.float64))
    return np.clip(scaled, -SCALED_LIMIT, SCALED_LIMIT).astype(np.float32)


def _raw_column(cloud: PointCloud, name: str, needed: list[str]) -> np.ndarray:
    column = unchecked_column(cloud, name, needed)
    if column is cloud.columns.get(name) and column.dtype.kind == "f":
        bad = int(np.isnan(column).sum())
        if bad:
            raise nan_refused(name, bad, len(column))
    return column


def nan_refused(name: str, bad: int, rows: int) -> InputError:
    """The error for a column with values that are not numbers."""
    return InputError(
        f"column {name!r} holds {bad} NaN values of {rows}; fill them in or remove those points "
        "(dela predict --drop-invalid leaves them unlabelled)"
    )


def unchecked_column(cloud: PointCloud, name: str, needed: list[str]) -> np.ndarray:
    """[N] values of a column, or heights; they may be NaN.

    Args:
        cloud: that has it.
        name: of the column.
        needed: names of all columns that the network needs.

    Raises:
        InputError: it is missing, or holds categories that the network does not know.
    """
    if name == "height":
        z = cloud.points[:, 2]
        finite = z[np.isfinite(z)]
        return z - (finite.min() if len(finite) else 0.0)
    if name == "height_above_ground":
        return height_above_ground(cloud.points)
    if category_number(name) is not None:
        return _is_category(cloud, name, needed)
    if name not in cloud.columns:
        message = (
            f"the scan has no column {name!r}; the model needs {', '.join(needed)}, "
            f"the scan has {', '.join(sorted(cloud.columns)) or 'coordinates only'}"
        )
        if "column_3" in cloud.columns:
            message += (
                "\nits file does not name its columns: --columns x,y,z,intensity,red,green,blue "
                "(or as they are) does"
            )
        elif name.startswith("normal_"):
            message += (
                "\nnormals are not estimated here: compute them first (CloudCompare: Edit > "
                "Normals > Compute; PDAL: filters.normal)"
            )
        raise InputError(message)
    return cloud.columns[name]


def category_number(name: str) -> int | None:
    """3 for ``category_3``; None for any other column."""
    number = name.removeprefix(f"{CATEGORY}_")
    return int(number) if number != name and number.isdecimal() else None


def _is_category(cloud: PointCloud, name: str, needed: list[str]) -> np.ndarray:
    count = sum(category_number(each) is not None for each in needed)
    if CATEGORY not in cloud.columns:
        raise InputError(
            f"the scan has no column {CATEGORY!r}; the model tells parts of {count} categories "
            f"apart and needs each point's, 0..{count - 1}"
        )
    values = cloud.columns[CATEGORY]
    unknown = ~np.isin(values, np.arange(count))
    if unknown.any():
        raise InputError(
            f"column {CATEGORY!r} holds {values[unknown][0]:g}; the model's categories are "
            f"0..{count - 1}"
        )
    return values == category_number(name)


def height_above_ground(points: np.ndarray) -> np.ndarray:
    """Height of each point above the local ground, from the coordinates alone.

    The lowest points of 1 m cells are opened (erosion, then dilation) with growing square windows
    up to 20 m; a cell that falls by more than a slope of 15 % explains is no ground (a car, a
    tree, a house, a table), and the ground under it is filled in smoothly from around it. So the
    floor of a room is its ground, and of an airborne tile the terrain. After the progressive
    morphological filter (Zhang et al. 2003) and SMRF (Pingel et al. 2013), in plain numpy. Since
    lowest points lie below the ground's middle and say little of its shape, the heights are then
    corrected by the mean of the points near the ground, on a grid twice as fine. Limits: objects
    wider than 20 m without ground in between count as ground, cliffs are cut at the edge.

    Args:
        points: [N, 3], meters, z up. Non-finite rows give NaN and touch no other.

    Returns:
        [N] float64, meters; slightly negative below the fitted ground.
    """
    points = np.asarray(points, dtype=np.float64)
    heights = np.full(len(points), np.nan)
    finite = np.isfinite(points).all(axis=1)
    if not finite.any():
        return heights
    inside = points if finite.all() else points[finite]
    low = inside.min(axis=0)
    position = (inside[:, :2] - low[:2]) / _CELL
    cell = _CELL
    if np.prod(position.max(axis=0) + 1) > _MAX_CELLS:
        for axis in (0, 1):
            position[:, axis] = _without_gaps(position[:, axis])
        extent = position.max(axis=0) * _CELL
        cell = max(_CELL, math.sqrt(extent.prod() / _MAX_CELLS), extent.sum() / _MAX_CELLS)
        position *= _CELL / cell
    shape = tuple(position.max(axis=0).astype(np.int64) + 1)
    z = inside[:, 2] - low[2]
    _, lowest = _lowest_in_cells(position, z, shape)
    ground = _ground_surface(lowest.reshape(shape), cell)
    above = z - _bilinear(ground, position - 0.5)
    finer = min(2.0, max(1.0, math.sqrt(_MAX_CELLS / len(lowest))))
    heights[finite] = above - _ground_correction(above, position * finer)
    return heights


def _without_gaps(position: np.ndarray) -> np.ndarray:
    """Cell positions along one axis with empty stretches cut to the largest window.

    So a stray point kilometers away, or two distant scans in one file, cost no cells between.
    """
    whole = np.floor(position)
    occupied, row = np.unique(whole, return_inverse=True)
    steps = np.minimum(np.diff(occupied, prepend=occupied[0]), _MAX_WINDOW / _CELL)
    return np.cumsum(steps)[row] + (position - whole)


def _lowest_in_cells(
    position: np.ndarray, height: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Each point's cell, and the lowest height in each of the shape's cells (inf: empty)."""
    cell = position.astype(np.int64) @ np.array([shape[1], 1])
    lowest = np.full(shape[0] * shape[1], np.inf)
    np.minimum.at(lowest, cell, height)
    return cell, lowest


def _ground_surface(lowest: np.ndarray, cell: float) -> np.ndarray:
    """Ground height per cell from the lowest z per cell (inf: empty)."""
    occupied = np.isfinite(lowest)
    surface = _fill(np.where(occupied, lowest, 0.0), occupied)
    is_ground = occupied.copy()
    opened = surface
    radius = 1
    while True:
        previous, opened = opened, _opening(opened, radius)
        reach = radius * cell
        is_ground &= previous - opened <= max(_SLOPE * reach, _LEAST_STEP)
        if 2 * reach >= _MAX_WINDOW or radius >= max(lowest.shape):
            break
        radius = max(radius + 1, int(radius * 1.5))
    if not is_ground.any():
        return opened
    ground = _fill(np.where(is_ground, surface, 0.0), is_ground)
    # A lone return from below the ground (multipath) must not lift its neighbors.
    closed = -_opening(-ground, 1)
    pit = closed - ground > _PIT
    return np.where(pit, closed, ground)


def _ground_correction(above: np.ndarray, position: np.ndarray) -> np.ndarray:
    """How far the ground is above the coarse one at each point, from the points near it.

    Args:
        above: [N] meters above the coarse ground.
        position: [N, 2] in fine cells.
    """
    near = np.flatnonzero(np.abs(above) < _HIGHEST_GROUND)
    if not len(near):
        return np.zeros(len(above))
    shape = tuple(position.max(axis=0).astype(np.int64) + 1)
    height = above[near]
    cell, lowest = _lowest_in_cells(position[near], height, shape)
    is_ground = height <= lowest[cell] + _GROUND_BAND
    cell, height = cell[is_ground], height[is_ground]
    count = np.bincount(cell, minlength=len(lowest)).reshape(shape)
    total = np.bincount(cell, height, len(lowest)).reshape(shape)
    weight = np.minimum(count, _MOST_COUNTED)
    around = _sum_of_nine(weight)
    mean = _sum_of_nine(total / np.maximum(count, 1) * weight) / np.maximum(around, 1)
    return _bilinear(_fill(mean, around > 0), position - 0.5)


def _opening(surface: np.ndarray, radius: int) -> np.ndarray:
    """Gray opening with a square window of 2 radius + 1 cells; beyond the edge nothing counts."""
    for axis in (0, 1):
        surface = _running(np.minimum, surface, radius, axis, np.inf)
    for axis in (0, 1):
        surface = _running(np.maximum, surface, radius, axis, -np.inf)
    return surface


def _running(
    pick: np.ufunc, values: np.ndarray, radius: int, axis: int, beyond: float
) -> np.ndarray:
    """Minimum or maximum over a centerd window, by doubling: log2(window) passes."""
    border = [(0, 0), (0, 0)]
    border[axis] = (radius, radius)
    values = np.pad(values, border, constant_values=beyond)
    width, window = 1, 2 * radius + 1
    while width < window:
        step = min(width, window - width)
        if axis == 0:
            values = pick(values[:-step], values[step:])
        else:
            values = pick(values[:, :-step], values[:, step:])
        width += step
    return values


def _fill(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Known cells as they are; beside them their mean; farther off coarser and coarser averages."""
    if known.all() or max(values.shape) == 1:
        return values
    weight = known.astype(np.float64)
    total = np.where(known, values, 0.0)
    around = _sum_of_nine(weight)
    filled = np.where(known, values, _sum_of_nine(total) / np.maximum(around, 1.0))
    far = np.nonzero(around == 0)
    if len(far[0]):
        rows, columns = values.shape
        pad = ((0, rows % 2), (0, columns % 2))
        half = ((rows + 1) // 2, 2, (columns + 1) // 2, 2)
        count = np.pad(weight, pad).reshape(half).sum(axis=(1, 3))
        total = np.pad(total, pad).reshape(half).sum(axis=(1, 3))
        coarse = _fill(total / np.maximum(count, 1.0), count > 0)
        filled[far] = _bilinear(coarse, np.stack(far, axis=1) / 2 - 0.25)
    return filled


def _sum_of_nine(values: np.ndarray) -> np.ndarray:
    """Each cell with its eight neighbors."""
    values = np.pad(values, 1)
    values = values[:-2] + values[1:-1] + values[2:]
    return values[:, :-2] + values[:, 1:-1] + values[:, 2:]


def _bilinear(grid: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values of ``grid`` at fractional cell positions [N, 2], constant beyond the edge."""
    rows, columns = grid.shape
    values = grid.ravel()
    below, beside = (columns if rows > 1 else 0), (1 if columns > 1 else 0)
    result = np.empty(len(at))
    for start in range(0, len(at), _BLOCK):
        x, y = np.clip(at[start : start + _BLOCK], 0, [rows - 1, columns - 1]).T
        i = np.minimum(x.astype(np.int64), max(rows - 2, 0))
        j = np.minimum(y.astype(np.int64), max(columns - 2, 0))
        corner, u, v = i * columns + j, x - i, y - j
        result[start : start + _BLOCK] = (1 - u) * (
            (1 - v) * values[corner] + v * values[corner + beside]
        ) + u * ((1 - v) * values[corner + below] + v * values[corner + below + beside])
    return result
