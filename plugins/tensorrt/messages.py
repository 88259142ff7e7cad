"""TensorRT's messages, kept for errors in words. One logger per process, as TensorRT has it."""

from __future__ import annotations

import functools
from typing import Any

_KEPT = 50


@functools.cache
def logger(trt: Any) -> Any:
    """The process's logger over these bindings: silent, it keeps the latest errors.

    Its ``errors`` is a list of lines; ``clear()`` empties it. TensorRT keeps to the first logger it
    is given, so every builder and runtime of this package takes this one.
    """
    severities = trt.ILogger.Severity

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def clear(self) -> None:
            self.errors.clear()

        def log(self, severity: Any, message: str) -> None:
            if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))
                del self.errors[:-_KEPT]

    return Logger()


def first_error(trt: Any) -> str:
    """The first error since the last ``clear()``, or that there was none."""
    errors = logger(trt).errors
    return errors[0] if errors else "TensorRT gave no reason"
