"""Arrays on the device copied into places of their own, padding included, by one kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from dela.plugins.cuda import launch
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.driver import Device, call
from dela.plugins.cuda.kernels import Kernels

# As in gather.cu.
PARTS, _WORD, _PIECE = 16, 4, 4
# Blocks per array at most; each goes on where it ends. Enough to keep any GPU's memory busy.
_MOST_BLOCKS = 2048


class _Part(ctypes.Structure):
    _fields_ = [
        ("source", ctypes.c_uint64),
        ("target", ctypes.c_uint64),
        ("given", ctypes.c_uint64),
        ("total", ctypes.c_uint64),
        ("row", ctypes.c_uint64),
    ]


_Parts = _Part * PARTS


class _Group:
    """At most :data:`PARTS` arrays, which one launch serves."""

    def __init__(self, targets: Sequence[DeviceArray], repeated: Sequence[bool]) -> None:
        self.parts, self.rows = _Parts(), []
        for part, target, repeat in zip(self.parts, targets, repeated, strict=False):
            part.target, part.total = target.pointer, target.nbytes // _WORD
            self.rows.append(part.total // max(len(target), 1) if repeat else 0)
        largest = max(part.total for part in self.parts)
        blocks = min(-(-largest // (_PIECE * launch.BLOCK)), _MOST_BLOCKS)
        self.geometry = (blocks, len(targets), 1, launch.BLOCK, 1, 1, 0)
        self._pointer = (ctypes.c_void_p * 1)(ctypes.addressof(self.parts))
        self.parameters = ctypes.addressof(self._pointer)


class Gather:
    """Fills arrays from others of as many rows or fewer; one thread uses it at a time.

    Args:
        device: of the arrays.
        targets: to fill, of 4-byte values, each at a multiple of 16 bytes.
        repeated: for each, whether rows beyond the given ones repeat row 0; they are zero else.

    Raises:
        CudaUnavailable: a GPU too old for our kernels.
        CudaError: the kernel does not load.
    """

    def __init__(
        self, device: Device, targets: Sequence[DeviceArray], repeated: Sequence[bool]
    ) -> None:
        self._function = Kernels.of(device, "inputs").function("dela_gather")
        self._groups = [
            _Group(targets[start : start + PARTS], repeated[start : start + PARTS])
            for start in range(0, len(targets), PARTS)
        ]

    @staticmethod
    def takes(sources: Sequence[DeviceArray]) -> bool:
        """Whether the kernel can read the arrays: whole words of four bytes."""
        return not any(array.pointer % _WORD for array in sources)

    def queue(self, sources: Sequence[DeviceArray], stream: int) -> None:
        """Queues the copies: one launch for each :data:`PARTS` arrays.

        Args:
            sources: in the order of the targets, of as many columns.
            stream: the driver's handle.

        Raises:
            CudaError: a launch failed, or an earlier one on this device did.
        """
        for number, group in enumerate(self._groups):
            own = sources[number * PARTS : (number + 1) * PARTS]
            for part, source, row in zip(group.parts, own, group.rows, strict=False):
                part.source, part.given = source.pointer, source.nbytes // _WORD
                part.row = row if part.given else 0
            if group.geometry[0]:
                call("cuLaunchKernel", self._function, *group.geometry, stream, group.parameters, 0)
