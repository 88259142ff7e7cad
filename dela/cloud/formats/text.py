"""Text tables (TXT, CSV, XYZ, ASC): one point a line, with or without a line of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dela.cloud.formats.columns import (
    AXES,
    axis_names,
    check_column_count,
    colors_from_255,
    colors_to_255,
    column_names,
    integers_where_whole,
    lossless,
    positional_names,
    unique_name,
)
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError

_COMMENT = re.compile(r"^\s*(#|//|%|;)")
_ROWS_AT_ONCE = 1 << 15


@dataclass
class TextSource:
    """How a table was written.

    Attributes:
        delimiter: what stands between two values.
        prefix: what stands before the names (``#``, ``//`` or nothing); None without names.
        names: the table's own names, in order; column -> name.
    """

    delimiter: str
    prefix: str | None
    names: dict[str, str]
    color_factor: float


def read_text(path: Path) -> PointCloud:
    """Reads a table of numbers: comma, semicolon, tab or blanks between values.

    A first line of names (plain, or behind ``#`` or ``//``) names the columns; without one they
    are named by their number, as :func:`~dela.cloud.formats.columns.positional_names` says.

    Raises:
        InputError: a malformed line (with its number), fewer than three columns, names without
            x, y and z.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        lines = stream.readlines()
    names, prefix, start = _names(lines)
    first = next((line for line in lines[start:] if _is_data(line)), None)
    delimiter = _delimiter(first if first is not None else "".join(lines[start - 1 : start]))
    width = len(_split(first, delimiter)) if first is not None else len(names or AXES)
    if width < 3:
        raise InputError(f"{path} has {width} columns; x, y and z at least are needed")
    check_column_count(width, path)
    if names is not None and len(names) != width:
        if prefix == "":
            raise InputError(f"{path} names {len(names)} columns, its lines hold {width}")
        names, prefix = None, None
    values = _parse(lines, start, delimiter, width, path)
    own = names or positional_names(values)
    unique: dict[str, None] = {}
    for name in own:
        unique[unique_name(name, unique)] = None
    own = list(unique)
    axes = axis_names(own, path, "column")
    at = {name: index for index, name in enumerate(own)}
    points = values[:, [at[name] for name in axes]]
    rest = [name for name in own if name not in axes]
    columns: dict[str, np.ndarray] = {}
    mapped = dict(zip(axes, AXES, strict=True)) | column_names(rest)
    for name in rest:
        columns[mapped[name]] = np.ascontiguousarray(values[:, at[name]])
    integers_where_whole(columns)
    factor = colors_to_255(columns)
    source = TextSource(
        delimiter or " ", None if names is None else prefix, {mapped[n]: n for n in own}, factor
    )
    return PointCloud(points, columns, source)


def write_text(path: Path, cloud: PointCloud) -> None:
    """Writes a table: the input's delimiter and column order, new columns behind.

    CSV gets a line of names, the others ``# x y z ...`` where there are columns to name; numbers
    are written with every digit needed to read the same value back.
    """
    kept = isinstance(cloud.source, TextSource)
    csv = path.suffix.lower() == ".csv"
    names = {name: name for name in AXES}
    delimiter, prefix, factor = (",", "", 1.0) if csv else (" ", "# ", 1.0)
    if kept:
        source = cloud.source
        delimiter, factor = source.delimiter, source.color_factor
        names = source.names
        if source.prefix is not None:
            prefix = source.prefix
    columns = {axis: cloud.points[:, index] for index, axis in enumerate(AXES)}
    for name, column in cloud.columns.items():
        columns[unique_name(name, AXES)] = column
    order = [name for name in names if name in columns]
    order += [name for name in columns if name not in names]
    unnamed = kept and cloud.source.prefix is None and set(order) == set(names)
    written = [_written(name, columns[name], names, factor) for name in order]
    title = delimiter.join(_plain(names.get(name, name), delimiter) for name in order)
    with path.open("wb") as stream:
        if csv and not kept:
            stream.write(f"{title}\n".encode())
        elif not unnamed and len(order) > 3:
            stream.write(f"{prefix}{title}\n".encode())
        write_rows(stream, written, delimiter)


def _written(name: str, column: np.ndarray, names: dict[str, str], factor: float) -> np.ndarray:
    if name not in ("red", "green", "blue") or factor == 1.0 or name not in names:
        return column
    whole = factor > 1.0
    return colors_from_255(column, factor, np.dtype(np.int32 if whole else np.float64))


def write_rows(stream: BinaryIO, columns: Sequence[np.ndarray], delimiter: str) -> None:
    """Rows of numbers, one formatting call for many rows; floats so that they read back alike."""
    formats = []
    for column in columns:
        if column.dtype.kind in "uib":
            formats.append("%d")
        else:
            formats.append("%.9g" if column.dtype.itemsize <= 4 else "%r")
    row = delimiter.join(formats) + "\n"
    count = len(columns[0]) if columns else 0
    for start in range(0, count, _ROWS_AT_ONCE):
        parts = [column[start : start + _ROWS_AT_ONCE].tolist() for column in columns]
        flat = tuple(value for values in zip(*parts, strict=True) for value in values)
        stream.write((row * len(parts[0]) % flat).encode())


def parse_table(
    lines: Iterable[bytes], fields: Sequence[tuple[str, str]], path: Path
) -> dict[str, np.ndarray]:
    """Blank-separated rows as typed columns.

    Raises:
        InputError: a row that is not as many numbers as there are fields, or out of range.
    """
    rows = [line.decode("ascii", errors="replace") for line in lines]
    if not rows:
        return {name: np.empty(0, dtype) for name, dtype in fields}
    try:
        table = np.loadtxt(rows, dtype=np.dtype(list(fields)), ndmin=1, comments=None)
        return {name: table[name] for name, _ in fields}
    except ValueError:
        values = _load(rows, None, len(fields), path, range(1, len(rows) + 1), "data line")
    result = {}
    for index, (name, code) in enumerate(fields):
        exact = lossless(values[:, index], np.dtype(code))
        if exact is None:
            if np.dtype(code).kind in "ui":
                raise InputError(f"{path}: property {name!r} holds values that its type does not")
            exact = values[:, index].astype(code)
        result[name] = exact
    return result


def _names(lines: list[str]) -> tuple[list[str] | None, str | None, int]:
    """The table's names if a leading line holds them, its prefix, and the first line after it."""
    names: list[str] | None = None
    prefix: str | None = None
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        mark = _COMMENT.match(line)
        content = line[mark.end() :] if mark else line
        words = _split(content, _delimiter(content))
        named = bool(words) and not any(_is_number(word) for word in words)
        if not mark:
            if named and len(words) >= 3:
                return [word.strip("\"'") for word in words], "", index + 1
            return names, prefix, index
        if named and len(words) >= 3 and {"x", "y", "z"} <= {word.lower() for word in words}:
            names, prefix = words, line[: len(line) - len(content.lstrip())]
    return names, prefix, len(lines)


def _parse(lines: list[str], start: int, delimiter: str, width: int, path: Path) -> np.ndarray:
    numbered = [(number, line) for number, line in enumerate(lines[start:], start + 1)]
    numbered = [(number, line) for number, line in numbered if _is_data(line)]
    numbers = [number for number, _ in numbered]
    separator = None if delimiter.isspace() else delimiter
    return _load([line for _, line in numbered], separator, width, path, numbers, "line")


def _load(
    rows: list[str],
    delimiter: str | None,
    width: int,
    path: Path,
    numbers: Sequence[int],
    what: str,
) -> np.ndarray:
    if not rows:
        return np.empty((0, width))
    try:
        values = np.loadtxt(rows, delimiter=delimiter, ndmin=2, comments=None)
        if values.shape == (len(rows), width):
            return values
    except ValueError:
        pass
    for number, row in zip(numbers, rows, strict=True):
        words = _split(row, delimiter or " ")
        if len(words) != width:
            raise InputError(f"{path}, {what} {number}: {len(words)} values, expected {width}")
        for word in words:
            if not _is_number(word):
                raise InputError(f"{path}, {what} {number}: {word[:40]!r} is not a number")
    raise InputError(f"{path}: its lines are not a table of numbers")


def _is_data(line: str) -> bool:
    return bool(line.strip()) and not _COMMENT.match(line)


def _delimiter(line: str) -> str:
    return next((mark for mark in (",", ";", "\t") if mark in line.strip()), " ")


def _split(line: str, delimiter: str) -> list[str]:
    if delimiter.isspace():
        return line.split()
    return [word.strip() for word in line.strip().split(delimiter)]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word


def _plain(name: str, delimiter: str) -> str:
    return re.sub(rf"[\s{re.escape(delimiter)}]+", "_", name)
