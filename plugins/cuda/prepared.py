"""Kernels that are launched often: their arguments are packed into memory that is kept.

A launch is one call of the driver and nothing else: no value is wrapped, no context is looked up.
"""

from __future__ import annotations

import ctypes
import functools
import re
import struct
from typing import Any

from dela.plugins.cuda.driver import CudaError, Stream, call, driver
from dela.plugins.cuda.kernels import Kernels
from dela.plugins.cuda.launch import BLOCK

# Parameters of the geometry kernels, in the letters of Python's struct: P address, i int32,
# q int64, Q uint64, d double; 448s a structure of so many bytes.
GEOMETRY = {
    "dela_bounds": "PPiiiP",
    "dela_attributes": "384sPPiiiPP",
    "dela_lowest_points": "PPiiiP",
    "dela_ground_surface": "PPiPPPP",
    "dela_heights": "PPPiiiPP",
    "dela_count_ground": "PPPPiiiPP",
    "dela_ground_correction": "PPPiPPP",
    "dela_correct_heights": "PPPiiiP",
    "dela_cell_keys": "PPPii7diiiiP",
    "dela_number_cells": "PPPii7dPPPP",
    "dela_pick_points": "PPPiqQPP",
    "dela_take_voxels": "PPPPPPiiiqPPP",
    "dela_claim_voxels": "PPPii4dPP",
    "dela_list_voxels": "PPPPiPPPP",
    "dela_sort_count": "PiiP",
    "dela_sort_place": "PPPiiPPP",
    "dela_list_flags": "PiPPP",
    "dela_gather_rows": "PPiiiiP",
    "dela_curve_keys": "PPiP",
    "dela_build_trees": "448sP",
    "dela_knn_1": "512s",
    "dela_knn_32": "512s",
    "dela_knn_any": "64siiP",
    "dela_middle": "PiP",
    "dela_turn_points": "PPi9dP",
    "dela_turn_vectors": "iii9dP",
    "dela_softmax": "PPiiP",
    "dela_add_vote": "PPPPiiii5dPP",
    "dela_label_rows": "PiiPPP",
}

_Launch = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    *[ctypes.c_uint] * 7,
    *[ctypes.c_void_p] * 3,
)


@functools.cache
def _launcher() -> Any:
    """cuLaunchKernel of the driver in use."""
    address, _ = call("cuGetProcAddress", b"cuLaunchKernel", 11000, 0)
    return _Launch(int(address))


def parameters(layout: str) -> list[str]:
    """The letters of a layout, one for each parameter."""
    found: list[str] = []
    for count, letter in re.findall(r"(\d*)([a-zA-Z])", layout):
        found += [count + letter] if letter == "s" else [letter] * int(count or 1)
    return found


class PreparedKernel:
    """A kernel with a place for each of its arguments, written anew for every launch.

    The device's context must be current. Not for several threads at a time.

    Args:
        kernels: that it is one of.
        name: of the kernel.
        layout: its parameters, as in :data:`GEOMETRY`.

    Raises:
        CudaError: there is none of that name.
    """

    def __init__(self, kernels: Kernels, name: str, layout: str) -> None:
        self._name = name
        self._function = int(kernels.function(name))
        self._values = struct.Struct(f"@{layout}")
        self._memory = ctypes.create_string_buffer(self._values.size)
        start, before = ctypes.addressof(self._memory), "@"
        places = []
        for letter in parameters(layout):
            before += letter
            places.append(start + struct.calcsize(before) - struct.calcsize(f"@{letter}"))
        self._places = (ctypes.c_void_p * len(places))(*places)
        self._arguments = ctypes.addressof(self._places)
        self._launch = _launcher()

    def __call__(self, blocks: int, stream: int, *values: Any, block: int = BLOCK) -> None:
        """Queues it; with 0 blocks nothing is queued.

        Args:
            blocks: of the grid.
            stream: handle of the stream.
            values: numbers, addresses (0 for null), bytes of structures.
            block: threads of a block.

        Raises:
            CudaError: the launch failed, or an earlier one on this device did.
            struct.error: a number that does not fit its parameter, or too few values.
        """
        if not blocks:
            return
        self._values.pack_into(self._memory, 0, *values)
        status = self._launch(
            self._function, blocks, 1, 1, block, 1, 1, 0, stream, self._arguments, None
        )
        if status:
            raise self._error(status, blocks, block)

    def _error(self, status: int, blocks: int, block: int) -> CudaError:
        bindings = driver()
        _, text = bindings.cuGetErrorString(bindings.CUresult(status))
        return CudaError(
            f"{self._name} with {blocks} blocks of {block} threads failed: "
            f"{(text or b'').decode()}",
            status,
        )


class PreparedKernels:
    """The geometry kernels on one stream, each prepared when it is first launched."""

    def __init__(self, stream: Stream) -> None:
        self._kernels = Kernels.of(stream.device, "geometry")
        self._stream = stream.handle
        self._prepared: dict[str, PreparedKernel] = {}

    def launch(self, name: str, blocks: int, *values: Any, block: int = BLOCK) -> None:
        """Queues a kernel; see :class:`PreparedKernel`."""
        kernel = self._prepared.get(name)
        if kernel is None:
            kernel = PreparedKernel(self._kernels, name, GEOMETRY[name])
            self._prepared[name] = kernel
        kernel(blocks, self._stream, *values, block=block)
