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
    check_column_count,
    color_property,
    colors_from_255,
    colors_to_255,
    column_names,
    lossless,
    native,
    unique_name,
)
from dela.cloud.formats.ply_header import ORDERS, TYPE_NAMES, Element, Property, read_header
from dela.cloud.formats.rows import parse_table, write_rows
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError


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
        encoding: of the header.
    """

    order: str = "binary_little_endian"
    comments: list[str] = field(default_factory=list)
    before: tuple[list[Element], bytes] = field(default_factory=lambda: ([], b""))
    after: tuple[list[Element], bytes] = field(default_factory=lambda: ([], b""))
    count: int = 0
    types: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    color_factor: float = 1.0
    encoding: str = "utf-8"


def read_ply(path: Path) -> PointCloud:
    """Reads the vertices of a PLY; faces and other elements are kept for writing.

    List properties of vertices must have one length throughout; they become ``name_0`` ...

    Raises:
        InputError: a header that breaks the rules (with its line), a body cut short, no x, y, z.
    """
    with path.open("rb") as stream:
        header = read_header(stream, path)
        order, elements = header.order, header.elements
        at = next((i for i, each in enumerate(elements) if each.name == "vertex"), None)
        if at is None:
            names = ", ".join(each.name for each in elements) or "none"
            raise InputError(f"{path} has no vertex element; its elements: {names}")
        vertex = elements[at]
        x, y, z = axis_names([each.name for each in vertex.properties], path, "vertex property")
        if order == "ascii":
            raw, before, after = _read_ascii(stream, path, elements, at)
        else:
            raw, before, after = _read_binary(stream, path, elements, at, ORDERS[order])
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
        header.comments,
        (elements[:at], before),
        (elements[at + 1 :], after),
        vertex.count,
        types,
        properties,
        factor,
        header.encoding,
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
    vertex = Element("vertex", len(cloud))
    vertex.properties = [Property(name, array.dtype.str[1:]) for name, array in arrays.items()]
    same = source.count == len(cloud)
    before, after = (part if same else ([], b"") for part in (source.before, source.after))
    lines = ["ply", f"format {source.order} 1.0", *source.comments]
    for element in (*before[0], vertex, *after[0]):
        lines += element.lines()
    header = "\n".join([*lines, "end_header", ""])
    with path.open("wb") as stream:
        try:
            stream.write(header.encode(source.encoding))
        except UnicodeEncodeError:  # a new column's name is beyond Latin-1
            stream.write(header.encode())
        stream.write(before[1])
        if source.order == "ascii":
            write_rows(stream, list(arrays.values()), " ")
        else:
            order = ORDERS[source.order]
            values = list(arrays.values())
            types = [(str(place), order + each.dtype.str[1:]) for place, each in enumerate(values)]
            packed = np.empty(len(cloud), types)
            for place, array in enumerate(values):
                packed[str(place)] = array
            stream.write(packed.data)
        stream.write(after[1])


_Body = tuple[dict[str, np.ndarray], bytes, bytes]


def _read_binary(
    stream: BinaryIO, path: Path, elements: list[Element], at: int, order: str
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
    taken = {each.name for each in vertex.properties}
    for place, each in enumerate(vertex.properties):
        values = rows[str(place)]
        if each.count_dtype is None:
            raw[each.name] = values
            continue
        if (rows[f"count {place}"] != values.shape[1]).any():
            raise _varying(path, each)
        for index, name in enumerate(_parts(each, values.shape[1], taken)):
            raw[name] = values[:, index]
    return raw, body[:start].tobytes(), body[end:].tobytes()


def _row_type(vertex: Element, body: np.ndarray, start: int, order: str, path: Path) -> np.dtype:
    """The vertex row as a structured type, list lengths taken from the first row.

    Members are named by the number of their property, a list's length ``count 7``.
    """
    fields: list[tuple] = []
    offset, values = start, 0
    for place, each in enumerate(vertex.properties):
        kind = np.dtype(order + each.dtype)
        if each.count_dtype is None:
            fields.append((str(place), kind))
            offset += kind.itemsize
            values += 1
            continue
        count_type = np.dtype(order + each.count_dtype)
        first = body[offset : offset + count_type.itemsize]
        length = 0
        if vertex.count and len(first) == count_type.itemsize:
            length = int(first.view(count_type)[0])
        if not 0 <= length <= len(body):
            raise _varying(path, each)
        values += length
        check_column_count(values, path)
        fields.append((f"count {place}", count_type))
        fields.append((str(place), kind, (length,)))
        offset += count_type.itemsize + length * kind.itemsize
    return np.dtype(fields)


def _parts(each: Property, length: int, taken: set[str]) -> list[str]:
    """A name for each value of a list, none of them taken so far."""
    names = []
    for index in range(length):
        names.append(unique_name(f"{each.name}_{index}", taken))
        taken.add(names[-1])
    return names


def _end_of_element(body: np.ndarray, start: int, element: Element, order: str, path: Path) -> int:
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


def _read_ascii(stream: BinaryIO, path: Path, elements: list[Element], at: int) -> _Body:
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
    counts: dict[str, tuple[Property, int]] = {}
    taken = {each.name for each in vertex.properties}
    for each in vertex.properties:
        if each.count_dtype is None:
            fields.append((each.name, each.dtype))
            continue
        length = _list_length(words, len(fields), path, each)
        check_column_count(len(fields) + length, path)
        counts[f"count of {each.name}"] = (each, length)
        fields.append((f"count of {each.name}", each.count_dtype))
        fields += [(name, each.dtype) for name in _parts(each, length, taken)]
    table = parse_table(rows, fields, path)
    for name, (each, length) in counts.items():
        if (table.pop(name) != length).any():
            raise _varying(path, each)
    return table, b"".join(lines[:first]), b"".join(lines[first + vertex.count :])


def _list_length(words: list[bytes], at: int, path: Path, each: Property) -> int:
    try:
        length = int(words[at]) if words else 0
    except (IndexError, ValueError):
        length = -1
    if not 0 <= length <= len(words):
        raise _varying(path, each)
    return length


def _varying(path: Path, each: Property) -> InputError:
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
    if column.dtype.str[1:] in TYPE_NAMES:
        return column
    for code in {"b": ("u1",), "f": ("f4", "f8")}.get(column.dtype.kind, ("i4", "u4", "f8")):
        fitting = lossless(column, np.dtype(code))
        if fitting is not None:
            return fitting
    raise InputError(f"column {name!r} ({column.dtype}) holds values that no PLY type holds")
