"""PCD of the Point Cloud Library: ascii, binary and binary_compressed."""

from __future__ import annotations

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
from dela.cloud.formats.rows import parse_table, write_rows
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError

_KINDS = ("ascii", "binary", "binary_compressed")
_LONGEST_HEADER = 1 << 16
_PACKED = ("rgb", "rgba")


@dataclass
class PcdSource:
    """How a PCD held the cloud.

    Attributes:
        kind: ``ascii`` or ``binary`` (``binary_compressed`` is written as ``binary``).
        viewpoint: the sensor's position and orientation, as the header states it.
        shape: width and height; an organized cloud stays one while its number of points is.
        types: field -> numpy type code, in the file's order.
        fields: column (or x, y, z) -> field.
        packed: the field that holds the three colors in one number, if any.
        color_factor: as in ``colors_to_255``.
    """

    kind: str = "binary"
    viewpoint: str = "0 0 0 1 0 0 0"
    shape: tuple[int, int] = (0, 1)
    types: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    packed: str | None = None
    color_factor: float = 1.0


def read_pcd(path: Path) -> PointCloud:
    """Reads a PCD; packed ``rgb`` becomes three columns, fields of k values ``name_0`` ...

    Raises:
        InputError: a broken header, a body cut short, no x, y, z.
    """
    with path.open("rb") as stream:
        header = _read_header(stream, path)
        fields = _fields(header, path)
        count = header.number("POINTS")
        kind = header.words("DATA")[0]
        if kind == "ascii":
            raw = _read_ascii(stream, path, fields, count)
        else:
            body = stream.read()
            if kind == "binary_compressed":
                body = _decompress(body, path)
            raw = _read_binary(body, path, fields, count, planar=kind == "binary_compressed")
    axes = axis_names(list(raw), path, "field")
    points = np.stack([raw.pop(name).astype(np.float64) for name in axes], axis=1)
    source = PcdSource(
        "ascii" if kind == "ascii" else "binary",
        " ".join(header.words("VIEWPOINT", "0 0 0 1 0 0 0")),
        (header.number("WIDTH", count), header.number("HEIGHT", 1)),
        dict(fields),
        dict(zip(AXES, axes, strict=True)),
    )
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

    Raises:
        InputError: a column type that PCD does not have.
    """
    source = cloud.source if isinstance(cloud.source, PcdSource) else PcdSource(packed="rgb")
    columns = {axis: np.ascontiguousarray(cloud.points[:, i]) for i, axis in enumerate(AXES)}
    for name, column in cloud.columns.items():
        columns[unique_name(name, columns)] = column
    if source.packed is not None and all(name in columns for name in COLORS):
        bits = np.zeros(len(cloud), np.uint32)
        for name, shift in zip(COLORS, (16, 8, 0), strict=True):
            bits |= color_property(columns.pop(name)).astype(np.uint32) << np.uint32(shift)
        if source.types and "alpha" in columns and "alpha" not in source.types:
            bits |= color_property(columns.pop("alpha")).astype(np.uint32) << np.uint32(24)
        # As text a float would lose bits: alpha 255 makes it NaN.
        columns[source.packed] = bits if source.kind == "ascii" else bits.view(np.float32)
    position = {name: index for index, name in enumerate(source.types)}

    def place(name: str) -> int:
        return position.get(source.fields.get(name, name), len(position))

    arrays: dict[str, np.ndarray] = {}
    for name in sorted(columns, key=place):
        own = source.fields.get(name, name)
        written = unique_name("_".join(own.split()) or "_", arrays)
        arrays[written] = _stored(name, columns[name], source.types.get(own), source)
    codes = [array.dtype.str[1:] for array in arrays.values()]
    width, height = source.shape
    if width * height != len(cloud):
        width, height = len(cloud), 1
    lines = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        f"FIELDS {' '.join(arrays)}",
        f"SIZE {' '.join(code[1:] for code in codes)}",
        f"TYPE {' '.join(code[0].upper() for code in codes)}",
        f"COUNT {' '.join('1' for _ in codes)}",
        f"WIDTH {width}",
        f"HEIGHT {height}",
        f"VIEWPOINT {source.viewpoint}",
        f"POINTS {len(cloud)}",
        f"DATA {source.kind}",
        "",
    ]
    with path.open("wb") as stream:
        stream.write("\n".join(lines).encode())
        if source.kind == "ascii":
            write_rows(stream, list(arrays.values()), " ")
        else:
            types = [(name, "<" + array.dtype.str[1:]) for name, array in arrays.items()]
            packed = np.empty(len(cloud), types)
            for name, array in arrays.items():
                packed[name] = array
            stream.write(packed.data)


@dataclass
class _Header:
    path: Path
    entries: dict[str, list[str]]

    def words(self, key: str, default: str | None = None) -> list[str]:
        words = self.entries.get(key) or (default or "").split()
        if not words:
            raise InputError(f"{self.path}: its header has no {key} line")
        return words

    def number(self, key: str, default: int | None = None) -> int:
        word = self.words(key, None if default is None else str(default))[0]
        if not word.isascii() or not word.isdigit():
            raise InputError(f"{self.path}: its header says {key} {word[:40]!r}, no count")
        return int(word)


def _read_header(stream: BinaryIO, path: Path) -> _Header:
    entries: dict[str, list[str]] = {}
    while "DATA" not in entries:
        line = stream.readline(_LONGEST_HEADER)
        if not line.endswith(b"\n") or stream.tell() > _LONGEST_HEADER:
            raise InputError(f"{path} is not a PCD file: its header has no DATA line")
        words = line.decode("utf-8", errors="replace").split()
        if words and not words[0].startswith("#"):
            entries[words[0].upper()] = words[1:]
    header = _Header(path, entries)
    kind = header.words("DATA")[0]
    if kind not in _KINDS:
        raise InputError(f"{path}: unknown DATA {kind[:40]!r}; known: {', '.join(_KINDS)}")
    return header


def _fields(header: _Header, path: Path) -> list[tuple[str, str]]:
    """One (name, type) a value; COUNT k makes ``name_0`` ... ``name_{k-1}``."""
    names = header.words("FIELDS")
    sizes, types = header.words("SIZE"), header.words("TYPE")
    counts = header.words("COUNT", " ".join("1" for _ in names))
    if not len(names) == len(sizes) == len(types) == len(counts):
        raise InputError(f"{path}: FIELDS, SIZE, TYPE and COUNT have different lengths")
    fields: list[tuple[str, str]] = []
    for name, size, kind, count in zip(names, sizes, types, counts, strict=True):
        code = f"{kind.lower()}{size}"
        if code not in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"):
            raise InputError(f"{path}: field {name!r} has type {kind} of {size} bytes")
        if not count.isascii() or not count.isdigit() or int(count) > 10_000:
            raise InputError(f"{path}: field {name!r} has COUNT {count[:40]!r}")
        for index in range(int(count)):
            part = name if count == "1" else f"{name}_{index}"
            fields.append((unique_name(part, [each for each, _ in fields]), code))
    return fields


def _read_ascii(
    stream: BinaryIO, path: Path, fields: list[tuple[str, str]], count: int
) -> dict[str, np.ndarray]:
    lines = [line for line in stream.read().splitlines() if line.strip()]
    if len(lines) < count:
        raise _cut_short(path, count, len(lines))
    return parse_table(lines[:count], fields, path)


def _read_binary(
    body: bytes, path: Path, fields: list[tuple[str, str]], count: int, planar: bool
) -> dict[str, np.ndarray]:
    dtype = np.dtype([(name, "<" + code) for name, code in fields])
    if len(body) < count * dtype.itemsize:
        raise _cut_short(path, count, len(body) // max(dtype.itemsize, 1))
    if not planar:
        rows = np.frombuffer(body, dtype, count)
        return {name: rows[name] for name, _ in fields}
    raw, start = {}, 0
    for name, code in fields:
        raw[name] = np.frombuffer(body, "<" + code, count, start)
        start += raw[name].nbytes
    return raw


def _cut_short(path: Path, promised: int, held: int) -> InputError:
    return InputError(
        f"{path} is cut short: its header promises {promised} points, {held} are there"
    )


def _decompress(body: bytes, path: Path) -> bytes:
    """LZF (Lehmann's liblzf): literal runs and back references, a Python loop over tokens."""
    sizes = np.frombuffer(body[:8], "<u4")
    if len(sizes) < 2 or len(body) - 8 < sizes[0]:
        raise InputError(f"{path} is cut short: its compressed body is not whole")
    source, size = memoryview(body)[8 : 8 + int(sizes[0])], int(sizes[1])
    out = bytearray()
    at = 0
    while at < len(source) and len(out) <= size:
        control = source[at]
        at += 1
        if control < 32:
            out += source[at : at + control + 1]
            at += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += source[at]
            at += 1
        distance = ((control & 31) << 8 | source[at]) + 1
        at += 1
        start = len(out) - distance
        if start < 0:
            raise InputError(f"{path} is damaged: a reference before the start of its body")
        length += 2
        if distance >= length:
            out += out[start : start + length]
        else:  # overlapping: the last bytes repeat
            out += (out[start:] * (length // distance + 1))[:length]
    if len(out) != size:
        raise InputError(f"{path} is damaged: {len(out)} bytes decompressed, {size} promised")
    return bytes(out)


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
