"""Several processes that train one network: ``torchrun`` starts them, one a device.

A process alone is a group of one, in which every exchange is the identity, so the training loop
reads the same for any number.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dela.errors import DelaError, InputError
from dela.training.run.devices import usable_device

T = TypeVar("T")

# A process waits this long for the others, which may have more scans to validate.
PATIENCE = datetime.timedelta(hours=1)

# The process group joined last. Its destructor waits for its own threads, which may be waiting for
# Python's lock; freed by Python it lets go of the lock first, by DDP's reducer (the last owner when
# an error ends a run) it does not, and both would wait for ever.
_kept_groups: list[Any] = []


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them.

    Attributes:
        device: what this process computes on.
        rank: its number, 0 .. size - 1; rank 0 writes the run folder.
        size: how many processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's ``values``, which all have one shape; on ``device``."""
        values = values.to(self.device)
        if self.size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Every process's ``value``, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))))

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of a list that all of them hold."""
        return list(items[self.rank :: self.size])

    def take_buffers(self, model: nn.Module) -> None:
        """Give every process the running statistics that rank 0 has."""
        if self.size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def parallel(self, model: nn.Module) -> nn.Module:
        """``model`` with gradients averaged over the processes after each backward pass."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model)


def gradients_kept_local(network: nn.Module, local: bool) -> contextlib.AbstractContextManager[Any]:
    """A block whose backward pass adds gradients up without the other processes, if ``local``."""
    if local and isinstance(network, nn.parallel.DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def join_group(device: str) -> Iterator[Group]:
    """The group that ``torchrun`` started this process in; alone, a group of one.

    Args:
        device: ``cpu``, ``cuda`` (each process its own GPU of the machine) or ``cuda:N``.

    Raises:
        InputError: a device that is not usable, or one GPU named for several processes.
        DelaError: another process of the group ended while this one exchanged values with it.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(usable_device(device))
        return
    if device.startswith("cuda:"):
        raise InputError(
            f"device {device!r} for {size} processes; give --device cuda, each takes its own GPU"
        )
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch_device = usable_device(device)
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    backend = "nccl" if torch_device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    _kept_groups[:] = [torch.distributed.group.WORLD]
    try:
        yield Group(torch_device, torch.distributed.get_rank(), size)
    except RuntimeError as error:
        # Gloo's own errors have no class.
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            rank = torch.distributed.get_rank()
            raise DelaError(f"process {rank} stops: another process ended, see there") from error
        raise
    finally:
        torch.distributed.destroy_process_group()
