"""What a training step computes on: the device, its precision, its memory."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from typing import Any

import torch

from dela.errors import DelaError, InputError
from dela.families import family_of
from dela.training.settings.train import ScheduleConfig, TrainConfig

# What allocators of torch and Python say in a RuntimeError.
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


def usable_device(name: str) -> torch.device:
    """The torch device of this name.

    Raises:
        InputError: torch does not know it, or cannot use it here.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise InputError(f"device {name!r} is not usable: {first_line}") from error
    return device


def computes_in_bf16(dtype: str, device: torch.device) -> bool:
    """Whether the dense layers run in bfloat16 for this ``train.dtype``.

    ``auto`` asks for arithmetic in hardware: a processor without AVX512-BF16 or AMX emulates it
    and is slower than in float32.
    """
    if dtype != "auto":
        return dtype == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older releases of torch cannot tell, and get float32.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16"))


def peak_memory(device: torch.device) -> str:
    """The most memory used so far, in words: of the GPU, or else of the process."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"{_gib(torch.cuda.max_memory_allocated(device))} of {_gib(total)} of the GPU"
    # Linux counts kibibytes.
    return f"{_gib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)} of memory"


@contextlib.contextmanager
def explain_out_of_memory(what: str, advice: str, device: torch.device) -> Iterator[None]:
    """Turns a failed allocation in the block into advice.

    Args:
        what: was computed.
        advice: what to try, such as :func:`smaller_steps`.

    Raises:
        DelaError: out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if isinstance(error, RuntimeError) and not any(
            words in str(error).lower() for words in _NO_MEMORY
        ):
            raise
        raise DelaError(
            f"out of memory in {what} ({peak_memory(device)} at most): try {advice}"
        ) from error


def smaller_steps(config: TrainConfig, device: torch.device) -> str:
    """What makes a training step need less memory and is not done yet, best first."""
    schedule: ScheduleConfig = config.train
    ways = []
    if not computes_in_bf16(schedule.dtype, device):
        ways.append('train.dtype = "bf16"')
    if not schedule.checkpoint and family_of(config.model).recomputes:
        ways.append("train.checkpoint = true")
    if schedule.batch_size > 1:
        half = schedule.batch_size // 2
        ways.append(
            f"train.batch_size = {half} with train.accumulate = "
            f"{-(-schedule.batch_size * schedule.accumulate // half)} (now {schedule.batch_size} "
            f"and {schedule.accumulate})"
        )
    if config.model.task == "segmentation":
        ways.append(f"data.points below {config.data.points:,}")
    return ", or ".join(ways or ["a smaller network"])


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
