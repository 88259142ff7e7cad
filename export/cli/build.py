"""The command ``dela build``."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dela.artifacts.sidecar import SUFFIX, Sidecar, sidecar_path
from dela.cli.console import ProgressBar, note, print_json
from dela.cli.options import Json, Overwrite
from dela.errors import InputError
from dela.export.cli.export import DtypeName


class EngineBackend(StrEnum):
    """Choices of ``--backend``."""

    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class PluginForm(StrEnum):
    """Choices of ``--plugins``."""

    native = "native"
    python = "python"
    ahead_of_time = "ahead-of-time"
    none = "none"


class Compatibility(StrEnum):
    """Choices of ``--hardware-compatibility``."""

    none = "none"
    same_compute_capability = "same-compute-capability"
    ampere_plus = "ampere-plus"


Model = Annotated[Path, typer.Argument(help="Exported network (.onnx).")]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Engine to write; beside the model when left out."),
]
Backend = Annotated[
    EngineBackend, typer.Option(help="TensorRT, or TensorRT for RTX, which builds without a GPU.")
]
Points = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MIN:OPT:MAX",
        help="Points of one run (clouds, for classification); one more MIN:OPT:MAX per coarser "
        "stage may follow after commas, which else comes from the ratios measured in "
        "training. Repeatable: one profile each.",
    ),
]
Headroom = Annotated[
    float, typer.Option(min=1.0, help="Room above the measured ratios of coarser stages.")
]
Plugins = Annotated[
    PluginForm,
    typer.Option(
        help="How both operators run: by dela's plugin library, launched from Python, compiled "
        "into the engine (tensorrt only), or spelled out in standard layers (slow)."
    ),
]
Dtype = Annotated[DtypeName | None, typer.Option(help="Refuse a model of another precision.")]
ComputeCapability = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X.Y",
        help="TensorRT for RTX: GPUs to build for, such as 8.9; repeatable. All when left out.",
    ),
]
HardwareCompatibility = Annotated[
    Compatibility, typer.Option(help="tensorrt: other GPUs the engine shall run on.")
]
Tf32 = Annotated[
    bool, typer.Option("--tf32", help="Round factors of float32 products to 10 bits: faster.")
]
Workspace = Annotated[
    int | None, typer.Option(min=1, metavar="MIB", help="Most scratch memory, in MiB.")
]
Level = Annotated[
    int | None, typer.Option(min=0, max=5, help="0 builds quickly, 5 searches longest.")
]
TimingCache = Annotated[
    Path | None,
    typer.Option(help="File of measured timings: read when it exists, written after."),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="cuda:N", help="tensorrt: GPU that builds, such as cuda:1; the first when left out."
    ),
]


def build(
    model: Model,
    output: Output = None,
    backend: Backend = EngineBackend.tensorrt,
    points: Points = None,
    headroom: Headroom = 1.5,
    plugins: Plugins = PluginForm.native,
    dtype: Dtype = None,
    compute_capability: ComputeCapability = None,
    hardware_compatibility: HardwareCompatibility = Compatibility.none,
    tf32: Tf32 = False,
    workspace: Workspace = None,
    level: Level = None,
    timing_cache: TimingCache = None,
    device: Device = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> dict[str, Any]:
    """Build a TensorRT engine from an exported network.

    Precision is the file's own. Beside the engine stands a JSON file that says what it was built
    by, for which GPU and sizes; keep both together.

    Examples:

    $ dela build model.onnx --points 1000:60000:200000
    $ dela build model.onnx --backend tensorrt-rtx --compute-capability 8.9 -o rtx.engine
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
        device=_gpu_number(device),
    )
    output = model.with_suffix(SUFFIX) if output is None else output
    start = time.perf_counter()
    with _BuildProgress(model.name, quiet=json) as progress:
        sidecar = build_engine(model, output, request, overwrite, progress)
    summary = _summary(output, sidecar, time.perf_counter() - start)
    if json:
        print_json(summary)
    else:
        _print_summary(summary, sidecar)
    return summary


def _gpu_number(device: str | None) -> int | None:
    """``cuda:1`` or ``1`` -> 1, ``cuda`` -> 0.

    Raises:
        InputError: anything else.
    """
    if device is None:
        return None
    number = "0" if device == "cuda" else device.removeprefix("cuda:")
    if not number.isdecimal():
        raise InputError(f"device {device!r} is no GPU; give cuda or cuda:N, such as cuda:1")
    return int(number)


def _summary(output: Path, sidecar: Sidecar, seconds: float) -> dict[str, Any]:
    return {
        "file": str(output),
        "sidecar": str(sidecar_path(output)),
        "bytes": output.stat().st_size,
        "seconds": round(seconds, 2),
        **sidecar.to_dict(),
    }


def _print_summary(summary: dict[str, Any], sidecar: Sidecar) -> None:
    layers = ", ".join(f"{count} {name}" for name, count in sidecar.plugin_layers.items())
    form = {
        "native": "run by libdela_trt.so",
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

    def __init__(self, name: str, quiet: bool) -> None:
        self._bar = ProgressBar(f"building {name}", shown=not quiet)
        self._lines = not quiet and not sys.stderr.isatty()
        # phase -> how deep it lies, and its bar
        self._phases: dict[str, tuple[int, ProgressBar]] = {}

    def __enter__(self) -> _BuildProgress:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        above = self._phases.get(parent) if parent is not None else None
        depth = 0 if above is None else above[0] + 1
        self._phases[phase] = depth, self._bar.nested("  " * (depth + 1) + phase, steps)
        if self._lines and depth <= 1:
            note(phase)

    def advanced(self, phase: str, step: int) -> None:
        if phase in self._phases:
            self._phases[phase][1].update(step + 1)

    def finished(self, phase: str) -> None:
        if phase in self._phases:
            self._phases.pop(phase)[1].close()
