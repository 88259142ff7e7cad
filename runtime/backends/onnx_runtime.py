"""The backend ``onnxruntime``: an exported file in ONNX Runtime."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dela.errors import CheckpointError, InputError, MissingDependencyError
from dela.model.inputs import Inputs
from dela.runtime.backends.base import LoadOptions, taken_inputs
from dela.runtime.backends.layers import LayerTime, layers_of_events
from dela.threads import tune_session

if TYPE_CHECKING:
    from dela.artifacts.metadata import ModelMetadata


def load(path: Path, options: LoadOptions) -> OnnxRuntimeBackend:
    """The entry of :data:`dela.runtime.backends.base.BACKENDS`."""
    return OnnxRuntimeBackend(
        path,
        kernels=options.kernels,
        threads=options.threads,
        gpu=options.gpu,
        tf32=options.tf32,
    )


class OnnxRuntimeBackend:
    """An exported file in ONNX Runtime, on the CPU or on the GPU numbered ``gpu``.

    With ``kernels`` the operators are our kernels there, else the file's own function bodies.

    Attributes:
        tf32: whether the GPU may round factors of float32 products to TF32.
    """

    name = "onnxruntime"
    max_points: int | None = None

    def __init__(
        self,
        path: Path,
        *,
        kernels: bool = True,
        threads: int | None = None,
        gpu: int | None = None,
        tf32: bool = False,
    ) -> None:
        import onnxruntime

        from dela.artifacts.metadata import ModelMetadata

        options = onnxruntime.SessionOptions()
        # A failed run raises; ONNX Runtime's own line on stderr would only repeat it.
        options.log_severity_level = 4
        tune_session(options, threads)
        if kernels:
            from dela.plugins import native

            options.register_custom_ops_library(str(native.library_path()))
        try:
            if gpu is None:
                session = onnxruntime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
            else:
                session = cuda_session(path, options, gpu, tf32)
        except MissingDependencyError:
            raise
        except Exception as error:
            raise _load_failure(path, error, kernels) from error
        self.path = path
        self.kernels = kernels
        self.tf32 = tf32
        metadata = ModelMetadata.from_properties(
            session.get_modelmeta().custom_metadata_map, str(path)
        )
        self.metadata: ModelMetadata | None = metadata
        self.config: Any = metadata.config
        self.sha256: str = metadata.checkpoint_sha256
        self._session: Any = session
        self._options = options
        self.inputs: dict[str, tuple[str, list[Any]]] = {
            item.name: (item.type, item.shape) for item in session.get_inputs()
        }
        outputs = {item.name: item.shape for item in session.get_outputs()}
        metadata.check_graph(self.inputs, outputs, str(path))

    def run(self, pyramid: Inputs) -> np.ndarray:
        pyramid.validate()
        feeds = taken_inputs(pyramid, self.inputs, self.path)
        try:
            (logits,) = self._session.run(["logits"], feeds)
        except Exception as error:
            raise InputError(f"{self.path} failed: {_reason(error)}") from error
        return np.asarray(logits, dtype=np.float32)

    def first_non_finite(self, pyramid: Inputs) -> str:
        """The first layer whose output is NaN or infinite for an input; empty if unknown."""
        from dela.artifacts.onnx_layers import first_non_finite

        feeds = taken_inputs(pyramid, self.inputs, self.path)
        return first_non_finite(self.path, feeds, self._options)

    def time_layers(self, inputs: Inputs, repeats: int) -> list[LayerTime]:
        """Time of every node, the longest first, in a session like this one that measures them.

        On a GPU it is the time to queue a node, not to run it.

        Args:
            inputs: that the network runs on.
            repeats: runs that are averaged, after one that is not counted.

        Raises:
            InputError: inputs that do not fit.
        """
        inputs.validate()
        feeds = taken_inputs(inputs, self.inputs, self.path)
        with tempfile.TemporaryDirectory() as folder:
            session = self._measuring(Path(folder))
            for _ in range(repeats + 1):
                session.run(["logits"], feeds)
            profile = Path(session.end_profiling()).read_text(encoding="utf-8")
        return layers_of_events(json.loads(profile))

    def _measuring(self, folder: Path) -> Any:
        """A session like this backend's that keeps a profile in ``folder``."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        tune_session(options, self._session.get_session_options().intra_op_num_threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        if self.kernels:
            from dela.plugins import native

            options.register_custom_ops_library(str(native.library_path()))
        used = self._session.get_provider_options()
        return onnxruntime.InferenceSession(
            str(self.path), options, providers=list(used), provider_options=list(used.values())
        )


def cuda_session(path: Path, options: Any, gpu: int, tf32: bool = False) -> Any:
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
    # Its default rounds factors to TF32: simulated, that gives errors of 1e-3 of the largest logit.
    settings = {"device_id": gpu, "use_tf32": int(tf32)}
    providers = [(provider, settings), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    if provider not in session.get_providers():
        raise MissingDependencyError(
            f"onnxruntime {version} could not use GPU {gpu} and fell back to the CPU: the NVIDIA "
            "driver, or CUDA and cuDNN of the versions it was built for, are missing; pip install "
            "'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


def _load_failure(path: Path, error: Exception, kernels: bool) -> CheckpointError:
    reason = _reason(error)
    if "protobuf" in reason.lower() or path.stat().st_size == 0:
        return CheckpointError(f"{path} is not an ONNX file, or it is cut short")
    if "find an implementation" in reason:
        return CheckpointError(
            f"{path} does not run in ONNX Runtime here: {reason}; a bf16 file needs another "
            "backend, for this one export with --dtype fp32 or fp16"
        )
    cure = ""
    if kernels and re.search(r"\b(SPSE|SPAMP|SPAMPResidual): ", reason):
        cure = "; --no-kernels (kernels=False) runs the file's own function bodies"
    return CheckpointError(f"{path} does not load in ONNX Runtime: {reason}{cure}")


def _reason(error: Exception) -> str:
    """The first line of an error, without ONNX Runtime's codes before it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)[:300]
