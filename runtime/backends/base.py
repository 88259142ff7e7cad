"""Backends: what runs a network on a pyramid. ``torch`` runs checkpoints, ``onnxruntime`` exported
networks, ``tensorrt`` and ``tensorrt-rtx`` engines.

Each imports its own package when it is loaded, so a deployment needs only the one it uses.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dela.artifacts.sidecar import SUFFIX
from dela.errors import CheckpointError, InputError, MissingDependencyError
from dela.model.contract import Contract
from dela.model.inputs import Inputs
from dela.threads import tune_session

if TYPE_CHECKING:
    from dela.artifacts.metadata import ModelMetadata

# name -> suffixes of the files it runs
BACKENDS = {
    "torch": (".pt", ".pth"),
    "onnxruntime": (".onnx",),
    "tensorrt": (SUFFIX,),
    "tensorrt-rtx": (SUFFIX,),
}


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
    config: Contract
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
    kernels: bool = True,
    threads: int | None = None,
    device: str | None = None,
    graphs: bool = True,
) -> Backend:
    """Loads a checkpoint (``.pt``), an exported network (``.onnx``) or an engine (``.engine``).

    Args:
        path: the file.
        backend: one of :data:`BACKENDS`; None goes by the suffix.
        kernels: register this package's kernels with ONNX Runtime; without them the file's own
            function bodies run: the same answer, slower. On a GPU the bodies always run: these
            kernels are the CPU's, and every call of them would move features there and back.
        threads: of the CPU; None: as many as this process was given, see :mod:`dela.threads`.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: the CPU, for engines the first GPU.
        graphs: engines only: run sizes that come back as CUDA graphs.

    Raises:
        CheckpointError: not a file this package wrote, or of another version.
        EngineError: an engine that does not fit what is installed.
        InputError: a missing file, an unknown backend or device.
        MissingDependencyError: the backend's package, or a GPU with its driver, is missing.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder; name a model file in it" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}")
    backend = backend_of(path) if backend is None else backend
    gpu = gpu_number(device)
    if backend == "torch":
        return TorchBackend(path, threads=threads, gpu=gpu)
    if backend == "onnxruntime":
        return OnnxRuntimeBackend(path, kernels=kernels, threads=threads, gpu=gpu)
    if backend in BACKENDS:
        from dela.runtime.backends.engine import EngineBackend

        if device is not None and gpu is None:
            raise InputError(f"{backend} runs on a GPU; give --device cuda, or leave it out")
        return EngineBackend(path, backend, device=gpu or 0, graphs=graphs)
    raise InputError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")


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
    for name, suffixes in BACKENDS.items():
        if suffix in suffixes:
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


class TorchBackend:
    """A checkpoint in PyTorch, in evaluation mode, on the CPU or on the GPU numbered ``gpu``."""

    name = "torch"
    max_points: int | None = None

    def __init__(self, path: Path, threads: int | None = None, gpu: int | None = None) -> None:
        import torch

        from dela.artifacts.checkpoint import load_checkpoint

        _refuse_other_files(path)
        if gpu is not None and gpu >= torch.cuda.device_count():
            raise MissingDependencyError(
                f"PyTorch {torch.__version__} finds {torch.cuda.device_count()} GPUs, not one "
                f"numbered {gpu}; install the NVIDIA driver and a PyTorch built for CUDA, or leave "
                "out --device"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        checkpoint = load_checkpoint(path)
        self.path = path
        self.metadata: ModelMetadata | None = None
        self.config: Contract = checkpoint.config
        self.sha256: str = checkpoint.sha256
        self._device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        self._model = checkpoint.model.eval().to(self._device)

    def run(self, pyramid: Inputs) -> np.ndarray:
        import torch

        pyramid.validate()
        with torch.inference_mode():
            return self._model(pyramid.to_tensors(self._device)).float().cpu().numpy()


class OnnxRuntimeBackend:
    """An exported file in ONNX Runtime, on the CPU or on the GPU numbered ``gpu``."""

    name = "onnxruntime"
    max_points: int | None = None

    def __init__(
        self,
        path: Path,
        *,
        kernels: bool = True,
        threads: int | None = None,
        gpu: int | None = None,
    ) -> None:
        import onnxruntime

        from dela.artifacts.metadata import ModelMetadata

        options = onnxruntime.SessionOptions()
        # A failed run raises; ONNX Runtime's own line on stderr would only repeat it.
        options.log_severity_level = 4
        tune_session(options, threads)
        kernels = kernels and gpu is None
        if kernels:
            from dela.plugins import native

            options.register_custom_ops_library(str(native.library_path()))
        try:
            if gpu is None:
                session = onnxruntime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
            else:
                session = cuda_session(path, options, gpu)
        except MissingDependencyError:
            raise
        except Exception as error:
            raise _load_failure(path, error) from error
        self.path = path
        self.kernels = kernels
        metadata = ModelMetadata.from_properties(
            session.get_modelmeta().custom_metadata_map, str(path)
        )
        self.metadata: ModelMetadata | None = metadata
        self.config: Contract = metadata.config
        self.sha256: str = metadata.checkpoint_sha256
        self._session: Any = session
        self.inputs: dict[str, tuple[str, list[Any]]] = {
            item.name: (item.type, item.shape) for item in session.get_inputs()
        }
        outputs = {item.name: item.shape for item in session.get_outputs()}
        metadata.check_graph(self.inputs, outputs, str(path))

    def run(self, pyramid: Inputs) -> np.ndarray:
        pyramid.validate()
        feeds = dict(pyramid.inputs())
        missing = [name for name in self.inputs if name not in feeds]
        if missing:
            raise InputError(
                f"the pyramid lacks {', '.join(missing)}, which {self.path} takes; "
                "build it with this file's configuration"
            )
        try:
            (logits,) = self._session.run(["logits"], {name: feeds[name] for name in self.inputs})
        except Exception as error:
            raise InputError(f"{self.path} failed: {_reason(error)}") from error
        return np.asarray(logits, dtype=np.float32)


def cuda_session(path: Path, options: Any, gpu: int) -> Any:
    """A session of ONNX Runtime whose network runs on a GPU.

    Asked for a GPU it cannot use, ONNX Runtime takes the CPU and says nothing; this does not.

    Raises:
        MissingDependencyError: this ONNX Runtime has no CUDA provider, or it does not load.
    """
    import onnxruntime

    provider = "CUDAExecutionProvider"
    version = onnxruntime.__version__
    if provider not in onnxruntime.get_available_providers():
        raise MissingDependencyError(
            f"onnxruntime {version} is built without CUDA; pip uninstall -y onnxruntime && pip "
            "install 'dela[onnxruntime-gpu]'"
        )
    if hasattr(onnxruntime, "preload_dlls"):
        # CUDA and cuDNN from NVIDIA's wheels, which are on no library path.
        onnxruntime.preload_dlls()
    providers = [(provider, {"device_id": gpu}), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    if provider not in session.get_providers():
        raise MissingDependencyError(
            f"onnxruntime {version} could not use GPU {gpu} and fell back to the CPU: the NVIDIA "
            "driver, or CUDA and cuDNN of the versions it was built for, are missing; pip install "
            "'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


def _refuse_other_files(path: Path) -> None:
    kinds = {".onnx": "an exported network", SUFFIX: "an engine"}
    kind = kinds.get(path.suffix.lower())
    if kind is not None:
        raise CheckpointError(
            f"{path} is {kind}; the torch backend takes the checkpoint (.pt) it was made from"
        )


def _load_failure(path: Path, error: Exception) -> CheckpointError:
    reason = _reason(error)
    if "protobuf" in reason.lower() or path.stat().st_size == 0:
        return CheckpointError(f"{path} is not an ONNX file, or it is cut short")
    if "find an implementation" in reason:
        return CheckpointError(
            f"{path} does not run in ONNX Runtime here: {reason}; a bf16 file needs another "
            "backend, for this one export with --dtype fp32 or fp16"
        )
    return CheckpointError(f"{path} does not load in ONNX Runtime: {reason}")


def _reason(error: Exception) -> str:
    """The first line of an error, without ONNX Runtime's codes before it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)[:300]
