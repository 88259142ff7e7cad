"""The backends ``tensorrt`` and ``tensorrt-rtx``: engines on a GPU.

Inputs go up in one copy, or are read where they lie on the device; the network runs on one stream,
as a CUDA graph where its sizes come back; logits come down in one copy, or stay.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dela.artifacts.metadata import OUTPUT, ModelMetadata
from dela.artifacts.sidecar import Sidecar, read_sidecar
from dela.errors import DelaError, EngineError, InputError, MissingDependencyError
from dela.model.contract import Contract
from dela.model.inputs import Inputs
from dela.plugins.tensorrt import bindings, messages
from dela.runtime.backends.base import LoadOptions, taken_inputs
from dela.runtime.backends.gpu_buffers import (
    ALIGNMENT,
    InputBlock,
    OutputBuffer,
    callers_stream,
    device_inputs,
    device_output,
    explain_cuda_errors,
    on_device,
    run_stream,
)
from dela.runtime.backends.graphs import MAX_GRAPHS, Executions, RunKind
from dela.runtime.backends.kernel_cache import KernelCache
from dela.runtime.backends.ladder import Ladder
from dela.runtime.backends.layers import LayerTime, layers_of_engine, recorder
from dela.runtime.backends.profiles import choose_profile, padded_counts

if TYPE_CHECKING:
    from dela.plugins.cuda.arrays import DeviceArray

Where = Literal["host", "pinned", "device"]


def load(path: Path, options: LoadOptions) -> EngineBackend:
    """The entry of :data:`dela.runtime.backends.base.BACKENDS`."""
    most = MAX_GRAPHS if options.max_graphs is None else options.max_graphs
    return EngineBackend(
        path, options.name, device=options.gpu or 0, graphs=options.graphs, max_graphs=most
    )


class EngineBackend:
    """A TensorRT engine with its sidecar.

    Args:
        path: the engine; ``<path>.json`` stands beside it.
        name: ``tensorrt`` or ``tensorrt-rtx``; None for the one that built it.
        device: number of the GPU.
        graphs: pad inputs to rows that many sizes share, and run those that come back as CUDA
            graphs. Without, each size runs as it is, and arrays on the device are read where they
            lie.
        max_graphs: most graphs kept at a time, each with an execution context of its own; the one
            unused for longest gives way. 0 captures none.

    Attributes:
        sidecar: how the engine was built.
        max_graphs: most graphs kept at a time.
        device: the GPU (:class:`dela.plugins.cuda.driver.Device`).
        stream: that the network and its copies run on, one thread at a time; work of your own goes
            on a stream of its own.

    Raises:
        MissingDependencyError: no TensorRT, no CUDA package, no driver or no GPU.
        EngineError: the engine does not fit what is installed; the message says what differs.
        InputError: ``max_graphs`` is below 0.
        CheckpointError: the network's own description is damaged or of a newer dela.
    """

    def __init__(
        self,
        path: Path,
        name: str | None = None,
        *,
        device: int = 0,
        graphs: bool = True,
        max_graphs: int = MAX_GRAPHS,
    ) -> None:
        if max_graphs < 0:
            raise InputError(f"max_graphs is {max_graphs}; give 1 or more, or 0 for no CUDA graphs")
        if path.suffix.lower() in (".onnx", ".pt", ".pth"):
            raise EngineError(
                f"{path} is no engine; build one from an exported network: `dela build "
                f"{path.with_suffix('.onnx')} --backend {name or 'tensorrt'}`"
            )
        flavour = read_sidecar(path, check_digest=False).flavour
        if name not in (None, flavour):
            raise EngineError(
                f"{path} is an engine of {flavour}, not {name}; choose --backend {flavour}"
            )
        name, trt = flavour, _bindings(flavour)
        with explain_cuda_errors():
            from dela.plugins.cuda.driver import Device, Event, Stream

            self.device = Device(device)
        sidecar = read_sidecar(path)
        sidecar.check_runtime(name, trt.__version__, self.device.compute_capability, str(path))
        _check_kernels(sidecar, path)
        with explain_cuda_errors(), self.device.current():
            self.stream = Stream(self.device)
            engine = _deserialize(trt, path, sidecar)
        self.path = path
        self.name = name
        self.sidecar = sidecar
        metadata = sidecar.metadata(str(path))
        _check_engine(trt, engine, metadata, sidecar, path)
        self.metadata: ModelMetadata | None = metadata
        self.config: Contract = metadata.config
        self.sha256: str = metadata.checkpoint_sha256
        self.max_points: int | None = None
        if self.config.task == "segmentation":
            self.max_points = max(profile.stages[0].max for profile in sidecar.profiles)
        self._specs = metadata.family.inputs(metadata.config)
        self._sizes = metadata.family.sizes(metadata.config)
        self._per_cloud = tuple(size.per_cloud for size in self._sizes if size.per_cloud)
        self._dtypes = {spec.name: spec.dtype for spec in self._specs}
        with explain_cuda_errors(), self.device.current():
            self._arriving = run_stream(self.stream)
            self._finished = Event(self.device)
            self._block = InputBlock(self.stream, self._specs)
            self._output = OutputBuffer(self.stream)
            create, captured = self._contexts(trt, engine)
            self._executions = Executions(
                create,
                self.stream,
                max_graphs=max_graphs if graphs else 0,
                reason=lambda: messages.first_error(trt),
                captured=captured,
            )
        self.max_graphs = max_graphs
        self._trt, self._engine = trt, engine
        self._ladder = Ladder(sidecar.profiles, self._per_cloud, most=max(max_graphs, 1))
        self._log = messages.logger(trt)
        self._lock = threading.Lock()

    def _contexts(
        self, trt: ModuleType, engine: Any
    ) -> tuple[Callable[[bool], Any], Callable[[], None]]:
        """What makes execution contexts, and what to do once a graph is captured."""
        if self.name != "tensorrt-rtx":
            return _context_maker(trt, engine), lambda: None
        create, runtime_cache = _rtx_context_maker(trt, engine)
        major, minor = self.device.compute_capability
        key = {
            "gpu": self.device.name,
            "compute_capability": f"{major}.{minor}",
            "tensorrt_version": trt.__version__,
            "engine": self.sidecar.engine_sha256,
        }
        cache = KernelCache(runtime_cache, self.path, key)
        cache.load()
        # Kernels compiled in the background are there in the end only.
        weakref.finalize(self, _save_kernels, cache, self.device)
        return create, cache.save

    @property
    def graphs(self) -> int:
        """CUDA graphs captured so far."""
        return self._executions.captured

    @property
    def latest_run(self) -> RunKind:
        """Whether the latest run met its size for the first time, captured a graph or replayed."""
        return self._executions.latest

    def warm_up(
        self, sizes: Sequence[int], progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Runs sizes to come and captures their graphs, so that no scan of them waits for it.

        Args:
            sizes: points of stage 0, or clouds of a batch (classification).
            progress: called as ``progress(graphs captured, graphs in all)``.

        Returns:
            Graphs at hand; 0 where none can be captured.

        Raises:
            InputError: this engine captures no graphs, or the sizes need more than are kept.
            EngineError: more points than the engine takes.
            DelaError: the GPU has too little memory, or the engine fails.
        """
        if not self._executions.graphs:
            raise InputError(f"{self.path} runs without CUDA graphs; there is nothing to warm up")
        sets = self._ladder.likely(sizes, self.sidecar.metadata(), str(self.path))
        nothing = {
            spec.name: np.zeros((0, *spec.columns), np.dtype(spec.dtype)) for spec in self._specs
        }
        with self._lock, explain_cuda_errors(), self.device.current():
            self._log.clear()
            self._arriving.begin()
            # The largest comes first: memory that grows later would void what is captured.
            for done, (profile, rows) in enumerate(sets, start=1):
                self._ladder.keep(profile, rows)
                shapes = self._shapes(rows)
                for _ in range(2):
                    inputs = self._block.upload(nothing, shapes)
                    logits = self._output.reserve((self._answers(rows), self.config.num_classes))
                    self._executions.run(profile, inputs, {OUTPUT: logits})
                self._output.download(logits)
                self.stream.synchronize()
                self._executions.waited()
                if progress is not None:
                    progress(done, len(sets))
        return self.graphs

    def time_layers(self, pyramid: Inputs, repeats: int) -> list[LayerTime]:
        """Time of every layer, the longest first, run without padding and CUDA graphs.

        Args:
            pyramid: as :meth:`run` takes it.
            repeats: runs that are averaged, after one that is not counted.

        Raises:
            InputError, EngineError: as :meth:`run`.
            DelaError: the GPU has too little memory, or the engine fails.
        """
        arrays = self._arrays(pyramid)
        with self._lock, explain_cuda_errors(), self.device.current():
            self._log.clear()
            self._arriving.begin()
            counts = self._counts(arrays)
            profiles = self.sidecar.profiles
            profile = choose_profile(profiles, counts, self._per_cloud, str(self.path))
            rows = padded_counts(counts, profiles[profile], self._per_cloud)
            inputs = self._on_device(arrays, rows, direct=False)
            logits = self._output.reserve((self._answers(rows), self.config.num_classes))
            execution = self._executions.apart(profile, inputs, {OUTPUT: logits})
            recorded = recorder(self._trt)
            execution.time_layers(recorded, repeats)
            form = self._trt.LayerInformationFormat.JSON
            inspected = execution.inspected(self._engine.create_engine_inspector(), form)
        return layers_of_engine(recorded.milliseconds, inspected, repeats)

    def run(self, pyramid: Inputs, output: Where | Any = "host", *, stream: Any = None) -> Any:
        """Logits of a pyramid: [N_0, classes] float32, or [B, classes] (classification).

        Args:
            pyramid: numpy arrays, or arrays on the GPU of any library, all of them float32 and
                int32 as documented there. Those on the device are not looked into: indices are
                trusted.
            output: ``host``: a numpy array of your own. ``pinned``: one in page-locked memory, and
                ``device``: a :class:`dela.plugins.cuda.arrays.DeviceArray`; both are the
                backend's, complete, and overwritten by the next run. Or an array of yours, of any
                library, on the same GPU: they are copied there, complete on return.
            stream: a stream of yours, of any library or as the driver's handle, instead of
                waiting. The run begins after what it was given so far; the logits, anywhere but
                ``host``, are there for what it is given later. Arrays of the input must stay until
                then. Sizes that are captured now, or that memory must grow for, wait all the same.

        Raises:
            InputError: a shape, dtype or index that does not fit, an output that is no place for
                logits, or no stream.
            EngineError: more points than the engine takes.
            DelaError: the GPU has too little memory, or the engine fails.
        """
        _check_output(output, stream)
        arrays = self._arrays(pyramid)
        with self._lock, explain_cuda_errors(), self.device.current():
            self._log.clear()
            self._arriving.begin()
            caller = None if stream is None else callers_stream(stream, self.device)
            if caller is not None:
                self._arriving.wait_for(caller)
            counts = self._counts(arrays)
            shape = (self._answers(counts), self.config.num_classes)
            where, given = output if isinstance(output, str) else "", None
            if not where:
                given = device_output(output, shape, self._arriving)
            asked: Any = self._queue(arrays, counts).view(shape)
            if given is not None:
                given.copy_from(asked, self.stream)
            elif where != "device":
                asked = self._output.download(asked)
            elif caller is not None:
                # Who takes the array to yet another stream waits for the caller's.
                asked.stream = caller
            if caller is None:
                self.stream.synchronize()
                self._executions.waited()
            else:
                self._finished.record(self.stream)
                caller.wait(self._finished)
            if given is not None:
                return output
            return asked.copy() if where == "host" else asked

    def _queue(self, arrays: Mapping[str, Any], counts: tuple[int, ...]) -> DeviceArray:
        """Queues a run; returns its logits, padding included."""
        profiles, per_cloud = self.sidecar.profiles, self._per_cloud
        profile = choose_profile(profiles, counts, per_cloud, str(self.path))
        if self._executions.graphs:
            rows = self._ladder.rows(profile, counts)
        else:
            rows = padded_counts(counts, profiles[profile], per_cloud)
        inputs = self._on_device(arrays, rows, direct=rows == counts)
        logits = self._output.reserve((self._answers(rows), self.config.num_classes))
        self._executions.run(profile, inputs, {OUTPUT: logits})
        return logits

    def _arrays(self, pyramid: Inputs) -> dict[str, Any]:
        """The inputs this network takes; host arrays are checked to their last value."""
        arrays = taken_inputs(pyramid, self._dtypes, self.path, "engine")
        if not any(map(on_device, arrays.values())):
            pyramid.validate()
        return arrays

    def _counts(self, arrays: Mapping[str, Any]) -> tuple[int, ...]:
        """Points per stage.

        Raises:
            InputError: an array of another shape than the network and the other arrays ask for.
        """
        tellers = {spec.rows: spec.name for spec in reversed(self._specs)}
        counts = tuple(int(arrays[tellers[size.name]].shape[0]) for size in self._sizes)
        for name, wanted in self._shapes(counts).items():
            found = tuple(int(size) for size in arrays[name].shape)
            if found != wanted:
                raise InputError(f"{name} has shape {list(found)}; expected {list(wanted)}")
        if self._per_cloud:
            clouds = -(-counts[0] // self._per_cloud[0])
            if counts != tuple(clouds * size for size in self._per_cloud):
                raise InputError(
                    f"the stages have {list(counts)} points; clouds of {list(self._per_cloud)} "
                    "are expected"
                )
        return counts

    def _shapes(self, counts: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Shape of every input at some points per stage."""
        rows = {size.name: count for size, count in zip(self._sizes, counts, strict=True)}
        return {spec.name: (rows[spec.rows], *spec.columns) for spec in self._specs}

    def _answers(self, counts: Sequence[int]) -> int:
        """Rows of logits: points, or clouds."""
        return counts[0] // self._per_cloud[0] if self._per_cloud else counts[0]

    def _on_device(
        self, arrays: Mapping[str, Any], rows: Sequence[int], direct: bool
    ) -> dict[str, Any]:
        """The inputs as device arrays of ``rows`` rows per stage."""
        shapes = self._shapes(rows)
        if not any(map(on_device, arrays.values())):
            return self._block.upload(arrays, shapes)
        found = device_inputs(arrays, self._dtypes, self._arriving)
        # A graph keeps the addresses it was captured with, so it reads from memory of its own; and
        # TensorRT takes no address in the middle of an allocation.
        aligned = all(array.pointer % ALIGNMENT == 0 for array in found.values())
        if direct and aligned and not self._executions.graphs:
            return found
        return self._block.gather(found, shapes)


def _check_output(output: Any, stream: Any) -> None:
    if isinstance(output, str) and output not in get_args(Where):
        raise InputError(
            f"output is {output!r}; give {', '.join(get_args(Where))} or an array on the GPU"
        )
    if stream is not None and isinstance(output, str) and output == "host":
        raise InputError(
            "a run on your stream does not wait, so its logits cannot go to the host; give "
            "output='device' or 'pinned', or an array on the GPU"
        )


def _bindings(name: str) -> ModuleType:
    try:
        return bindings.load(name)
    except bindings.TensorRTUnavailable as error:
        raise MissingDependencyError(str(error)) from error


def _check_kernels(sidecar: Sidecar, path: Path) -> None:
    """Kernels that are not in the engine must be those it was built with.

    TensorRT's choices were timed with them.
    """
    if sidecar.plugins == "native":
        from dela.plugins.tensorrt import native

        try:
            installed = native.digest()
        except RuntimeError as error:
            raise EngineError(f"{path} needs the plugin library: {error}") from error
    elif sidecar.plugins == "python":
        from dela.plugins.cuda import kernels

        installed = kernels.digest()
    else:
        return
    if installed != sidecar.kernels_sha256:
        raise EngineError(
            f"{path} was built with the kernels of dela {sidecar.dela_version} "
            f"({sidecar.kernels_sha256[:12]}), installed are others ({installed[:12] or 'none'}); "
            "build it again with `dela build`"
        )


def _deserialize(trt: ModuleType, path: Path, sidecar: Sidecar) -> Any:
    try:
        if sidecar.plugins == "native":
            from dela.plugins.tensorrt import native

            native.register(trt)
        elif sidecar.plugins == "python":
            from dela.plugins.tensorrt import launched

            launched.register(trt)
    except RuntimeError as error:
        raise EngineError(f"{path} needs dela's plugins: {error}") from error
    log = messages.logger(trt)
    log.clear()
    try:
        engine = trt.Runtime(log).deserialize_cuda_engine(path.read_bytes())
    except OSError as error:
        raise EngineError(f"cannot read {path}: {error.strerror or error}") from error
    if engine is None:
        raise EngineError(
            f"{path} does not load: {messages.first_error(trt)}; build it again on this machine "
            "with `dela build`"
        )
    return engine


def _check_engine(
    trt: ModuleType, engine: Any, metadata: ModelMetadata, sidecar: Sidecar, path: Path
) -> None:
    """Whether inputs, output and profiles are those the sidecar speaks of."""
    inputs: dict[str, tuple[str, list[int | None]]] = {}
    outputs: dict[str, list[int | None]] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = [None if size < 0 else int(size) for size in engine.get_tensor_shape(name)]
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            inputs[name] = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name, shape
        else:
            outputs[name] = shape
    metadata.check_graph(inputs, outputs, str(path))
    found = engine.num_optimization_profiles
    if found != len(sidecar.profiles):
        raise EngineError(
            f"{path} has {found} profiles, {path.name}.json speaks of {len(sidecar.profiles)}; "
            "build it again with `dela build`"
        )


def _context_maker(trt: ModuleType, engine: Any) -> Callable[[bool], Any]:
    """A function that makes execution contexts whose activations the caller provides; its argument
    tells whether graphs will be captured from it."""
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    return lambda for_graphs: _context(trt, engine, strategy)


def _rtx_context_maker(trt: ModuleType, engine: Any) -> tuple[Callable[[bool], Any], Any]:
    """The same for TensorRT for RTX, and the runtime cache that all its contexts use.

    It compiles kernels for each shape it meets, behind stand-ins that are ready at once. A graph
    would keep the stand-ins, so there it waits. What is compiled serves all contexts.
    """
    settings, cache = {}, None
    kinds = trt.DynamicShapesKernelSpecializationStrategy
    for for_graphs, kind in ((False, kinds.LAZY), (True, kinds.EAGER)):
        config = engine.create_runtime_config()
        cache = cache or config.create_runtime_cache()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.set_runtime_cache(cache)
        config.dynamic_shapes_kernel_specialization_strategy = kind
        settings[for_graphs] = config
    return lambda for_graphs: _context(trt, engine, settings[for_graphs]), cache


def _context(trt: ModuleType, engine: Any, setting: Any) -> Any:
    context = engine.create_execution_context(setting)
    if context is None:
        raise DelaError(f"TensorRT makes no execution context: {messages.first_error(trt)}")
    return context


def _save_kernels(cache: KernelCache, device: Any) -> None:
    from dela.plugins.cuda.driver import CudaError

    # At the end of a process whose GPU failed there is nobody left to tell.
    with contextlib.suppress(CudaError), device.current():
        cache.save()
