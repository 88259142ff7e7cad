"""The command ``dela bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dela.artifacts.sidecar import SUFFIX
from dela.cli.console import ProgressBar, console, print_json
from dela.cli.options import Columns, Device, Json
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.runtime.backends.base import BACKENDS, Backend, backend_of, load_backend
from dela.runtime.cli.options import (
    BackendName,
    GpuPyramid,
    MaxGraphs,
    MaxPoints,
    NoGraphs,
    Tf32,
    Threads,
    WarmUp,
    warm_up,
)
from dela.runtime.predict.predictor import MAX_POINTS

if TYPE_CHECKING:
    from dela.runtime.bench import MeasureOptions

_POINTS, _CLOUDS = 30_000, 8
# Layers shown.
_LAYERS = 20


Models = Annotated[
    list[Path], typer.Argument(help="Checkpoints (.pt), exported networks, engines.")
]
Backends = Annotated[
    list[BackendName] | None,
    typer.Option(
        "--backend",
        help="Time this backend, on the model file it takes, or on the one of the same name "
        "beside it; repeatable. Every model on its own backend when left out.",
    ),
]
Points = Annotated[
    list[int] | None,
    typer.Option(
        min=1,
        help="Voxels of a made-up scan (clouds, for classification); repeatable. "
        f"{_POINTS} voxels or {_CLOUDS} clouds when neither this nor --input is given.",
    ),
]
Scans = Annotated[
    list[Path] | None, typer.Option("-i", "--input", help="A scan to time; repeatable.")
]
Repeats = Annotated[int, typer.Option("--repeat", min=1, help="Timed repetitions.")]
Warmups = Annotated[int, typer.Option("--warmup", min=0, help="Repetitions before them.")]
Crops = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Time N parts of each scan in turn, of a quarter of its area up to all of it, rather "
        "than the whole scan again and again.",
    ),
]
Percentiles = Annotated[
    bool,
    typer.Option("--percentiles", help="Show p50, p90, p99 and the longest of every phase, too."),
]
Layers = Annotated[
    bool,
    typer.Option("--layers", help="Show the time of each layer, too (ONNX Runtime and engines)."),
]
NoKernels = Annotated[
    bool, typer.Option("--no-kernels", help="ONNX Runtime: the file's own function bodies.")
]


def bench(
    models: Models,
    backends: Backends = None,
    points: Points = None,
    scans: Scans = None,
    columns: Columns = None,
    repeats: Repeats = 20,
    warmups: Warmups = 3,
    crops: Crops = 0,
    percentiles: Percentiles = False,
    layers: Layers = False,
    max_points: MaxPoints = MAX_POINTS,
    no_kernels: NoKernels = False,
    threads: Threads = None,
    device: Device = None,
    no_cuda_graphs: NoGraphs = False,
    graphs: MaxGraphs = None,
    warm: WarmUp = None,
    tf32: Tf32 = False,
    gpu_pyramid: GpuPyramid = None,
    json: Json = False,
) -> list[dict[str, Any]]:
    """Measure the latency of models on backends, side by side.

    Times are those of a whole scan, from its points to their labels: voxels and neighbors
    (preprocess), the network with all transfers (median, 90th percentile and points a second
    are its own), and the labels of all points (postprocess). Sizes met for the first time and
    those that come back are told apart.

    Examples:

    $ dela bench model.onnx --input scan.laz
    $ dela bench model.engine --input scan.laz --crops 50 --repeat 200 --percentiles
    """
    from dela.cloud.formats import read_cloud
    from dela.runtime.bench import MeasureOptions

    jobs = _jobs(models, [choice.value for choice in backends or ()])
    if layers and any(name == "torch" for name, _ in jobs):
        raise InputError("--layers is for ONNX Runtime and engines; for PyTorch use torch.profiler")
    read = {str(scan): [read_cloud(scan, columns)] for scan in scans or ()}
    loading: dict[str, Any] = {
        "threads": threads,
        "device": device,
        "graphs": not no_cuda_graphs,
        "max_graphs": graphs,
        "tf32": tf32,
    }
    times = _Times(repeats, warmups, layers)
    for name, model in jobs:
        loaded = load_backend(model, name, kernels=not no_kernels, **loading)
        warm_up(loaded, warm)
        label = _label(name, device, no_kernels)
        for title, clouds in _inputs(loaded, points, read).items():
            asked = MeasureOptions(title, label, max_points, gpu_pyramid, crops)
            times.take(loaded, clouds, asked)
    if json:
        print_json(times.values)
    else:
        _show(times.values, percentiles)
    return times.values


@dataclass
class _Times:
    """What was measured so far, as ``--json`` prints it."""

    repeats: int
    warmups: int
    layers: bool
    values: list[dict[str, Any]] = field(default_factory=list)

    def take(self, backend: Backend, clouds: Sequence[PointCloud], options: MeasureOptions) -> None:
        """Time a backend on one input."""
        from dela.runtime.bench import measure, time_layers

        with ProgressBar(f"{backend.name} {options.name}", percent=True) as bar:
            timed = measure(
                backend,
                clouds,
                options,
                repeats=self.repeats,
                warmups=self.warmups,
                progress=bar.update,
            ).to_dict()
        if self.layers:
            found = time_layers(backend, clouds, options, repeats=self.repeats)
            timed["layers"] = [layer.to_dict() for layer in found]
        self.values.append(timed)


def _label(name: str, device: str | None, no_kernels: bool) -> str:
    """What a row of the table calls the backend."""
    where = name if device is None else f"{name} on {device}"
    return f"{where}, bodies" if name == "onnxruntime" and no_kernels else where


def _show(values: Sequence[dict[str, Any]], percentiles: bool) -> None:
    from dela.runtime.cli import tables

    drawn = [tables.latency_table(values), tables.kinds_table(values)]
    if percentiles:
        drawn.append(tables.percentiles_table(values))
    drawn += [tables.layers_table(value, _LAYERS) for value in values if "layers" in value]
    for number, table in enumerate(drawn):
        if number:
            console().print()
        console().print(table)


def _jobs(models: Sequence[Path], backends: Sequence[str]) -> list[tuple[str, Path]]:
    """Backends with the file each runs.

    Raises:
        InputError: a file of an unknown suffix, or no file that a backend takes.
    """
    if not backends:
        return [(backend_of(model), model) for model in models]
    jobs = []
    for name in backends:
        suffixes = BACKENDS[name].suffixes
        given = [model for model in models if model.suffix.lower() in suffixes]
        beside = [model.with_suffix(suffix) for model in models for suffix in suffixes]
        files = given or [path for path in dict.fromkeys(beside) if path.is_file()]
        if not files:
            build = f"; `dela build MODEL.onnx --backend {name}` makes one"
            raise InputError(
                f"no file for --backend {name}: it runs {' or '.join(suffixes)}, and there is no "
                f"{' or '.join(str(path) for path in dict.fromkeys(beside))}"
                f"{build if suffixes == (SUFFIX,) else ''}"
            )
        jobs += [(name, path) for path in files]
    return jobs


def _inputs(
    backend: Backend,
    sizes: Sequence[int] | None,
    scans: dict[str, list[PointCloud]],
) -> dict[str, list[PointCloud]]:
    """Name -> clouds of every input to time."""
    from dela.runtime.bench import made_up_clouds

    classification = backend.config.task == "classification"
    if not sizes and not scans:
        sizes = [_CLOUDS if classification else _POINTS]
    what = "clouds" if classification else "voxels"
    made = {f"{size:,} {what}": made_up_clouds(backend.config, size) for size in sizes or ()}
    return {**made, **scans}
