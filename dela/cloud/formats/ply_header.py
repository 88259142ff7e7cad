"""The header of a PLY: its elements and their properties."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dela.cloud.formats.columns import decoded
from dela.errors import InputError

ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
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
TYPE_NAMES = {
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
class Property:
    """A property of an element; a list's has the type of its length too."""

    name: str
    dtype: str
    count_dtype: str | None = None


@dataclass
class Element:
    """An element of a PLY: how many there are, and what each consists of."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    def lines(self, count: int | None = None) -> list[str]:
        """The element as the header states it."""
        lines = [f"element {self.name} {self.count if count is None else count}"]
        for each in self.properties:
            kind = TYPE_NAMES[each.dtype]
            if each.count_dtype is not None:
                kind = f"list {TYPE_NAMES[each.count_dtype]} {kind}"
            lines.append(f"property {kind} {each.name}")
        return lines


@dataclass
class PlyHeader:
    """What stands before the bodies of a PLY.

    Attributes:
        order: a key of :data:`ORDERS`.
        comments: the ``comment`` and ``obj_info`` lines.
        encoding: UTF-8, or Latin-1 where it is not that.
    """

    order: str = ""
    comments: list[str] = field(default_factory=list)
    elements: list[Element] = field(default_factory=list)
    encoding: str = "utf-8"

    def take(self, line: str) -> None:
        """Adds what a line says.

        Raises:
            IndexError, KeyError, ValueError: it breaks the rules.
        """
        words = line.split()
        match words[0]:
            case "comment" | "obj_info":
                self.comments.append(line)
            case "format":
                self.order = words[1]
                if self.order not in ORDERS:
                    raise ValueError(
                        f"unknown format {words[1][:40]!r}; known: {', '.join(ORDERS)}"
                    )
            case "element":
                self.elements.append(Element(words[1], int(words[2])))
                if self.elements[-1].count < 0:
                    raise ValueError
            case "property":
                self.elements[-1].properties.append(_property(words))
            case _:
                raise ValueError

    def check(self, path: Path) -> None:
        """Refuses a header that is not whole.

        Raises:
            InputError: no format, or two properties of one name in an element.
        """
        if not self.order:
            raise InputError(f"{path}: its header has no format line")
        for element in self.elements:
            counts = Counter(each.name for each in element.properties)
            twice = [name for name, count in counts.items() if count > 1]
            if twice:
                raise InputError(
                    f"{path}: property {min(twice)!r} of {element.name} is there twice"
                )


def read_header(stream: BinaryIO, path: Path) -> PlyHeader:
    """Reads up to and including ``end_header``.

    Raises:
        InputError: no PLY, or a line that breaks the rules (with its number).
    """
    if stream.readline(16).rstrip() != b"ply":
        raise InputError(f"{path} is not a PLY file: its first line is not 'ply'")
    raw: list[bytes] = []
    while True:
        line = stream.readline(_LONGEST_HEADER)
        if not line.endswith(b"\n") or stream.tell() > _LONGEST_HEADER:
            raise InputError(f"{path}: its header has no end_header line")
        if line.split()[:1] == [b"end_header"]:
            break
        raw.append(line)
    text, encoding = decoded(b"".join(raw))
    header = PlyHeader(encoding=encoding)
    for number, each in enumerate(text.split("\n"), 2):
        each = each.rstrip("\r")
        if not each.strip():
            continue
        try:
            header.take(each)
        except (IndexError, ValueError, KeyError) as error:
            known = str(error) if str(error).startswith("unknown") else ""
            message = known or f"{each[:80]!r} is not a PLY header"
            raise InputError(f"{path}, line {number}: {message}") from error
    header.check(path)
    return header


def _property(words: list[str]) -> Property:
    if words[1] == "list":
        return Property(words[4], _TYPES[words[3]], _TYPES[words[2]])
    return Property(words[2], _TYPES[words[1]])
