"""Arrays on the device and in page-locked memory, and the arrays of other libraries.

Other libraries' arrays come in, and ours go out, without a copy: through DLPack (see
``dlpack.py``) or ``__cuda_array_interface__``. Rows are contiguous everywhere.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dela.plugins.cuda import dlpack
from dela.plugins.cuda.dlpack import BFLOAT16, DType, check_strides
from dela.plugins.cuda.driver import OUT_OF_MEMORY, CudaError, Device, Stream, call, driver

GROWTH = 1.5


@functools.lru_cache(maxsize=256)
def as_dtype(dtype: Any) -> DType:
    """A numpy dtype, or the string ``bfloat16``."""
    return BFLOAT16 if str(dtype) == BFLOAT16 else np.dtype(dtype)


def item_size(dtype: DType) -> int:
    """Bytes of one value."""
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def _size(shape: Sequence[int], dtype: DType) -> int:
    return math.prod(shape) * item_size(dtype)


class _Memory:
    """Device memory that is freed when nothing refers to it any more."""

    def __init__(self, size: int, device: Device) -> None:
        device.make_current()
        raw = call("cuMemAlloc", size)
        self.pointer = int(raw)
        device.on_collection(self, "cuMemFree", raw)


class DeviceArray:
    """A C-contiguous array in device memory.

    Attributes:
        pointer: address of the first value; 0 for an empty array.
        shape: of the array.
        dtype: numpy dtype, or the string ``bfloat16``.
        nbytes: bytes of all values.
        device: where it lies.
        owner: what keeps the memory alive.
        stream: where its values are made, as far as this array knows; other libraries that take
            the array wait for it. None: they are there.
    """

    def __init__(
        self,
        pointer: int,
        shape: Sequence[int],
        dtype: Any,
        owner: Any = None,
        device: Device | None = None,
        stream: Stream | None = None,
    ) -> None:
        self.pointer = int(pointer)
        self.shape = tuple(map(int, shape))
        self.dtype = as_dtype(dtype)
        self.nbytes = _size(self.shape, self.dtype)
        self.owner = owner
        self.device = device or Device()
        self.stream = stream

    @classmethod
    def empty(
        cls,
        shape: Sequence[int],
        dtype: Any,
        device: Device | None = None,
        stream: Stream | None = None,
    ) -> DeviceArray:
        """New device memory with whatever lies in it.

        Raises:
            CudaError: out of memory.
        """
        device = device or (stream.device if stream else Device())
        shape, dtype = tuple(shape), as_dtype(dtype)
        size = _size(shape, dtype)
        memory = _Memory(size, device) if size else None
        return cls(memory.pointer if memory else 0, shape, dtype, memory, device, stream)

    @classmethod
    def from_host(cls, array: np.ndarray, stream: Stream, dtype: Any = None) -> DeviceArray:
        """A copy of a host array, finished on return.

        Args:
            array: any numpy array.
            stream: that copies.
            dtype: ``bfloat16`` for uint16 values that are bfloat16 bits; None for the array's own.
        """
        array = np.ascontiguousarray(array)
        copied = cls.empty(array.shape, dtype or array.dtype, stream=stream)
        copied.copy_from_host(array, stream)
        stream.synchronize()
        return copied

    def to_host(self, stream: Stream) -> np.ndarray:
        """A copy on the host, finished on return; bfloat16 comes as uint16 bits."""
        array = np.empty(self.shape, _host_dtype(self.dtype))
        self.copy_to_host(array, stream)
        stream.synchronize()
        return array

    def __len__(self) -> int:
        return self.shape[0]

    def view(
        self, shape: Sequence[int] | None = None, dtype: Any = None, offset: int = 0
    ) -> DeviceArray:
        """The same memory under another shape or dtype, from ``offset`` bytes on.

        Raises:
            ValueError: it would reach past the end.
        """
        pointer = self.pointer + offset if self.pointer else 0
        seen = DeviceArray(
            pointer,
            self.shape if shape is None else shape,
            self.dtype if dtype is None else dtype,
            self.owner,
            self.device,
            self.stream,
        )
        if offset < 0 or offset + seen.nbytes > self.nbytes:
            raise ValueError(
                f"a view of {list(seen.shape)} {seen.dtype} from byte {offset} does not fit into "
                f"{self.nbytes} bytes"
            )
        return seen

    def copy_from_host(self, array: np.ndarray, stream: Stream) -> None:
        """Queues a copy from a C-contiguous host array of the same size.

        Page-locked memory (:class:`PinnedArray`) must stay and keep its values until the stream
        has passed the copy; other memory has been read when this returns.
        """
        self._check_host(array)
        if self.nbytes:
            self.device.make_current()
            call("cuMemcpyHtoDAsync", self.pointer, array.ctypes.data, self.nbytes, stream.handle)

    def copy_to_host(self, array: np.ndarray, stream: Stream) -> None:
        """Queues a copy into a C-contiguous host array, there once the stream has passed it."""
        self._check_host(array)
        if self.nbytes:
            self.device.make_current()
            call("cuMemcpyDtoHAsync", array.ctypes.data, self.pointer, self.nbytes, stream.handle)

    def copy_from(self, other: DeviceArray, stream: Stream) -> None:
        """Queues a copy of another device array of the same size."""
        if other.nbytes != self.nbytes:
            raise ValueError(f"{other.nbytes} bytes do not fit into {self.nbytes}")
        if self.nbytes:
            self.device.make_current()
            call("cuMemcpyDtoDAsync", self.pointer, other.pointer, self.nbytes, stream.handle)

    def fill_zero(self, stream: Stream) -> None:
        """Queues setting every byte to zero."""
        if self.nbytes:
            self.device.make_current()
            call("cuMemsetD8Async", self.pointer, 0, self.nbytes, stream.handle)

    def _check_host(self, array: np.ndarray) -> None:
        if array.nbytes != self.nbytes or not array.flags.c_contiguous:
            gaps = "" if array.flags.c_contiguous else " with gaps"
            raise ValueError(
                f"the host array has {array.nbytes} bytes{gaps}; the device array needs "
                f"{self.nbytes} without gaps"
            )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype == BFLOAT16:
            raise AttributeError("__cuda_array_interface__ has no bfloat16; use DLPack")
        interface = {
            "shape": self.shape,
            "typestr": self.dtype.str,  # type: ignore[union-attr]
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
        }
        if self.stream is not None:
            interface["stream"] = self.stream.handle
        return interface

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device.ordinal

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("the array is lent as it is, where it is; copy it after taking it")
        if stream != -1 and self.stream is not None:
            consumer = Stream.borrowed(stream or 0, self.device)
            consumer.wait_for(self.stream)
        return dlpack.export(self)

    def __repr__(self) -> str:
        return f"DeviceArray({list(self.shape)} {self.dtype} at {self.pointer:#x})"


def _host_dtype(dtype: DType) -> np.dtype:
    return np.dtype(np.uint16) if dtype == BFLOAT16 else np.dtype(dtype)


class PinnedArray:
    """A numpy array in page-locked host memory, which the device copies from and to by itself.

    Attributes:
        array: [shape] numpy array over the memory, which lives as long as any view of it.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, device: Device | None = None) -> None:
        self.device = device or Device()
        dtype = _host_dtype(as_dtype(dtype))
        size = _size(tuple(shape), dtype)
        if not size:
            self.array = np.empty(shape, dtype)
            return
        self.device.make_current()
        pointer = int(call("cuMemHostAlloc", size, 0))
        memory = (ctypes.c_char * size).from_address(pointer)
        self.device.on_collection(memory, "cuMemFreeHost", pointer)
        buffer: Any = memory
        self.array = np.frombuffer(buffer, dtype).reshape(shape)


class GrowingBuffer:
    """Memory for arrays of changing size: it grows by half at least, and never shrinks.

    Where there is no memory for that much, it grows to what is asked for.

    Arrays handed out earlier keep the memory they had. The contents are not carried over.

    Args:
        device: where, or whose transfers it serves.
        pinned: page-locked host memory instead of device memory.
    """

    def __init__(self, device: Device | None = None, pinned: bool = False) -> None:
        self.device = device or Device()
        self.pinned = pinned
        self._memory: Any = None  # a flat DeviceArray, or a flat numpy array where pinned

    @property
    def capacity(self) -> int:
        """Bytes it holds without growing."""
        return 0 if self._memory is None else self._memory.nbytes

    @property
    def pointer(self) -> int:
        """Address of the memory; it changes only when the capacity does. 0 before the first use."""
        if self._memory is None:
            return 0
        if isinstance(self._memory, DeviceArray):
            return self._memory.pointer
        return self._memory.ctypes.data

    def reserve(self, size: int) -> None:
        """Makes room for ``size`` bytes.

        Raises:
            CudaError: out of memory.
        """
        if size <= self.capacity:
            return
        needed, grown = (
            (bytes_ + 255) // 256 * 256 for bytes_ in (size, max(size, int(self.capacity * GROWTH)))
        )
        # The old memory goes first where nobody else holds it.
        self._memory = None
        try:
            self._memory = self._allocated(grown)
        except CudaError as error:
            if error.code != OUT_OF_MEMORY or grown == needed:
                raise
            self._memory = self._allocated(needed)

    def _allocated(self, size: int) -> Any:
        if self.pinned:
            return PinnedArray((size,), np.uint8, self.device).array
        return DeviceArray.empty((size,), np.uint8, self.device)

    def array(self, shape: Sequence[int], dtype: Any) -> Any:
        """The start of the memory as a :class:`DeviceArray`, or a numpy array where pinned."""
        dtype = as_dtype(dtype)
        shape = tuple(shape)
        size = _size(shape, dtype)
        self.reserve(size)
        if self.pinned:
            host = _host_dtype(dtype)
            if not size:
                return np.empty(shape, host)
            return self._memory[:size].view(host).reshape(shape)
        if not size:
            return DeviceArray(0, shape, dtype, None, self.device)
        return self._memory.view(shape, dtype)


def as_device_array(source: Any, stream: Stream | None = None) -> DeviceArray:
    """Any CUDA array of any library (torch, CuPy, PyCUDA, Numba ...), without a copy.

    Args:
        source: a :class:`DeviceArray`, or an object with ``__dlpack__`` (preferred: it orders
            streams and knows bfloat16) or ``__cuda_array_interface__``.
        stream: that will use the array; it waits for the stream that makes the values. None waits
            for them on the host.

    Raises:
        TypeError: not an array on a CUDA device, rows with gaps, or a dtype without a name here.
    """
    if isinstance(source, DeviceArray):
        if source.stream is not None:
            _order(source.stream, stream)
        return source
    if hasattr(source, "__dlpack__") and hasattr(source, "__dlpack_device__"):
        return DeviceArray(*dlpack.adopt(source, stream), stream)
    interface = getattr(source, "__cuda_array_interface__", None)
    if interface is None:
        raise TypeError(
            f"{type(source).__name__} is no array on a CUDA device: it has neither "
            "__cuda_array_interface__ nor __dlpack__"
        )
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    if interface.get("mask") is not None:
        raise TypeError("the array has a mask; pass it without")
    if dtype.hasobject or dtype.fields or not dtype.isnative:
        raise TypeError(f"the array is {interface['typestr']}; pass plain numbers in native order")
    check_strides(shape, interface.get("strides"), dtype.itemsize)
    pointer = int(interface["data"][0] or 0)
    device = stream.device if stream else _device_of(pointer)
    producer = interface.get("stream")
    if producer is not None:
        _order(Stream.borrowed(int(producer), device), stream)
    return DeviceArray(pointer, shape, dtype, source, device, stream)


def _order(producer: Stream, consumer: Stream | None) -> None:
    if consumer is None:
        producer.synchronize()
    else:
        consumer.wait_for(producer)


def _device_of(pointer: int) -> Device:
    if not pointer:
        return Device()
    attribute = driver().CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return Device(int(call("cuPointerGetAttribute", attribute, pointer)))
