"""Options that commands of several folders share, and what their values mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[
    str | None,
    typer.Option(metavar="cpu|cuda|cuda:N", help="The CPU when left out; engines need a GPU."),
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder that the data paths start from.", show_default=False)
]
CodeMap = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FROM=TO", help="Count true label FROM as class code TO; repeatable."
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="x,y,z,...",
        help="What the columns of a text table or array are, in the file's order, such as "
        "x,y,z,intensity,red,green,blue.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


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
