"""Text tables (TXT, CSV, XYZ, ASC, PTS): one point a line, with or without a line of names."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dela.cloud.formats.columns import (
    AXES,
    COLORS,
    axis_names,
    check_colors,
    check_column_count,
    colors_from_255,
    colors_to_255,
    column_names,
    decoded,
    integers_where_whole,
    positional_names,
    unique_name,
    unique_names,
)
from dela.cloud.formats.preamble import Preamble, delimiter_of, is_data, read_preamble
from dela.cloud.formats.rows import parse_rows, split, write_rows
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError, ScanWarning

# Leica's PTS: a line with the number of points, then these columns or the first four.
_PTS_NAMES = (*AXES, "intensity", *COLORS)


@dataclass
class TextSource:
    """How a table was written.

    Attributes:
        delimiter: what stands between two values.
        decimal: what stands before a value's fraction.
        encoding: of the text.
        preamble: what stands before the points.
        names: column (or x, y, z) -> the table's own name, in order.
    """

    delimiter: str
    decimal: str
    encoding: str
    preamble: Preamble
    names: dict[str, str]
    color_factor: float


def read_text(path: Path, columns: Sequence[str] | None = None) -> PointCloud:
    """Reads a table of numbers: comma, semicolon, tab or blanks between values.

    A line of names (plain, or behind ``#`` or ``//``) names the columns; without one they are
    named as :func:`~dela.cloud.formats.columns.positional_names` says, and the user is told. Lines
    of a title and a line with the number of points may stand before them. Numbers with decimal
    commas are read where something else separates values; files that are not UTF-8 are Latin-1.

    Args:
        columns: names in the file's order, instead of those it has.

    Raises:
        InputError: a malformed line (with its number), fewer than three columns, names without
            x, y and z, another number of names than of columns, colors that can be none.
    """
    text, encoding = decoded(path.read_bytes())
    lines = io.StringIO(text, newline=None).readlines()
    head = read_preamble(lines, path)
    first = next((line for line in lines[head.lines :] if is_data(line)), None)
    delimiter = delimiter_of(first) if first is not None else head.delimiter or " "
    width = len(split(first, delimiter)) if first is not None else len(head.names or AXES)
    if width < 3:
        raise InputError(f"{path} has {width} columns; x, y and z at least are needed")
    check_column_count(width, path)
    head.settle_names(width, path)
    values, decimal = _values(lines, head.lines, delimiter, width, path)
    _check_count(head, len(values), path)
    own = unique_names(head.names or columns or _names_of(values, head, path))
    names = list(columns or own)
    if len(names) != width:
        raise InputError(
            f"{path} has {width} columns and {len(names)} are named: {','.join(names)}"
        )
    axes = axis_names(names, path, "column")
    at = {name: index for index, name in enumerate(names)}
    mapped = dict(zip(axes, AXES, strict=True))
    mapped |= column_names(name for name in names if name not in axes)
    held = {
        mapped[name]: np.ascontiguousarray(values[:, at[name]])
        for name in names
        if name not in axes
    }
    if columns is not None:
        check_colors(held, path)
    integers_where_whole(held)
    factor = colors_to_255(held)
    kept = {mapped[name]: own[at[name]] for name in names}
    source = TextSource(delimiter, decimal, encoding, head, kept, factor)
    return PointCloud(values[:, [at[name] for name in axes]], held, source)


def write_text(path: Path, cloud: PointCloud) -> None:
    """Writes a table: the input's delimiter, decimals, encoding and column order, new columns last.

    CSV gets a line of names, PTS one with the number of points, the others ``# x y z ...`` where
    there are columns to name; numbers are written with every digit needed to read the same value
    back.
    """
    csv, counted = path.suffix.lower() == ".csv", path.suffix.lower() == ".pts"
    source = cloud.source
    kept = isinstance(source, TextSource)
    if not isinstance(source, TextSource):
        begin = Preamble(prefix="" if csv else "# ", others=[("count", "")] if counted else [])
        delimiter = "," if csv else " "
        names = {name: name for name in AXES}
        source = TextSource(delimiter, ".", "utf-8", begin, names, 1.0)
    columns = {axis: cloud.points[:, index] for index, axis in enumerate(AXES)}
    for name, column in cloud.columns.items():
        columns[unique_name(name, AXES)] = column
    order = [name for name in source.names if name in columns]
    order += [name for name in columns if name not in source.names]
    written = [_written(name, columns[name], source) for name in order]
    named = source.preamble.names is not None
    if kept and not named:
        named = set(order) != set(source.names)
    elif not kept:
        named = csv or len(order) > 3
    title = None
    if named:
        own = (_plain(source.names.get(name, name), source.delimiter) for name in order)
        title = source.delimiter.join(own)
    with path.open("wb") as stream:
        head = "".join(f"{line}\n" for line in source.preamble.written(title, len(cloud)))
        stream.write(head.encode(source.encoding, errors="replace"))
        wide = source.encoding.startswith("utf-16")
        rows = io.BytesIO() if wide else stream
        write_rows(rows, written, source.delimiter, source.decimal)
        if isinstance(rows, io.BytesIO) and wide:
            stream.write(rows.getvalue().decode().encode("utf-16-le"))


def _values(
    lines: list[str], start: int, delimiter: str, width: int, path: Path
) -> tuple[np.ndarray, str]:
    """The table [N, width] float64, and what stands before the fractions in it."""
    numbered = [(number, line) for number, line in enumerate(lines[start:], start + 1)]
    numbered = [(number, line) for number, line in numbered if is_data(line)]
    numbers, rows = [number for number, _ in numbered], [row for _, row in numbered]
    decimal = "."
    if delimiter != "," and any("," in row for row in rows):
        both = next((number for number, row in numbered if "," in row and "." in row), None)
        if both is not None:
            raise InputError(
                f"{path}, line {both}: commas and points in one line of numbers; write fractions "
                "behind points, and no separators of thousands"
            )
        warnings.warn(f"{path}: commas read as decimal points", ScanWarning, stacklevel=2)
        rows, decimal = [row.replace(",", ".") for row in rows], ","
    separator = None if delimiter.isspace() else delimiter
    return parse_rows(rows, separator, width, path, numbers, "line"), decimal


def _check_count(head: Preamble, rows: int, path: Path) -> None:
    """Compares the number of points that a line of the file promises."""
    if head.count is None or head.count == rows:
        return
    if head.count > rows:
        raise InputError(
            f"{path} is cut short: its line {head.count_line} promises {head.count} points, "
            f"{rows} are there"
        )
    warnings.warn(
        f"{path}: its line {head.count_line} says {head.count} points; all {rows} are read",
        ScanWarning,
        stacklevel=2,
    )


def _names_of(values: np.ndarray, head: Preamble, path: Path) -> list[str]:
    """Names for a table that carries none; the user is told what they are."""
    width = values.shape[1]
    if path.suffix.lower() == ".pts" and head.count is not None and width in (4, 7):
        colors = values[:, 4:]
        if ((colors >= 0) & (colors <= 255) & (colors == np.rint(colors))).all():
            return list(_PTS_NAMES[:width])
    return positional_names(values, path)


def _written(name: str, column: np.ndarray, source: TextSource) -> np.ndarray:
    factor = source.color_factor
    if name not in COLORS or factor == 1.0 or name not in source.names:
        return column
    whole = factor > 1.0
    return colors_from_255(column, factor, np.dtype(np.int32 if whole else np.float64))


def _plain(name: str, delimiter: str) -> str:
    """A name that reads back as one: blanks within it stay where they separate nothing."""
    apart = r"\s" if delimiter.isspace() else rf"\r\n\t{re.escape(delimiter)}"
    return re.sub(rf"[{apart}]+", "_", name)
