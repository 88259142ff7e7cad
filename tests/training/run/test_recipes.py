"""Every recipe from raw data to a verified network: prepare, train, score, export, verify.

The raw data is tiny and so are the networks; everything else is the recipe's.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

import raw_layouts

pytest.importorskip("torch")
pytest.importorskip("h5py")

from dela.cli.main import run_command
from dela.cloud.formats import write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.families.dela.config import DelaConfig
from dela.model.contract import CATEGORY
from dela.training.data.kinds import open_dataset
from dela.training.data.prepared import stored_column
from dela.training.settings.train import TrainConfig, load_config

SCENE = ("model.dims=[8,8]", "model.depths=[1,1]", "model.neighbors=6", "model.head_dim=8")
ROOM_GRID = ("model.grid=[0.12,0.3]", "data.points=300")


@dataclass(frozen=True)
class Case:
    """How a dataset's tiny raw data is made, and what makes its recipe small.

    Attributes:
        changes: ``section.key=value``.
        lists: options of the preparation, relative to the raw folder.
        config: the recipe, relative to the raw folder; the published one when empty.
        scored: what the validation split holds: points or objects.
    """

    write: object
    changes: tuple[str, ...]
    scored: int
    lists: tuple[tuple[str, str], ...] = ()
    config: str = ""


OBJECTS = (
    *("model.dims=[8,8]", "model.depths=[1,1]", "model.neighbors=6"),
    *("model.points=[64,16]", "model.spread=[2.2,4.4]"),
)
CASES = {
    "s3dis": Case(lambda raw: raw_layouts.write_s3dis(raw, points=1500), SCENE + ROOM_GRID, 1500),
    "scannet": Case(
        lambda raw: raw_layouts.write_scannet(raw, side=24),
        (*SCENE, *ROOM_GRID),
        0,
        (("--train-list", "scannetv2_train.txt"), ("--val-list", "scannetv2_val.txt")),
    ),
    "scanobjectnn": Case(
        lambda raw: raw_layouts.write_scanobjectnn(raw, clouds=10, points=300), OBJECTS, 10
    ),
    "modelnet40": Case(
        lambda raw: raw_layouts.write_modelnet40(raw, clouds=8, points=300), OBJECTS, 8
    ),
    "shapenetpart": Case(
        lambda raw: raw_layouts.write_shapenetpart(raw, shapes=2),
        (*SCENE, "model.grid=[0.05,0.15]", "model.spread=[0.75,1.5]"),
        3 * 530,
    ),
    "semantickitti": Case(
        lambda raw: raw_layouts.write_semantickitti(raw, points=1500),
        (*SCENE, "model.grid=[0.3,0.8]", "data.points=300"),
        0,
    ),
    "folder": Case(
        lambda raw: raw_layouts.write_folder(raw, points=1500),
        ("data.kind=prepared", "data.train=[]", "data.val=[]"),
        0,
        (("--config", "config.toml"),),
        "config.toml",
    ),
}


def first_scan(config: TrainConfig) -> PointCloud:
    """A validation scan as a file would hold it: raw columns, the category among them."""
    scan = open_dataset(config.data, config.model, "val").scans[0]
    model: DelaConfig = config.model
    columns = {}
    for info in model.attributes + model.directions:
        name, part = stored_column(info.name)
        if name != "points" and info.name != "height_above_ground":
            raw = np.asarray(scan.column(name))
            columns[info.name] = (raw if part is None else raw[:, part]).astype(np.float32)
    if model.categories:
        columns[CATEGORY] = np.asarray(scan.column(CATEGORY)).astype(np.int32)
    return PointCloud(np.asarray(scan.points, np.float64), columns)


@pytest.mark.parametrize("name", CASES)
def test_from_raw_data_to_a_verified_network(name, tmp_path, capsys):
    case = CASES[name]
    raw, prepared, run = tmp_path / "raw", tmp_path / "prepared", tmp_path / "run"
    case.write(raw)
    recipe = str(raw / case.config) if case.config else name
    lists = [str(word) for option, file in case.lists for word in (option, raw / file)]
    run_command(["data", "prepare", name, str(raw), "-o", str(prepared), "--workers", "1", *lists])

    changes = (
        *case.changes,
        *("train.epochs=1", "train.steps_per_epoch=2", "train.batch_size=2", "train.workers=0"),
        "train.dtype=fp32",
    )
    words = [word for change in changes for word in ("--set", change)]
    run_command(["train", recipe, "--data", str(prepared), "-o", str(run), *words])
    checkpoint = run / "best.pt"
    capsys.readouterr()

    run_command(["eval", str(checkpoint), "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["points"] == case.scored or not case.scored
    assert 0 <= scores["oa"] <= 1
    trained = json.loads((run / "metrics.json").read_text())["validation"]
    assert trained["confusion"] == scores["confusion"]
    if name == "shapenetpart":
        assert scores["parts"]["objects"] == 3
        assert 0 <= scores["parts"]["instance_miou"] <= 1
    if name in ("s3dis", "scannet"):
        run_command(["eval", str(checkpoint), "--protocol", name, "--json"])
        assert json.loads(capsys.readouterr().out)["points"] == scores["points"]

    exported, scan = tmp_path / "model.onnx", tmp_path / "scan.ply"
    run_command(["export", str(checkpoint), "-o", str(exported), "--no-check"])
    config = load_config(run / "config.toml", data_root=prepared)
    write_cloud(scan, first_scan(config))
    verified = run_command(
        ["verify", str(exported), "--checkpoint", str(checkpoint), "-i", str(scan)]
    )
    capsys.readouterr()
    assert len(verified) == 2  # kernels, and the function bodies alone
    assert all(item["max_relative_error"] < 1e-4 for item in verified)

    answers = tmp_path / "answers"
    run_command(
        [
            "eval",
            str(exported),
            "--config",
            str(run / "config.toml") if case.config else name,
            "--data",
            str(prepared),
            "-o",
            str(answers),
            "--json",
        ]
    )
    again = json.loads(capsys.readouterr().out)
    moved = np.abs(np.subtract(again["confusion"], scores["confusion"])).sum()
    assert moved <= 2 * math.ceil(0.002 * scores["points"])
    scans = open_dataset(config.data, config.model, "val").scans
    if config.model.task == "classification":
        lines = (answers / "predictions.csv").read_text().splitlines()
        assert len(lines) == 1 + len(scans)
        hits = sum(line.split(",")[1] == line.split(",")[2] for line in lines[1:])
        assert hits / len(scans) == again["oa"]
    else:
        assert len(list(answers.glob("*.ply"))) == len(scans)
