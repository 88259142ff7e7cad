"""What stands before the points of a text table: remarks, a title, names, the number of points."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dela.cloud.formats.columns import AXES
from dela.cloud.formats.rows import is_number, split
from dela.errors import InputError

_COMMENT = re.compile(r"^\s*(#|//|%|;)")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+(?:,\d+)?(?:[eE][-+]?\d+)?")


@dataclass
class Preamble:
    """The lines before the first point.

    Attributes:
        names: the table's own names, in order; None without a line of them.
        prefix: what stands before the names (``#``, ``//`` or nothing).
        delimiter: what stands between two names.
        count: the number of points that a line states, and that line's number.
        others: (kind, text) of each line in order: ``text`` as it is, ``names``, ``count``.
        lines: how many there are.
    """

    names: list[str] | None = None
    prefix: str = "# "
    delimiter: str = ""
    count: int | None = None
    count_line: int = 0
    others: list[tuple[str, str]] = field(default_factory=list)
    lines: int = 0
    _titles: list[tuple[int, int]] = field(default_factory=list)  # place in others, line's number

    def settle_names(self, width: int, path: Path) -> None:
        """Tells names from titles, now that the number of columns is known.

        Raises:
            InputError: names of another number than the columns, or a line that is neither.
        """
        for place, number in self._titles:
            line = self.others[place][1]
            mark = _COMMENT.match(line)
            content = line[mark.end() :] if mark else line
            apart = delimiter_of(content)
            words = split(content, apart)
            axes = set(AXES) <= {word.strip("\"'").lower() for word in words}
            numbers = [word for word in words if is_number(word)]
            if mark:
                fits = axes and len(words) == width and not numbers
            elif numbers and len(words) == width:
                wrong = next(word for word in words if not is_number(word))
                raise InputError(f"{path}, line {number}: {wrong[:40]!r} is not a number")
            elif axes and len(words) != width:
                raise InputError(f"{path} names {len(words)} columns, its lines hold {width}")
            else:
                fits = len(words) == width
            if not fits:
                continue
            self.others = [("text" if kind == "names" else kind, t) for kind, t in self.others]
            self.others[place] = ("names", line)
            self.names = words if mark else [word.strip("\"'") for word in words]
            self.prefix = line[: len(line) - len(content.lstrip())] if mark else ""

    def written(self, title: str | None, count: int) -> Iterator[str]:
        """The lines again, with these names (or none) and this number of points."""
        for kind, text in self.others:
            if kind == "text":
                yield text
            elif kind == "count":
                yield str(count)
            elif title is not None:
                yield f"{self.prefix}{title}"
        if title is not None and all(kind != "names" for kind, _ in self.others):
            yield f"{self.prefix}{title}"


def read_preamble(lines: list[str], path: Path) -> Preamble:
    """The lines before the first row of numbers.

    Raises:
        InputError: the file has text and no numbers at all.
    """
    head = Preamble()
    for index, line in enumerate(lines):
        text = line.rstrip("\r\n")
        words = split(text, delimiter_of(text)) if text.strip() else []
        if words and not _COMMENT.match(text):
            if delimiter_of(text) != ",":
                words = [word.replace(",", ".", 1) for word in words]
            numbers = sum(map(is_number, words))
            if len(words) == 1 and words[0].isdecimal() and head.count is None:
                head.count, head.count_line = int(words[0][:18]), index + 1
                head.others.append(("count", ""))
                continue
            if is_number(words[0]) or numbers >= 3:
                head.lines = index
                return head
        if words:
            head._titles.append((len(head.others), index + 1))
        head.others.append(("text", text))
    head.lines = len(lines)
    _settle_without_points(head, path)
    return head


def _settle_without_points(head: Preamble, path: Path) -> None:
    """A file without points names its columns, or is empty, or is no table."""
    if head.count:
        head.lines = next(i for i, (kind, _) in enumerate(head.others) if kind == "count")
        return
    for place, number in head._titles:
        text = head.others[place][1]
        mark = _COMMENT.match(text)
        content = text[mark.end() :] if mark else text
        words = split(content, delimiter_of(content))
        if set(AXES) <= {word.strip("\"'").lower() for word in words}:
            head.delimiter, head.names = delimiter_of(content), words
        elif not mark:
            wrong = next((word for word in words if not is_number(word)), words[0])
            raise InputError(
                f"{path}, line {number}: {wrong[:40]!r} is not a number, and no line has three"
            )


def is_data(line: str) -> bool:
    """Whether a line behind the preamble is a row: neither blank nor a remark."""
    return bool(line.strip()) and not _COMMENT.match(line)


def delimiter_of(line: str) -> str:
    """What separates a line's values; commas are decimal where something else separates."""
    line = line.strip()
    if ";" in line:
        return ";"
    if "," in line:
        words = line.split()
        decimals = len(words) >= 3 and all(map(_DECIMAL_COMMA.fullmatch, words))
        if not decimals:
            return ","
    return "\t" if "\t" in line else " "
