"""The backend ``torch``: a checkpoint in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dela.artifacts.sidecar import SUFFIX
from dela.errors import CheckpointError, MissingDependencyError
from dela.model.inputs import Inputs
from dela.runtime.backends.base import LoadOptions

if TYPE_CHECKING:
    from dela.artifacts.metadata import ModelMetadata


def load(path: Path, options: LoadOptions) -> TorchBackend:
    """The entry of :data:`dela.runtime.backends.base.BACKENDS`."""
    return TorchBackend(path, threads=options.threads, gpu=options.gpu)


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
        self.config: Any = checkpoint.config
        self.sha256: str = checkpoint.sha256
        self._device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        self._model = checkpoint.model.eval().to(self._device)

    def run(self, pyramid: Inputs) -> np.ndarray:
        import torch

        pyramid.validate()
        with torch.inference_mode():
            return self._model(pyramid.to_tensors(self._device)).float().cpu().numpy()

    def first_non_finite(self, pyramid: Inputs) -> str:
        """The first layer whose output is NaN or infinite for an input; empty if none has one."""
        import torch

        found: list[str] = []

        def look(name: str) -> Any:
            def hook(module: Any, given: Any, output: Any) -> None:
                if isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
                    found.append(name)

            return hook

        layers = [(name, layer) for name, layer in self._model.named_modules() if name]
        hooks = [layer.register_forward_hook(look(name)) for name, layer in layers]
        try:
            self.run(pyramid)
        finally:
            for hook in hooks:
                hook.remove()
        return found[0] if found else ""


def _refuse_other_files(path: Path) -> None:
    kinds = {".onnx": "an exported network", SUFFIX: "an engine"}
    kind = kinds.get(path.suffix.lower())
    if kind is not None:
        raise CheckpointError(
            f"{path} is {kind}; the torch backend takes the checkpoint (.pt) it was made from"
        )
