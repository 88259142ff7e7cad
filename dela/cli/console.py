"""What commands show on stderr while they work: one progress bar, and warnings."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


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
                self._description, total=self._total, completed=self._done
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
            changes = {"total": total, "description": description}
            given = {name: value for name, value in changes.items() if value is not None}
            self._bar.update(self._task, completed=done, **given)

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


def warn(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


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
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TaskProgressColumn() if percent else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
