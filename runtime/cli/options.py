"""Options that several commands of this folder share, and what their values mean."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class BackendName(StrEnum):
    """Choices of ``--backend``."""

    torch = "torch"
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
MaxPoints = Annotated[
    int, typer.Option(min=1, help="Most voxels in one run; larger scenes are cut into tiles.")
]
DropInvalid = Annotated[
    bool,
    typer.Option(
        "--drop-invalid", help="Leave points with NaN or infinite coordinates unlabelled."
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; all that were given when left out.")
]
Device = Annotated[
    str | None,
    typer.Option(metavar="cpu|cuda|cuda:N", help="The CPU when left out; engines need a GPU."),
]
NoGraphs = Annotated[
    bool, typer.Option("--no-cuda-graphs", help="Engines: queue every kernel by itself.")
]
GpuPyramid = Annotated[
    bool,
    typer.Option(
        "--gpu-pyramid", help="Engines: find voxels, neighbours and labels on the GPU, too."
    ),
]
Truth = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column of true label codes to score against.")
]
CodeMap = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FROM=TO", help="Count true label FROM as class code TO; repeatable."
    ),
]
Model = Annotated[
    Path, typer.Option("-m", "--model", help="Checkpoint, exported network or engine.")
]


def code_aliases(pairs: Sequence[str] | None) -> dict[int, int]:
    """The pairs of ``--map`` as code in the file -> code of a class.

    Raises:
        typer.BadParameter: a pair that is not two whole numbers around an equals sign.
    """
    aliases = {}
    for pair in pairs or ():
        source, _, target = pair.partition("=")
        try:
            aliases[int(source)] = int(target)
        except ValueError:
            raise typer.BadParameter(f"--map {pair}: give two label codes, such as 4=5") from None
    return aliases
