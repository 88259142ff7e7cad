"""Processes that train, started quickly: a server imports torch once and forks them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import time
from pathlib import Path
from typing import Any

from dela.training.data.prefetch import prefetch
from dela.training.settings.train import TrainConfig

_CONTEXT = multiprocessing.get_context("forkserver")
# The first optimizer imports torch._dynamo, seconds that every process would spend anew.
_CONTEXT.set_forkserver_preload(["dela.training.run.loop", "dela.cloud.formats", "torch._dynamo"])


def start(target: Any, *arguments: Any) -> Any:
    """A running process of ``target(*arguments)``, a function of a module."""
    process = _CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def run_group(size: int, target: Any, *arguments: Any, seconds: float = 60) -> None:
    """``target(*arguments)`` in ``size`` processes with the variables that torchrun sets."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(_member, rank, size, port, target, arguments) for rank in range(size)]
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * size, f"exit codes {codes}"


def _member(rank: int, size: int, port: int, target: Any, arguments: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    target(*arguments)


def train_quietly(config: TrainConfig, run: Path, resume: bool = False) -> None:
    import torch

    from dela.training.run.loop import train

    torch.set_num_threads(1)
    train(config, run, resume=resume, log=lambda line: None)


def square_below_20(number: int) -> int:
    if number == 20:
        raise ValueError("no more")
    return number * number


def prefetch_forever(note: Path) -> None:
    """Keeps one worker process and writes its number into ``note``."""
    for worker in prefetch(_own_number, 0, 10**6, workers=1, processes=True):
        note.with_suffix(".new").write_text(str(worker))
        note.with_suffix(".new").rename(note)
        time.sleep(60)


def _own_number(_: int) -> int:
    return os.getpid()
