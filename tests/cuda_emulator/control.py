"""What a test may do with the emulated driver besides running on it."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cuda_emulator import build

_ORDERS = ("forward", "backward", "shuffled")


class EmulatedCuda:
    """Settings, counters and faults of the driver that this process runs on.

    Settings (attributes that may be set; see README.md for each): ``defer``,
    ``check_initialized``, ``hide_device_memory``, ``allow_capture_allocation``, ``order``,
    ``capability``, ``driver_version``, ``junk``, ``memory``.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.emulated_cuda_get.restype = ctypes.c_int64
        for function in (self._library.emulated_cuda_faults, self._library.emulated_cuda_launches):
            function.restype = ctypes.c_size_t
        self._seen: list[str] = []

    def _get(self, name: str) -> int:
        return int(self._library.emulated_cuda_get(name.encode()))

    def _set(self, name: str, value: int) -> None:
        if not self._library.emulated_cuda_set(name.encode(), ctypes.c_int64(int(value))):
            raise AttributeError(f"the emulated CUDA driver has no setting {name!r}")

    @property
    def defer(self) -> bool:
        """Whether stream work waits until somebody waits for it."""
        return bool(self._get("defer"))

    @defer.setter
    def defer(self, value: bool) -> None:
        self._set("defer", value)

    @property
    def check_initialised(self) -> bool:
        """Whether kernels may not read bytes that nobody wrote, in memory allocated from now on."""
        return bool(self._get("check_initialised"))

    @check_initialised.setter
    def check_initialised(self, value: bool) -> None:
        self._set("check_initialised", value)

    @property
    def hide_device_memory(self) -> bool:
        """Whether host code that touches device memory dies of it."""
        return bool(self._get("hide_device_memory"))

    @hide_device_memory.setter
    def hide_device_memory(self, value: bool) -> None:
        self._set("hide_device_memory", value)

    @property
    def allow_capture_allocation(self) -> bool:
        """Whether allocating while this thread captures in relaxed mode is no fault."""
        return bool(self._get("allow_capture_allocation"))

    @allow_capture_allocation.setter
    def allow_capture_allocation(self, value: bool) -> None:
        self._set("allow_capture_allocation", value)

    @property
    def order(self) -> str:
        """Order of a kernel's threads and blocks: ``forward``, ``backward`` or ``shuffled``."""
        return _ORDERS[self._get("order")]

    @order.setter
    def order(self, value: str) -> None:
        self._set("order", _ORDERS.index(value))

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability of the device."""
        major, minor = divmod(self._get("capability"), 10)
        return major, minor

    @capability.setter
    def capability(self, value: tuple[int, int]) -> None:
        self._set("capability", value[0] * 10 + value[1])

    @property
    def driver_version(self) -> int:
        """Newest CUDA version the driver knows, such as 13000; images of newer PTX are refused."""
        return self._get("driver_version")

    @driver_version.setter
    def driver_version(self, value: int) -> None:
        self._set("driver_version", value)

    @property
    def junk(self) -> int:
        """The byte that fills fresh memory."""
        return self._get("junk")

    @junk.setter
    def junk(self, value: int) -> None:
        self._set("junk", value)

    @property
    def memory(self) -> int:
        """Bytes of device memory there are; allocating more is CUDA_ERROR_OUT_OF_MEMORY."""
        return self._get("memory")

    @memory.setter
    def memory(self, value: int) -> None:
        self._set("memory", value)

    def count(self, name: str) -> int:
        """A counter since the process started.

        Args:
            name: ``allocations``, ``frees``, ``device_bytes`` (allocated now),
                ``host_allocations``, ``host_frees``, ``launches``, ``graph_launches``,
                ``captures``, ``copies``, ``pageable_copies``, ``bytes_up`` (copied to the device),
                ``bytes_down`` (to the host), ``synchronisations`` or ``calls`` (of any function
                of the driver).
        """
        value = self._get(name)
        if value < 0:
            raise AttributeError(f"the emulated CUDA driver has no counter {name!r}")
        return value

    @staticmethod
    def _lines(function: Any) -> list[str]:
        text = ctypes.create_string_buffer(function(None, ctypes.c_size_t(0)) + 1)
        function(text, ctypes.c_size_t(len(text)))
        return text.value.decode().splitlines()

    def launches(self) -> Counter[str]:
        """How often each kernel has run since the process started."""
        lines = (line.split() for line in self._lines(self._library.emulated_cuda_launches))
        return Counter({name: int(count) for name, count in lines})

    def add_kernels(self, *sources: Path) -> None:
        """Compiles .cu files for the emulator; images with kernels of these names then run."""
        library = build.kernels(sources)
        if not self._library.emulated_cuda_add_kernels(str(library).encode()):
            raise RuntimeError(f"{library} does not load")

    @staticmethod
    def image(*sources: Path) -> bytes:
        """PTX-shaped text that names the kernels of .cu files: what a module is loaded from.

        For tests whose kernels are compiled for no device. It holds names and parameters only.
        """
        return build.image(sources)

    def faults(self) -> Sequence[str]:
        """Faults since the test began, in the driver's words, that were not expected."""
        return self._lines(self._library.emulated_cuda_faults)[len(self._seen) :]

    @contextmanager
    def expect_fault(self, pattern: str) -> Iterator[None]:
        """The block must cause a fault whose text ``pattern`` (a regular expression) matches.

        The device stays out of order until :meth:`recover` or the end of the test, as a real one
        stays until the process ends.
        """
        earlier = self.faults()
        assert not earlier, f"faults before the expected one: {earlier}"
        yield
        found = self.faults()
        assert found, f"no fault; expected one that matches {pattern!r}"
        assert re.search(pattern, found[0]), f"fault {found[0]!r} does not match {pattern!r}"
        self._seen += found

    def recover(self) -> None:
        """Ends the error state after a fault, and sets everything as at first."""
        self._library.emulated_cuda_reset()
        self._seen.clear()

    def begin(self) -> None:
        """Start of a test."""
        self.recover()

    def end(self) -> Sequence[str]:
        """End of a test: its unexpected faults; everything is set as at first."""
        faults = self.faults()
        self.recover()
        return faults
