"""What geometry in device memory is made of: sorting, listing, gathering, bounds; on one stream.

Work is queued; :meth:`GpuQueue.bounds` and :meth:`GpuQueue.read_count` wait for it. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dela.errors import InputError
from dela.geometry.bounds import Bounds
from dela.plugins.cuda.arrays import DeviceArray, GrowingBuffer, PinnedArray, as_device_array
from dela.plugins.cuda.driver import Stream
from dela.plugins.cuda.kernels import Kernels
from dela.plugins.cuda.launch import BLOCK, divide_up

# As in plugins/cuda: geometry.cuh and sort.cu.
TILE = 16 * BLOCK
DIGIT_BITS = 6
SCAN_BLOCK = 512
BOUNDS_WORDS = 7

_i32 = np.int32


class Workspace:
    """Device memory by name: an array taken twice under one name may be the same memory.

    Whoever takes an array of it on another stream, or in another library, waits for this stream.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffers: dict[str, GrowingBuffer] = {}

    def array(self, name: str, shape: Sequence[int], dtype: Any) -> DeviceArray:
        buffer = self._buffers.setdefault(name, GrowingBuffer(self._stream.device))
        array = buffer.array(shape, dtype)
        array.stream = self._stream
        return array


class GpuQueue:
    """Kernels queued on one stream, with scratch memory that is reused from call to call.

    Raises:
        CudaUnavailable: no driver, no GPU, or one that is too old.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.kernels = Kernels.of(stream.device, "geometry")
        self.scratch = Workspace(stream)
        self._answers = PinnedArray((BOUNDS_WORDS + 2,), np.uint64, stream.device)

    def launch(self, name: str, threads: int, *arguments: Any) -> None:
        """Queues a kernel of one thread per item."""
        self.kernels.launch(name, divide_up(threads, BLOCK), BLOCK, arguments, self.stream)

    def launch_tiles(self, name: str, items: int, *arguments: Any) -> None:
        """Queues a kernel of one block per tile of items."""
        self.kernels.launch(name, divide_up(items, TILE), BLOCK, arguments, self.stream)

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """New memory for results."""
        return DeviceArray.empty(shape, dtype, self.stream.device, self.stream)

    def points(self, points: Any, what: str = "points", wide: bool = False) -> DeviceArray:
        """Checks and adopts an array of points.

        Raises:
            InputError: not [N, 3], or another dtype than float32 (or float64, where ``wide``).
        """
        array = as_device_array(points, self.stream)
        if len(array.shape) != 2 or array.shape[1] != 3:
            raise InputError(f"{what} have shape {list(array.shape)}; expected [N, 3]")
        if array.dtype != np.float32 and not (wide and array.dtype == np.float64):
            raise InputError(f"{what} are {array.dtype}; expected float32")
        if len(array) >= 2**31 - 64:
            raise InputError(f"{what} has {len(array)} rows; at most 2^31 - 65 fit int32 indices")
        return array

    def gather(
        self, values: DeviceArray, rows: DeviceArray, missing: int = 0, out: Any = None
    ) -> DeviceArray:
        """``values[rows]`` of 4-byte values; the bits of ``missing`` for rows outside [0, N)."""
        width = math.prod(values.shape[1:])
        if values.nbytes != 4 * len(values) * width:
            raise InputError(f"values are {values.dtype}; only values of 4 bytes are gathered")
        if out is None:
            out = self.empty((len(rows), *values.shape[1:]), values.dtype)
        self.launch(
            "dela_gather_rows",
            len(rows) * width,
            values,
            rows,
            *map(_i32, (len(values), len(rows), width, missing)),
            out,
        )
        return out

    def bounds(self, points: Any, attributes: DeviceArray | None = None) -> Bounds:
        """Bounds of the points; waits for the stream.

        Raises:
            InputError: coordinates, or values of ``attributes``, that are not finite; the message
                counts the rows.
        """
        points = self.points(points, wide=True)
        words = self.queue_bounds(points, "bounds", BOUNDS_WORDS + 1)
        if attributes is not None and attributes.nbytes:
            self.launch(
                "dela_count_invalid",
                len(attributes),
                attributes,
                *map(_i32, attributes.shape),
                words.view((1,), offset=8 * BOUNDS_WORDS),
            )
        answer = self._answers.array[: BOUNDS_WORDS + 1]
        words.copy_to_host(answer, self.stream)
        self.stream.synchronize()
        if answer[BOUNDS_WORDS - 1]:
            raise InputError(
                f"{answer[BOUNDS_WORDS - 1]} of {len(points)} points have NaN or infinite "
                "coordinates; drop them first"
            )
        if answer[BOUNDS_WORDS]:
            raise InputError(
                f"{answer[BOUNDS_WORDS]} of {len(points)} points have NaN or infinite attributes"
            )
        if not len(points):
            return Bounds(np.full(3, np.inf), np.full(3, -np.inf))
        return Bounds(_from_ordered_bits(~answer[:3]), _from_ordered_bits(answer[3:6]))

    def queue_bounds(self, points: DeviceArray, name: str, words: int) -> DeviceArray:
        """Queues finding the bounds; returns them as the kernels write them, among zeroed words."""
        found = self.scratch.array(name, (words,), np.uint64)
        found.fill_zero(self.stream)
        if len(points):
            grid = min(divide_up(len(points), 8 * BLOCK), 1024)
            wide = _i32(points.dtype == np.float64)
            arguments = (points, wide, _i32(len(points)), found)
            self.kernels.launch("dela_bounds", grid, BLOCK, arguments, self.stream)
        return found

    def queue_list(self, flags: DeviceArray, numbers: DeviceArray) -> DeviceArray:
        """Queues listing where ``flags`` [N] uint8 is 1, ascending; returns how many of them."""
        n = len(flags)
        tiles = divide_up(n, TILE)
        starts = self.scratch.array("starts", (tiles,), np.uint32)
        count = self.scratch.array("count", (1,), np.uint32)
        self.launch_tiles("dela_count_flags", n, flags, _i32(n), starts)
        self.scan(starts, tiles, count)
        self.launch_tiles("dela_list_flags", n, flags, starts, _i32(n), numbers)
        return count

    def read_count(self, count: DeviceArray) -> int:
        """A number on the host; waits for the stream."""
        answer = self._answers.array[-1:].view(np.uint32)[:1]
        count.copy_to_host(answer, self.stream)
        self.stream.synchronize()
        return int(answer[0])

    def scan(self, values: DeviceArray, n: int, total: DeviceArray) -> None:
        """Queues making each of n uint32 values the sum of those before; ``total``: of all."""
        self.kernels.launch("dela_scan", 1, SCAN_BLOCK, (_i32(n), values, total), self.stream)

    def sort(self, keys: DeviceArray, rows: DeviceArray, n: int, bits: int) -> DeviceArray:
        """Sorts rows by the lowest ``bits`` of their keys, stable; returns where they lie then.

        The keys are overwritten, and the rows may be.
        """
        tiles = divide_up(n, TILE)
        counts = self.scratch.array("counts", (tiles << DIGIT_BITS,), np.uint32)
        total = self.scratch.array("total", (1,), np.uint32)
        other_keys = self.scratch.array("other_keys", (n,), np.uint64)
        spare = self.scratch.array("rows", (n,), np.uint32)
        if spare.pointer == rows.pointer:
            spare = self.scratch.array("other_rows", (n,), np.uint32)
        for shift in range(0, bits, DIGIT_BITS):
            sizes = tuple(map(_i32, (n, shift, tiles)))
            self.launch_tiles("dela_sort_count", n, keys, *sizes, counts)
            self.scan(counts, tiles << DIGIT_BITS, total)
            self.launch_tiles("dela_sort_place", n, keys, rows, counts, *sizes, other_keys, spare)
            keys, other_keys = other_keys, keys
            rows, spare = spare, rows
        return rows


def _from_ordered_bits(words: np.ndarray) -> np.ndarray:
    """Doubles from the numbers that the kernels compare them by."""
    top = np.uint64(1 << 63)
    return np.where(words & top, words ^ top, ~words).view(np.float64)
