"""Tables of numbers as the published datasets hold them: blank-separated text, one point a line."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import numpy as np

from dela.errors import InputError

# Bytes that no table of numbers holds: control characters and everything beyond ASCII.
_ILLEGAL = re.compile(rb"[^\t\n\r\x20-\x7e]+")
_SHOWN = 60


def read_table(path: Path, width: int, repair: bool = False) -> tuple[np.ndarray, list[str]]:
    """Numbers [N, width] float64 of a text file, N >= 1, and a note for each repaired line.

    Args:
        path: blank-separated values; empty lines are skipped.
        width: values a line.
        repair: mend lines that hold bytes no table has. Such a byte stands either for a blank
            between two values or within a value: whichever gives ``width`` numbers is taken.

    Raises:
        InputError: a missing file, no line at all, or one that is not ``width`` finite numbers
            (with its number).
    """
    try:
        with path.open(encoding="latin1") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file
            values = np.loadtxt(stream, ndmin=2, comments=None)
        if values.shape[1] == width and len(values) and np.isfinite(values).all():
            return values, []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:
        pass
    return _line_by_line(path, width, repair)


def _line_by_line(path: Path, width: int, repair: bool) -> tuple[np.ndarray, list[str]]:
    rows: list[list[float]] = []
    notes = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            row = _numbers(line)
            if repair and (row is None or len(row) != width) and _ILLEGAL.search(line):
                row = _mended(line, width)
                if row is not None:
                    read = " ".join(f"{value:g}" for value in row)
                    notes.append(f"{path}, line {number}: {_shown(line)} read as '{read}'")
            if row is None:
                raise InputError(f"{path}, line {number}: {_shown(line)} is not {width} numbers")
            if len(row) != width:
                raise InputError(f"{path}, line {number}: {len(row)} values, expected {width}")
            if not all(map(math.isfinite, row)):
                raise InputError(f"{path}, line {number}: {_shown(line)} holds no finite numbers")
            rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no points")
    return np.array(rows), notes


def _numbers(line: bytes) -> list[float] | None:
    if b"_" in line or not line.isascii():
        return None
    try:
        return [float(word) for word in line.split(None)]
    except ValueError:
        return None


def _mended(line: bytes, width: int) -> list[float] | None:
    for replacement in (b" ", b""):
        row = _numbers(_ILLEGAL.sub(replacement, line))
        if row is not None and len(row) == width:
            return row
    return None


def _shown(line: bytes) -> str:
    text = line.strip().decode("latin1").encode("unicode_escape").decode("ascii")
    return f"'{text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}'"
