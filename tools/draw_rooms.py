"""Draws docs/images/architecture.svg: the rooms of tests/test_structure.py, as the code has them.

Each room's text is the first sentence of its docstring, arrows are imports between folders that
exist, a dot is a module-level ``import torch``. Run without arguments it renews the file; a test
compares.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURE = REPOSITORY / "docs" / "images" / "architecture.svg"

WIDTH, MARGIN, PAD, GAP, LANE = 900, 14, 12, 8, 44
LINE, TITLE, HEADER = 14.5, 24, 34
LETTER = 6.5  # width of a letter of the small text, on average
FLOORS = {
    "plugins": "plugins",
    "dela": "core",
    "training": "top",
    "export": "top",
    "runtime": "top",
}
# What a folder's own modules are for, where they stand in no room; shown as a box of its own.
OWN_MODULES = {"export": "network to file", "runtime": "verify, bench ..."}
LEADS = {
    "plugins": "kernels, one source per host; imports nothing of ours",
    "dela": "what training, export and runtime share, and the command",
    "training": "from scans to a checkpoint",
    "export": "from a checkpoint to files",
    "runtime": "from files to labels",
}

STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Arial, sans-serif; }
.name { font-size: 15px; font-weight: 600; fill: #1b2430; }
.lead { font-size: 12.5px; fill: #55606e; }
.room { font-size: 13px; font-weight: 600; fill: #1b2430; }
.text { font-size: 11.5px; fill: #3d4856; }
.box { fill: #ffffff; stroke-width: 1; }
.plugins { fill: #fbf1dc; } .core { fill: #e4f2e7; } .top { fill: #e3edfa; }
.box.in-plugins { stroke: #dcb566; } .box.in-core { stroke: #84bd91; }
.box.in-top { stroke: #86aee0; }
.arrow { stroke: #6b7684; stroke-width: 2; fill: none; }
.head { fill: #6b7684; }
.torch { fill: #d9532c; }
"""
DARK = """
.name, .room { fill: #e8edf3; } .lead { fill: #a3aebb; } .text { fill: #c3ccd6; }
.box { fill: #161b22; }
.plugins { fill: #3a2f17; } .core { fill: #18321f; } .top { fill: #182a44; }
.box.in-plugins { stroke: #8f7434; } .box.in-core { stroke: #3f7a4e; }
.box.in-top { stroke: #3f6aa3; }
.arrow { stroke: #98a3b0; } .head { fill: #98a3b0; }
.torch { fill: #ff8a5e; }
"""


@dataclass
class Picture:
    """Shapes drawn so far."""

    parts: list[str] = field(default_factory=list)

    def rect(self, x: float, y: float, size: tuple[float, float], name: str, radius: int) -> None:
        width, height = size
        self.parts.append(
            f'<rect class="{name}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'rx="{radius}"/>'
        )

    def text(self, x: float, y: float, name: str, text: str, anchor: str = "start") -> None:
        self.parts.append(
            f'<text class="{name}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def arrow(self, x: float, start: float, end: float) -> None:
        self.parts.append(f'<path class="arrow" d="M{x:g} {start:g}V{end - 8:g}"/>')
        self.parts.append(f'<path class="head" d="M{x - 6:g} {end - 9:g}h12l-6 9z"/>')


@dataclass(frozen=True)
class Room:
    """A box: its name, its text in lines, and whether it imports torch when it is loaded."""

    name: str
    lines: tuple[str, ...]
    torch: bool

    @property
    def height(self) -> float:
        return TITLE + LINE * len(self.lines) + 6


def structure() -> Any:
    """tests/test_structure.py, which holds the order of the rooms and reads the imports."""
    path = REPOSITORY / "tests" / "test_structure.py"
    spec = importlib.util.spec_from_file_location("test_structure", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("test_structure", module)
    spec.loader.exec_module(module)
    return module


def first_sentence(text: str) -> str:
    """A docstring's first sentence, without the marks of reStructuredText."""
    text = " ".join(text.split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "")
    return re.split(r"(?<=[.;]) ", text)[0].rstrip(".;")


def room(rooms: Any, folder: str, name: str, width: float) -> Room:
    """A room as its modules are now."""
    package = "dela" if folder == "dela" else f"dela.{folder}"
    modules = [module for module in rooms.MODULES if rooms.place(module) == (folder, name)]
    if not name:
        modules = [module for module in modules if module.count(".") > 1 or folder == "dela"]
    whole = f"{package}.{name}"
    if whole in rooms.TREES:
        text = first_sentence(ast.get_docstring(rooms.TREES[whole]) or "")
    elif name:
        text = "Registers the CPU kernels with ONNX Runtime (C++)"  # a folder without Python
    else:
        text = ", ".join(sorted(module.rpartition(".")[2] for module in modules))
    torch = any(_needs_torch(rooms.TREES[module]) for module in modules)
    lines = textwrap.wrap(text, int((width - 16) / LETTER))
    return Room(name or OWN_MODULES[folder], tuple(lines), torch)


def _needs_torch(tree: ast.Module) -> bool:
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if any(name.split(".")[0] == "torch" for name in names):
            return True
    return False


@dataclass(frozen=True)
class Panel:
    """A folder with its rooms in rows, the lowest room at the bottom left."""

    folder: str
    rows: tuple[tuple[Room, ...], ...]
    column: float

    @classmethod
    def of(cls, rooms: Any, folder: str, width: float, columns: int) -> Panel:
        column = (width - 2 * PAD - (columns - 1) * GAP) / columns
        found = [room(rooms, folder, name, column) for name in rooms.ROOMS[folder]]
        rows = [tuple(found[at : at + columns]) for at in range(0, len(found), columns)]
        return cls(folder, tuple(reversed(rows)), column)

    @property
    def height(self) -> float:
        rows = [max(room.height for room in row) for row in self.rows]
        return HEADER + sum(rows) + GAP * (len(rows) - 1) + PAD

    def draw(self, picture: Picture, x: float, y: float, size: tuple[float, float]) -> None:
        """Draws the folder; rows share what ``size`` is higher than needed."""
        width, height = size
        floor = FLOORS[self.folder]
        picture.rect(x, y, (width, height), floor, 10)
        picture.text(x + PAD, y + 22, "name", f"{self.folder}/")
        picture.text(x + width - PAD, y + 22, "lead", LEADS[self.folder], "end")
        more = (height - self.height) / len(self.rows)
        top = y + HEADER
        for row in self.rows:
            tall = max(room.height for room in row) + more
            for at, each in enumerate(row):
                left = x + PAD + at * (self.column + GAP)
                picture.rect(left, top, (self.column, tall), f"box in-{floor}", 6)
                picture.text(left + 8, top + 18, "room", each.name)
                if each.torch:
                    spot = f'cx="{left + self.column - 12:g}" cy="{top + 13:g}"'
                    picture.parts.append(f'<circle class="torch" {spot} r="4"/>')
                for number, line in enumerate(each.lines):
                    picture.text(left + 8, top + 35 + number * LINE, "text", line)
            top += tall + GAP


def draw(dark: bool | None = None) -> str:
    """The picture as SVG; in dark colors where the reader's screen is, or as ``dark`` says."""
    rooms = structure()
    picture = Picture()
    whole = WIDTH - 2 * MARGIN
    half = (whole - GAP * 2) * 0.6
    rest = whole - GAP * 2 - half
    training = Panel.of(rooms, "training", half, 3)
    export = Panel.of(rooms, "export", rest, 2)
    runtime = Panel.of(rooms, "runtime", rest, 2)
    top = max(training.height, export.height + runtime.height + GAP * 2)
    right = MARGIN + half + GAP * 2
    more = (top - export.height - runtime.height - GAP * 2) / 2
    upper = runtime.height + more
    training.draw(picture, MARGIN, MARGIN, (half, top))
    runtime.draw(picture, right, MARGIN, (rest, upper))
    export.draw(picture, right, MARGIN + upper + GAP * 2, (rest, top - upper - GAP * 2))
    floor = MARGIN + top
    core, kernels = Panel.of(rooms, "dela", whole, 4), Panel.of(rooms, "plugins", whole, 4)
    middles = {"training": MARGIN + half / 2, "export and runtime": right + rest / 4}
    for folders, x in middles.items():
        _arrow(picture, rooms, (folders.split(" and "), "dela"), x, floor)
    core.draw(picture, MARGIN, floor + LANE, (whole, core.height))
    floor += LANE + core.height
    every = [folder for folder in rooms.FOLDERS if folder != "plugins"]
    _arrow(picture, rooms, (every, "plugins"), WIDTH / 2 - 120, floor)
    kernels.draw(picture, MARGIN, floor + LANE, (whole, kernels.height))
    floor += LANE + kernels.height
    picture.parts.append(f'<circle class="torch" cx="{MARGIN + 6}" cy="{floor + 20:g}" r="4"/>')
    order = "Of its folder, a room imports those to its left and in rows below."
    picture.text(MARGIN + 18, floor + 24, "lead", f"has modules that import torch. {order}")
    return _svg(picture, floor + 36, dark)


def _arrow(
    picture: Picture, rooms: Any, link: tuple[Sequence[str], str], x: float, floor: float
) -> None:
    """An arrow down to a folder, and which of the folders above import it."""
    above, target = link
    found = [
        folder
        for folder in above
        if any(
            rooms.place(other)[0] == target
            for name in rooms.MODULES
            if rooms.place(name)[0] == folder
            for other in rooms.imports(name)
        )
    ]
    if found:
        names = " and ".join(filter(None, [", ".join(found[:-1]), found[-1]]))
        picture.arrow(x, floor + 4, floor + LANE - 3)
        verb = "import" if len(found) > 1 else "imports"
        picture.text(x + 12, floor + LANE / 2 + 5, "lead", f"{names} {verb} {target}")


def _svg(picture: Picture, height: float, dark: bool | None) -> str:
    style = STYLE + (f"@media (prefers-color-scheme: dark) {{{DARK}}}\n" if dark is None else "")
    style += DARK if dark else ""
    body = "\n".join(picture.parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}">\n<style>{style}</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE.relative_to(REPOSITORY))
