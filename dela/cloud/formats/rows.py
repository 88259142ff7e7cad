"""Rows of numbers as text: what text tables and the ascii kinds of PLY and PCD share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dela.cloud.formats.columns import lossless
from dela.errors import InputError

_ROWS_AT_ONCE = 1 << 15
# Spellings of C libraries: 1.#QNAN and -1.#IND of Microsoft's, nan(ind) of its successor.
_NAN = re.compile(r"(?<![\w.])[-+]?(?:1\.#(?:IND|QNAN|SNAN|NAN)\d*|nan\([\w ]*\))", re.IGNORECASE)
_INFINITE = re.compile(r"(?<![\w.])([-+]?)1\.#INF\d*", re.IGNORECASE)


def write_rows(
    stream: BinaryIO, columns: Sequence[np.ndarray], delimiter: str, decimal: str = "."
) -> None:
    """Rows of numbers, one formatting call for many rows; floats so that they read back alike.

    Args:
        decimal: what stands before a number's fraction; the delimiter is another character.
    """
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
        text = row * len(parts[0]) % flat
        stream.write((text if decimal == "." else text.replace(".", decimal)).encode())


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
        values = parse_rows(rows, None, len(fields), path, range(1, len(rows) + 1), "data line")
    result = {}
    for index, (name, code) in enumerate(fields):
        exact = lossless(values[:, index], np.dtype(code))
        if exact is None:
            if np.dtype(code).kind in "ui":
                raise InputError(f"{path}: property {name!r} holds values that its type does not")
            exact = values[:, index].astype(code)
        result[name] = exact
    return result


def parse_rows(
    rows: list[str],
    delimiter: str | None,
    width: int,
    path: Path,
    numbers: Sequence[int],
    what: str,
) -> np.ndarray:
    """[rows, width] float64 of lines that hold as many numbers; every spelling of NaN is one.

    Args:
        delimiter: None for blanks.
        numbers: each line's number, for errors.
        what: how errors call a line.

    Raises:
        InputError: a line with more or fewer numbers, or a word that is none.
    """
    if not rows:
        return np.empty((0, width))
    for spelled in (rows, None):
        if spelled is None:
            spelled = [_INFINITE.sub(r"\1inf", _NAN.sub("nan", row)) for row in rows]
        try:
            values = np.loadtxt(spelled, delimiter=delimiter, ndmin=2, comments=None)
        except ValueError:
            continue
        if values.shape == (len(rows), width):
            return values
    for number, row in zip(numbers, rows, strict=True):
        words = split(row, delimiter or " ")
        if len(words) != width:
            raise InputError(f"{path}, {what} {number}: {len(words)} values, expected {width}")
        for word in words:
            if not is_number(word):
                raise InputError(f"{path}, {what} {number}: {word[:40]!r} is not a number")
    raise InputError(f"{path}: its lines are not a table of numbers")


def split(line: str, delimiter: str) -> list[str]:
    """The words of a line; several blanks separate as one does."""
    if delimiter.isspace():
        return line.split()
    return [word.strip() for word in line.strip().split(delimiter)]


def is_number(word: str) -> bool:
    """Whether a word is a number, NaN and infinity among them."""
    try:
        float(word)
    except ValueError:
        return bool(_NAN.fullmatch(word) or _INFINITE.fullmatch(word))
    return "_" not in word
