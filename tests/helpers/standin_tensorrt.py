"""A module that stands in for TensorRT where there is no GPU, and engines it can run.

Its contexts have TensorRT's methods and rules, and really compute: ``execute_async_v3`` queues, on
the stream it is given, a host function that reads the inputs where the context's addresses say,
runs the network in ONNX Runtime and writes the logits. What TensorRT calls undefined, such as
launching a graph of a context that has taken other shapes since, is a line in ``problems``.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import json
import pickle
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from dela.artifacts.metadata import ModelMetadata
from dela.artifacts.sidecar import Sidecar, digest_of, sidecar_path
from dela.export.profiles import input_shapes, parse_profile
from dela.plugins import native
from dela.plugins.cuda.driver import driver

VERSION = "10.13.0.35"
CAPABILITY = "9.0"

_jobs: dict[int, Any] = {}
_numbers = itertools.count(1)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _run_job(number: int) -> None:
    _jobs[number]()


class Engine:
    def __init__(self, trt: StandInTensorRT, content: dict[str, Any]) -> None:
        self.trt = trt
        self.profiles: list[dict[str, Any]] = content["profiles"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.register_custom_ops_library(str(native.library_path()))
        self.session = onnxruntime.InferenceSession(
            content["onnx"], options, providers=["CPUExecutionProvider"]
        )
        self.tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        self.contexts: list[Context] = []
        self.configs: list[RuntimeConfig] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index].name

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (tensor,) = (tensor for tensor in self.tensors if tensor.name == name)
        return tuple(size if isinstance(size, int) else -1 for size in tensor.shape)

    def get_tensor_dtype(self, name: str) -> type:
        (tensor,) = (tensor for tensor in self.tensors if tensor.name == name)
        return {"tensor(float)": np.float32, "tensor(int32)": np.int32}[tensor.type]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)

    def create_runtime_config(self) -> RuntimeConfig:
        self.configs.append(RuntimeConfig())
        return self.configs[-1]

    def create_execution_context(self, strategy: Any) -> Context | None:
        config = None
        if isinstance(strategy, RuntimeConfig):
            config, strategy = strategy, strategy.strategy
        if strategy != self.trt.ExecutionContextAllocationStrategy.USER_MANAGED:
            self.trt.problems.append(f"a context with memory of its own: {strategy}")
        if self.trt.refuse_contexts:
            self.trt.error("out of contexts")
            return None
        self.contexts.append(Context(self, None) if config is None else RtxContext(self, config))
        return self.contexts[-1]


class EngineInspector:
    """Tells layers' names and kinds, at a context's shapes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.execution_context: Context | None = None

    def get_engine_information(self, form: Any) -> str:
        assert form == self._engine.trt.LayerInformationFormat.JSON
        assert self.execution_context is not None and self.execution_context.shapes
        layers = self._engine.trt.layers
        return json.dumps(
            {"Layers": [{"Name": name, "LayerType": kind} for name, (kind, _) in layers.items()]}
        )


class RuntimeConfig:
    """What TensorRT for RTX is told of all contexts made with it."""

    def __init__(self) -> None:
        self.strategy = self.cache = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """The kernels that TensorRT for RTX has compiled, by the shapes they are for."""

    def __init__(self) -> None:
        self.kernels: set[Any] = set()

    def serialize(self) -> memoryview:
        return memoryview(pickle.dumps(("kernels", sorted(self.kernels))))

    def deserialize(self, blob: bytes) -> bool:
        what, kernels = pickle.loads(blob)
        self.kernels |= set(kernels)
        return what == "kernels"


class Context:
    """One execution context; ``calls`` counts what it was told."""

    def __init__(self, engine: Engine, config: RuntimeConfig | None) -> None:
        self.engine = engine
        self.config = config
        self.active_optimization_profile = 0
        self.profiler: Any = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.state = 0  # counts changes, after which nothing captured before may run
        self.warm = False  # has run since the last change
        self.under_way = 0  # runs queued outside of graphs that are not over
        self.calls = {"shape": 0, "address": 0, "execute": 0}

    def _changed(self) -> None:
        self.state += 1
        self.warm = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if not 0 <= index < len(self.engine.profiles):
            self.engine.trt.error(f"there is no profile {index}")
            raise RuntimeError("Error in set optimization profile async.")
        self.active_optimization_profile = index
        self.shapes.clear()
        self._changed()
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self.calls["shape"] += 1
        least, _, most = self.engine.profiles[self.active_optimization_profile][name]
        fits = len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        if not fits:
            return self.engine.trt.error(f"{name} of {tuple(shape)} is outside {least} .. {most}")
        self.shapes[name] = tuple(shape)
        self._changed()
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls["address"] += 1
        if not address or address % 256:
            return self.engine.trt.error(f"{name} has the address {address:#x}")
        self.addresses[name] = address
        self._changed()
        return True

    def _scratch_size(self) -> int:
        return 64 * self.shapes["points"][0] + 1000

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self.shapes) == set(self.engine.inputs)
        return self._scratch_size()

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        self.memory = (address, size)
        self._changed()

    def execute_async_v3(self, stream: int) -> bool:
        self.calls["execute"] += 1
        trt = self.engine.trt
        if trt.refuse_to_run:
            return trt.error("out of luck")
        if set(self.shapes) != set(self.engine.inputs):
            return trt.error("a shape is missing")
        if set(self.addresses) != {tensor.name for tensor in self.engine.tensors}:
            return trt.error("an address is missing")
        if self.memory[1] < self._scratch_size():
            return trt.error("too little scratch memory")
        status, capturing = driver().cuStreamIsCapturing(stream)[:2]
        captured = int(status) == 0 and int(capturing) == 1
        if captured and self.under_way:
            trt.problems.append("captured while the first run prepares the new shapes")
        if captured and (trt.refuse_capture or not self.warm):
            trt.noted_error = True
            return trt.error("not while the stream is captured")
        if trt.noted_error and not captured:
            # As a CUDA runtime does, which answers the next question with what failed before.
            trt.noted_error = False
            return trt.error("an operation failed while a stream was captured")
        self.under_way += not captured
        if self.config is not None:
            needed = tuple(sorted(self.shapes.items()))
            trt.compilations += needed not in self.config.cache.kernels
            self.config.cache.kernels.add(needed)
        number = next(_numbers)
        _jobs[number] = self._job(captured)
        function = ctypes.cast(_run_job, ctypes.c_void_p).value
        (status,) = driver().cuLaunchHostFunc(stream, driver().CUhostFn(function), number)
        if captured and trt.wait_in_capture:
            driver().cuStreamSynchronize(stream)
            trt.noted_error = True
        self.warm = True
        if self.profiler is not None:
            # TensorRT waits for the run and reports its layers.
            driver().cuStreamSynchronize(stream)
            for name, (_, milliseconds) in trt.layers.items():
                self.profiler.report_layer_time(name, milliseconds)
        return int(status) == 0

    def _job(self, captured: bool) -> Any:
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        memory, state, trt = self.memory, self.state, self.engine.trt

        def run() -> None:
            self.under_way -= not captured
            try:
                if self.state != state:
                    trt.problems.append("a graph ran after its context had changed")
                _device_view(memory[0], (memory[1],), np.uint8)[:] = 0x5A
                inputs = {}
                for name in self.engine.inputs:
                    dtype = self.engine.get_tensor_dtype(name)
                    inputs[name] = _device_view(addresses[name], shapes[name], dtype).copy()
                (logits,) = self.engine.session.run(None, inputs)
                output = self.engine.tensors[-1].name
                _device_view(addresses[output], logits.shape, np.float32)[:] = logits
                trt.runs.append({name: shapes[name][0] for name in shapes})
            except Exception as error:  # nothing may be raised into the driver
                trt.problems.append(f"{type(error).__name__}: {error}")

        return run


class RtxContext(Context):
    """What TensorRT for RTX has besides."""

    def is_stream_capturable(self, stream: int) -> bool:
        return not self.engine.trt.has_loops


def _device_view(address: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


class Runtime:
    def __init__(self, trt: StandInTensorRT) -> None:
        self.trt = trt

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        try:
            content = pickle.loads(data)
        except Exception:
            self.trt.error("the file is no engine")
            return None
        self.trt.engines.append(Engine(self.trt, content))
        return self.trt.engines[-1]


class StandInTensorRT(types.ModuleType):
    """The module; one per test, so that nothing is shared between them."""

    __version__ = VERSION

    class TensorIOMode(enum.Enum):
        INPUT = 1
        OUTPUT = 2

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC = 0
        USER_MANAGED = 2

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        LAZY = 0
        EAGER = 1

    class LayerInformationFormat(enum.Enum):
        ONELINE = 0
        JSON = 1

    class IProfiler:
        def __init__(self) -> None:
            pass

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2

        def __init__(self) -> None:
            pass

    def __init__(self) -> None:
        super().__init__("standin_tensorrt")
        self.problems: list[str] = []  # what TensorRT leaves undefined, and crashes
        self.engines: list[Engine] = []
        self.runs: list[dict[str, int]] = []  # rows of every input, per run
        self.layers: dict[str, tuple[str, float]] = {}  # name -> kind, milliseconds of every run
        self.refuse_capture = self.refuse_to_run = self.refuse_contexts = False
        self.wait_in_capture = False  # which no capture survives
        self.has_loops = False  # and so cannot be captured, which TensorRT for RTX tells
        self.compilations = 0  # of TensorRT for RTX, at sizes whose kernels it did not have
        self.noted_error = False  # of the CUDA runtime within TensorRT, until somebody asks
        self._log: Any = None

    def Runtime(self, log: Any) -> Runtime:
        self._log = log
        return Runtime(self)

    def nptype(self, dtype: type) -> type:
        return dtype

    def error(self, message: str) -> bool:
        self._log.log(self.ILogger.Severity.ERROR, message)
        return False


def write_engine(folder: Path, model: Path, *points: str, **changes: Any) -> Path:
    """An engine of the stand-in with its sidecar.

    Args:
        folder: to write ``model.engine`` into.
        model: the exported file.
        points: a text per profile, as ``dela build --points`` takes it.
        changes: what the sidecar says otherwise than is true.
    """
    proto = onnx.load(model)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    metadata = ModelMetadata.from_properties(properties)
    profiles = tuple(parse_profile(text, metadata) for text in points)
    path = folder / "model.engine"
    shapes = [input_shapes(metadata, profile) for profile in profiles]
    path.write_bytes(pickle.dumps({"onnx": model.read_bytes(), "profiles": shapes}))
    values: dict[str, Any] = {
        "flavour": "tensorrt",
        "tensorrt_version": VERSION,
        "compute_capabilities": (CAPABILITY,),
        "compatibility": "none",
        "dtype": metadata.dtype,
        "tf32": False,
        "plugins": "none",
        "plugin_layers": {},
        "kernels_sha256": "",
        "profiles": profiles,
        "engine_sha256": digest_of(path),
        "properties": properties,
        "dela_version": "0.1.0",
    }
    Sidecar(**{**values, **changes}).write(sidecar_path(path))
    return path
