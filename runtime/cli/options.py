"""Options that several commands of this folder share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dela.runtime.backends.base import BACKENDS

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
        "--graphs", min=1, metavar="N", help="Engines: most sizes kept as CUDA graphs; 16 else."
    ),
]
Tf32 = Annotated[
    bool,
    typer.Option(
        "--tf32", help="ONNX Runtime on a GPU: round factors of float32 products to 10 bits."
    ),
]
GpuPyramid = Annotated[
    bool,
    typer.Option(
        "--gpu-pyramid", help="Engines: find voxels, neighbors and labels on the GPU, too."
    ),
]
Truth = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column of true label codes to score against.")
]
Model = Annotated[
    Path, typer.Option("-m", "--model", help="Checkpoint, exported network or engine.")
]
