"""The command ``dela build``."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dela.artifacts.sidecar import SUFFIX, Sidecar, sidecar_path
from dela.export.cli.export import DtypeName


class EngineBackend(StrEnum):
    """Choices of ``--backend``."""

    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class PluginForm(StrEnum):
    """Choices of ``--plugins``."""

    python = "python"
    ahead_of_time = "ahead-of-time"
    none = "none"


class Compatibility(StrEnum):
    """Choices of ``--hardware-compatibility``."""

    none = "none"
    same_compute_capability = "same-compute-capability"
    ampere_plus = "ampere-plus"


def build(
    model: Annotated[Path, typer.Argument(help="Exported network (.onnx).")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Engine to write; beside the model when left out."),
    ] = None,
    backend: Annotated[
        EngineBackend,
        typer.Option(help="TensorRT, or TensorRT for RTX, which builds without a GPU."),
    ] = EngineBackend.tensorrt,
    points: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MIN:OPT:MAX",
            help="Points of one run (clouds, for classification); one more MIN:OPT:MAX per coarser "
            "stage may follow after commas, which else comes from the ratios measured in "
            "training. Repeatable: one profile each.",
        ),
    ] = None,
    headroom: Annotated[
        float, typer.Option(min=1.0, help="Room above the measured ratios of coarser stages.")
    ] = 1.5,
    plugins: Annotated[
        PluginForm,
        typer.Option(
            help="How both operators run: launched from Python, compiled into the engine (tensorrt "
            "only), or spelled out in standard layers (slow)."
        ),
    ] = PluginForm.python,
    dtype: Annotated[
        DtypeName | None, typer.Option(help="Refuse a model of another precision.")
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X.Y",
            help="TensorRT for RTX: GPUs to build for, such as 8.9; repeatable. All when left out.",
        ),
    ] = None,
    hardware_compatibility: Annotated[
        Compatibility, typer.Option(help="tensorrt: other GPUs the engine shall run on.")
    ] = Compatibility.none,
    tf32: Annotated[
        bool,
        typer.Option("--tf32", help="Round factors of float32 products to 10 bits: faster."),
    ] = False,
    workspace: Annotated[
        int | None, typer.Option(min=1, metavar="MIB", help="Most scratch memory, in MiB.")
    ] = None,
    level: Annotated[
        int | None, typer.Option(min=0, max=5, help="0 builds quickly, 5 searches longest.")
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="File of measured timings: read when it exists, written after."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> dict[str, Any]:
    """Build a TensorRT engine from an exported network.

    Precision is the file's own. Beside the engine stands a JSON file that says what it was built
    by, for which GPU and sizes; keep both together.
    """
    from dela.export.engine import BuildRequest, build_engine

    request = BuildRequest(
        backend=backend.value,
        profiles=points,
        headroom=headroom,
        plugins=plugins.value,
        dtype=None if dtype is None else dtype.value,
        compute_capabilities=compute_capability or (),
        compatibility=hardware_compatibility.value,
        tf32=tf32,
        workspace=workspace,
        level=level,
        timing_cache=timing_cache,
    )
    output = model.with_suffix(SUFFIX) if output is None else output
    start = time.perf_counter()
    with _BuildProgress(quiet=json) as progress:
        sidecar = build_engine(model, output, request, overwrite, progress)
    summary: dict[str, Any] = {
        "file": str(output),
        "sidecar": str(sidecar_path(output)),
        "bytes": output.stat().st_size,
        "seconds": round(time.perf_counter() - start, 2),
        **sidecar.to_dict(),
    }
    if json:
        from json import dumps

        print(dumps(summary, indent=2))
    else:
        _print_summary(summary, sidecar)
    return summary


def _print_summary(summary: dict[str, Any], sidecar: Sidecar) -> None:
    layers = ", ".join(f"{count} {name}" for name, count in sidecar.plugin_layers.items())
    form = {
        "python": "launched from Python",
        "ahead-of-time": "compiled into the engine",
        "none": "none: the operators are spelled out in standard layers",
    }[sidecar.plugins]
    print(f"built by  {sidecar.flavour} {sidecar.tensorrt_version}")
    print(f"GPUs      compute capability {', '.join(sidecar.compute_capabilities)}")
    print(f"plugins   {layers + ', ' if layers else ''}{form}")
    for number, profile in enumerate(sidecar.profiles):
        print(f"profile {number} {profile} (min:opt:max, stage by stage)")
    print(
        f"wrote     {summary['file']}: {summary['bytes'] / 1e6:.1f} MB, {sidecar.dtype}, "
        f"{summary['seconds']:.1f} s"
    )


class _BuildProgress:
    """Phases as nested bars on a terminal's stderr; elsewhere a line per outer phase."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._depths: dict[str, int] = {}

    def __enter__(self) -> _BuildProgress:
        if sys.stderr.isatty() and not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        depth = self._depths.get(parent, -1) + 1 if parent is not None else 0
        self._depths[phase] = depth
        if self._bars is not None:
            self._tasks[phase] = self._bars.add_task("  " * depth + phase, total=steps)
        elif depth <= 1 and not self._quiet:
            print(phase, file=sys.stderr, flush=True)

    def advanced(self, phase: str, step: int) -> None:
        if phase in self._tasks:
            self._bars.update(self._tasks[phase], completed=step + 1)

    def finished(self, phase: str) -> None:
        self._depths.pop(phase, None)
        task = self._tasks.pop(phase, None)
        if task is not None:
            self._bars.remove_task(task)
