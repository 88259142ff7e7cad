"""The command ``dela eval``: any backend's network on any labelled data.

Networks are loaded by ``dela.runtime``, labelled data is read by ``dela.training``; neither knows
the other. This command brings them together and, like the table of commands, names both as text.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

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


def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint, exported network or engine.")],
    scans: Annotated[
        list[Path] | None,
        typer.Argument(help="Labelled scans, or folders of them; else --config names the data."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="TOML file that names the data; a checkpoint's own when left out."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder that the data paths start from.", show_default=False)
    ] = None,
    split: Annotated[
        SplitName | None,
        typer.Option(help="Part of the data; test, or val where there is no test."),
    ] = None,
    votes: Annotated[int, typer.Option(min=1, help="Passes over turned and resampled data.")] = 1,
    protocol: Annotated[
        ProtocolName | None,
        typer.Option(help="A published test protocol instead of --votes: 12 or 48 looks."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of true codes in SCANS."),
    ] = None,
    map_codes: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FROM=TO", help="Count true code FROM as TO; repeatable."),
    ] = None,
    max_points: Annotated[
        int | None, typer.Option(min=1, help="Most voxels in one run; larger scans are cut.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for every scan with its prediction."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Print the confusion matrix too.")
    ] = False,
    backend: Annotated[
        str | None, typer.Option(help="Chosen by the model's suffix when left out.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> Any:
    """Score a network on labelled data, every input point counted.

    `dela eval runs/s3dis/best.pt --protocol s3dis`, `dela eval model.onnx scans/`, or
    `dela eval model.onnx --config s3dis --data prepared/s3dis --split val`.
    """
    from dela.scan.protocols import PROTOCOLS

    backends, options, predictor, report = (
        importlib.import_module(f"dela.runtime.{name}")
        for name in ("backends.base", "cli.options", "predict.predictor", "cli.report")
    )
    eval_data, scoring, written = (
        importlib.import_module(f"dela.training.{name}")
        for name in ("evaluate.data", "evaluate.split", "evaluate.output")
    )
    if scans and (config is not None or data is not None or split is not None):
        raise typer.BadParameter("SCANS name the data; leave out --config, --data and --split")
    if protocol is not None and votes > 1:
        raise typer.BadParameter("--protocol has looks of its own; leave out --votes")
    network = backends.load_backend(model, backend, device=device)
    looks = () if protocol is None else PROTOCOLS[protocol.value]
    if looks and network.config.task != "segmentation":
        raise InputError("published protocols are for scenes; objects take --votes")
    writer = None
    if output is not None:
        writer = written.PredictionWriter(output, network.config, overwrite)

    if scans:
        name, most = "scans", predictor.MAX_POINTS
        dataset = eval_data.open_files(
            scans,
            network.config,
            label=label,
            aliases=options.code_aliases(map_codes),
            warn=report.warn,
        )
    else:
        if label is not None or map_codes:
            raise typer.BadParameter("--label and --map are for SCANS")
        source = _source(eval_data, model, config, data)
        dataset, name = eval_data.open_split(
            source, network.config, None if split is None else split.value, config or str(model)
        )
        most = source.eval_points
    most = min(max_points or most, network.max_points or sys.maxsize)
    dataset.data = dataclasses.replace(dataset.data, eval_points=most)
    with report.progress_bar(name) as progress:
        scores = scoring.score_split(
            network.run,
            dataset,
            votes=votes,
            looks=looks,
            progress=progress,
            after_scan=None if writer is None else writer.write,
        )
    if writer is not None:
        writer.close()
    names = [info.name for info in network.config.classes]
    if json_:
        print(json.dumps(scores.to_dict(names)))
        return scores
    print(scores.confusion.table(names))
    if matrix:
        print(f"\n{scores.confusion.matrix_table(names)}")
    if scores.parts is not None:
        print(f"\n{scores.parts.table()}")
    return scores


def _source(eval_data: Any, model: Path, config: str | None, root: Path | None) -> Any:
    """``[data]`` of the configuration that is given, or of the checkpoint's training."""
    if config is not None:
        find_config = importlib.import_module("dela.training.cli.train").find_config
        return eval_data.config_data(find_config(config), root)
    if model.suffix.lower() not in (".pt", ".pth"):
        raise InputError(
            f"{model} does not say what data it was trained on; name labelled scans after it, or "
            "give --config"
        )
    source = eval_data.checkpoint_data(model)
    return source if root is None else dataclasses.replace(source, root=str(root.absolute()))
