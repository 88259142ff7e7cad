"""Prepare the next steps' data in background threads while the current step trains.

Threads suffice: reading, voxel grids and neighbour search run in native code or numpy, which let
go of the interpreter lock. Results come in order and each depends on its own number alone, so the
count of workers changes nothing but the speed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


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
