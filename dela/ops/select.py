"""Which implementation the operators use: the native kernels or the PyTorch reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Implementation = Literal["native", "reference"]

_current: Implementation = "native"


def current() -> Implementation:
    """The implementation in use."""
    return _current


@contextmanager
def implementation(name: Implementation) -> Iterator[None]:
    """Uses ``"native"`` kernels or the ``"reference"`` for both operators inside a ``with`` block.

    It holds for every thread of the process. The reference runs on any device and in any float
    dtype.

    Raises:
        ValueError: another name.
    """
    global _current
    if name not in ("native", "reference"):
        raise ValueError(f"implementation is {name!r}; choose 'native' or 'reference'")
    before, _current = _current, name
    try:
        yield
    finally:
        _current = before
