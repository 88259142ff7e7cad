"""The header of a PCD: its fields and counts, in every version the Point Cloud Library reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dela.cloud.formats.columns import check_column_count, decoded, unique_names
from dela.errors import InputError

KINDS = ("ascii", "binary", "binary_compressed")
PADDING = "_"
_LONGEST_HEADER = 1 << 20
_TYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8")
# Names of before version 0.7.
_OLDER = {"COLUMNS": "FIELDS"}


@dataclass(frozen=True)
class PcdField:
    """A field: ``count`` values of one type a point.

    Attributes:
        code: numpy's type code.
        parts: a name for each value, unique in the file; ``fpfh_0`` ... where there are several.
    """

    name: str
    code: str
    count: int
    parts: tuple[str, ...]

    @property
    def padding(self) -> bool:
        """Whether it only fills up the row, as ROS and PCL's own structures do."""
        return self.name == PADDING


@dataclass
class PcdHeader:
    """The lines of a header as words, by their first word in capitals."""

    path: Path
    entries: dict[str, list[str]]
    encoding: str

    @property
    def kind(self) -> str:
        """How the points are stored, one of :data:`KINDS`."""
        return self.words("DATA")[0]

    @property
    def points(self) -> int:
        """How many points; width times height where no line says it."""
        if "POINTS" in self.entries:
            return self.number("POINTS")
        return self.number("WIDTH") * self.number("HEIGHT", 1)

    def words(self, key: str, default: str | None = None) -> list[str]:
        """The words behind a key.

        Raises:
            InputError: there are none and no default.
        """
        words = self.entries.get(key) or (default or "").split()
        if not words:
            raise InputError(f"{self.path}: its header has no {key} line")
        return words

    def number(self, key: str, default: int | None = None) -> int:
        """The count behind a key.

        Raises:
            InputError: it is none, or missing without a default.
        """
        word = self.words(key, None if default is None else str(default))[0]
        if not _is_count(word):
            raise InputError(f"{self.path}: its header says {key} {word[:40]!r}, no count")
        return int(word)

    def fields(self) -> list[PcdField]:
        """The fields, in order.

        Raises:
            InputError: lines of different lengths, an unknown type, too many values a point.
        """
        names = self.words("FIELDS")
        plain = self.kind == "ascii" and not {"SIZE", "TYPE"} & set(self.entries)
        sizes = self.words("SIZE", "4 " * len(names) if plain else None)
        types = self.words("TYPE", "F " * len(names) if plain else None)
        counts = self.words("COUNT", "1 " * len(names))
        if not len(names) == len(sizes) == len(types) == len(counts):
            raise InputError(f"{self.path}: FIELDS, SIZE, TYPE and COUNT have different lengths")
        codes = [f"{kind.lower()}{size}" for kind, size in zip(types, sizes, strict=True)]
        total = 0
        for name, code, count in zip(names, codes, counts, strict=True):
            if code not in _TYPES:
                raise InputError(
                    f"{self.path}: field {name[:40]!r} has type {code[:1].upper()} of "
                    f"{code[1:][:40]} bytes"
                )
            if not _is_count(count):
                raise InputError(f"{self.path}: field {name[:40]!r} has COUNT {count[:40]!r}")
            total += int(count)
            check_column_count(total, self.path)
        return _with_parts(names, codes, [int(count) for count in counts])


def read_header(stream: BinaryIO, path: Path) -> PcdHeader:
    """Reads up to and including the DATA line.

    Raises:
        InputError: there is none, or it names an unknown kind.
    """
    lines = []
    while True:
        line = stream.readline(_LONGEST_HEADER)
        if not line.endswith(b"\n") or stream.tell() > _LONGEST_HEADER:
            raise InputError(f"{path} is not a PCD file: its header has no DATA line")
        lines.append(line)
        if line.split()[:1] and line.split()[0].upper() == b"DATA":
            break
    text, encoding = decoded(b"".join(lines))
    entries: dict[str, list[str]] = {}
    for each in text.split("\n"):
        words = each.split()
        if words and not words[0].startswith("#"):
            key = words[0].upper()
            entries[_OLDER.get(key, key)] = words[1:]
    header = PcdHeader(path, entries, encoding)
    if header.kind not in KINDS:
        raise InputError(f"{path}: unknown DATA {header.kind[:40]!r}; known: {', '.join(KINDS)}")
    return header


def row_type(fields: list[PcdField]) -> np.dtype:
    """A point of a binary file; members are named by the number of their field."""
    return np.dtype([(str(i), "<" + f.code, (f.count,)) for i, f in enumerate(fields)])


def _with_parts(names: list[str], codes: list[str], counts: list[int]) -> list[PcdField]:
    wanted = [
        name if count == 1 else f"{name}_{index}"
        for name, count in zip(names, counts, strict=True)
        for index in range(count)
        if name != PADDING
    ]
    unique = iter(unique_names(wanted))
    fields = []
    for place, (name, code, count) in enumerate(zip(names, codes, counts, strict=True)):
        if name == PADDING:  # a blank keeps these apart from every name of a header
            parts = tuple(f"{place} {index}" for index in range(count))
        else:
            parts = tuple(next(unique) for _ in range(count))
        fields.append(PcdField(name, code, count, parts))
    return fields


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 18
