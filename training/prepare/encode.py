"""A scene as read to a scene as stored: checks, origins, types, voxels, counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dela.errors import InputError
from dela.geometry.cpu import voxel_grid
from dela.scores.confusion import IGNORED
from dela.training.prepare.store import Record

# The voxel index of a scene: the row that stands for each voxel, and every point's voxel.
GRID_KEPT = "grid_kept"
GRID_VOXEL = "grid_voxel"


def encode(
    record: Record, task: str, classes: int, grid: float | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Columns to store and what ``scene.json`` says of them.

    Points are moved to their lowest corner in float64 and stored as float32; colors become uint8,
    normals float16, labels int16.

    Args:
        record: as read; see :class:`~dela.training.prepare.store.Record`.
        task: ``segmentation``, ``classification`` or ``parts``.
        classes: how many; labels lie in -1 .. classes - 1.
        grid: voxel size of the stored voxel index, meters; None stores none.

    Raises:
        InputError: no points, non-finite values, lengths that differ, labels out of range.
    """
    columns = dict(record.columns)
    points = _checked_points(columns.pop("points"))
    stored = _stored_columns(columns, len(points), task, classes)
    labels = stored.get("labels")
    facts: dict[str, Any] = {
        "task": task,
        "points": len(points),
        "notes": list(record.notes),
        "malformed": list(record.malformed),
    }
    if labels is not None:
        facts["ignored"] = int((labels == IGNORED).sum())
    if task == "segmentation":
        origin = points.min(axis=0).astype(np.float64)
        moved = points.astype(np.float64) - origin
        stored["points"] = moved.astype(np.float32)
        facts["counts"] = _counts(labels, classes)
        if grid is not None:
            facts |= _add_grid(stored, moved, grid, classes)
    else:
        # Small clouds keep their own frame: they are centered already.
        origin = np.zeros(3)
        stored["points"] = points.astype(np.float32)
        facts |= _cloud_facts(stored, task, classes, len(points))
    facts["origin"] = origin.tolist()
    return stored, facts


def _checked_points(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"points have shape {list(points.shape)}; expected [N, 3]")
    if not len(points):
        raise InputError("there are no points")
    _check_finite(points, "coordinates")
    return points


def _stored_columns(
    columns: Mapping[str, np.ndarray], count: int, task: str, classes: int
) -> dict[str, np.ndarray]:
    """All columns but the points, checked, in the types that are stored."""
    shared = {"offsets", "cloud_labels"} if task != "segmentation" else set()
    stored: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        if name not in shared and len(column) != count:
            raise InputError(f"column {name} has {len(column):,} rows for {count:,} points")
        if name == "labels" or (name == "cloud_labels" and task == "classification"):
            _check_labels(np.asarray(column), classes)
        stored[name] = _stored(name, np.asarray(column))
    return stored


def _add_grid(
    stored: dict[str, np.ndarray], points: np.ndarray, grid: float, classes: int
) -> dict[str, Any]:
    """Adds the voxel index of float64 points to the columns; what ``scene.json`` says of it."""
    # Of the float64 points, as for a scan from a file: scanners that round put many on the border
    # between two voxels.
    index = voxel_grid(points, grid, threads=1)
    stored[GRID_KEPT], stored[GRID_VOXEL] = index.kept, index.voxel_of_point
    labels = stored.get("labels")
    counts = _counts(None if labels is None else labels[index.kept], classes)
    return {"grid": grid, "voxels": len(index.kept), "voxel_counts": counts}


def _stored(name: str, column: np.ndarray) -> np.ndarray:
    if name == "color":
        _check_finite(column, "colors")
        if len(column) and not 0 <= column.min() <= column.max() <= 255:
            raise InputError(f"colors lie in {column.min():g} .. {column.max():g}, not in 0 .. 255")
        return np.rint(column).astype(np.uint8)
    if name == "normals":
        with np.errstate(over="ignore"):
            column = column.astype(np.float16)
        _check_finite(column, "normals")
        return column
    if name in ("labels", "cloud_labels"):
        return column.astype(np.int16)
    if name == "offsets":
        return column.astype(np.int64)
    _check_finite(column, f"values of {name}")
    return column.astype(np.float32) if column.dtype == np.float64 else column


def _check_finite(values: np.ndarray, what: str) -> None:
    if values.dtype.kind != "f":
        return
    finite = np.isfinite(values)
    if not finite.all():
        rows = np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))
        raise InputError(
            f"{len(rows):,} of {len(values):,} points have {what} that are not finite "
            f"(first: row {rows[0]})"
        )


def _check_labels(labels: np.ndarray, classes: int) -> None:
    wrong = (labels < IGNORED) | (labels >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"label {labels[row]} (row {row}) is outside 0 .. {classes - 1}")


def _counts(labels: np.ndarray | None, classes: int) -> list[int]:
    if labels is None:
        return [0] * classes
    return np.bincount(labels[labels >= 0], minlength=classes).tolist()


def _cloud_facts(
    stored: dict[str, np.ndarray], task: str, classes: int, points: int
) -> dict[str, Any]:
    offsets, owners = stored["offsets"], stored["cloud_labels"]
    lengths = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != points or (lengths < 1).any():
        raise InputError(
            f"clouds of {lengths.min()} .. {lengths.max()} points do not fill {points}"
        )
    if len(owners) != len(lengths):
        raise InputError(f"{len(owners)} labels for {len(lengths)} clouds")
    if task == "classification":
        counts = _counts(owners, classes)
    else:
        counts = _counts(stored.get("labels"), classes)
    return {"clouds": len(lengths), "counts": counts}
