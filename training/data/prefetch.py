"""Prepare the next steps' data in the background while the current step trains.

Reading, voxel grids and neighbor search run in native code or numpy, which mostly let go of the
interpreter lock, so a few threads do; processes keep many workers busy. Results come in order and
each depends on its own number alone, so the workers change nothing but the speed.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar

from dela.errors import DelaError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def pinned(pyramid: Any) -> Any:
    """The arrays as tensors in page-locked memory, from where a GPU fetches them by itself.

    What is there already stays as it is.
    """
    return pyramid.to_tensors().each(lambda tensor: tensor.pin_memory())


def on_device(pyramid: Any, device: torch.device) -> Any:
    """The tensors of :func:`pinned` on their way to a GPU; later work there waits for them."""
    return pyramid.each(lambda tensor: tensor.to(device, non_blocking=True))


def prefetch(
    make: Callable[[int], T],
    start: int,
    stop: int,
    workers: int = 1,
    ahead: int = 2,
    processes: bool = False,
) -> Generator[T, None, None]:
    """``make(start) .. make(stop - 1)`` in order, up to ``ahead`` of them prepared early.

    Args:
        make: called once per number, from a worker; picklable when workers are processes.
        workers: how many; 0 calls ``make`` in the caller's thread, when its result is wanted.
        ahead: results kept ready or in work beyond the one handed out.
        processes: workers are processes, not threads.

    Raises:
        DelaError: a worker process was killed. Otherwise whatever ``make`` raises, when its turn
            comes.
    """
    if workers < 1:
        for number in range(start, stop):
            yield make(number)
        return
    waiting: deque[Future[T]] = deque()
    pool: Executor
    others = set(multiprocessing.active_children())
    if processes:
        # Not forked: the native library's threads and a GPU do not survive that.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _start_worker, (make,))
        task: Callable[[int], T] = _call
    else:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="dela-data")
        task = make
    try:
        for number in range(start, stop):
            while len(waiting) <= ahead and number + len(waiting) < stop:
                waiting.append(pool.submit(task, number + len(waiting)))
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()  # the pool's own SIGTERM does not move them
        raise DelaError(
            "a worker process that prepares samples was killed, perhaps for want of memory; "
            f"set train.workers below {workers}, or train.worker_processes = false"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_make: Any = None


def _start_worker(make: Callable[[int], Any]) -> None:
    """In a new worker process: ends with its parent, and leaves Ctrl-C and SIGTERM to it.

    A job's manager sends SIGTERM to every process; the run still wants its samples to end a step.
    """
    global _make
    _make = make
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _call(number: int) -> Any:
    return _make(number)
