"""Execution contexts at fixed shapes and the CUDA graphs captured from them.

A captured graph is void once its context takes other shapes, addresses or scratch memory, so each
set of shapes has a context of its own. Their activations share one piece of memory: they run one
after the other, on one stream.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from dela.errors import DelaError

if TYPE_CHECKING:
    from dela.plugins.cuda.arrays import DeviceArray, GrowingBuffer
    from dela.plugins.cuda.driver import Graph, Stream

# Kept at a time unless another number is asked for.
MAX_GRAPHS = 24
# How a run went: at rows met for the first time, with its graph captured, from its graph, or in an
# engine that captures none.
RunKind = Literal["first", "captured", "replayed", "plain"]
# Sets of shapes that are recognized when they come back.
_REMEMBERED = 1000


class Execution:
    """An execution context of TensorRT, told only what changed; any change voids its graph.

    Args:
        context: created without memory of its own (``USER_MANAGED``).
        stream: that it runs on.
        reason: TensorRT's own words for its latest failure.
    """

    def __init__(self, context: Any, stream: Stream, reason: Callable[[], str]) -> None:
        self._context = context
        self._stream = stream
        self._reason = reason
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        # Bytes of scratch memory for the shapes; None where they have changed since.
        self._scratch_size: int | None = None
        self._scratch_pointer = 0
        self.graph: Graph | None = None

    def ready(
        self,
        profile: int,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
        scratch: GrowingBuffer,
    ) -> bool:
        """Whether :meth:`prepare` would change nothing."""
        return (
            self._profile == profile
            and self._scratch_size is not None
            and scratch.pointer == self._scratch_pointer
            and all(self._shapes.get(name) == array.shape for name, array in inputs.items())
            and all(
                self._addresses.get(name) == array.pointer
                for arrays in (inputs, outputs)
                for name, array in arrays.items()
            )
        )

    def prepare(
        self,
        profile: int,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
        scratch: GrowingBuffer,
    ) -> None:
        """Sets profile, shapes, scratch memory and addresses, each where it differs from the last.

        Raises:
            DelaError: TensorRT refuses one of them.
            CudaError: no memory left for the activations.
        """
        context = self._context
        if self._profile is None:
            self._profile = context.active_optimization_profile
        if self._profile != profile:
            self.graph = self._profile = self._scratch_size = None
            self._shapes.clear()
            ask = context.set_optimization_profile_async
            self._ask(f"profile {profile}", ask, profile, self._stream.handle)
            self._profile = profile
        for name, array in inputs.items():
            if self._shapes.get(name) != array.shape:
                self.graph = self._scratch_size = None
                what = f"input {name} of shape {list(array.shape)}"
                self._ask(what, context.set_input_shape, name, array.shape)
                self._shapes[name] = array.shape
        if self._scratch_size is None:
            self._scratch_size = int(context.update_device_memory_size_for_shapes())
            self._scratch_pointer = 0
        scratch.reserve(max(self._scratch_size, 1))
        if scratch.pointer != self._scratch_pointer:
            self.graph = None
            context.set_device_memory(scratch.pointer, self._scratch_size)
            self._scratch_pointer = scratch.pointer
        for name, array in (*inputs.items(), *outputs.items()):
            if self._addresses.get(name) != array.pointer:
                self.graph = None
                ask = context.set_tensor_address
                self._ask(f"the address of {name}", ask, name, array.pointer)
                self._addresses[name] = array.pointer

    def run(self, capture: bool = False) -> None:
        """Queues the network: its graph where there is one, kernel by kernel otherwise.

        Args:
            capture: capture a graph for the next time, where there is none.

        Raises:
            DelaError: TensorRT could not queue the network.
            CaptureError: the network is queued, but a graph of it could not be captured.
        """
        if self.graph is not None:
            self.graph.launch(self._stream)
            return
        # TensorRT prepares new shapes in the first run after a change, which is not to be captured.
        self._enqueue()
        if capture:
            self.graph = self._captured()

    def time_layers(self, recorder: Any, repeats: int) -> None:
        """Runs the network without a graph; every layer of each run reports to an ``IProfiler``.

        Raises:
            DelaError: TensorRT could not run the network.
        """
        self._enqueue()
        self._stream.synchronize()
        self._context.profiler = recorder
        for _ in range(repeats):
            self._enqueue()
            self._stream.synchronize()

    def inspected(self, inspector: Any, form: Any) -> str:
        """What an engine's inspector says of it at the context's shapes."""
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(form))

    def run_after_failed_capture(self) -> None:
        """Queues the network kernel by kernel, once more where TensorRT stumbles at first.

        What failed in a capture is still noted in the CUDA runtime that TensorRT has linked into
        itself, and may be taken for a failure of its next run. Asking for it is what clears it, and
        nobody but TensorRT can.

        Raises:
            DelaError: TensorRT could not queue the network.
        """
        try:
            self._enqueue()
        except DelaError:
            self._enqueue()

    def _captured(self) -> Graph:
        from dela.plugins.cuda.driver import CudaError, Graph

        # TensorRT for RTX knows what it cannot capture, such as loops.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream.handle):
            raise CaptureError("TensorRT says that this engine cannot be captured")
        # What the first run still prepares must be over.
        self._stream.synchronize()
        try:
            with Graph.capture(self._stream) as graph:
                self._enqueue()
        except (CudaError, DelaError) as error:
            raise CaptureError(str(error)) from error
        return graph

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise DelaError(f"TensorRT could not run the engine: {self._reason()}")

    def _ask(self, what: str, ask: Callable[..., Any], *values: Any) -> None:
        """Tells the context something; by its answer or by an exception it may refuse."""
        try:
            accepted = ask(*values)
        except RuntimeError as error:
            raise DelaError(f"TensorRT refuses {what}: {self._reason()}") from error
        if not accepted:
            raise DelaError(f"TensorRT refuses {what}: {self._reason()}")


class CaptureError(DelaError):
    """A network runs, but not as a CUDA graph."""


class Executions:
    """Runs a network at whatever sizes come, sizes that come back as graphs.

    A set of shapes met for the first time runs in a context that serves them all. Met again, it
    gets a context of its own and a graph; the one unused for longest gives way.

    Args:
        create: a new execution context without memory of its own; its argument tells whether
            graphs will be captured from it.
        stream: that everything runs on.
        reason: TensorRT's own words for its latest failure.
        max_graphs: most sets of shapes that graphs are kept of; 0 captures none.
        captured: called after each new graph: what was compiled for it may be kept.

    Attributes:
        graphs: whether graphs are captured; off once one could not be.
        latest: how the latest run went.
    """

    def __init__(
        self,
        create: Callable[[bool], Any],
        stream: Stream,
        *,
        reason: Callable[[], str],
        max_graphs: int = MAX_GRAPHS,
        captured: Callable[[], None] = lambda: None,
    ) -> None:
        from dela.plugins.cuda.arrays import GrowingBuffer

        self._create = create
        self._reason = reason
        self._stream = stream
        self._scratch = GrowingBuffer(stream.device)
        self._common: Execution | None = None
        self._own: OrderedDict[Hashable, Execution] = OrderedDict()
        self._met: OrderedDict[Hashable, None] = OrderedDict()
        self._capture_failed = False
        self._max_graphs = max_graphs
        self._when_captured = captured
        self._under_way = False
        self.graphs = max_graphs > 0
        self.latest: RunKind = "plain"

    def run(
        self,
        profile: int,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
    ) -> None:
        """Queues the network on the stream.

        Raises:
            DelaError: TensorRT refuses the shapes or could not run.
            CudaError: no memory left for the activations.
        """
        key = (profile, *(array.shape for array in inputs.values()))
        own = self.graphs and self._comes_back(key)
        execution = self._own_of(key) if own else self._common_one()
        if not execution.ready(profile, inputs, outputs, self._scratch):
            self._settle()
            execution.prepare(profile, inputs, outputs, self._scratch)
        new = own and execution.graph is None
        if own:
            self.latest = "captured" if new else "replayed"
        else:
            self.latest = "first" if self.graphs else "plain"
        self._under_way = True
        if self._capture_failed:
            execution.run_after_failed_capture()
            self._capture_failed = False
            return
        try:
            execution.run(capture=own)
            if new:
                self._when_captured()
        except CaptureError as error:
            self.graphs, self._capture_failed = False, True
            # A context must not go while its work is under way.
            self._stream.synchronize()
            self._own.clear()
            print(f"warning: running without CUDA graphs: {error}", file=sys.stderr)

    def apart(
        self,
        profile: int,
        inputs: Mapping[str, DeviceArray],
        outputs: Mapping[str, DeviceArray],
    ) -> Execution:
        """An execution that is ready to run and not kept, for measurements.

        Raises:
            DelaError: TensorRT refuses the shapes.
        """
        execution = Execution(self._create(False), self._stream, self._reason)
        self._settle()
        execution.prepare(profile, inputs, outputs, self._scratch)
        return execution

    def waited(self) -> None:
        """To be called once the stream was waited for: until then no context is changed."""
        self._under_way = False

    def _settle(self) -> None:
        if self._under_way:
            self._stream.synchronize()
            self._under_way = False

    @property
    def captured(self) -> int:
        """Graphs at hand."""
        return sum(execution.graph is not None for execution in self._own.values())

    def _comes_back(self, key: Hashable) -> bool:
        if key in self._met:
            self._met.move_to_end(key)
            return True
        self._met[key] = None
        if len(self._met) > _REMEMBERED:
            self._met.popitem(last=False)
        return False

    def _common_one(self) -> Execution:
        if self._common is None:
            self._common = Execution(self._create(False), self._stream, self._reason)
        return self._common

    def _own_of(self, key: Hashable) -> Execution:
        if key in self._own:
            self._own.move_to_end(key)
        elif len(self._own) < self._max_graphs:
            self._own[key] = Execution(self._create(True), self._stream, self._reason)
        else:
            self._own[key] = self._own.popitem(last=False)[1]
        return self._own[key]
