"""Backends: what runs a network on a pyramid. ``torch`` runs checkpoints, ``onnxruntime`` exports.

Each imports its own package when it is loaded, so a deployment needs only the one it uses.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dela.config import ModelConfig
from dela.errors import CheckpointError, InputError
from dela.pyramid import Pyramid

if TYPE_CHECKING:
    from dela.metadata import ModelMetadata

BACKENDS = {"torch": (".pt", ".pth"), "onnxruntime": (".onnx",)}


class Backend(Protocol):
    """A loaded network.

    Attributes:
        name: ``torch`` or ``onnxruntime``.
        path: the file it was loaded from.
        config: sizes, classes, grid and input columns.
        metadata: what an exported file says of itself; None for a checkpoint.
        sha256: of the checkpoint the network comes from; empty when unknown.
    """

    name: str
    path: Path
    config: ModelConfig
    metadata: ModelMetadata | None
    sha256: str

    def run(self, pyramid: Pyramid) -> np.ndarray:
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
) -> Backend:
    """Loads a checkpoint (``.pt``) or an exported network (``.onnx``).

    Args:
        path: the file.
        backend: ``torch`` or ``onnxruntime``; None goes by the suffix.
        kernels: register this package's kernels with ONNX Runtime; without them the file's own
            function bodies run: the same answer, slower.
        threads: of the CPU; None leaves the choice to the backend.

    Raises:
        CheckpointError: not a file this package wrote, or of another version.
        InputError: a missing file or an unknown backend.
        MissingDependencyError: the backend's package is not installed.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder; name a model file in it" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}")
    if backend is None:
        backend = next(
            (name for name, suffixes in BACKENDS.items() if path.suffix.lower() in suffixes), None
        )
        if backend is None:
            raise InputError(
                f"{path}: cannot tell the backend from {path.suffix or 'a name without suffix'!r}; "
                "a checkpoint ends in .pt, an exported network in .onnx (or pass --backend)"
            )
    if backend == "torch":
        return TorchBackend(path, threads=threads)
    if backend == "onnxruntime":
        return OnnxRuntimeBackend(path, kernels=kernels, threads=threads)
    raise InputError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")


class TorchBackend:
    """A checkpoint in PyTorch, in evaluation mode."""

    name = "torch"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import torch

        from dela.checkpoint import load_checkpoint

        _refuse_onnx(path)
        if threads is not None:
            torch.set_num_threads(threads)
        checkpoint = load_checkpoint(path)
        self.path = path
        self.metadata: ModelMetadata | None = None
        self.config: ModelConfig = checkpoint.config
        self.sha256: str = checkpoint.sha256
        self._model = checkpoint.model.eval()

    def run(self, pyramid: Pyramid) -> np.ndarray:
        import torch

        pyramid.validate()
        with torch.inference_mode():
            return self._model(pyramid.to_tensors()).float().numpy()


class OnnxRuntimeBackend:
    """An exported file in ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, path: Path, *, kernels: bool = True, threads: int | None = None) -> None:
        import onnxruntime

        from dela.metadata import ModelMetadata

        options = onnxruntime.SessionOptions()
        # A failed run raises; ONNX Runtime's own line on stderr would only repeat it.
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        if kernels:
            from dela.plugins import native

            options.register_custom_ops_library(str(native.library_path()))
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise _load_failure(path, error) from error
        self.path = path
        self.kernels = kernels
        metadata = ModelMetadata.from_properties(
            session.get_modelmeta().custom_metadata_map, str(path)
        )
        self.metadata: ModelMetadata | None = metadata
        self.config: ModelConfig = metadata.config
        self.sha256: str = metadata.checkpoint_sha256
        self._session: Any = session
        self.inputs: dict[str, tuple[str, list[Any]]] = {
            item.name: (item.type, item.shape) for item in session.get_inputs()
        }
        outputs = {item.name: item.shape for item in session.get_outputs()}
        metadata.check_graph(self.inputs, outputs, str(path))

    def run(self, pyramid: Pyramid) -> np.ndarray:
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


def _refuse_onnx(path: Path) -> None:
    if path.suffix.lower() == ".onnx":
        raise CheckpointError(
            f"{path} is an exported network; the torch backend takes the checkpoint (.pt) it was "
            "exported from"
        )


def _load_failure(path: Path, error: Exception) -> CheckpointError:
    reason = _reason(error)
    if "protobuf" in reason.lower() or path.stat().st_size == 0:
        return CheckpointError(f"{path} is not an ONNX file, or it is cut short")
    if "find an implementation" in reason:
        return CheckpointError(
            f"{path} does not run in ONNX Runtime on a CPU: {reason}; "
            "a bf16 file needs another backend, for this one export with --dtype fp32 or fp16"
        )
    return CheckpointError(f"{path} does not load in ONNX Runtime: {reason}")


def _reason(error: Exception) -> str:
    """The first line of an error, without ONNX Runtime's codes before it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)[:300]
