"""What a training run shows: a bar on a terminal, one line an epoch anywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


class TrainingProgress:
    """A progress bar over all steps on a terminal's stderr; without a terminal only the lines.

    Used as a context manager. Lines printed through :meth:`line` stand above the bar.
    """

    def __init__(
        self, total_steps: int, done: int, log: Callable[[str], None], shown: bool = True
    ) -> None:
        self._total, self._first, self._shown = total_steps, done, shown
        self._log = log
        self._started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> TrainingProgress:
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._total, completed=self._first)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, description: str) -> None:
        """Move the bar to ``step``."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=description)

    def line(self, text: str, step: int) -> None:
        """Log a line, with the time left where no bar shows it."""
        if self._bar is None and self._first < step < self._total:
            seconds = time.monotonic() - self._started
            left = seconds / (step - self._first) * (self._total - step)
            text += f", {_duration(left)} left"
        if self._bar is not None:
            self._bar.stop()
        self._log(text)
        if self._bar is not None:
            self._bar.start()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
