"""What a training run shows: a bar on a terminal, one line an epoch anywhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from dela.cli.console import ProgressBar


class TrainingProgress:
    """A progress bar over all steps on a terminal's stderr; without a terminal only the lines.

    Used as a context manager. Lines printed through :meth:`line` stand above the bar.

    Args:
        total_steps: of the training.
        done: steps taken before.
        log: receives the lines.
        shown: False shows no bar.
    """

    def __init__(
        self, total_steps: int, done: int, log: Callable[[str], None], shown: bool = True
    ) -> None:
        self._total, self._first = total_steps, done
        self._log = log
        self._bar = ProgressBar("training", total=total_steps, done=done, shown=shown)
        self._tells_time = shown and sys.stderr.isatty()
        self._started = 0.0

    def __enter__(self) -> TrainingProgress:
        self._started = time.monotonic()
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def step(self, step: int, description: str) -> None:
        """Move the bar to ``step``."""
        self._bar.update(step, description=description)

    def line(self, text: str, step: int) -> None:
        """Log a line, with the time left where no bar shows it."""
        if not self._tells_time and self._first < step < self._total:
            seconds = time.monotonic() - self._started
            left = seconds / (step - self._first) * (self._total - step)
            text += f", {_duration(left)} left"
        with self._bar.paused():
            self._log(text)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
