"""What commands show: progress and notes on stderr, tables and JSON on standard output.

rich is imported once something is drawn with it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dela.text import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# Wide enough for every table when the output is a file or a pipe.
_PLAIN_WIDTH = 120


class ProgressBar:
    """A bar on stderr where that is a terminal, elsewhere nothing; a context manager.

    Args:
        description: what goes on.
        total: how much there is to do; None while it is not known.
        done: how much of it is done already.
        shown: False never draws.
        percent: show a share rather than counts.
    """

    def __init__(
        self,
        description: str,
        *,
        total: int | None = None,
        done: int = 0,
        shown: bool = True,
        percent: bool = False,
    ) -> None:
        self._description, self._total, self._done = description, total, done
        self._shown, self._percent = shown, percent
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> ProgressBar:
        if self._shown and sys.stderr.isatty():
            self._bar = _rich_bar(self._percent)
            self._bar.start()
            self._task = self._bar.add_task(
                visible(self._description), total=self._total, completed=self._done
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(
        self, done: float, total: float | None = None, description: str | None = None
    ) -> None:
        """Move the bar to ``done``; the total and the description stay where they are None."""
        if self._bar is not None:
            words = None if description is None else visible(description)
            changes = {"total": total, "description": words}
            given = {name: value for name, value in changes.items() if value is not None}
            self._bar.update(self._task, completed=done, **given)

    def nested(self, description: str, total: int | None) -> ProgressBar:
        """A bar below this one, for a part of the work; it leaves the screen with ``close``."""
        inner = ProgressBar(description, total=total)
        if self._bar is not None:
            inner._bar = self._bar
            inner._task = self._bar.add_task(visible(description), total=total)
        return inner

    def close(self) -> None:
        """Take the bar off the screen; those above and below it stay."""
        if self._bar is not None:
            self._bar.remove_task(self._task)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block that prints lines: the bar is off the screen meanwhile."""
        if self._bar is not None:
            self._bar.stop()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.start()


def note(text: str) -> None:
    """One line on stderr."""
    print(visible(text), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Lines on standard output."""
    print(visible(text), flush=True)


def warn(text: str) -> None:
    """One line on stderr about what may be wrong."""
    note(f"warning: {text}")


def print_json(value: Any, indent: int | None = 2) -> None:
    """One JSON document on standard output; in one line where ``indent`` is None."""
    print(json.dumps(value, indent=indent))


def console() -> Console:
    """Standard output; plain text of a fixed width where it is no terminal.

    Text is shown as it is: brackets are no markup, and what steers a terminal is written out.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return PlainConsole(width=width, highlight=False, markup=False, emoji=False)


def table(*headers: str, left: int = 1) -> Table:
    """An empty table under bold headers; the first ``left`` columns hold text, the others numbers.

    Text is folded where it is too wide, numbers stay in one line.
    """
    drawn = bare_table(header_style="bold")
    for index, header in enumerate(headers):
        drawn.add_column(
            header,
            justify="left" if index < left else "right",
            no_wrap=index >= left,
            overflow="fold" if index < left else "ellipsis",
        )
    return drawn


def bare_table(**looks: Any) -> Table:
    """An empty table without frame or columns."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, **looks)


def styled(text: str, style: str) -> Text:
    """A word of ours in a color."""
    from rich.text import Text

    return Text(text, style)


def _rich_bar(percent: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        TaskProgressColumn() if percent else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
