"""The command ``dela eval``: any backend's network on any labelled data.

Networks are loaded by ``dela.runtime``, labelled data is read by ``dela.training``; neither knows
the other. This command brings them together and, like the table of commands, names both as text.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dela.cli.console import ProgressBar, print_json, say, warn
from dela.cli.options import (
    CodeMap,
    Columns,
    DataRoot,
    Device,
    Json,
    Overwrite,
    code_aliases,
)
from dela.errors import InputError


class SplitName(StrEnum):
    """Choices of ``--split``."""

    train = "train"
    val = "val"
    test = "test"


class ProtocolName(StrEnum):
    """Choices of ``--protocol``: the keys of :data:`dela.scan.protocols.PROTOCOLS`."""

    s3dis = "s3dis"
    scannet = "scannet"


Model = Annotated[Path, typer.Argument(help="Checkpoint, exported network or engine.")]
Scans = Annotated[
    list[Path] | None,
    typer.Argument(help="Labelled scans, or folders of them; else --config names the data."),
]
Config = Annotated[
    str | None,
    typer.Option(help="TOML file that names the data; a checkpoint's own when left out."),
]
Split = Annotated[
    SplitName | None, typer.Option(help="Part of the data; test, or val where there is no test.")
]
Votes = Annotated[int, typer.Option(min=1, help="Passes over turned and resampled data.")]
Protocol = Annotated[
    ProtocolName | None,
    typer.Option(help="A published test protocol instead of --votes: 12 or 48 looks."),
]
Label = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of true codes in SCANS.")]
MaxPoints = Annotated[
    int | None, typer.Option(min=1, help="Most voxels in one run; larger scans are cut.")
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder for every scan with its prediction.")
]
Matrix = Annotated[bool, typer.Option("--matrix", help="Print the confusion matrix too.")]


def evaluate(
    model: Model,
    scans: Scans = None,
    config: Config = None,
    data: DataRoot = None,
    split: Split = None,
    votes: Votes = 1,
    protocol: Protocol = None,
    label: Label = None,
    columns: Columns = None,
    map_codes: CodeMap = None,
    max_points: MaxPoints = None,
    output: Output = None,
    overwrite: Overwrite = False,
    matrix: Matrix = False,
    backend: Annotated[
        str | None, typer.Option(help="Chosen by the model's suffix when left out.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> Any:
    """Score a network on labelled data, every input point counted.

    Without SCANS the data are those of --config, or of the training that a checkpoint comes from.

    Examples:

    $ dela eval runs/s3dis/best.pt --protocol s3dis
    $ dela eval model.onnx scans/ --map 4=5
    $ dela eval model.onnx --config s3dis --data prepared/s3dis --split val
    """
    if scans and (config is not None or data is not None or split is not None):
        raise typer.BadParameter("SCANS name the data; leave out --config, --data and --split")
    if not scans and (label is not None or map_codes or columns is not None):
        raise typer.BadParameter("--label, --columns and --map are for SCANS")
    if protocol is not None and votes > 1:
        raise typer.BadParameter("--protocol has looks of its own; leave out --votes")
    load = _room("runtime.backends.base").load_backend
    network = load(model, backend, device=device)
    looks = () if protocol is None else _looks(protocol, network)
    writer = None
    if output is not None:
        write = _room("training.evaluate.output").PredictionWriter
        writer = write(output, network.config, overwrite)
    if scans:
        dataset, name = _files(scans, network, label, map_codes, columns), "scans"
    else:
        dataset, name = _split(network, config, data, None if split is None else split.value)
    most = min(max_points or dataset.data.eval_points, network.max_points or sys.maxsize)
    dataset.data = dataclasses.replace(dataset.data, eval_points=most)
    with ProgressBar(name, percent=True) as bar:
        scores = _room("training.evaluate.split").score_split(
            _room("runtime.backends.finite").finite_run(network),
            dataset,
            votes=votes,
            looks=looks,
            progress=bar.update,
            after_scan=None if writer is None else writer.write,
        )
    if writer is not None:
        writer.close()
    _show(scores, [info.name for info in network.config.classes], matrix, json)
    return scores


def _room(name: str) -> Any:
    """A module of a folder above this one, which is named as text."""
    return importlib.import_module(f"dela.{name}")


def _looks(protocol: ProtocolName, network: Any) -> Any:
    from dela.scan.protocols import PROTOCOLS

    if network.config.task != "segmentation":
        raise InputError("published protocols are for scenes; objects take --votes")
    return PROTOCOLS[protocol.value]


def _files(
    scans: list[Path],
    network: Any,
    label: str | None,
    map_codes: list[str] | None,
    columns: str | None,
) -> Any:
    """The labelled scans as a dataset, seen in the pieces that ``dela predict`` cuts."""
    dataset = _room("training.evaluate.data").open_files(
        scans,
        network.config,
        label=label,
        columns=columns,
        aliases=code_aliases(map_codes),
        warn=warn,
    )
    most = _room("runtime.predict.predictor").MAX_POINTS
    dataset.data = dataclasses.replace(dataset.data, eval_points=most)
    return dataset


def _split(
    network: Any, config: str | None, root: Path | None, split: str | None
) -> tuple[Any, str]:
    """A split of the data that the configuration or the checkpoint names, and its name."""
    found = _room("training.evaluate.data")
    source = _source(found, network.path, config, root)
    return found.open_split(source, network.config, split, config or str(network.path))


def _show(scores: Any, names: list[str], matrix: bool, as_json: bool) -> None:
    if as_json:
        print_json(scores.to_dict(names), indent=None)
        return
    say(scores.confusion.table(names))
    if matrix:
        say(f"\n{scores.confusion.matrix_table(names)}")
    if scores.parts is not None:
        say(f"\n{scores.parts.table()}")


def _source(eval_data: Any, model: Path, config: str | None, root: Path | None) -> Any:
    """``[data]`` of the configuration that is given, or of the checkpoint's training."""
    if config is not None:
        find_config = _room("training.cli.train").find_config
        return eval_data.config_data(find_config(config), root)
    if model.suffix.lower() not in (".pt", ".pth"):
        raise InputError(
            f"{model} does not say what data it was trained on; name labelled scans after it, or "
            "give --config"
        )
    source = eval_data.checkpoint_data(model)
    return source if root is None else dataclasses.replace(source, root=str(root.absolute()))
