"""Whether an exported file is valid and gives PyTorch's answer, in every way it can run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dela.artifacts.metadata import OUTPUT, ModelMetadata
from dela.errors import CheckpointError, ParityError
from dela.export.onnx_file import signature
from dela.families import family_of
from dela.model.inputs import Inputs
from dela.plugins import native
from dela.threads import tune_session

if TYPE_CHECKING:
    import onnx
    from torch import nn

# Far from the sizes the graph is traced with. The reference evaluator is plain Python: tiny.
_POINTS, _TINY_POINTS = 700, 24
_CLOUDS, _TINY_CLOUDS = 3, 1


@dataclass(frozen=True)
class CheckResult:
    """One check that passed or was left out.

    Attributes:
        name: what was run.
        error: largest error of a logit as a share of the largest logit; None without numbers.
        tolerance: what it was held to; None without numbers.
        skipped: why it was left out; None when it was run.
    """

    name: str
    error: float | None = None
    tolerance: float | None = None
    skipped: str | None = None


def check_export(path: str | os.PathLike[str], model: nn.Module) -> Iterator[CheckResult]:
    """Checks a file against the network it was exported from, one step after the other.

    ONNX's checker with full shape inference; ONNX Runtime with our kernels, then with the function
    bodies alone; ONNX's reference evaluator on a tiny input. Each run is compared with PyTorch's
    float32 logits on the same made-up input.

    Args:
        path: the exported file.
        model: the network in float32; it is run in evaluation mode.

    Yields:
        A result per check.

    Raises:
        CheckpointError: the file is not valid ONNX, or its inputs do not fit its metadata.
        ParityError: a run failed or is off by more than its dtype's tolerance.
    """
    import onnx

    proto = onnx.load(os.fspath(path))
    metadata = _check_structure(proto, os.fspath(path))
    yield CheckResult("onnx checker")

    config: Any = model.config
    family, clouds = family_of(config), config.task == "classification"
    tolerance = family.parity(metadata.dtype).error
    large = family.example(config, _CLOUDS if clouds else _POINTS, seed=1)
    tiny = family.example(config, _TINY_CLOUDS if clouds else _TINY_POINTS, seed=2)
    expected = {id(inputs): _torch_logits(model, inputs) for inputs in (large, tiny)}
    if not all(np.isfinite(logits).all() for logits in expected.values()):
        raise ParityError(
            "PyTorch's own logits are NaN or infinite; the weights are damaged, export another "
            "checkpoint"
        )
    checks: list[tuple[str, Inputs, Callable[[], np.ndarray]]] = [
        ("onnxruntime, our kernels", large, lambda: _run_onnxruntime(proto, large, True)),
        ("onnxruntime, function bodies", large, lambda: _run_onnxruntime(proto, large, False)),
        ("onnx reference evaluator", tiny, lambda: _run_reference(proto, tiny)),
    ]
    for name, inputs, run in checks:
        try:
            found = run()
        except _LeftOutError as reason:
            yield CheckResult(name, skipped=str(reason))
            continue
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ParityError(f"{name}: the exported file does not run: {line}") from error
        yield _compare(name, expected[id(inputs)], found, tolerance)


class _LeftOutError(Exception):
    """A check that cannot be run here; the message says why."""


def _check_structure(proto: onnx.ModelProto, path: str) -> ModelMetadata:
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        line = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path} is not valid ONNX: {line}") from error
    metadata = ModelMetadata.from_properties(
        {entry.key: entry.value for entry in proto.metadata_props}, path
    )
    inputs, outputs = signature(proto)
    metadata.check_graph(inputs, {name: shape for name, (_, shape) in outputs.items()}, path)
    return metadata


def _torch_logits(model: nn.Module, inputs: Inputs) -> np.ndarray:
    import torch

    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model(inputs).float().cpu().numpy()
    finally:
        model.train(training)


def _run_onnxruntime(proto: onnx.ModelProto, inputs: Inputs, kernels: bool) -> np.ndarray:
    try:
        import onnxruntime
    except ImportError:
        raise _LeftOutError(
            "onnxruntime is not installed: pip install 'dela[onnxruntime]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    tune_session(options)
    if kernels:
        options.register_custom_ops_library(str(native.library_path()))
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error):
            raise _LeftOutError(
                f"onnxruntime {onnxruntime.__version__} has no CPU kernels for these layers"
            ) from error
        raise
    return session.run([OUTPUT], dict(inputs.inputs()))[0]


def _run_reference(proto: onnx.ModelProto, inputs: Inputs) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    logits: Any = ReferenceEvaluator(proto).run([OUTPUT], dict(inputs.inputs()))
    return logits[0]


def _compare(name: str, expected: np.ndarray, found: np.ndarray, tolerance: float) -> CheckResult:
    if found.shape != expected.shape:
        raise ParityError(
            f"{name}: logits have shape {list(found.shape)}; PyTorch gives {list(expected.shape)}"
        )
    largest = float(np.abs(expected).max()) or 1.0
    difference = np.abs(found.astype(np.float64) - expected)
    error = float(difference.max()) / largest
    if not error <= tolerance:
        row, column = np.unravel_index(
            int(np.nan_to_num(difference, nan=np.inf).argmax()), found.shape
        )
        raise ParityError(
            f"{name}: the largest error is {error:.2e} of the largest logit, {tolerance:.0e} is "
            f"allowed; row {row}, class {column}: {found[row, column]:.6g}, PyTorch gives "
            f"{expected[row, column]:.6g}"
        )
    return CheckResult(name, error, tolerance)
