"""The commands ``dela verify``, ``dela info`` and ``dela doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dela.cloud.formats import read_cloud
from dela.errors import DelaError, ParityError
from dela.runtime.backends.base import Backend, backend_of, gpu_number, load_backend
from dela.runtime.cli import report
from dela.runtime.cli.options import (
    BackendName,
    Device,
    DropInvalid,
    Json,
    MaxPoints,
    NoGraphs,
    Threads,
)
from dela.runtime.predict.predictor import MAX_POINTS


def verify(
    model: Annotated[Path, typer.Argument(help="Exported network (.onnx) or engine (.engine).")],
    checkpoint: Annotated[Path, typer.Option(help="The checkpoint it was made from.")],
    scan: Annotated[Path, typer.Option("-i", "--input", help="A scan to compare on.")],
    backend: Annotated[
        BackendName | None, typer.Option(help="Chosen by the model's suffix when left out.")
    ] = None,
    no_kernels: Annotated[
        bool, typer.Option("--no-kernels", help="Check the function bodies alone.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, help="Largest error as a share of the largest logit; by dtype else."),
    ] = None,
    max_points: MaxPoints = MAX_POINTS,
    drop_invalid: DropInvalid = False,
    threads: Threads = None,
    device: Device = None,
    no_cuda_graphs: NoGraphs = False,
    json: Json = False,
) -> list[dict[str, Any]]:
    """Run PyTorch on the CPU and a model on the same input and compare their logits.

    ONNX Runtime on the CPU runs twice: with this package's kernels, and with the function bodies
    that the file carries. fp32 passes with errors up to 1e-4 of the largest logit and 99.99 % equal
    labels; fp16 and engines with TF32 with 2e-2 and 99 %, bf16 with 1e-1 and 95 %. A miss ends
    with exit code 1.
    """
    from dela.model.parity import Tolerance
    from dela.runtime.verify import tolerance_of
    from dela.runtime.verify import verify as compare

    cloud = read_cloud(scan)
    candidates = _candidates(
        model,
        backend.value if backend else None,
        kernels=not no_kernels,
        threads=threads,
        device=device,
        graphs=not no_cuda_graphs,
    )
    reference = load_backend(checkpoint, "torch", threads=threads)
    made = next(iter(candidates.values()))
    if made.sha256 and made.sha256 != reference.sha256:
        report.warn(
            f"{model} was made from another checkpoint ({made.sha256[:12]}) than "
            f"{checkpoint} ({reference.sha256[:12]}); the numbers decide"
        )
    limits = None
    if tolerance is not None:
        limits = Tolerance(tolerance, tolerance_of(made).agreement)
    with (
        report.naming(scan, model, checkpoint),
        report.progress_bar("verify") as update,
    ):
        reports = compare(
            reference,
            candidates,
            cloud,
            max_points=max_points,
            tolerance=limits,
            drop_invalid=drop_invalid,
            progress=update,
        )
    if json:
        report.print_json(
            {
                "model": str(model),
                "checkpoint": str(checkpoint),
                "input": str(scan),
                "passed": all(item.passed for item in reports),
                "reports": [item.to_dict() for item in reports],
            }
        )
    else:
        report.console().print(report.parity_table(reports))
    missed = [item for item in reports if not item.passed]
    if missed:
        worst = max(missed, key=lambda item: item.max_relative)
        raise ParityError(
            f"{model} does not give PyTorch's answer with {', '.join(r.name for r in missed)}: "
            f"error {worst.max_relative:.2e} of the largest logit (allowed "
            f"{worst.tolerance.error:.0e}), labels agree on {100 * worst.agreement:.3f} %"
        )
    return [item.to_dict() for item in reports]


def _candidates(
    model: Path, backend: str | None, *, kernels: bool, device: str | None, **options: Any
) -> dict[str, Backend]:
    """What to compare with PyTorch: ONNX Runtime on the CPU in both of its ways, or one backend."""
    name = backend or backend_of(model)
    gpu = gpu_number(device)
    if name == "onnxruntime" and gpu is None:
        ways = {"our kernels": True} if kernels else {}
        ways["function bodies"] = False
        return {
            way: load_backend(model, name, kernels=ours, **options) for way, ours in ways.items()
        }
    title = name if gpu is None else f"{name} on {device}"
    return {title: load_backend(model, name, device=device, **options)}


def info(
    file: Annotated[Path, typer.Argument(help="Checkpoint, exported network, engine or scan.")],
    json: Json = False,
) -> dict[str, Any]:
    """Describe a checkpoint, an exported network, an engine or a scan."""
    from dela.runtime.info import describe

    values = describe(file)
    if json:
        report.print_json(values)
    else:
        report.console().print(report.info_table(values))
    return values


def doctor(json: Json = False) -> None:
    """Check this installation: native library, backends, optional packages."""
    from dela.runtime.doctor import BROKEN, examine

    findings = examine()
    if json:
        report.print_json([vars(finding) for finding in findings])
    else:
        report.console().print(report.findings_table(findings))
    broken = [finding.subject for finding in findings if finding.status == BROKEN]
    if broken:
        raise DelaError(f"broken: {', '.join(broken)}; see the report for how to mend it")
