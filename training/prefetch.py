"""Prepare the next steps' data in background threads while the current step trains.

Threads suffice: reading, voxel grids and neighbour search run in native code or numpy, which let
go of the interpreter lock. Results come in order and each depends on its own number alone, so the
count of workers changes nothing but the speed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from dela.pyramid import Pyramid

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def pinned(pyramid: Pyramid) -> Pyramid:
    """The pyramid as tensors in page-locked memory, from where a GPU fetches them by itself."""
    return _each(pyramid.to_tensors(), lambda tensor: tensor.pin_memory())


def on_device(pyramid: Pyramid, device: torch.device) -> Pyramid:
    """The tensors of :func:`pinned` on their way to a GPU; later work there waits for them."""
    return _each(pyramid, lambda tensor: tensor.to(device, non_blocking=True))


def _each(pyramid: Pyramid, change: Callable[[Any], Any]) -> Pyramid:
    return Pyramid(
        change(pyramid.points),
        change(pyramid.attributes),
        tuple(map(change, pyramid.neighbors)),
        tuple(map(change, pyramid.kept)),
        tuple(map(change, pyramid.nearest)),
        pyramid.lengths,
    )


def prefetch(
    make: Callable[[int], T], start: int, stop: int, workers: int = 1, ahead: int = 2
) -> Generator[T, None, None]:
    """``make(start) .. make(stop - 1)`` in order, up to ``ahead`` of them prepared early.

    Args:
        make: called once per number, from a worker thread.
        workers: threads; 0 calls ``make`` in the caller's thread, when its result is wanted.
        ahead: results kept ready or in work beyond the one handed out.

    Raises:
        Whatever ``make`` raises, when its turn comes.
    """
    if workers < 1:
        for number in range(start, stop):
            yield make(number)
        return
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dela-data")
    try:
        for number in range(start, stop):
            while len(waiting) <= ahead and number + len(waiting) < stop:
                waiting.append(pool.submit(make, number + len(waiting)))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
