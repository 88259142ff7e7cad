"""What the documentation shows: its code blocks, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
# Words that stand for something else in a command line, and what stands there when it is parsed.
PLACEHOLDERS = {"NAME": "s3dis", "N": "2", "METRES": "0.04", "METERS": "0.04"}


@dataclass(frozen=True)
class Block:
    """A code block: where it stands, its language ("" for none) and its lines."""

    page: Path
    line: int
    heading: str
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command line of ``dela``, without the word itself."""

    block: Block
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(("dela", *self.words))


def blocks(page: Path) -> Iterator[Block]:
    """Fenced and indented code blocks of a page, in order."""
    heading, language, start, held, fenced = "", "", 0, [], False
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate([*lines, ""], 1):
        if line.startswith("```"):
            if fenced:
                yield Block(page, start, heading, language, "\n".join(held))
            language, start, held, fenced = line[3:].strip(), number, [], not fenced
        elif fenced:
            held.append(line)
        elif line.startswith("    ") and (held or not lines[number - 2].strip()):
            start = start if held else number
            held.append(line[4:])
        else:
            if held:
                yield Block(page, start, heading, "", "\n".join(held))
            held = []
            if line.startswith("#"):
                heading = line.lstrip("# ")


def commands(block: Block) -> Iterator[Command]:
    """The command lines of ``dela`` in a block, also those behind ``torchrun``."""
    if block.language not in ("", "sh"):
        return
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        line = re.sub(r"\$\(.*?\)", "", line)
        line = re.sub(r"\[(-[^\]]*)\]", r"\1", line)  # [--check]: may be left out
        match = re.match(r"(?:torchrun .* -m )?dela (.*)", line)
        if match:
            words = shlex.split(match.group(1), comments=True)
            yield Command(block, tuple(PLACEHOLDERS.get(word, word) for word in words))
