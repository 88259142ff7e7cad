"""The commands ``dela data prepare`` and ``dela data info``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dela.cli.console import note, print_json
from dela.cli.options import Json
from dela.errors import InputError
from dela.training.prepare import DATASETS, dataset_module

if TYPE_CHECKING:
    from dela.training.prepare.runner import Summary

# Choices of NAME.
DatasetName = StrEnum("DatasetName", {name: name for name in DATASETS})  # type: ignore[misc]

data = typer.Typer(help="Prepare datasets for training, and look at prepared ones.")
_LISTS = ("train", "val", "test")


@data.command()
def prepare(
    name: Annotated[DatasetName, typer.Argument(help="Which dataset.", metavar="NAME")],
    raw: Annotated[Path, typer.Argument(help="Folder of the raw data.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to make, or to go on with.")
    ],
    config: Annotated[
        str | None,
        typer.Option(help="Training configuration with classes, splits and columns (folder)."),
    ] = None,
    train_list: Annotated[
        Path | None, typer.Option(help="Scenes to train on, one a line (scannet).")
    ] = None,
    val_list: Annotated[
        Path | None, typer.Option(help="Scenes to validate on, one a line (scannet).")
    ] = None,
    test_list: Annotated[
        Path | None, typer.Option(help="Scenes of the test split, one a line (scannet).")
    ] = None,
    grid: Annotated[
        float | None,
        typer.Option(help="Voxel size to index, meters; the published one when left out."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one per core when left out.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make every scene anew, whatever is there.")
    ] = False,
    json: Json = False,
) -> Any:
    """Convert a raw dataset to memory-mapped columns.

    NAME is {names}. Scenes
    that are there already and whole are kept, so an interrupted preparation goes on where it
    stopped. Malformed files are reported with their place and cost their own scene only.

    Examples:

    $ dela data prepare s3dis raw/s3dis -o data/s3dis
    $ dela data prepare folder scans/ --config my.toml -o data/mine
    """
    from dela.training.cli.train import find_config
    from dela.training.prepare.plan import Options
    from dela.training.prepare.report import PrepareProgress, summary_text
    from dela.training.prepare.runner import prepare as run

    given = dict(zip(_LISTS, (train_list, val_list, test_list), strict=True))
    lists = {split: path for split, path in given.items() if path is not None}
    _refuse_unfit_options(name.value, lists, config, grid)
    path = None if config is None else find_config(config)
    options = Options(grid, lists, path, workers, overwrite)
    with PrepareProgress() as progress:
        summary = run(name.value, raw, output, options, log=progress.line, progress=progress)
    if json:
        print_json(summary.to_dict(), indent=None)
    else:
        print(summary_text(summary))
    _refuse_malformed(summary)
    return summary


# The names of the table, in its order.
prepare.__doc__ = (prepare.__doc__ or "").replace(
    "{names}", " or ".join(", ".join(DATASETS).rsplit(", ", 1))
)


def _refuse_malformed(summary: Summary) -> None:
    """Files that could not be used make the command fail."""
    if summary.failed:
        more = len(summary.failed) > 5
        raise InputError(
            f"{summary.malformed} malformed files, see above; mend them and repeat the command "
            f"(concerned: {', '.join(sorted(summary.failed)[:5])}{' ...' if more else ''})"
        )


def _refuse_unfit_options(
    name: str, lists: dict[str, Path], config: str | None, grid: float | None
) -> None:
    """Options that are for other datasets are usage errors."""
    if lists and name != "scannet":
        raise typer.BadParameter(f"scene lists are for scannet; {name} has its own splits")
    if config is not None and name != "folder":
        raise typer.BadParameter(f"--config is for a folder of scans; {name} needs none")
    if grid is not None and dataset_module(name).KIND != "scenes":
        raise typer.BadParameter(f"--grid is for scenes; the small clouds of {name} have no index")
    if grid is not None and not grid > 0:
        raise typer.BadParameter(f"--grid is {grid}; give metres above 0")


@data.command()
def info(
    folder: Annotated[Path, typer.Argument(help="Folder made by `dela data prepare`.")],
    check: Annotated[
        bool, typer.Option("--check", help="Read everything and compare the checksums.")
    ] = False,
    json: Json = False,
) -> Any:
    """Describe prepared data: splits, columns, classes and their counts.

    Examples:

    $ dela data info data/s3dis
    $ dela data info data/s3dis --check
    """
    from dela.training.prepare.report import manifest_text
    from dela.training.prepare.store import SCENES, damage, read_manifest

    manifest = read_manifest(folder)
    if json:
        print_json(manifest, indent=None)
    else:
        print(manifest_text(folder, manifest))
    if check:
        found = [damage(folder / SCENES / name) for name in manifest["scenes"]]
        damaged = [message for message in found if message is not None]
        for message in damaged:
            note(message)
        if damaged:
            raise InputError(
                f"{len(damaged)} of {len(found)} scenes are damaged; repeat `dela data prepare`, "
                "which makes them anew"
            )
        note(f"checksums of {len(found)} scenes stand")
    return manifest
