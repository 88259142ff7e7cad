"""A TensorRT engine from an exported file: parsed, configured, built, described, put in place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import dela
from dela.artifacts.metadata import ModelMetadata
from dela.artifacts.sidecar import (
    COMPATIBILITIES,
    FLAVOURS,
    PLUGIN_FORMS,
    Profile,
    Sidecar,
    sidecar_path,
)
from dela.errors import EngineError, InputError, MissingDependencyError
from dela.export.onnx_file import read_onnx
from dela.export.profiles import default_profile, input_shapes, parse_profile
from dela.export.tensorrt_network import ParsedNetwork, parse_network
from dela.files import atomic_path, check_writable
from dela.plugins.cuda.driver import CudaUnavailable, Device
from dela.plugins.cuda.kernels import IMAGES, LOWEST_CAPABILITY, digest
from dela.plugins.tensorrt import bindings, messages

_LEVELS = range(6)
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class BuildRequest:
    """What is asked of an engine.

    Attributes:
        backend: ``tensorrt``, which builds on the GPU that will run the engine, or
            ``tensorrt-rtx``, which builds on the CPU.
        profiles: sizes as :func:`dela.export.profiles.parse_profile` takes them, one text per
            profile; None for the default.
        headroom: above the measured shares of coarser stages.
        plugins: how the operators run: ``native``, ``python``, ``ahead-of-time`` (``tensorrt``
            only) or ``none``: spelled out in standard layers.
        dtype: refuse a file of another precision; None takes any.
        compute_capabilities: ``tensorrt-rtx``: of the GPUs to build for; empty: all that it and
            our kernels know.
        compatibility: ``tensorrt``: one of :data:`dela.artifacts.sidecar.COMPATIBILITIES`.
        tf32: allow float32 products rounded to TF32, which is faster and misses float32 parity.
        workspace: most scratch memory of a layer, MiB; None leaves it to TensorRT.
        level: builder optimization level 0 to 5, quick to thorough; None leaves it to TensorRT.
        timing_cache: ``tensorrt``: file of measured timings, read when it exists, written after.
        device: ``tensorrt``: number of the GPU that builds; None: the first.
    """

    backend: str = "tensorrt"
    profiles: Sequence[str] | None = None
    headroom: float = 1.5
    plugins: str = "native"
    dtype: str | None = None
    compute_capabilities: Sequence[str] = ()
    compatibility: str = "none"
    tf32: bool = False
    workspace: int | None = None
    level: int | None = None
    timing_cache: Path | None = None
    device: int | None = None


class Progress(Protocol):
    """Watches a build; phases nest, each takes a known number of steps."""

    def started(self, phase: str, parent: str | None, steps: int) -> None: ...
    def advanced(self, phase: str, step: int) -> None: ...
    def finished(self, phase: str) -> None: ...


def build_engine(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    request: BuildRequest | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Sidecar:
    """Builds an engine and writes it with its sidecar, both whole or neither.

    Args:
        model: an exported file.
        output: the engine to write; its sidecar is named after it.
        request: what is asked of it.
        overwrite: whether existing files may be replaced.
        progress: told about every phase.

    Returns:
        The sidecar.

    Raises:
        CheckpointError: ``model`` is not ours.
        InputError: an option out of range, sizes that do not fit, or a file that cannot be
            written.
        MissingDependencyError: TensorRT is not installed, or of an unsupported version.
        EngineError: no GPU where one is needed, another precision than asked for, a missing plugin
            layer, or TensorRT gave up; nothing is left behind.
    """
    request = request or BuildRequest()
    output = Path(output)
    proto, metadata = _checked_model(model, output, request, overwrite)
    texts = request.profiles or [default_profile(metadata.config)]
    profiles = tuple(parse_profile(text, metadata, request.headroom) for text in texts)

    trt = _bindings(request.backend)
    device = _device(request)
    capabilities = _capabilities(trt, request, device)
    kernels_sha256 = _register(trt, request.plugins)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    with contextlib.nullcontext() if device is None else device.current():
        builder = _builder(trt)
        parsed = parse_network(trt, builder, proto, metadata, request.plugins, str(model))
        config = _configure(trt, builder, request, capabilities)
        _add_profiles(trt, builder, config, metadata, profiles)
        serialized = _build(trt, builder, parsed, config, progress)
    sidecar = Sidecar(
        flavour=request.backend,
        tensorrt_version=trt.__version__,
        compute_capabilities=capabilities,
        compatibility=request.compatibility,
        dtype=metadata.dtype,
        tf32=request.tf32,
        plugins=request.plugins,
        plugin_layers=parsed.plugin_layers,
        kernels_sha256=kernels_sha256,
        profiles=profiles,
        engine_sha256=hashlib.sha256(serialized).hexdigest(),
        properties=properties,
        dela_version=dela.__version__,
    )
    with atomic_path(output, overwrite) as temporary:
        temporary.write_bytes(serialized)
        with atomic_path(sidecar_path(output), overwrite) as beside:
            sidecar.write(beside)
    if request.timing_cache is not None:
        _save_timings(config, request.timing_cache)
    return sidecar


def _checked_model(
    model: str | os.PathLike[str], output: Path, request: BuildRequest, overwrite: bool
) -> tuple[Any, ModelMetadata]:
    """The exported file and its description, once nothing foreseeable stands in the way."""
    _check_request(request)
    cache = () if request.timing_cache is None else (request.timing_cache,)
    for path in (output, sidecar_path(output)):
        check_writable(path, overwrite, inputs=(model, *cache))
    proto, metadata = read_onnx(model)
    if request.dtype is not None and request.dtype != metadata.dtype:
        raise EngineError(
            f"{model} is {metadata.dtype}, {request.dtype} is asked for; precision lies in the "
            f"file: `dela export --dtype {request.dtype}`"
        )
    return proto, metadata


def _check_request(request: BuildRequest) -> None:
    for name, value, choices in (
        ("backend", request.backend, FLAVOURS),
        ("plugins", request.plugins, PLUGIN_FORMS),
        ("hardware compatibility", request.compatibility, COMPATIBILITIES),
    ):
        if value not in choices:
            raise InputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    if request.level is not None and request.level not in _LEVELS:
        raise InputError(f"level is {request.level}; it runs from 0 (quick) to 5 (thorough)")
    if request.workspace is not None and request.workspace < 1:
        raise InputError(f"workspace is {request.workspace} MiB; it must be above 0")
    if request.backend == "tensorrt-rtx":
        if request.device is not None:
            raise InputError(
                "TensorRT for RTX builds on the CPU; leave out --device, and name the GPUs that "
                "will run the engine by --compute-capability"
            )
        if request.plugins == "ahead-of-time":
            raise InputError(
                "TensorRT for RTX has no plugins ahead of time; build with --plugins native, or "
                "--plugins none for an engine that needs nothing of dela"
            )
        if request.compatibility != "none":
            raise InputError(
                "TensorRT for RTX builds for several GPUs by --compute-capability; leave out "
                "--hardware-compatibility"
            )
        if request.timing_cache is not None:
            raise InputError(
                "TensorRT for RTX measures no timings while it builds; leave out --timing-cache"
            )
    elif request.compute_capabilities:
        raise InputError(
            "tensorrt builds for the GPU of this machine; leave out --compute-capability, or see "
            "--hardware-compatibility"
        )


def _bindings(flavour: str) -> ModuleType:
    try:
        return bindings.load(flavour)
    except bindings.TensorRTUnavailable as error:
        raise MissingDependencyError(str(error)) from error


def _device(request: BuildRequest) -> Device | None:
    """The GPU that builds; None where the CPU does."""
    if request.backend != "tensorrt":
        return None
    try:
        return Device(request.device or 0)
    except CudaUnavailable as error:
        raise EngineError(
            f"tensorrt builds on a GPU: {error}; `--backend tensorrt-rtx` builds without one"
        ) from error


def _capabilities(trt: Any, request: BuildRequest, device: Device | None) -> tuple[str, ...]:
    """Compute capabilities to build for, such as ``("8.9",)``."""
    if device is not None:
        major, minor = device.compute_capability
        if (major, minor) < LOWEST_CAPABILITY and request.plugins != "none":
            raise EngineError(
                f"dela's kernels need compute capability {'.'.join(map(str, LOWEST_CAPABILITY))} "
                f"or newer, this GPU has {major}.{minor}; build with --plugins none"
            )
        return (f"{major}.{minor}",)
    known = known_capabilities(trt)
    for name in request.compute_capabilities:
        if name not in known:
            raise InputError(
                f"compute capability {name} is not one of {', '.join(known)}, which dela and "
                f"TensorRT for RTX {trt.__version__} build for; other GPUs need --backend tensorrt"
            )
    return tuple(dict.fromkeys(request.compute_capabilities)) or known


def known_capabilities(trt: Any) -> tuple[str, ...]:
    """Compute capabilities that TensorRT for RTX builds for, such as ``8.9``, oldest first.

    Without those older than our kernels, for which it has no float32 matrix product either.
    """
    numbers = sorted(
        divmod(int(name.removeprefix("SM")), 10)
        for name in trt.ComputeCapability.__members__
        if name.startswith("SM")
    )
    return tuple(
        f"{major}.{minor}" for major, minor in numbers if (major, minor) >= LOWEST_CAPABILITY
    )


def _register(trt: Any, plugins: str) -> str:
    """Makes the plugins known to TensorRT; returns the digest of their kernels."""
    if plugins == "none":
        return ""
    try:
        if plugins == "native":
            from dela.plugins.tensorrt import native

            native.register(trt)
            return native.digest()
        if plugins == "python":
            from dela.plugins.tensorrt import launched

            launched.register(trt)
        else:
            from dela.plugins.tensorrt import ahead_of_time

            ahead_of_time.register(trt)
    except RuntimeError as error:
        raise EngineError(str(error)) from error
    installed = digest()
    if not installed:
        raise EngineError(f"{IMAGES} has no compiled kernels; reinstall dela")
    return installed


def _builder(trt: Any) -> Any:
    log = messages.logger(trt)
    log.clear()
    try:
        return trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # a null pointer behind the bindings
        raise EngineError(f"TensorRT does not start: {messages.first_error(trt)}") from error


def _configure(trt: Any, builder: Any, request: BuildRequest, capabilities: tuple[str, ...]) -> Any:
    config = builder.create_builder_config()
    if request.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if request.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace * _MEBIBYTE)
    if request.level is not None:
        config.builder_optimization_level = request.level
    if request.compatibility != "none":
        level = request.compatibility.upper().replace("-", "_")
        known = trt.HardwareCompatibilityLevel.__members__
        if level not in known:
            raise EngineError(
                f"TensorRT {trt.__version__} has no hardware compatibility "
                f"{request.compatibility!r}, which came with 10.9; leave it out or install that"
            )
        config.hardware_compatibility_level = known[level]
    # Lets activation memory shrink with the sizes that run, where the bindings know it.
    resize = getattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10", None)
    if resize is not None:
        config.set_preview_feature(resize, True)
    if request.backend == "tensorrt-rtx":
        # Without it the engine may allocate while it runs, which no CUDA graph can hold.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            kind = getattr(trt.ComputeCapability, "SM" + name.replace(".", ""))
            if not config.set_compute_capability(kind, index):
                raise EngineError(
                    f"TensorRT for RTX does not build for compute capability {name}: "
                    f"{messages.first_error(trt)}"
                )
    if request.timing_cache is not None:
        _load_timings(trt, config, request.timing_cache)
    return config


def _load_timings(trt: Any, config: Any, path: Path) -> None:
    try:
        stored = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise EngineError(
            f"{path} is no timing cache of this TensorRT and GPU: {messages.first_error(trt)}; "
            "name another file"
        )


def _save_timings(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        with atomic_path(path, overwrite=True) as temporary:
            temporary.write_bytes(cache.serialize())


def _add_profiles(
    trt: Any,
    builder: Any,
    config: Any,
    metadata: ModelMetadata,
    profiles: tuple[Profile, ...],
) -> None:
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for name, (smallest, best, largest) in input_shapes(metadata, profile).items():
            shapes.set_shape(name, smallest, best, largest)
        if config.add_optimization_profile(shapes) < 0:
            raise EngineError(f"TensorRT refuses the sizes {profile}: {messages.first_error(trt)}")


def _build(
    trt: Any, builder: Any, parsed: ParsedNetwork, config: Any, progress: Progress | None
) -> Any:
    with _interruptible() as interrupted:
        monitor = _monitor_class(trt)(progress, interrupted)
        config.progress_monitor = monitor
        serialized = builder.build_serialized_network(parsed.network, config)
    if interrupted.is_set():
        raise KeyboardInterrupt
    if serialized is None:
        raise EngineError(f"TensorRT built no engine: {messages.first_error(trt)}")
    return serialized


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turns Ctrl-C into an event: an exception cannot pass through TensorRT's own frames.

    A process started to ignore Ctrl-C (in the background) goes on ignoring it.
    """
    interrupted = threading.Event()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _monitor_class(trt: Any) -> type[Any]:
    class Monitor(trt.IProgressMonitor):
        def __init__(self, progress: Progress | None, interrupted: threading.Event) -> None:
            super().__init__()
            self.progress, self.interrupted = progress, interrupted

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if self.progress is not None:
                self.progress.started(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if self.progress is not None:
                self.progress.advanced(phase, step)
            return not self.interrupted.is_set()

        def phase_finish(self, phase: str) -> None:
            if self.progress is not None:
                self.progress.finished(phase)

    return Monitor
