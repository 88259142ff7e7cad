"""NumPy files: NPY (one array) and NPZ (named arrays)."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from dela.cloud.formats.columns import (
    AXES,
    COLORS,
    NORMALS,
    axis_names,
    check_colors,
    check_column_count,
    check_declared_bytes,
    colors_from_255,
    colors_to_255,
    column_names,
    integers_where_whole,
    lossless,
    native,
    positional_names,
    unique_name,
)
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError

_POINT_NAMES = ("points", "xyz", "coords", "coord", "positions", "pos")


@dataclass
class NpySource:
    """How an NPY held the cloud.

    Attributes:
        names: column (or x, y, z) -> name in the file, in the file's order.
        types: name -> dtype.
        table: whether it was a plain array [N, C], with columns by position.
    """

    names: dict[str, str]
    types: dict[str, np.dtype]
    table: bool
    color_factor: float


@dataclass
class NpzSource:
    """How an NPZ held the cloud.

    Attributes:
        names: column -> (array, element), element None for arrays [N].
        types: array -> dtype.
        points: the array of coordinates, or None where x, y and z were apart.
        others: arrays that are not one value a point, kept as they are.
        count: number of points.
        compressed: whether the members were deflated.
    """

    names: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    types: dict[str, np.dtype] = field(default_factory=dict)
    points: str | None = "points"
    others: dict[str, np.ndarray] = field(default_factory=dict)
    count: int = 0
    compressed: bool = False
    color_factor: float = 1.0


def read_npy(path: Path, names: Sequence[str] | None = None) -> PointCloud:
    """Reads an NPY: an array [N, C >= 3] or a structured array with x, y, z.

    Columns of a plain array are named by their number, as
    :func:`~dela.cloud.formats.columns.positional_names` says, or as ``names`` does.

    Raises:
        InputError: another shape, pickled objects, a file cut short, other names than columns.
    """
    with path.open("rb") as stream:
        if stream.read(6) == np.lib.format.MAGIC_PREFIX:
            stream.seek(0)
            _check_array(stream, path.stat().st_size, path, "its array")
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an NPZ archive under another name; rename it to .npz")
    if array.dtype.names:
        if names is not None:
            raise InputError(f"{path} names its columns itself: {','.join(array.dtype.names)}")
        if array.ndim != 1:
            raise InputError(f"{path}: its structured array has shape {array.shape}; expected [N]")
        check_column_count(len(array.dtype.names), path)
        raw = {name: array[name] for name in array.dtype.names}
        for name, column in raw.items():
            if column.ndim != 1 or not _is_numeric(column):
                raise InputError(f"{path}: field {name!r} is not one number a point")
    else:
        if array.ndim != 2 or array.shape[1] < 3 or not _is_numeric(array):
            raise InputError(
                f"{path} holds {array.dtype} of shape {array.shape}; "
                "expected numbers [N, 3 or more] or a structured array with x, y, z"
            )
        _check_table(array, path)
        raw = {name: array[:, i] for i, name in enumerate(_names_of(array, names, path))}
    axes = axis_names(list(raw), path, "field")
    points = np.stack([raw[name].astype(np.float64) for name in axes], axis=1)
    mapped = dict(zip(axes, AXES, strict=True))
    mapped |= column_names(name for name in raw if name not in axes)
    columns = {mapped[name]: native(raw[name]) for name in raw if name not in axes}
    if names is not None:
        check_colors(columns, path)
    if not array.dtype.names:
        integers_where_whole(columns)
    factor = colors_to_255(columns)
    own = {mapped[name]: name for name in raw}
    types = {name: column.dtype for name, column in raw.items()}
    source = NpySource(own, types, not array.dtype.names, factor)
    return PointCloud(points, columns, source)


def _names_of(table: np.ndarray, names: Sequence[str] | None, where: object) -> list[str]:
    """Names of the columns [N, C] of a table: the user's, or what their values tell."""
    if names is None:
        return positional_names(table, where)
    if len(names) != table.shape[1]:
        raise InputError(
            f"{where} has {table.shape[1]} columns and {len(names)} are named: {','.join(names)}"
        )
    return list(names)


def write_npy(path: Path, cloud: PointCloud) -> None:
    """Writes an NPY: the input's own layout while it has no new columns, else a structured array.

    Coordinates are float64 unless the input held them in another type that fits.
    """
    source = cloud.source if isinstance(cloud.source, NpySource) else None
    columns = {axis: cloud.points[:, index] for index, axis in enumerate(AXES)}
    for name, column in cloud.columns.items():
        columns[unique_name(name, columns)] = column
    names = source.names if source else {}
    order = [name for name in names if name in columns]
    order += [name for name in columns if name not in names]
    arrays: dict[str, np.ndarray] = {}
    for name in order:
        own = names.get(name)
        stored = columns[name]
        if source and own is not None:
            stored = _stored(name, stored, source.types[own], source.color_factor)
        arrays[unique_name(own or name, arrays)] = stored
    if source and source.table and list(order) == list(names):
        dtype = np.result_type(*arrays.values())
        result = np.stack([array.astype(dtype) for array in arrays.values()], axis=1)
    else:
        result = np.empty(len(cloud), [(name, array.dtype) for name, array in arrays.items()])
        for name, array in arrays.items():
            result[name] = array
    with path.open("wb") as stream:
        # Not write_array: its tofile reports a full disk without the system's reason.
        np.lib.format.write_array_header_2_0(
            stream, np.lib.format.header_data_from_array_1_0(result)
        )
        stream.write(result.data)


def read_npz(path: Path, names: Sequence[str] | None = None) -> PointCloud:
    """Reads an NPZ: ``points`` (or ``xyz``, ``coord`` ...) [N, 3+], or ``x``, ``y``, ``z`` [N].

    Arrays [N] are columns; ``colors``/``rgb`` and ``normals`` [N, 3] are split into theirs, other
    [N, k] into ``name_0`` ...; the rest is kept for writing. A structured array with x, y and z
    counts as an array for each of its fields, and is written so. ``names`` are those of the
    columns of ``points``, x, y and z first.

    Raises:
        InputError: no coordinates, other names than columns, pickled objects, a damaged archive.
    """
    with zipfile.ZipFile(path) as archive:
        compressed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
        _check_members(archive, path)
    with np.load(path, allow_pickle=False) as data:
        found = {name: data[name] for name in data.files}
    arrays = {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
    _spread_fields(arrays)
    source = NpzSource(compressed=compressed)
    raw: dict[str, np.ndarray] = {}
    points = _take_points(path, arrays, source, raw, names)
    source.count = len(points)
    for name, array in arrays.items():
        _take_columns(path, (name, array), arrays, source, raw)
    mapped = column_names(raw)
    columns = {mapped[name]: native(column) for name, column in raw.items()}
    source.names = {mapped[name]: place for name, place in source.names.items()}
    if names is not None:
        check_colors(columns, path)
    source.color_factor = colors_to_255(columns)
    return PointCloud(points, columns, source)


def _spread_fields(arrays: dict[str, np.ndarray]) -> None:
    """Puts the fields of the first structured array with x, y and z in its place."""
    for name, array in arrays.items():
        fields = array.dtype.names or ()
        if array.ndim == 1 and set(AXES) <= {part.lower() for part in fields}:
            del arrays[name]
            for part in fields:
                arrays[unique_name(part, arrays)] = np.ascontiguousarray(array[part])
            return


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """What the arrays of an archive will take, from its directory and their headers."""
    members = archive.infolist()
    check_column_count(len(members), path)
    check_declared_bytes(sum(info.file_size for info in members), path, "its arrays")
    for info in members:
        if info.filename.endswith(".npy"):
            with archive.open(info) as stream:
                _check_array(stream, info.file_size, path, f"array {info.filename[:-4]!r}")


def _check_array(stream: IO[bytes], held: int, path: Path, what: str) -> None:
    """An array's header against the bytes there are; NumPy would allocate what it claims."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise InputError(f"{path}: {what} holds pickled objects, which are not read; save numbers")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > held:
        raise InputError(
            f"{path} is cut short: {what} of shape {shape} takes {size} bytes, {held} are there"
        )


def _take_points(
    path: Path,
    arrays: dict[str, np.ndarray],
    source: NpzSource,
    raw: dict[str, np.ndarray],
    names: Sequence[str] | None,
) -> np.ndarray:
    """Coordinates [N, 3] float64, out of the arrays that are left; what stood beside them to raw.

    Raises:
        InputError: there are none, or they have another shape.
    """
    lower = {name.lower(): name for name in reversed(list(arrays))}
    source.points = next((lower[name] for name in _POINT_NAMES if name in lower), None)
    if source.points is not None:
        return _take_table(path, arrays.pop(source.points), source, raw, names)
    if names is not None:
        raise InputError(f"{path} names its columns itself: {', '.join(arrays)}")
    if not {"x", "y", "z"} <= set(lower):
        present = ", ".join(arrays) or "none"
        raise InputError(
            f"{path} has no points [N, 3] (nor xyz, nor x, y and z); its arrays: {present}"
        )
    axes = [arrays.pop(lower[axis]) for axis in AXES]
    if any(a.ndim != 1 or len(a) != len(axes[0]) or not _is_numeric(a) for a in axes):
        shapes = ", ".join(str(axis.shape) for axis in axes)
        raise InputError(f"{path}: x, y and z have shapes {shapes}; expected three times [N]")
    source.types |= {axis: values.dtype for axis, values in zip(AXES, axes, strict=True)}
    return np.stack([axis.astype(np.float64) for axis in axes], axis=1)


def _take_table(
    path: Path,
    table: np.ndarray,
    source: NpzSource,
    raw: dict[str, np.ndarray],
    names: Sequence[str] | None,
) -> np.ndarray:
    """Coordinates of an array [N, 3+]; its other columns go to raw, named by their number."""
    own = source.points
    assert own is not None
    if table.ndim != 2 or table.shape[1] < 3 or not _is_numeric(table):
        raise InputError(
            f"{path}: array {own!r} holds {table.dtype} of shape {table.shape}; "
            "expected numbers [N, 3 or more]"
        )
    _check_table(table, path)
    source.types[own] = table.dtype
    if names is not None and tuple(name.lower() for name in names[:3]) != AXES:
        raise InputError(f"{path}: {','.join(names[:3])} named, but {own!r} begins with x,y,z")
    for index, name in enumerate(_names_of(table, names, path)[3:], 3):
        raw[name] = table[:, index]
        source.names[name] = (own, index)
    return table[:, :3].astype(np.float64)


def _take_columns(
    path: Path,
    named: tuple[str, np.ndarray],
    arrays: dict[str, np.ndarray],
    source: NpzSource,
    raw: dict[str, np.ndarray],
) -> None:
    """One column [N] or several [N, k] of an array to raw; what is neither is kept for writing."""
    name, array = named
    if array.ndim not in (1, 2) or len(array) != source.count or not _is_numeric(array):
        source.others[name] = array
        return
    source.types[name] = array.dtype
    if array.ndim == 1:
        raw[unique_name(name, raw)] = array
        source.names[name] = (name, None)
        return
    check_column_count(array.shape[1], path)
    for index, part in enumerate(_part_names(name, array.shape[1])):
        part = unique_name(part, [*raw, *arrays])
        raw[part] = array[:, index]
        source.names[part] = (name, index)


def write_npz(path: Path, cloud: PointCloud) -> None:
    """Writes an NPZ: ``points`` [N, 3] and one array a column, or the input's own arrays.

    Uncompressed unless the input was compressed.
    """
    source = cloud.source if isinstance(cloud.source, NpzSource) else NpzSource()
    arrays: dict[str, np.ndarray] = {}
    if source.points is None:
        for index, axis in enumerate(AXES):
            arrays[axis] = _stored(axis, cloud.points[:, index], source.types[axis], 1.0)
    else:
        dtype = source.types.get(source.points, np.dtype(np.float64))
        exact = lossless(cloud.points, dtype)
        arrays[source.points] = cloud.points if exact is None else exact
    parts: dict[str, dict[int, np.ndarray]] = {}
    for name, column in cloud.columns.items():
        if name not in source.names:
            arrays[unique_name(name, [*arrays, *source.types, *source.others])] = column
            continue
        array, element = source.names[name]
        column = _stored(name, column, source.types[array], source.color_factor)
        if element is None:
            arrays[array] = column
        else:
            parts.setdefault(array, {})[element] = column
    for array, columns in parts.items():
        ordered = [columns[element] for element in sorted(columns)]
        if array == source.points:
            ordered = [*arrays[array].T, *ordered]
        arrays[array] = np.stack(ordered, axis=1)
    if source.count == len(cloud):
        arrays |= source.others
    kind = zipfile.ZIP_DEFLATED if source.compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind, allowZip64=True) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)


def _part_names(name: str, width: int) -> list[str]:
    plain = name.lower()
    if plain in ("colors", "color", "colours", "colour", "rgb") and width == 3:
        return list(COLORS)
    if plain in ("normals", "normal") and width == 3:
        return list(NORMALS)
    return [f"{name}_{index}" for index in range(width)]


def _stored(name: str, column: np.ndarray, dtype: np.dtype, factor: float) -> np.ndarray:
    """The column in the file's own type where the values fit it."""
    if name in COLORS and factor != 1.0:
        return colors_from_255(column, factor, dtype)
    exact = lossless(column, dtype)
    return column if exact is None else exact


def _check_table(table: np.ndarray, path: Path) -> None:
    """Refuses more columns than a scan has; three rows of many are x, y and z, not points."""
    if len(table) == 3 and table.shape[1] > 20:
        raise InputError(
            f"{path} holds an array {list(table.shape)}, a row for each coordinate; "
            "save it transposed (array.T)"
        )
    check_column_count(table.shape[1], path)


def _is_numeric(array: np.ndarray) -> bool:
    return array.dtype.kind in "uifb" and array.dtype.itemsize <= 8
