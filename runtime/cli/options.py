"""Options that several commands of this folder share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dela.cli.console import ProgressBar
from dela.errors import InputError
from dela.runtime.backends.base import BACKENDS, Backend
from dela.runtime.backends.graphs import MAX_GRAPHS
from dela.runtime.backends.ladder import spread

# Choices of ``--backend``: the table's names.
_NAMES = {name.replace("-", "_"): name for name in BACKENDS}
BackendName = StrEnum("BackendName", _NAMES)  # type: ignore[misc]
BackendChoice = Annotated[
    BackendName | None, typer.Option(help="Chosen by the model's suffix when left out.")
]
MaxPoints = Annotated[
    int, typer.Option(min=1, help="Most voxels in one run; larger scenes are cut into tiles.")
]
DropInvalid = Annotated[
    bool,
    typer.Option(
        "--drop-invalid",
        help="Leave points with NaN or infinite coordinates, or NaN attributes, unlabelled.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; all that were given when left out.")
]
NoGraphs = Annotated[
    bool, typer.Option("--no-cuda-graphs", help="Engines: queue every kernel by itself.")
]
MaxGraphs = Annotated[
    int | None,
    typer.Option(
        "--graphs",
        min=1,
        metavar="N",
        help=f"Engines: most sizes kept as CUDA graphs; {MAX_GRAPHS} else.",
    ),
]
WarmUp = Annotated[
    str | None,
    typer.Option(
        "--warm-up",
        metavar="MIN:MAX",
        help="Engines: before the first scan, capture CUDA graphs for runs of this many voxels "
        "(clouds, for classification).",
    ),
]
Tf32 = Annotated[
    bool,
    typer.Option(
        "--tf32", help="ONNX Runtime on a GPU: round factors of float32 products to 10 bits."
    ),
]
GpuPyramid = Annotated[
    bool | None,
    typer.Option(
        "--gpu-pyramid/--no-gpu-pyramid",
        help="Engines: find voxels, neighbors and labels on the GPU, too; the default there.",
    ),
]
Truth = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column of true label codes to score against.")
]
Model = Annotated[
    Path, typer.Option("-m", "--model", help="Checkpoint, exported network or engine.")
]


def warm_up(backend: Backend, sizes: str | None) -> None:
    """Captures the graphs that ``--warm-up MIN:MAX`` asks an engine for; nothing where it is None.

    Raises:
        InputError: no engine, not two sizes that ascend from 1 on, or no graphs to capture.
        EngineError: more points than the engine takes.
    """
    if sizes is None:
        return
    from dela.runtime.backends.engine import EngineBackend

    if not isinstance(backend, EngineBackend):
        raise InputError(f"--warm-up is for engines; {backend.name} captures no CUDA graphs")
    try:
        smallest, largest = map(int, sizes.split(":"))
    except ValueError:
        raise InputError(f"--warm-up {sizes} is not MIN:MAX, such as 5000:60000") from None
    # Segmentation gets two graphs of each size.
    share = 1 if backend.config.task == "classification" else 2
    chosen = spread(smallest, largest, backend.max_graphs // share)
    with ProgressBar("capturing CUDA graphs", percent=True) as bar:
        backend.warm_up(chosen, progress=bar.update)
