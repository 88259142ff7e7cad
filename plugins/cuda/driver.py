"""Device, stream, event and graph over ``cuda.bindings.driver``: the CUDA driver API and no other.

Nothing heavy is imported before :func:`driver` is called, and the CUDA runtime never is. A primary
context, once retained, is kept until the process ends: torch, CuPy and PyCUDA share it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# The legacy default stream, by the handle that means it in every API.
LEGACY_STREAM = 1
# CUDA_ERROR_OUT_OF_MEMORY, as in CudaError.code.
OUT_OF_MEMORY = 2
_NOT_READY = 600


class CudaUnavailable(RuntimeError):
    """This machine has no CUDA driver, no GPU, or not the Python package that talks to it."""


class CudaError(RuntimeError):
    """A call of the CUDA driver failed.

    Attributes:
        code: the driver's number for the failure, such as 2 (out of memory).
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@functools.cache
def driver() -> Any:
    """The module ``cuda.bindings.driver``, initialized.

    Raises:
        CudaUnavailable: no package, no driver or no GPU; one line that says what to install.
    """
    try:
        from cuda.bindings import driver as bindings
    except ImportError as error:
        raise CudaUnavailable(
            f"the Python package for CUDA is not installed ({error}); pip install 'dela[cuda]'"
        ) from error
    try:
        (status,) = bindings.cuInit(0)
    except Exception as error:  # the exception differs between versions of cuda-bindings
        raise CudaUnavailable(
            "no NVIDIA driver found (libcuda.so.1); install the driver of this machine's GPU, or "
            "use a CPU backend"
        ) from error
    if status == bindings.CUresult.CUDA_ERROR_NO_DEVICE:
        raise CudaUnavailable("the NVIDIA driver finds no GPU (check nvidia-smi)")
    if status != bindings.CUresult.CUDA_SUCCESS:
        raise CudaUnavailable(
            f"the NVIDIA driver does not start: {_text(bindings, status)} (check nvidia-smi)"
        )
    return bindings


def _text(bindings: Any, status: Any) -> str:
    """Name and description of a status; its number where the driver has none."""
    name, description = bindings.cuGetErrorName(status)[1], bindings.cuGetErrorString(status)[1]
    if not name:
        return f"code {int(status)}"
    return f"{name.decode()} ({(description or b'no description').decode()})"


def check(result: tuple[Any, ...], what: str = "a CUDA call") -> Any:
    """The value, or tuple of values, behind the status that a driver call returned.

    Raises:
        CudaError: the status is not success; the message names ``what`` and the driver's reason.
    """
    status, *values = result
    if int(status) != 0:
        raise CudaError(f"{what} failed: {_text(driver(), status)}", int(status))
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def call(name: str, *arguments: Any) -> Any:
    """Runs one function of the driver by name; raises :class:`CudaError` when it fails."""
    return check(getattr(driver(), name)(*arguments), name)


def count() -> int:
    """Number of GPUs.

    Raises:
        CudaUnavailable: no driver or no GPU.
    """
    return int(call("cuDeviceGetCount"))


@functools.cache
def _primary_context(ordinal: int) -> Any:
    return call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", ordinal))


class Device:
    """One GPU, its primary context retained.

    Attributes:
        ordinal: its number in the order of ``CUDA_VISIBLE_DEVICES``.
        name: such as ``NVIDIA H100``.
        compute_capability: such as ``(9, 0)``.

    Raises:
        CudaUnavailable: no driver, no GPU, or fewer than ``ordinal + 1`` of them.
    """

    def __init__(self, ordinal: int = 0) -> None:
        available = count()
        if not 0 <= ordinal < available:
            raise CudaUnavailable(
                f"there is no GPU {ordinal}; this machine has {available}, numbered from 0"
            )
        self.ordinal = ordinal
        self._context = _primary_context(ordinal)
        number = call("cuDeviceGet", ordinal)
        self.name: str = call("cuDeviceGetName", 256, number).split(b"\0", 1)[0].decode()
        attributes = driver().CUdevice_attribute
        self.compute_capability: tuple[int, int] = (
            int(
                call(
                    "cuDeviceGetAttribute",
                    attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                    number,
                )
            ),
            int(
                call(
                    "cuDeviceGetAttribute",
                    attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                    number,
                )
            ),
        )

    @staticmethod
    def count() -> int:
        """Number of GPUs; see :func:`count`."""
        return count()

    def make_current(self) -> None:
        """Makes it the calling thread's device, as ``cudaSetDevice`` does."""
        if int(call("cuCtxGetCurrent")) != int(self._context):
            call("cuCtxSetCurrent", self._context)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes it the calling thread's device for the block, and what was before it after."""
        if int(call("cuCtxGetCurrent")) == int(self._context):
            yield
            return
        call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            driver().cuCtxPopCurrent()

    def on_collection(self, owner: Any, name: str, handle: Any) -> None:
        """Has the driver function ``name`` free ``handle`` when ``owner`` is gone."""
        weakref.finalize(owner, _free, name, self._context, handle)

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory: (free, total)."""
        self.make_current()
        free, total = call("cuMemGetInfo")
        return int(free), int(total)

    def synchronize(self) -> None:
        """Waits for everything the device was given."""
        self.make_current()
        call("cuCtxSynchronize")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.ordinal == self.ordinal

    def __hash__(self) -> int:
        return hash(self.ordinal)

    def __repr__(self) -> str:
        return f"Device({self.ordinal}: {self.name})"


def _free(name: str, context: Any, handle: Any) -> None:
    # May run in any thread at any time, so it leaves the thread's device as it was, and spoils no
    # graph that somebody, such as torch, is capturing. A failure here is an echo of an earlier one
    # that was reported.
    bindings = driver()
    bindings.cuCtxPushCurrent(context)
    mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    status, before = bindings.cuThreadExchangeStreamCaptureMode(mode)
    getattr(bindings, name)(handle)
    if int(status) == 0:
        bindings.cuThreadExchangeStreamCaptureMode(before)
    bindings.cuCtxPopCurrent()


class Stream:
    """A queue of work on a device; non-blocking with respect to the legacy default stream.

    Attributes:
        handle: the driver's handle as a plain number, for other libraries.
        device: the device it belongs to.
    """

    def __init__(self, device: Device | None = None) -> None:
        self.device = device or Device()
        self.device.make_current()
        raw = call("cuStreamCreate", int(driver().CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.handle = int(raw)
        self.device.on_collection(self, "cuStreamDestroy", raw)

    @classmethod
    def borrowed(cls, handle: int, device: Device | None = None) -> Stream:
        """Somebody else's stream (torch's, TensorRT's), which must outlive this object.

        0 is the legacy default stream too, but other libraries only know it by its other name.
        """
        stream = cls.__new__(cls)
        stream.device = device or Device()
        stream.handle = int(handle) or LEGACY_STREAM
        return stream

    def synchronize(self) -> None:
        """Waits until everything queued so far has run.

        Raises:
            CudaError: a kernel or copy in it failed.
        """
        self.device.make_current()
        call("cuStreamSynchronize", self.handle)

    def wait(self, event: Event) -> None:
        """Work queued from now on waits, on the device, for ``event``."""
        self.device.make_current()
        call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def wait_for(self, other: Stream) -> None:
        """Work queued from now on waits for what ``other`` was given so far."""
        if other.handle != self.handle:
            self.wait(Event(other.device).record(other))

    def __repr__(self) -> str:
        return f"Stream({self.handle:#x} on {self.device!r})"


class Event:
    """A mark in a stream.

    Args:
        device: of the streams it is recorded in.
        timing: keep the time, for :meth:`milliseconds_since`.
    """

    def __init__(self, device: Device | None = None, timing: bool = False) -> None:
        self.device = device or Device()
        self.device.make_current()
        flags = driver().CUevent_flags
        raw = call(
            "cuEventCreate",
            int(flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING),
        )
        self.handle = int(raw)
        self.device.on_collection(self, "cuEventDestroy", raw)

    def record(self, stream: Stream) -> Event:
        """Marks the end of what ``stream`` was given so far; returns the event."""
        stream.device.make_current()
        call("cuEventRecord", self.handle, stream.handle)
        return self

    def synchronize(self) -> None:
        """Waits, on the host, until the mark is reached."""
        self.device.make_current()
        call("cuEventSynchronize", self.handle)

    def milliseconds_since(self, earlier: Event) -> float:
        """Device time between two recorded events that both keep time; waits where they are still
        to come."""
        self.device.make_current()
        status, passed = driver().cuEventElapsedTime(earlier.handle, self.handle)
        if int(status) == _NOT_READY:
            self.synchronize()
            return float(call("cuEventElapsedTime", earlier.handle, self.handle))
        return float(check((status, passed), "cuEventElapsedTime"))


class Graph:
    """Work captured once, launched as a whole many times.

    Addresses and sizes are those of the capture: keep the arrays it used, and capture again when
    one moves or grows.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._executable: Any = None

    @classmethod
    @contextmanager
    def capture(cls, stream: Stream) -> Iterator[Graph]:
        """Captures what the block queues on ``stream``; nothing of it runs before a launch.

        Raises:
            CudaError: the block did what cannot be captured, such as a synchronization.
        """
        graph = cls(stream.device)
        stream.device.make_current()
        # Relaxed, so that memory that the garbage collector frees meanwhile spoils nothing.
        mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        call("cuStreamBeginCapture", stream.handle, mode)
        try:
            yield graph
        except BaseException:
            status, recorded = driver().cuStreamEndCapture(stream.handle)
            if int(status) == 0:
                driver().cuGraphDestroy(recorded)
            raise
        recorded = call("cuStreamEndCapture", stream.handle)
        try:
            graph._executable = call("cuGraphInstantiate", recorded, 0)
        finally:
            call("cuGraphDestroy", recorded)
        graph.device.on_collection(graph, "cuGraphExecDestroy", graph._executable)

    def launch(self, stream: Stream) -> None:
        """Queues the captured work on ``stream``."""
        if self._executable is None:
            raise CudaError("the graph is still being captured; launch it after the with block")
        self.device.make_current()
        call("cuGraphLaunch", self._executable, stream.handle)
