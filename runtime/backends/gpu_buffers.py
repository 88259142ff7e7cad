"""Device memory of one run: inputs in one block that a single copy fills, logits on their way back.

Host arrays go through page-locked memory; arrays that lie on the device already never leave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dela.errors import DelaError, InputError, MissingDependencyError
from dela.model.inputs import InputSpec

if TYPE_CHECKING:
    from dela.plugins.cuda.arrays import DeviceArray
    from dela.plugins.cuda.driver import Device, Stream
    from dela.plugins.cuda.gather import Gather

# TensorRT asks for this boundary, and cuMemAlloc keeps it.
ALIGNMENT = 256
_CUDA_KINDS = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged
# Layouts that are recognized when they come back.
_REMEMBERED = 100


@contextmanager
def explain_cuda_errors() -> Iterator[None]:
    """Failures of the CUDA driver as errors of this package."""
    from dela.plugins.cuda.driver import OUT_OF_MEMORY, CudaError, CudaUnavailable

    try:
        yield
    except CudaUnavailable as error:
        raise MissingDependencyError(str(error)) from error
    except CudaError as error:
        if error.code == OUT_OF_MEMORY:
            raise DelaError(
                "the GPU has too little free memory; use a smaller --max-points, do without "
                "--gpu-pyramid, or end what else runs on it (nvidia-smi)"
            ) from error
        raise DelaError(f"the GPU failed: {error}") from error


def on_device(value: Any) -> bool:
    """Whether an array of any library lies in GPU memory; imports nothing to find out."""
    kind = getattr(value, "__dlpack_device__", None)
    if kind is not None:
        return int(kind()[0]) in _CUDA_KINDS
    return hasattr(value, "__cuda_array_interface__")


def callers_stream(value: Any, device: Device) -> Stream:
    """A stream of any library as ours: an object, or the driver's handle (0: the default stream).

    Raises:
        InputError: no stream.
    """
    from dela.plugins.cuda.driver import Stream

    if isinstance(value, Stream):
        return value
    protocol = getattr(value, "__cuda_stream__", None)
    if protocol is not None:
        value = protocol()[1]
    else:
        for name in ("cuda_stream", "ptr", "handle"):  # torch, CuPy, PyCUDA
            value = getattr(value, name, value)
    try:
        return Stream.borrowed(int(value), device)
    except (TypeError, ValueError):
        raise InputError(
            f"stream is {value!r}; give a stream of torch, CuPy, PyCUDA or dela, or its handle"
        ) from None


def run_stream(stream: Stream) -> Any:
    """``stream`` for one run after the other: within a run it waits once for each other stream.

    Arrays of one run mostly come from one stream, and waiting for it once is enough. Call
    ``begin()`` before each run.
    """
    from dela.plugins.cuda.driver import Event, Stream, call

    class RunStream(Stream):
        def __init__(self) -> None:
            self.device, self.handle = stream.device, stream.handle
            self._event = Event(stream.device)
            self._waited_for = {stream.handle}

        def begin(self) -> None:
            self._waited_for = {stream.handle}

        def wait_for(self, other: Stream) -> None:
            if other.handle not in self._waited_for:
                # Waits look at the event when they are queued: one serves all.
                call("cuEventRecord", self._event.handle, other.handle)
                call("cuStreamWaitEvent", self.handle, self._event.handle, 0)
                self._waited_for.add(other.handle)

    return RunStream()


def device_inputs(
    arrays: Mapping[str, Any], dtypes: Mapping[str, str], stream: Stream
) -> dict[str, DeviceArray]:
    """Arrays of any library on the device as ours, without a copy; ``stream`` waits for them.

    Args:
        arrays: name -> anything with ``__dlpack__`` or ``__cuda_array_interface__``.
        dtypes: name -> the dtype it must have.

    Raises:
        InputError: an array on the host or another GPU among them, gaps between rows, or another
            dtype.
    """
    found = {}
    for name, value in arrays.items():
        if not on_device(value):
            raise InputError(
                f"{name} lies in host memory, other inputs on the device; give all of them there "
                "or none"
            )
        found[name] = _adopted(value, name, dtypes[name], stream)
    return found


def device_output(value: Any, shape: tuple[int, ...], stream: Stream) -> DeviceArray:
    """An array of any library on the device, for logits; ``stream`` waits for what uses it.

    Raises:
        InputError: an array on the host or another GPU, one that is not to be written, gaps between
            rows, or another shape than ``shape`` or dtype than float32.
    """
    if not on_device(value):
        raise InputError("the output lies in host memory; give an array on the GPU")
    array = _adopted(value, "the output", "float32", stream)
    if array.shape != shape:
        raise InputError(f"the output has shape {list(array.shape)}; expected {list(shape)}")
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None and interface["data"][1]:
        raise InputError("the output is read-only; give an array that can be written")
    return array


def _adopted(value: Any, name: str, dtype: str, stream: Stream) -> DeviceArray:
    from dela.plugins.cuda.arrays import as_device_array

    try:
        array = as_device_array(value, stream)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error
    # Numpy keeps one object per dtype; a name is built slowly.
    if array.dtype is not np.dtype(dtype) and str(array.dtype) != dtype:
        raise InputError(f"{name} is {array.dtype} on the device; expected {dtype}")
    if array.device.ordinal != stream.device.ordinal:
        raise InputError(
            f"{name} lies on GPU {array.device.ordinal}, the engine runs on GPU "
            f"{stream.device.ordinal}; copy it there"
        )
    return array


@dataclass(frozen=True)
class _Layout:
    """How inputs of some shapes lie in the block: offsets and size in bytes."""

    offsets: dict[str, int]
    size: int
    arrays: dict[str, DeviceArray]
    gather: Gather | None


class InputBlock:
    """All inputs of a run, one behind the other in device memory that grows and is reused.

    Rows beyond those given are padding as the inputs' specifications say: coordinates repeat row 0,
    and index 0 stands wherever a row is named. Nothing in a network in evaluation mode looks from
    one row to another except by these indices, so padding changes no other row's answer.

    Args:
        stream: that every copy is queued on.
        specs: of the inputs.
    """

    def __init__(self, stream: Stream, specs: Sequence[InputSpec]) -> None:
        from dela.plugins.cuda.arrays import GrowingBuffer
        from dela.plugins.cuda.driver import Event

        self._repeated = {spec.name for spec in specs if spec.padding == "repeat"}
        self._dtypes = {spec.name: spec.dtype for spec in specs}
        self._stream = stream
        self._device = GrowingBuffer(stream.device)
        self._pinned = GrowingBuffer(stream.device, pinned=True)
        self._copied = Event(stream.device)
        self._copying = False
        self._layouts: dict[tuple[Sequence[int], ...], _Layout] = {}

    def upload(
        self, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, DeviceArray]:
        """Queues the copy of host arrays, padded to ``shapes``; they may change on return.

        Args:
            arrays: name -> host array; values are cast to the dtype.
            shapes: name -> shape on the device, of as many rows or more.
        """
        layout = self._layout(shapes)
        if self._copying:
            # The last copy may still be reading what is overwritten here.
            self._copied.synchronize()
        staging = self._pinned.array((layout.size,), np.uint8)
        for name, array in arrays.items():
            shape, dtype = tuple(shapes[name]), np.dtype(self._dtypes[name])
            part = staging[layout.offsets[name] :][: dtype.itemsize * int(np.prod(shape))]
            rows = part.view(dtype).reshape(shape)
            rows[: len(array)] = array
            repeat = name in self._repeated and len(array)
            rows[len(array) :] = array[0] if repeat else 0
        block = self._device.array((layout.size,), np.uint8)
        block.copy_from_host(staging, self._stream)
        self._copied.record(self._stream)
        self._copying = True
        return layout.arrays

    def gather(
        self, arrays: Mapping[str, DeviceArray], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, DeviceArray]:
        """The same from device arrays, within the device, by one kernel where it runs."""
        from dela.plugins.cuda.gather import Gather

        layout = self._layout(shapes)
        sources = [arrays[name] for name in layout.arrays]
        if layout.gather is not None and Gather.takes(sources):
            layout.gather.queue(sources, self._stream.handle)
            return layout.arrays
        for name, padded in layout.arrays.items():
            array = arrays[name]
            padded.view(array.shape).copy_from(array, self._stream)
            self._pad(padded, len(array), name in self._repeated)
        return layout.arrays

    def _layout(self, shapes: Mapping[str, Sequence[int]]) -> _Layout:
        """Where each array lies; the block is as large as they need."""
        key = tuple(shapes.values())
        found = self._layouts.get(key)
        if found is not None:
            return found
        offsets, size = _offsets(shapes, self._dtypes)
        if size > self._device.capacity:
            # They hold the memory that goes, and work under way may use it.
            self._layouts.clear()
            self._stream.synchronize()
        elif len(self._layouts) >= _REMEMBERED:
            del self._layouts[next(iter(self._layouts))]
        block = self._device.array((size,), np.uint8)
        arrays = {
            name: block.view(shapes[name], self._dtypes[name], offset)
            for name, offset in offsets.items()
        }
        self._layouts[key] = _Layout(offsets, size, arrays, self._gather(arrays))
        return self._layouts[key]

    def _gather(self, arrays: Mapping[str, DeviceArray]) -> Gather | None:
        """The kernel that fills the arrays; None on a GPU too old for our kernels."""
        from dela.plugins.cuda.driver import CudaUnavailable
        from dela.plugins.cuda.gather import Gather

        repeated = [name in self._repeated for name in arrays]
        try:
            return Gather(self._stream.device, list(arrays.values()), repeated)
        except CudaUnavailable:
            return None

    def _pad(self, array: DeviceArray, rows: int, repeat: bool) -> None:
        """Fills the rows from ``rows`` on with row 0, or with zeros."""
        total = len(array)
        if rows == total:
            return
        row = array.nbytes // total

        def part(start: int, count: int) -> DeviceArray:
            return array.view((count * row,), np.uint8, start * row)

        if not repeat or not rows:
            part(rows, total - rows).fill_zero(self._stream)
            return
        part(rows, 1).copy_from(part(0, 1), self._stream)
        done = 1
        while rows + done < total:
            count = min(done, total - rows - done)
            part(rows + done, count).copy_from(part(rows, count), self._stream)
            done += count


class OutputBuffer:
    """The logits of a run: device memory that the network writes, page-locked memory to read."""

    def __init__(self, stream: Stream) -> None:
        from dela.plugins.cuda.arrays import GrowingBuffer

        self._stream = stream
        self._device = GrowingBuffer(stream.device)
        self._pinned = GrowingBuffer(stream.device, pinned=True)

    def reserve(self, shape: Sequence[int]) -> DeviceArray:
        """[rows, classes] float32 on the device, padding included."""
        if 4 * int(np.prod(shape)) > self._device.capacity:
            # Work under way may write to the memory that goes.
            self._stream.synchronize()
        return self._device.array(shape, np.float32)

    def download(self, logits: DeviceArray) -> np.ndarray:
        """Queues the copy into page-locked memory, which the next call overwrites."""
        if logits.nbytes > self._pinned.capacity:
            self._stream.synchronize()
        host = self._pinned.array(logits.shape, np.float32)
        logits.copy_to_host(host, self._stream)
        return host


def _offsets(
    shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str]
) -> tuple[dict[str, int], int]:
    """Offset of each array in the block, and the size of the block, in bytes."""
    offsets, end = {}, 0
    for name, shape in shapes.items():
        offsets[name] = end
        size = int(np.prod(shape)) * np.dtype(dtypes[name]).itemsize
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end
