"""Gradient checkpointing: a layer's insides are computed again in the backward pass, not kept.

The second forward pass must leave no trace: batch norms would otherwise move their running
statistics twice a step. :class:`~dela.families.layers.BatchNorm` asks :func:`recomputing`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


class _Recomputation(threading.local):
    # The backward pass of a GPU runs in a thread of its own.
    active = False


_recomputation = _Recomputation()


def recomputing() -> bool:
    """Whether this forward pass repeats an earlier one for its gradients' sake."""
    return _recomputation.active


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` whose intermediate results are dropped and computed again when the
    gradient asks for them; random choices and autocast repeat exactly."""
    if torch.compiler.is_compiling():
        # A compiled graph writes running statistics once, whatever it computes again.
        return checkpoint(function, *arguments, use_reentrant=False)
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=_contexts)


def run(recompute: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, :func:`recomputed` on request."""
    return recomputed(function, *arguments) if recompute else function(*arguments)


def _contexts() -> tuple[Any, Any]:
    return contextlib.nullcontext(), _repeating()


@contextlib.contextmanager
def _repeating() -> Iterator[None]:
    before, _recomputation.active = _recomputation.active, True
    try:
        yield
    finally:
        _recomputation.active = before
