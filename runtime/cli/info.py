"""The command ``dela info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dela.cli.console import console, print_json
from dela.cli.options import Columns, Json


def info(
    file: Annotated[Path, typer.Argument(help="Checkpoint, exported network, engine or scan.")],
    columns: Columns = None,
    json: Json = False,
) -> dict[str, Any]:
    """Describe a checkpoint, an exported network, an engine or a scan.

    Examples:

    $ dela info model.onnx
    $ dela info scan.laz --json
    """
    from dela.runtime.cli.tables import info_table
    from dela.runtime.info import describe

    values = describe(file, columns)
    if json:
        print_json(values)
    else:
        console().print(info_table(values))
    return values
