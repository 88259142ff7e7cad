"""PCD of the Point Cloud Library: ascii, binary and binary_compressed."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dela.cloud.formats.columns import (
    AXES,
    COLORS,
    axis_names,
    color_property,
    colors_from_255,
    colors_to_255,
    column_names,
    lossless,
    native,
    unique_name,
)
from dela.cloud.formats.lzf import lzf_decompress
from dela.cloud.formats.pcd_header import PADDING, PcdField, read_header, row_type
from dela.cloud.formats.rows import parse_table, write_rows
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError

_PACKED = ("rgb", "rgba")


@dataclass
class PcdSource:
    """How a PCD held the cloud.

    Attributes:
        kind: ``ascii`` or ``binary`` (``binary_compressed`` is written as ``binary``).
        viewpoint: the sensor's position and orientation, as the header states it.
        shape: width and height; an organized cloud stays one while its number of points is.
        layout: the fields, in the file's order.
        padding: number of a field that only fills up -> its values [N, count].
        fields: column (or x, y, z) -> part of a field.
        packed: the field that holds the three colors in one number, if any.
        color_factor: as in ``colors_to_255``.
        encoding: of the header.
    """

    kind: str = "binary"
    viewpoint: str = "0 0 0 1 0 0 0"
    shape: tuple[int, int] = (0, 1)
    layout: list[PcdField] = field(default_factory=list)
    padding: dict[int, np.ndarray] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    packed: str | None = None
    color_factor: float = 1.0
    encoding: str = "utf-8"

    def types(self) -> dict[str, str]:
        """Part -> numpy type code."""
        return {part: each.code for each in self.layout for part in each.parts}


def read_pcd(path: Path) -> PointCloud:
    """Reads a PCD; packed ``rgb`` becomes three columns, fields of k values ``name_0`` ...

    Fields that only fill up a row (``_``) become no columns; they are written again.

    Raises:
        InputError: a broken header, a body cut short, no x, y, z.
    """
    with path.open("rb") as stream:
        header = read_header(stream, path)
        fields, count, kind = header.fields(), header.points, header.kind
        if kind == "ascii":
            raw = _read_ascii(stream, path, fields, count)
        else:
            raw = _read_binary(stream, path, fields, count, planar=kind == "binary_compressed")
    source = PcdSource(
        "ascii" if kind == "ascii" else "binary",
        " ".join(header.words("VIEWPOINT", "0 0 0 1 0 0 0")),
        (header.number("WIDTH", count), header.number("HEIGHT", 1)),
        fields,
        encoding=header.encoding,
    )
    for place, each in enumerate(fields):
        if each.padding:
            parts = [raw.pop(part) for part in each.parts]
            source.padding[place] = np.stack(parts, axis=1) if parts else np.empty((count, 0), "u1")
    axes = axis_names(list(raw), path, "field")
    points = np.stack([raw.pop(name).astype(np.float64) for name in axes], axis=1)
    source.fields = dict(zip(AXES, axes, strict=True))
    columns: dict[str, np.ndarray] = {}
    packed = next((name for name in _PACKED if name in raw and raw[name].dtype.itemsize == 4), None)
    if packed is not None and not {"red", "green", "blue", "r", "g", "b"} & set(raw):
        bits = native(raw.pop(packed)).view(np.uint32)
        source.packed = packed
        for name, shift in zip(COLORS, (16, 8, 0), strict=True):
            columns[name] = (bits >> shift).astype(np.uint8)
        if (bits >> 24).any() and "alpha" not in raw:
            columns["alpha"] = (bits >> 24).astype(np.uint8)
    for name, column in column_names(raw).items():
        columns[column] = native(raw[name])
        source.fields[column] = name
    source.color_factor = colors_to_255(columns)
    return PointCloud(points, columns, source)


def write_pcd(path: Path, cloud: PointCloud) -> None:
    """Writes a PCD, binary unless the input was ascii; new colors are packed as PCL does.

    Fields of several values are put together again, those that only fill up a row come back.

    Raises:
        InputError: a column type that PCD does not have.
    """
    source = cloud.source if isinstance(cloud.source, PcdSource) else PcdSource(packed="rgb")
    stored = _stored_fields(_columns(cloud, source), source, len(cloud))
    width, height = source.shape
    if width * height != len(cloud):
        width, height = len(cloud), 1
    layout = [
        PcdField(name, values[0].dtype.str[1:], len(values), ())
        for name, values in stored
        if values
    ]
    lines = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        f"FIELDS {' '.join(each.name for each in layout)}",
        f"SIZE {' '.join(each.code[1:] for each in layout)}",
        f"TYPE {' '.join(each.code[0].upper() for each in layout)}",
        f"COUNT {' '.join(str(each.count) for each in layout)}",
        f"WIDTH {width}",
        f"HEIGHT {height}",
        f"VIEWPOINT {source.viewpoint}",
        f"POINTS {len(cloud)}",
        f"DATA {source.kind}",
        "",
    ]
    text = "\n".join(lines)
    with path.open("wb") as stream:
        try:
            stream.write(text.encode(source.encoding))
        except UnicodeEncodeError:  # a new column's name is beyond Latin-1
            stream.write(text.encode())
        if source.kind == "ascii":
            write_rows(stream, [array for _, values in stored for array in values], " ")
            return
        rows = np.empty(len(cloud), row_type(layout))
        held = (values for _, values in stored if values)
        for place, values in enumerate(held):
            for index, array in enumerate(values):
                rows[str(place)][:, index] = array
        stream.write(rows.data)


def _columns(cloud: PointCloud, source: PcdSource) -> dict[str, np.ndarray]:
    """x, y, z and the columns, colors packed where the source packs them."""
    columns = {axis: np.ascontiguousarray(cloud.points[:, i]) for i, axis in enumerate(AXES)}
    for name, column in cloud.columns.items():
        columns[unique_name(name, columns)] = column
    if source.packed is not None and all(name in columns for name in COLORS):
        bits = np.zeros(len(cloud), np.uint32)
        for name, shift in zip(COLORS, (16, 8, 0), strict=True):
            bits |= color_property(columns.pop(name)).astype(np.uint32) << np.uint32(shift)
        if source.layout and "alpha" in columns and "alpha" not in source.types():
            bits |= color_property(columns.pop("alpha")).astype(np.uint32) << np.uint32(24)
        # As text a float would lose bits: alpha 255 makes it NaN.
        columns[source.packed] = bits if source.kind == "ascii" else bits.view(np.float32)
    return columns


def _stored_fields(
    columns: dict[str, np.ndarray], source: PcdSource, count: int
) -> list[tuple[str, list[np.ndarray]]]:
    """(name, its values [N] each) of every field to write, the input's own first."""
    types = source.types()
    column_of = {part: column for column, part in source.fields.items()}
    taken = {each.name for each in source.layout if each.count != 1} | {PADDING}
    fields: list[tuple[str, list[np.ndarray]]] = []

    def add(name: str) -> None:
        own = source.fields.get(name, name)
        written = unique_name("_".join(own.split()) or "_", taken)
        taken.add(written)
        fields.append((written, [_stored(name, columns.pop(name), types.get(own), source)]))

    for place, each in enumerate(source.layout):
        if each.padding:
            values = source.padding[place]
            if len(values) != count:
                values = np.zeros((count, each.count), each.code)
            fields.append((PADDING, list(values.T)))
            continue
        names = [column_of.get(part, part) for part in each.parts]
        held = [name for name in names if name in columns]
        parts = [_stored(name, columns[name], each.code, source) for name in held]
        if each.count > 1 and len(held) == each.count and len({p.dtype for p in parts}) == 1:
            fields.append((each.name, parts))
            for name in held:
                del columns[name]
        else:
            for name in held:
                add(name)
    for name in list(columns):
        add(name)
    return fields


def _read_ascii(
    stream: BinaryIO, path: Path, fields: list[PcdField], count: int
) -> dict[str, np.ndarray]:
    lines = [line for line in stream.read().splitlines() if line.strip()]
    if len(lines) < count:
        raise _cut_short(path, count, len(lines))
    flat = [(part, each.code) for each in fields for part in each.parts]
    return parse_table(lines[:count], flat, path)


def _read_binary(
    stream: BinaryIO, path: Path, fields: list[PcdField], count: int, planar: bool
) -> dict[str, np.ndarray]:
    """Rows, or (``planar``) a block for each field, the values of a point side by side in it."""
    body = np.fromfile(stream, np.uint8)
    dtype = row_type(fields)
    if planar:
        body = _decompress(body, path, count * dtype.itemsize)
    if len(body) < count * dtype.itemsize:
        raise _cut_short(path, count, len(body) // max(dtype.itemsize, 1))
    raw: dict[str, np.ndarray] = {}
    rows = body[: count * dtype.itemsize].view(dtype)
    start = 0
    for place, each in enumerate(fields):
        if planar:
            end = start + count * dtype[str(place)].itemsize
            values = body[start:end].view("<" + each.code).reshape(count, each.count)
            start = end
        else:
            values = rows[str(place)]
        raw.update((part, values[:, index]) for index, part in enumerate(each.parts))
    return raw


def _cut_short(path: Path, promised: int, held: int) -> InputError:
    return InputError(
        f"{path} is cut short: its header promises {promised} points, {held} are there"
    )


def _decompress(body: np.ndarray, path: Path, needed: int) -> np.ndarray:
    """The body of a binary_compressed file: both sizes, then LZF."""
    packed, size = struct.unpack("<II", body[:8].tobytes().ljust(8, b"\0"))
    if len(body) < 8 + packed and needed:
        raise InputError(f"{path} is cut short: its compressed body is not whole")
    if size < needed:
        raise InputError(f"{path} is cut short: {size} bytes of {needed} for its points")
    try:
        return lzf_decompress(body[8 : 8 + packed], size)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _stored(name: str, column: np.ndarray, wanted: str | None, source: PcdSource) -> np.ndarray:
    """The column as one of PCD's types, the input's own where the values fit it."""
    if wanted is not None and name != source.packed:
        if name in COLORS:
            return colors_from_255(column, source.color_factor, np.dtype(wanted))
        same = lossless(column, np.dtype(wanted))
        if same is not None:
            return same
    if name in AXES:
        single = lossless(column, np.dtype(np.float32))
        return column if single is None else single
    if column.dtype.kind == "b":
        return column.astype(np.uint8)
    if column.dtype.kind in "uif" and column.dtype.itemsize <= 8:
        return column.astype(np.float32) if column.dtype == np.float16 else column
    raise InputError(f"column {name!r} is {column.dtype}, which PCD cannot hold")
