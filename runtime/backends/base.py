"""Backends: what runs a network on its input, and the table that finds one for a file.

Each lives in a module of its own and imports its own package when it is loaded, so a deployment
needs only the one it uses. Adding one is its module and an entry of :data:`BACKENDS`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, Unpack

import numpy as np

from dela.artifacts.sidecar import SUFFIX
from dela.errors import InputError
from dela.model.inputs import Inputs

if TYPE_CHECKING:
    from dela.artifacts.metadata import ModelMetadata


@dataclass(frozen=True)
class BackendKind:
    """What is known of a backend before it is loaded.

    Attributes:
        suffixes: of the files it runs.
        loader: ``module:function``, called with the file and :class:`LoadOptions`.
        gpu_only: it runs on a GPU and nowhere else.
    """

    suffixes: tuple[str, ...]
    loader: str
    gpu_only: bool = False


BACKENDS = {
    "torch": BackendKind((".pt", ".pth"), "dela.runtime.backends.pytorch:load"),
    "onnxruntime": BackendKind((".onnx",), "dela.runtime.backends.onnx_runtime:load"),
    "tensorrt": BackendKind((SUFFIX,), "dela.runtime.backends.engine:load", gpu_only=True),
    "tensorrt-rtx": BackendKind((SUFFIX,), "dela.runtime.backends.engine:load", gpu_only=True),
}


@dataclass(frozen=True)
class LoadOptions:
    """What :func:`load_backend` was asked for.

    Attributes:
        name: the backend's in :data:`BACKENDS`.
        kernels: whether this package's kernels are registered with ONNX Runtime.
        threads: of the CPU; None leaves the choice to the backend.
        gpu: number of the GPU; None for the CPU, or for the first GPU of a backend that needs one.
        graphs: whether engines run sizes that come back as CUDA graphs.
        max_graphs: most CUDA graphs an engine keeps; None leaves the number to it.
        tf32: whether ONNX Runtime on a GPU may round factors of float32 products to TF32.
    """

    name: str
    kernels: bool = True
    threads: int | None = None
    gpu: int | None = None
    graphs: bool = True
    max_graphs: int | None = None
    tf32: bool = False


class LoadKeywords(TypedDict, total=False):
    """Options of :func:`load_backend`; each may be left out.

    Attributes:
        kernels: register this package's kernels with ONNX Runtime; without them the file's own
            function bodies run: the same answer, slower. On a GPU the bodies always run: these
            kernels are the CPU's, and every call of them would move features there and back.
        threads: of the CPU; None: as many as this process was given, see :mod:`dela.threads`.
        graphs: engines only: run sizes that come back as CUDA graphs.
        max_graphs: engines only: most graphs to keep; None:
            :data:`dela.runtime.backends.graphs.MAX_GRAPHS`.
        tf32: ONNX Runtime on a GPU only: let CUDA round factors of float32 products to TF32's 10
            bits, which is faster and misses float32 parity.
    """

    kernels: bool
    threads: int | None
    graphs: bool
    max_graphs: int | None
    tf32: bool


class Backend(Protocol):
    """A loaded network.

    Attributes:
        name: one of :data:`BACKENDS`.
        path: the file it was loaded from.
        config: sizes, classes, grid and input columns.
        metadata: what an exported file says of itself; None for a checkpoint.
        sha256: of the checkpoint the network comes from; empty when unknown.
        max_points: most points of stage 0 in one run; None: as many as memory holds.
    """

    name: str
    path: Path
    config: Any
    metadata: ModelMetadata | None
    sha256: str
    max_points: int | None

    def run(self, pyramid: Inputs) -> np.ndarray:
        """Logits of a pyramid of numpy arrays: [N_0, classes], or [B, classes] (classification).

        Raises:
            InputError: a shape, dtype or index that does not fit.
        """
        ...


def load_backend(
    path: str | os.PathLike[str],
    backend: str | None = None,
    *,
    device: str | None = None,
    **options: Unpack[LoadKeywords],
) -> Backend:
    """Loads a checkpoint (``.pt``), an exported network (``.onnx``) or an engine (``.engine``).

    Args:
        path: the file.
        backend: one of :data:`BACKENDS`; None goes by the suffix.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the CPU, for engines the first GPU.
        **options: ``kernels``, ``threads``, ``graphs``, ``max_graphs`` and ``tf32``, see
            :class:`LoadKeywords`.

    Raises:
        CheckpointError: not a file this package wrote, or of another version.
        EngineError: an engine that does not fit what is installed.
        InputError: a missing file, an unknown backend or device, TF32 where there is none.
        MissingDependencyError: the backend's package, or a GPU with its driver, is missing.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder; name a model file in it" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}")
    backend = backend_of(path) if backend is None else backend
    gpu = gpu_number(device)
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    kind = BACKENDS[backend]
    if kind.gpu_only and device is not None and gpu is None:
        raise InputError(f"{backend} runs on a GPU; give --device cuda, or leave it out")
    if options.get("tf32") and (backend != "onnxruntime" or gpu is None):
        raise InputError(
            "TF32 is a choice for ONNX Runtime on a GPU (--device cuda); leave out --tf32 for "
            f"{backend}, or build an engine with `dela build --tf32`"
        )
    module, _, function = kind.loader.partition(":")
    load = getattr(importlib.import_module(module), function)
    return load(path, LoadOptions(backend, gpu=gpu, **options))


def taken_inputs(
    inputs: Inputs, names: Iterable[str], path: Path, kind: str = "file"
) -> dict[str, Any]:
    """The arrays that a network takes, by name.

    Raises:
        InputError: one is missing; ``kind`` is what the message calls ``path``.
    """
    given, names = dict(inputs.inputs()), list(names)
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(
            f"the pyramid lacks {', '.join(missing)}, which {path} takes; "
            f"build it with this {kind}'s configuration"
        )
    return {name: given[name] for name in names}


def backend_of(path: Path) -> str:
    """The backend for a file, by its suffix; for an engine the one that built it.

    Raises:
        InputError: another suffix.
        EngineError: an engine without its sidecar.
    """
    suffix = path.suffix.lower()
    if suffix == SUFFIX:
        from dela.artifacts.sidecar import read_sidecar

        return read_sidecar(path, check_digest=False).flavour
    for name, kind in BACKENDS.items():
        if suffix in kind.suffixes:
            return name
    raise InputError(
        f"{path}: cannot tell the backend from {path.suffix or 'a name without suffix'!r}; a "
        "checkpoint ends in .pt, an exported network in .onnx, an engine in .engine (or pass "
        "--backend)"
    )


def gpu_number(device: str | None) -> int | None:
    """``cuda:1`` -> 1, ``cuda`` -> 0, ``cpu`` and None -> None.

    Raises:
        InputError: anything else.
    """
    kind, colon, number = (device or "cpu").partition(":")
    if kind == "cpu" and not colon:
        return None
    if kind == "cuda" and (number.isdecimal() or not colon):
        return int(number or 0)
    raise InputError(f"device {device!r} is unknown; choose cpu, cuda or cuda:N")
