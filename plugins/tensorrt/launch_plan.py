"""What a plugin launches at fixed shapes, worked out once: names, grids and packed arguments.

A launch then writes the addresses into place and calls the driver: nothing is looked up, converted
or allocated between two kernels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dela.plugins.cuda.driver import check, driver
from dela.plugins.cuda.kernels import Kernels
from dela.plugins.tensorrt.operators import Operator

_SLOT = ctypes.sizeof(ctypes.c_uint64)


class _Address:
    """Stands for the address of an input or output, which is known at the launch only."""

    def __init__(self, index: int) -> None:
        self.index = index


class _Launch:
    """One kernel: its geometry, and its arguments in memory that the driver reads.

    Every argument has eight bytes of its own, which is enough for all that our kernels take.
    """

    def __init__(
        self, function: Any, geometry: tuple[int, ...], arguments: Sequence[Any], what: str
    ) -> None:
        self._function, self._geometry, self._what = function, geometry, what
        self._slots = (ctypes.c_uint64 * len(arguments))()
        start = ctypes.addressof(self._slots)
        self._pointers = (ctypes.c_void_p * len(arguments))(
            *(start + _SLOT * slot for slot in range(len(arguments)))
        )
        self._parameters = ctypes.addressof(self._pointers)
        self._open: list[tuple[int, int]] = []
        for slot, argument in enumerate(arguments):
            if isinstance(argument, _Address):
                self._open.append((slot, argument.index))
            elif isinstance(argument, np.generic):
                ctypes.memmove(start + _SLOT * slot, argument.tobytes(), argument.nbytes)
            else:
                self._slots[slot] = argument or 0
        self._run = driver().cuLaunchKernel

    def queue(self, addresses: Sequence[int], stream: int) -> None:
        for slot, index in self._open:
            self._slots[slot] = addresses[index]
        result = self._run(self._function, *self._geometry, stream, self._parameters, 0)
        if int(result[0]) != 0:
            check(result, self._what)


class _Recorder(Kernels):
    """Kernels that write down what they are asked to launch."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.launches: list[_Launch] = []

    def launch(
        self,
        name: str,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        arguments: tuple[Any, ...],
        stream: Any,
        shared: int = 0,
    ) -> None:
        blocks, threads = (
            (*((sizes,) if isinstance(sizes, int) else sizes), 1, 1)[:3] for sizes in (grid, block)
        )
        if 0 not in blocks:
            what = f"{name} with {grid} blocks of {block} threads"
            geometry = (*blocks, *threads, shared)
            self.launches.append(_Launch(self._kernels.function(name), geometry, arguments, what))


class LaunchPlan:
    """The kernels of an operator for inputs of some shapes; one thread uses it at a time.

    Args:
        kernels: of the device it runs on.
        operator: of the table.
        shapes: of the inputs.
        features: name of the features' type.
        fields: of the plugin.

    Raises:
        CudaError: there is no kernel for these shapes.
    """

    def __init__(
        self,
        kernels: Kernels,
        operator: Operator,
        shapes: Sequence[Sequence[int]],
        features: str,
        fields: Mapping[str, Any],
    ) -> None:
        recorder = _Recorder(kernels)
        addresses: Any = [_Address(index) for index in range(len(operator.inputs) + 1)]
        operator.launch(recorder, shapes, features, fields, addresses, 0)
        self._launches = recorder.launches

    def queue(self, addresses: Sequence[int], stream: int) -> None:
        """Queues the kernels; allocates nothing on the device and waits for nothing.

        Args:
            addresses: of the inputs, then of the output.
            stream: the driver's handle.

        Raises:
            CudaError: a launch failed, or an earlier one on this device did.
        """
        for launch in self._launches:
            launch.queue(addresses, stream)
