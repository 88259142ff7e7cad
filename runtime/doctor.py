"""Looks over an installation: what is there, what is missing, how to mend it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dela import __version__
from dela.plugins import native
from dela.threads import chosen_waiting, current_threads, others_load, usable_processors

OK, NOTE, WARNING, BROKEN = "ok", "note", "warning", "broken"

# Other processes that take more than this share of the processors are worth a line.
_CROWDED = 0.25
_WAITING = {
    "watched": "threads spin, and sleep while other work takes the cores",
    "set": "as {} says",
    "other": "as this OpenMP runtime does, which is not libgomp",
    "unmeasured": "threads spin: /proc does not say whether other work takes the cores",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``mend`` says what to do about it."""

    subject: str
    status: str
    detail: str
    mend: str = ""


def examine() -> list[Finding]:
    """Every finding, in reading order. Never raises: what breaks is a finding."""
    findings = [
        Finding("dela", OK, __version__),
        Finding("python", OK, f"{platform.python_version()} on {platform.platform()}"),
    ]
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _native_library,
        _threads,
        _formats,
        _torch,
        _onnxruntime,
        _export,
        _cuda,
        _tensorrt,
        _pillow,
    )
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            subject = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(subject, BROKEN, f"{type(error).__name__}: {error}"))
    return findings


def _native_library() -> Iterator[Finding]:
    try:
        path = native.library_path()
        isa = native.active_isa()
    except native.NativeLibraryError as error:
        yield Finding("native library", BROKEN, str(error), "pip install --force-reinstall dela")
        return
    yield Finding("native library", OK, f"{path}, instruction set {isa}")
    from dela.geometry.cpu import knn

    line = np.zeros((3, 3), dtype=np.float32)
    line[:, 0] = (0.0, 1.0, 3.0)
    if knn(line, 2).tolist() != [[0, 1], [1, 0], [2, 1]]:
        yield Finding(
            "native kernels",
            BROKEN,
            "neighbor search gives a wrong answer",
            "reinstall dela; if it stays, report this processor",
        )


def _threads() -> Iterator[Finding]:
    threads = current_threads()
    usable = len(usable_processors())
    detail = f"{threads.count}, from {threads.source}"
    if threads.count > usable:
        mend = f"set OMP_NUM_THREADS to {usable} or less, or leave it unset"
        yield Finding("threads", WARNING, f"{detail}; only {usable} can run at once", mend)
    else:
        yield Finding("threads", OK, detail)
    torch = sys.modules.get("torch")
    if torch is not None and threads.limited and torch.get_num_threads() > threads.count:
        yield Finding(
            "torch's threads",
            WARNING,
            f"{torch.get_num_threads()}: torch was imported before dela could limit them",
            f"import dela first, or call torch.set_num_threads({threads.count})",
        )
    yield Finding("waiting", OK, _WAITING[native.waiting_policy()].format(chosen_waiting()))
    others = others_load()
    if others is not None and others > _CROWDED * usable:
        yield Finding(
            "other work",
            WARNING,
            f"takes {others:.1f} of {usable} processors: everything here takes longer",
            "end it, or give dela processors of its own (taskset)",
        )


def _formats() -> Iterator[Finding]:
    laspy = _version("laspy")
    if laspy is None:
        yield Finding("LAS", BROKEN, "laspy is missing", "pip install laspy lazrs")
        return
    packed = next((name for name in ("lazrs", "laszip") if _version(name)), None)
    if packed is None:
        yield Finding("LAZ", BROKEN, "no LAZ decoder", "pip install lazrs")
        return
    yield Finding("LAS/LAZ", OK, f"laspy {laspy}, {packed} {_version(packed)}")


def _torch() -> Iterator[Finding]:
    version = _version("torch")
    if version is None:
        yield Finding(
            "torch",
            NOTE,
            "not installed; exported networks run without it",
            "pip install 'dela[train]' to train, export and verify",
        )
        return
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU only"
    yield Finding("torch", OK, f"{torch.__version__}, {torch.get_num_threads()} threads, {device}")
    import dela.ops  # noqa: F401  (registers the operators)

    missing = [name for name in ("spse", "spamp") if not hasattr(torch.ops.dela, name)]
    if missing:
        yield Finding(
            "torch operators", BROKEN, f"{', '.join(missing)} not registered", "reinstall dela"
        )


def _onnxruntime() -> Iterator[Finding]:
    cpu, gpu = _version("onnxruntime"), _version("onnxruntime-gpu")
    if cpu and gpu:
        yield Finding(
            "onnxruntime",
            WARNING,
            f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed: they overwrite each "
            "other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install only one of the extras "
            "dela[onnxruntime] and dela[onnxruntime-gpu]",
        )
    if importlib.util.find_spec("onnxruntime") is None:
        yield Finding(
            "onnxruntime",
            NOTE,
            "not installed; needed to run exported networks",
            "pip install 'dela[onnxruntime]'",
        )
        return
    import onnxruntime

    options = onnxruntime.SessionOptions()
    try:
        options.register_custom_ops_library(str(native.library_path()))
    except Exception as error:
        yield Finding(
            "onnxruntime",
            BROKEN,
            f"{onnxruntime.__version__} does not take our kernels: {str(error).splitlines()[0]}",
            "pip install -U onnxruntime, or predict with --no-kernels",
        )
        return
    providers = ", ".join(
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    )
    yield Finding("onnxruntime", OK, f"{onnxruntime.__version__} ({providers}), our kernels load")


def _export() -> Iterator[Finding]:
    versions = {name: _version(name) for name in ("onnx", "onnxscript")}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        yield Finding(
            "export", NOTE, f"{', '.join(missing)} not installed", "pip install 'dela[train]'"
        )
    else:
        yield Finding("export", OK, ", ".join(f"{name} {versions[name]}" for name in versions))


def _cuda() -> Iterator[Finding]:
    from dela.plugins.cuda.driver import CudaUnavailable, Device
    from dela.plugins.cuda.kernels import image_candidates

    try:
        devices = [Device(number) for number in range(Device.count())]
    except CudaUnavailable as reason:
        yield Finding("GPU", NOTE, f"none: {reason}")
        return
    for device in devices:
        subject, capability = f"GPU {device.ordinal}", device.compute_capability
        free, total = device.memory()
        detail = (
            f"{device.name}, compute capability {capability[0]}.{capability[1]}, "
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        )
        try:
            images = image_candidates("operators", capability)
        except CudaUnavailable as reason:
            yield Finding(subject, WARNING, f"{detail}; {reason}", "use a CPU backend")
            continue
        if images:
            yield Finding(subject, OK, f"{detail}, kernels {images[0].name}")
        else:
            yield Finding(subject, BROKEN, f"{detail}; no CUDA kernels", "reinstall dela")


def _tensorrt() -> Iterator[Finding]:
    from dela.plugins.tensorrt import bindings

    for flavour, modules in bindings.MODULES.items():
        if all(importlib.util.find_spec(module) is None for module in modules):
            mend = f"pip install 'dela[{flavour}]' to build and run engines"
            yield Finding(flavour, NOTE, "not installed", mend)
            continue
        try:
            yield Finding(flavour, OK, bindings.load(flavour).__version__)
        except bindings.TensorRTUnavailable as reason:
            yield Finding(flavour, BROKEN, str(reason), f"pip install -U 'dela[{flavour}]'")


def _pillow() -> Iterator[Finding]:
    version = _version("pillow")
    if version is None:
        yield Finding(
            "pictures", NOTE, "Pillow is not installed", "pip install 'dela[view]' for dela view"
        )
    else:
        yield Finding("pictures", OK, f"Pillow {version}")


def _version(distribution: str) -> str | None:
    """Version of an installed distribution that can also be imported; None without it."""
    module = {"pillow": "PIL", "onnxruntime-gpu": "onnxruntime"}.get(distribution, distribution)
    # A module blocked in sys.modules (None) cannot be imported, whatever is on the disk.
    if module in sys.modules and sys.modules[module] is None:
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
