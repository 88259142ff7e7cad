"""The command ``dela import-checkpoint``."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dela.cli.options import Overwrite
from dela.files import check_writable


def import_checkpoint(
    source: Annotated[Path, typer.Argument(help="Checkpoint of the reference implementation.")],
    preset: Annotated[str, typer.Option(help="s3dis, scannet or scanobjectnn.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write (.pt).")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Replace what the preset says, such as neighbors=[16,16]; repeatable.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> Path:
    """Convert a checkpoint of the reference implementation (DeLA v2) to one of dela.

    Stages, dimensions, depths, head and class counts are read from the tensors; the preset gives
    what they cannot tell: neighbors, grid or points, coordinate scale, spread.

    Examples:

    $ dela import-checkpoint s3dis.pt --preset s3dis -o best.pt
    $ dela import-checkpoint mine.pt --preset s3dis --set neighbors=[16,16,16,16] -o best.pt
    """
    from dela.artifacts.checkpoint import save_checkpoint
    from dela.families import family_of, resolve_config

    check_writable(output, overwrite, inputs=(source,))
    start = resolve_config(preset)
    family = family_of(start)
    model = family.import_published(source, start, **_overrides(set_))
    save_checkpoint(output, model, {"imported_from": source.name}, overwrite)
    count = sum(weight.numel() for weight in model.parameters())
    config = model.config
    print(
        f"{output}: {config.task}, {len(family.sizes(config))} stages, "
        f"{config.num_classes} classes, {count:,} parameters"
    )
    return output


def _overrides(pairs: Sequence[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` pairs; values are Python literals, anything else is text."""
    overrides = {}
    for pair in pairs or ():
        key, separator, text = pair.partition("=")
        if not separator:
            raise typer.BadParameter(f"--set {pair}: give KEY=VALUE, such as neighbors=[16,16]")
        try:
            overrides[key.strip()] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            overrides[key.strip()] = text.strip()
    return overrides
