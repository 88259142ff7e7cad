"""PLY, ascii and binary of both byte orders: any vertex properties, the rest kept for writing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dela.cloud.formats.columns import (
    AXES,
    COLORS,
    NORMALS,
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

_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_TYPE_NAMES = {
    "i1": "char",
    "u1": "uchar",
    "i2": "short",
    "u2": "ushort",
    "i4": "int",
    "u4": "uint",
    "f4": "float",
    "f8": "double",
}
_LONGEST_HEADER = 1 << 20


@dataclass
class _Property:
    name: str
    dtype: str
    count_dtype: str | None = None  # of a list property


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)

    def lines(self, count: int | None = None) -> list[str]:
        """The element as the header states it."""
        lines = [f"element {self.name} {self.count if count is None else count}"]
        for each in self.properties:
            kind = _TYPE_NAMES[each.dtype]
            if each.count_dtype is not None:
                kind = f"list {_TYPE_NAMES[each.count_dtype]} {kind}"
            lines.append(f"property {kind} {each.name}")
        return lines


@dataclass
class PlySource:
    """What a PLY held beside its points.

    Attributes:
        order: ``ascii``, ``binary_little_endian`` or ``binary_big_endian``.
        comments: the header's ``comment`` and ``obj_info`` lines.
        before, after: elements on either side of the vertices, with their bodies as read.
        count: number of vertices, on which the other elements' indices rely.
        types: property -> numpy type code, in the file's order.
        properties: column (or x, y, z) -> property.
    """

    order: str = "binary_little_endian"
    comments: list[str] = field(default_factory=list)
    before: tuple[list[_Element], bytes] = field(default_factory=lambda: ([], b""))
    after: tuple[list[_Element], bytes] = field(default_factory=lambda: ([], b""))
    count: int = 0
    types: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    color_factor: float = 1.0


def read_ply(path: Path) -> PointCloud:
    """Reads the vertices of a PLY; faces and other elements are kept for writing.

    List properties of vertices must have one length throughout; they become ``name_0`` ...

    Raises:
        InputError: a header that breaks the rules (with its line), a body cut short, no x, y, z.
    """
    with path.open("rb") as stream:
        order, comments, elements = _read_header(stream, path)
        at = next((i for i, each in enumerate(elements) if each.name == "vertex"), None)
        if at is None:
            names = ", ".join(each.name for each in elements) or "none"
            raise InputError(f"{path} has no vertex element; its elements: {names}")
        vertex = elements[at]
        x, y, z = axis_names([each.name for each in vertex.properties], path, "vertex property")
        if order == "ascii":
            raw, before, after = _read_ascii(stream, path, elements, at)
        else:
            raw, before, after = _read_binary(stream, path, elements, at, _ORDERS[order])
    points = np.stack([raw.pop(name).astype(np.float64) for name in (x, y, z)], axis=1)
    types = {}
    for each in vertex.properties:
        if each.count_dtype is None:
            types[each.name] = each.dtype
    properties = dict(zip(AXES, (x, y, z), strict=True))
    columns = {}
    for name, column in column_names(raw).items():
        columns[column] = native(raw[name])
        types.setdefault(name, columns[column].dtype.str[1:])
        properties[column] = name
    factor = colors_to_255(columns)
    source = PlySource(
        order,
        comments,
        (elements[:at], before),
        (elements[at + 1 :], after),
        vertex.count,
        types,
        properties,
        factor,
    )
    return PointCloud(points, columns, source)


def write_ply(path: Path, cloud: PointCloud) -> None:
    """Writes a PLY: the input's byte order, types and comments, or little-endian binary.

    New coordinates are float32 where that loses nothing, else double; new colors are 8-bit.

    Raises:
        InputError: a column type that PLY does not have.
    """
    kept = isinstance(cloud.source, PlySource)
    source = cloud.source if kept else PlySource()
    assert isinstance(source, PlySource)
    columns: dict[str, np.ndarray] = {
        **{axis: np.ascontiguousarray(cloud.points[:, i]) for i, axis in enumerate(AXES)},
    }
    for name, column in cloud.columns.items():
        columns[name if name not in columns else unique_name(name, columns)] = column
    columns = _in_file_order(columns, source)
    arrays: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        own = source.properties.get(name)
        written = unique_name("_".join((own or _default_name(name)).split()) or "_", arrays)
        arrays[written] = _stored(name, column, source.types.get(own) if own else None, source)
    vertex = _Element("vertex", len(cloud))
    vertex.properties = [_Property(name, array.dtype.str[1:]) for name, array in arrays.items()]
    same = source.count == len(cloud)
    before, after = (part if same else ([], b"") for part in (source.before, source.after))
    lines = ["ply", f"format {source.order} 1.0", *source.comments]
    for element in (*before[0], vertex, *after[0]):
        lines += element.lines()
    header = "\n".join([*lines, "end_header", ""]).encode("utf-8", errors="surrogateescape")
    with path.open("wb") as stream:
        stream.write(header)
        stream.write(before[1])
        if source.order == "ascii":
            write_rows(stream, list(arrays.values()), " ")
        else:
            order = _ORDERS[source.order]
            packed = np.empty(
                len(cloud), [(name, order + array.dtype.str[1:]) for name, array in arrays.items()]
            )
            for name, array in arrays.items():
                packed[name] = array
            stream.write(packed.data)
        stream.write(after[1])


def _read_header(stream: BinaryIO, path: Path) -> tuple[str, list[str], list[_Element]]:
    if stream.readline(16).rstrip() != b"ply":
        raise InputError(f"{path} is not a PLY file: its first line is not 'ply'")
    order = ""
    comments: list[str] = []
    elements: list[_Element] = []
    number = 1
    while True:
        number += 1
        raw = stream.readline(_LONGEST_HEADER)
        if not raw.endswith(b"\n") or stream.tell() > _LONGEST_HEADER:
            raise InputError(f"{path}: its header has no end_header line")
        line = raw.decode("utf-8", errors="surrogateescape").rstrip("\r\n")
        words = line.split()
        if not words:
            continue
        try:
            match words[0]:
                case "end_header":
                    break
                case "comment" | "obj_info":
                    comments.append(line)
                case "format":
                    order = words[1]
                    if order not in _ORDERS:
                        raise InputError(
                            f"{path}, line {number}: unknown format {order!r}; "
                            f"known: {', '.join(_ORDERS)}"
                        )
                case "element":
                    elements.append(_Element(words[1], int(words[2])))
                    if elements[-1].count < 0:
                        raise ValueError
                case "property":
                    elements[-1].properties.append(_property(words))
                case _:
                    raise ValueError
        except (IndexError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}, line {number}: {line[:80]!r} is not a PLY header") from error
    if not order:
        raise InputError(f"{path}: its header has no format line")
    for element in elements:
        names = [each.name for each in element.properties]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise InputError(f"{path}: property {min(twice)!r} of {element.name} is there twice")
    return order, comments, elements


def _property(words: list[str]) -> _Property:
    if words[1] == "list":
        return _Property(words[4], _TYPES[words[3]], _TYPES[words[2]])
    return _Property(words[2], _TYPES[words[1]])


_Body = tuple[dict[str, np.ndarray], bytes, bytes]


def _read_binary(
    stream: BinaryIO, path: Path, elements: list[_Element], at: int, order: str
) -> _Body:
    body = np.fromfile(stream, dtype=np.uint8)
    start = 0
    for element in elements[:at]:
        start = _end_of_element(body, start, element, order, path)
    vertex = elements[at]
    dtype = _row_type(vertex, body, start, order, path)
    held = (len(body) - start) // dtype.itemsize
    if held < vertex.count:
        raise InputError(
            f"{path} is cut short: its header promises {vertex.count} vertices, {held} are there"
        )
    rows = body[start : start + vertex.count * dtype.itemsize].view(dtype)
    end = start + rows.nbytes
    rest = sum(
        each.count * sum(np.dtype(p.count_dtype or p.dtype).itemsize for p in each.properties)
        for each in elements[at + 1 :]
    )
    if len(body) - end < rest:
        raise InputError(f"{path} is cut short: {elements[-1].name} elements are missing")
    raw: dict[str, np.ndarray] = {}
    for each in vertex.properties:
        values = rows[each.name]
        if each.count_dtype is None:
            raw[each.name] = values
            continue
        if (rows[f"count of {each.name}"] != values.shape[1]).any():
            raise _varying(path, each)
        for index in range(values.shape[1]):
            raw[unique_name(f"{each.name}_{index}", raw)] = values[:, index]
    return raw, body[:start].tobytes(), body[end:].tobytes()


def _row_type(vertex: _Element, body: np.ndarray, start: int, order: str, path: Path) -> np.dtype:
    """The vertex row as a structured type, list lengths taken from the first row."""
    fields: list[tuple] = []
    for each in vertex.properties:
        if each.count_dtype is None:
            fields.append((each.name, order + each.dtype))
            continue
        offset = start + np.dtype(fields).itemsize
        count_type = np.dtype(order + each.count_dtype)
        first = body[offset : offset + count_type.itemsize]
        length = 0
        if vertex.count and len(first) == count_type.itemsize:
            length = int(first.view(count_type)[0])
        if not 0 <= length <= len(body):
            raise _varying(path, each)
        fields.append((f"count of {each.name}", count_type))
        fields.append((each.name, order + each.dtype, (length,)))
    return np.dtype(fields)


def _end_of_element(body: np.ndarray, start: int, element: _Element, order: str, path: Path) -> int:
    """Where the element's body ends; lists make every row a length of its own."""
    if all(each.count_dtype is None for each in element.properties):
        end = start + element.count * sum(np.dtype(p.dtype).itemsize for p in element.properties)
    else:
        end = start
        for _ in range(element.count):
            for each in element.properties:
                if each.count_dtype is None:
                    end += np.dtype(each.dtype).itemsize
                    continue
                count_type = np.dtype(order + each.count_dtype)
                first = body[end : end + count_type.itemsize]
                length = int(first.view(count_type)[0]) if len(first) == count_type.itemsize else 0
                end += count_type.itemsize + max(length, 0) * np.dtype(each.dtype).itemsize
            if end > len(body):
                break
    if end > len(body):
        raise InputError(f"{path} is cut short: {element.name} elements are missing")
    return end


def _read_ascii(stream: BinaryIO, path: Path, elements: list[_Element], at: int) -> _Body:
    lines = [line for line in stream.read().splitlines(keepends=True) if line.strip()]
    first = sum(each.count for each in elements[:at])
    vertex = elements[at]
    total = sum(each.count for each in elements)
    if len(lines) < total:
        held = max(0, min(vertex.count, len(lines) - first))
        raise InputError(
            f"{path} is cut short: its header promises {vertex.count} vertices "
            f"({total} lines), {held} are there ({len(lines)} lines)"
        )
    rows = lines[first : first + vertex.count]
    fields: list[tuple[str, str]] = []
    words = rows[0].split() if rows else []
    counts: dict[str, tuple[_Property, int]] = {}
    for each in vertex.properties:
        if each.count_dtype is None:
            fields.append((each.name, each.dtype))
            continue
        counts[f"count of {each.name}"] = (each, _list_length(words, len(fields), path, each))
        fields.append((f"count of {each.name}", each.count_dtype))
        taken = [name for name, _ in fields]
        for index in range(counts[f"count of {each.name}"][1]):
            fields.append((unique_name(f"{each.name}_{index}", taken), each.dtype))
    table = parse_table(rows, fields, path)
    for name, (each, length) in counts.items():
        if (table.pop(name) != length).any():
            raise _varying(path, each)
    return table, b"".join(lines[:first]), b"".join(lines[first + vertex.count :])


def _list_length(words: list[bytes], at: int, path: Path, each: _Property) -> int:
    try:
        length = int(words[at]) if words else 0
    except (IndexError, ValueError):
        length = -1
    if not 0 <= length <= len(words):
        raise _varying(path, each)
    return length


def _varying(path: Path, each: _Property) -> InputError:
    return InputError(
        f"{path}: the vertices' list property {each.name!r} varies in length; "
        "write it as scalar properties"
    )


def _in_file_order(columns: dict[str, np.ndarray], source: PlySource) -> dict[str, np.ndarray]:
    position = {name: index for index, name in enumerate(source.types)}
    last = len(position)
    names = sorted(columns, key=lambda name: position.get(source.properties.get(name, ""), last))
    return {name: columns[name] for name in names}


def _default_name(column: str) -> str:
    return f"n{column[-1]}" if column in NORMALS else column


def _stored(name: str, column: np.ndarray, wanted: str | None, source: PlySource) -> np.ndarray:
    """The column as one of PLY's eight types, the input's own where the values fit it."""
    if wanted is not None:
        if name in COLORS:
            return colors_from_255(column, source.color_factor, np.dtype(wanted))
        same = lossless(column, np.dtype(wanted))
        if same is not None:
            return same
    if name in COLORS:
        return color_property(column)
    if name in AXES:
        single = lossless(column, np.dtype(np.float32))
        return column if single is None else single
    if column.dtype.str[1:] in _TYPE_NAMES:
        return column
    for code in {"b": ("u1",), "f": ("f4", "f8")}.get(column.dtype.kind, ("i4", "u4", "f8")):
        fitting = lossless(column, np.dtype(code))
        if fitting is not None:
            return fitting
    raise InputError(f"column {name!r} ({column.dtype}) holds values that no PLY type holds")
