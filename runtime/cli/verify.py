"""The command ``dela verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dela.cli.console import ProgressBar, console, print_json, warn
from dela.cli.options import Columns, Device, Json
from dela.cloud.formats import read_cloud
from dela.errors import ParityError, name_file_in_errors
from dela.runtime.backends.base import Backend, backend_of, gpu_number, load_backend
from dela.runtime.cli.options import (
    BackendChoice,
    DropInvalid,
    MaxPoints,
    NoGraphs,
    Tf32,
    Threads,
)
from dela.runtime.predict.predictor import MAX_POINTS

if TYPE_CHECKING:
    from dela.runtime.verify import Parity

Model = Annotated[Path, typer.Argument(help="Exported network (.onnx) or engine (.engine).")]
Checkpoint = Annotated[Path, typer.Option(help="The checkpoint it was made from.")]
Scan = Annotated[Path, typer.Option("-i", "--input", help="A scan to compare on.")]
NoKernels = Annotated[bool, typer.Option("--no-kernels", help="Check the function bodies alone.")]
LargestError = Annotated[
    float | None,
    typer.Option(min=0.0, help="Largest error as a share of the largest logit; by dtype else."),
]


def verify(
    model: Model,
    checkpoint: Checkpoint,
    scan: Scan,
    columns: Columns = None,
    backend: BackendChoice = None,
    no_kernels: NoKernels = False,
    tolerance: LargestError = None,
    max_points: MaxPoints = MAX_POINTS,
    drop_invalid: DropInvalid = False,
    threads: Threads = None,
    device: Device = None,
    no_cuda_graphs: NoGraphs = False,
    tf32: Tf32 = False,
    json: Json = False,
) -> list[dict[str, Any]]:
    """Run PyTorch on the CPU and a model on the same input and compare their logits.

    ONNX Runtime runs twice: with this package's kernels, and with the function bodies
    that the file carries. fp32 passes with errors up to 1e-4 of the largest logit and 99.99 % equal
    labels; fp16 and TF32 with 2e-2 and 99 %, bf16 with 1e-1 and 95 %. A miss ends
    with exit code 1.

    Examples:

    $ dela verify model.onnx --checkpoint best.pt --input scan.laz
    $ dela verify model.engine --checkpoint best.pt --input scan.laz --json
    """
    from dela.runtime.verify import verify as compare
    from dela.scan.voxels import valid_points

    cloud = read_cloud(scan, columns)
    loading: dict[str, Any] = {"threads": threads, "graphs": not no_cuda_graphs, "tf32": tf32}
    name = backend.value if backend else backend_of(model)
    candidates = _candidates(model, name, device, kernels=not no_kernels, **loading)
    reference = load_backend(checkpoint, "torch", threads=threads)
    made = next(iter(candidates.values()))
    _warn_of_another_checkpoint(made, reference)
    with name_file_in_errors(scan, model, checkpoint), ProgressBar("verify", percent=True) as bar:
        reports = compare(
            reference,
            candidates,
            cloud.select(valid_points(cloud, drop_invalid, reference.config.input_columns)),
            max_points=max_points,
            tolerance=_limits(tolerance, made),
            progress=bar.update,
        )
    _show(reports, {"model": model, "checkpoint": checkpoint, "input": scan}, json)
    _refuse_missed(reports, model)
    return [item.to_dict() for item in reports]


def _candidates(
    model: Path, name: str, device: str | None, *, kernels: bool, **loading: Any
) -> dict[str, Backend]:
    """What to compare with PyTorch: ONNX Runtime in both of its ways, or one backend."""
    gpu = gpu_number(device)
    title = name if gpu is None else f"{name} on {device}"
    if name != "onnxruntime":
        return {title: load_backend(model, name, device=device, **loading)}
    ways = {"our kernels": True} if kernels else {}
    ways["function bodies"] = False
    return {
        way if gpu is None else f"{title}, {way}": load_backend(
            model, name, kernels=ours, device=device, **loading
        )
        for way, ours in ways.items()
    }


def _warn_of_another_checkpoint(made: Backend, reference: Backend) -> None:
    if made.sha256 and made.sha256 != reference.sha256:
        warn(
            f"{made.path} was made from another checkpoint ({made.sha256[:12]}) than "
            f"{reference.path} ({reference.sha256[:12]}); the numbers decide"
        )


def _limits(error: float | None, made: Backend) -> Any:
    """The tolerance that the command line asks for; None goes by the model's dtype."""
    from dela.model.parity import Tolerance
    from dela.runtime.verify import tolerance_of

    return None if error is None else Tolerance(error, tolerance_of(made).agreement)


def _show(reports: Sequence[Parity], files: dict[str, Path], as_json: bool) -> None:
    from dela.runtime.cli.tables import parity_table

    if not as_json:
        console().print(parity_table(reports))
        return
    passed = all(item.passed for item in reports)
    named = {name: str(path) for name, path in files.items()}
    print_json({**named, "passed": passed, "reports": [item.to_dict() for item in reports]})


def _refuse_missed(reports: Sequence[Parity], model: Path) -> None:
    """A backend that misses the tolerance makes the command fail."""
    missed = [item for item in reports if not item.passed]
    if missed:
        worst = max(missed, key=lambda item: item.max_relative)
        raise ParityError(
            f"{model} does not give PyTorch's answer with {', '.join(r.name for r in missed)}: "
            f"error {worst.max_relative:.2e} of the largest logit (allowed "
            f"{worst.tolerance.error:.0e}), labels agree on {100 * worst.agreement:.3f} %"
        )
