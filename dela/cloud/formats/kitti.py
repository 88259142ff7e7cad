"""KITTI: scans of bare float32 (``.bin``), and SemanticKITTI's labels apart (``.label``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dela.cloud.formats.columns import AXES, axis_names, check_colors, column_names, lossless
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError

_NAMES = (*AXES, "intensity")
# Beyond any scan about its sensor: what other bytes look like when they are taken for float32.
_FARTHEST = 1e5
_LARGEST_CODE = 0xFFFF


@dataclass
class KittiSource:
    """Names of the scan's values (x, y and z among them), in the file's order."""

    names: tuple[str, ...]


def read_kitti(path: Path, names: Sequence[str] | None = None) -> PointCloud:
    """Reads little-endian float32 values, x y z intensity a point or as ``names`` says.

    Raises:
        InputError: no whole number of points, or coordinates that no scanner measures.
    """
    names = list(names or _NAMES)
    size, step = path.stat().st_size, 4 * len(names)
    if size % step:
        raise InputError(
            f"{path}: {size} bytes are no whole number of points of {','.join(names)} in float32; "
            "name the values otherwise with columns, or the file is cut short"
        )
    values = np.fromfile(path, "<f4").reshape(-1, len(names))
    axes = axis_names(names, path, "column")
    mapped = dict(zip(axes, AXES, strict=True))
    mapped |= column_names(name for name in names if name not in axes)
    points = values[:, [names.index(name) for name in axes]].astype(np.float64)
    if (np.abs(points) > _FARTHEST).any():
        raise InputError(
            f"{path}: {np.abs(points[np.isfinite(points)]).max():.3g} m from the sensor; it does "
            f"not hold {','.join(names)} in float32"
        )
    columns = {
        mapped[name]: np.ascontiguousarray(values[:, place], np.float32)
        for place, name in enumerate(names)
        if name not in axes
    }
    check_colors(columns, path)
    return PointCloud(points, columns, KittiSource(tuple(mapped[name] for name in names)))


def write_kitti(path: Path, cloud: PointCloud) -> None:
    """Writes x, y, z, intensity (0 where there is none), or the values that the input had.

    Raises:
        InputError: the cloud has other columns, which the format cannot hold.
    """
    names = cloud.source.names if isinstance(cloud.source, KittiSource) else _NAMES
    other = [name for name in cloud.columns if name not in names]
    if other:
        raise InputError(
            f"a .bin holds {', '.join(names)} alone, not {', '.join(other)}; write labels to "
            ".label, or all to .ply"
        )
    held = {axis: cloud.points[:, index] for index, axis in enumerate(AXES)} | cloud.columns
    zero = np.zeros(len(cloud))
    rows = np.stack([held.get(name, zero) for name in names], axis=1).astype("<f4")
    path.write_bytes(rows.tobytes())


def write_labels(path: Path, cloud: PointCloud) -> None:
    """Writes the column ``label`` alone as uint32; the upper halves, instances, are 0.

    Raises:
        InputError: no such column, or codes beyond 0..65535.
    """
    if "label" not in cloud.columns:
        raise InputError("a .label holds the column 'label' alone, and the cloud has none")
    labels = cloud.columns["label"]
    exact = lossless(labels, np.dtype(np.uint32))
    if exact is None or exact.max(initial=0) > _LARGEST_CODE:
        raise InputError(
            f"a .label holds codes 0..{_LARGEST_CODE}, not {labels.min()} to {labels.max()}; "
            "write .ply"
        )
    path.write_bytes(exact.astype("<u4").tobytes())


def read_labels(path: Path, names: Sequence[str] | None = None) -> PointCloud:
    """Refuses: labels without points are no scan.

    Raises:
        InputError: always.
    """
    raise InputError(f"{path} holds labels and no points; name the scan they belong to (.bin)")
