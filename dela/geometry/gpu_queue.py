"""What geometry in device memory is made of: sorting, listing, gathering, bounds; on one stream.

Work is queued; :meth:`GpuQueue.bounds` and :meth:`GpuQueue.read` wait for it. No torch.
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
from dela.plugins.cuda.launch import BLOCK, divide_up
from dela.plugins.cuda.prepared import PreparedKernels

# As in plugins/cuda: geometry.cuh and sort.cu.
TILE = 16 * BLOCK
DIGIT_BITS = 6
BOUNDS_WORDS = 8

WORD = 8  # bytes


class Workspace:
    """Device memory by name: an array taken twice under one name may be the same memory.

    Whoever takes an array of it on another stream, or in another library, waits for this stream.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffers: dict[str, GrowingBuffer] = {}

    def array(self, name: str, shape: Sequence[int], dtype: Any) -> DeviceArray:
        array = self._buffer(name).array(shape, dtype)
        array.stream = self._stream
        return array

    def address(self, name: str, size: int) -> int:
        """Where ``size`` bytes lie."""
        buffer = self._buffer(name)
        buffer.reserve(size)
        return buffer.pointer

    def _buffer(self, name: str) -> GrowingBuffer:
        buffer = self._buffers.get(name)
        if buffer is None:
            buffer = self._buffers[name] = GrowingBuffer(self._stream.device)
        return buffer


class GpuQueue:
    """Kernels queued on one stream, with scratch memory that is reused from call to call.

    Methods named ``queue_...`` ask that the device's context is current.

    Raises:
        CudaUnavailable: no driver, no GPU, or one that is too old.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.scratch = Workspace(stream)
        self.queue = PreparedKernels(stream).launch
        self._answers = PinnedArray((64,), np.uint64, stream.device).array

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """New memory for results."""
        return DeviceArray.empty(shape, dtype, self.stream.device, self.stream)

    def zeroed(self, name: str, size: int) -> int:
        """Address of scratch memory, set to zero."""
        array = self.scratch.array(name, (size,), np.uint8)
        array.fill_zero(self.stream)
        return array.pointer

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
        self.stream.device.make_current()
        self.queue(
            "dela_gather_rows",
            divide_up(len(rows) * width, BLOCK),
            *(values.pointer, rows.pointer, len(values), len(rows), width, missing, out.pointer),
        )
        return out

    def bounds(self, points: Any, attributes: DeviceArray | None = None) -> Bounds:
        """Bounds of the points; waits for the stream.

        Raises:
            InputError: coordinates, or values of ``attributes``, that are not finite; the message
                counts the rows.
        """
        points = self.points(points, wide=True)
        words = self.scratch.array("bounds", (BOUNDS_WORDS,), np.uint64)
        words.fill_zero(self.stream)
        self.queue_bounds(points, attributes, words.pointer)
        return bounds_of(self.read(words), len(points))

    def queue_bounds(self, points: DeviceArray, attributes: DeviceArray | None, words: int) -> None:
        """Queues finding the bounds, as :func:`bounds_of` reads them.

        Args:
            points: [N, 3] float32 or float64.
            attributes: [N, F] float32, whose values are to be finite.
            words: address of :data:`BOUNDS_WORDS` words, zero before.
        """
        columns = 0 if attributes is None else attributes.shape[1]
        self.queue(
            "dela_bounds",
            min(divide_up(len(points), 8 * BLOCK), 1024),
            points.pointer,
            attributes.pointer if columns and attributes is not None else 0,
            *(is_wide(points), len(points), columns, words),
        )

    def queue_list(self, flags: int, n: int, numbers: DeviceArray, count: int) -> None:
        """Queues listing where n flags (uint8) are 1, ascending, and how many of them."""
        tiles = divide_up(n, TILE)
        states = self.zeroed("states", WORD * (1 + tiles))
        self.queue("dela_list_flags", tiles, flags, n, states, numbers.pointer, count)

    def read(self, words: DeviceArray) -> np.ndarray:
        """A few values on the host, until the next ones are read; waits for the stream."""
        answer = self._answers.view(words.dtype)[: len(words)]
        words.copy_to_host(answer, self.stream)
        self.stream.synchronize()
        return answer

    def queue_sort(
        self, keys: int, rows: int, n: int, passes: int, states: int, name: str = "rows"
    ) -> int:
        """Queues sorting rows by the lowest digits of their keys, stable.

        Args:
            keys: address of n uint64, overwritten.
            rows: address of n uint32; 0 for 0, 1, 2 ...
            n: at least 1.
            passes: digits of :data:`DIGIT_BITS` bits, 1 to 11.
            states: address of :func:`sort_bytes` bytes, zero before.
            name: of the scratch memory that the sorted rows end up in.

        Returns:
            address of the sorted rows.
        """
        tiles, digits = divide_up(n, TILE), 1 << DIGIT_BITS
        blocks = min(divide_up(n, TILE), 1024)
        other_keys = self.scratch.address("other keys", WORD * n)
        places = [self.scratch.address(name, 4 * n) for name in (name, f"other {name}")]
        if places[0] == rows:
            places.reverse()
        self.queue("dela_sort_count", blocks, keys, n, passes, states)
        counts, states = states, states + 4 * digits * passes
        for number in range(passes):
            self.queue(
                "dela_sort_place",
                tiles,
                *(keys, rows, counts, n, DIGIT_BITS * number, states, other_keys, places[0]),
            )
            keys, other_keys = other_keys, keys
            rows = places[0]
            places.reverse()
            counts += 4 * digits
            states += WORD * (1 + tiles * digits)
        return rows


def sort_bytes(n: int, passes: int) -> int:
    """Bytes that :meth:`GpuQueue.queue_sort` keeps its counts in."""
    digits = 1 << DIGIT_BITS
    return passes * (4 * digits + WORD * (1 + divide_up(n, TILE) * digits))


def is_wide(points: DeviceArray) -> int:
    """1 for float64, as kernels take it."""
    return int(points.dtype == np.float64)


def bounds_of(words: np.ndarray, rows: int) -> Bounds:
    """Bounds from what :meth:`GpuQueue.queue_bounds` found for so many points.

    Raises:
        InputError: coordinates or attributes that are not finite; the message counts the rows.
    """
    if words[6]:
        raise InputError(
            f"{words[6]} of {rows} points have NaN or infinite coordinates; drop them first"
        )
    if words[7]:
        raise InputError(f"{words[7]} of {rows} points have NaN or infinite attributes")
    if not rows:
        return Bounds(np.full(3, np.inf), np.full(3, -np.inf))
    return Bounds(_from_ordered_bits(~words[:3]), _from_ordered_bits(words[3:6]))


def _from_ordered_bits(words: np.ndarray) -> np.ndarray:
    """Doubles from the numbers that the kernels compare them by."""
    top = np.uint64(1 << 63)
    return np.where(words & top, words ^ top, ~words).view(np.float64)
