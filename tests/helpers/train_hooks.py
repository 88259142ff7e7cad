"""What a test hands to the training loop: to say nothing, to be interrupted."""

from __future__ import annotations

from collections.abc import Callable


def silent(line: str) -> None:
    """A log that nobody reads."""


def stop_at(step: int) -> Callable[[int, float], None]:
    """An ``after_step`` that interrupts the run as Ctrl-C does."""

    def hook(taken: int, loss: float) -> None:
        if taken == step:
            raise KeyboardInterrupt

    return hook
