"""Files that an evaluation leaves: names of their own, codes, objects that are not scored."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dela.cloud.formats import read_cloud
from dela.errors import InputError
from dela.families.dela.config import PRESETS
from dela.geometry.cpu import VoxelGrid
from dela.training.data.scans import Scan
from dela.training.evaluate.output import PredictionWriter
from dela.training.evaluate.split import ScanAnswer

SCENES = PRESETS["scannet"]
OBJECTS = PRESETS["scanobjectnn"]


def answer(name: str, labels: list[int], predicted: list[int]) -> ScanAnswer:
    rows = np.arange(3, dtype=np.int32)
    points = np.eye(3, dtype=np.float32)
    scan = Scan(
        name, points, points, np.array(labels, np.int16), np.full(3, 1e6), VoxelGrid(rows, rows)
    )
    return ScanAnswer(scan, np.array(predicted), np.linspace(0.5, 1, len(predicted)))


def test_scenes_of_one_name_get_files_of_their_own(tmp_path):
    infos = tuple(dataclasses.replace(c, code=10 + c.code) for c in SCENES.classes)
    writer = PredictionWriter(tmp_path / "out", dataclasses.replace(SCENES, classes=infos), False)
    for name in ("a/scan.laz", "b/scan.laz", "room 7", "scene0000_00"):
        writer.write(answer(name, [0, -1, 19], [0, 1, 2]))
    writer.close()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["room_7.ply", "scan.ply", "scan_2.ply", "scene0000_00.ply"]
    cloud = read_cloud(tmp_path / "out" / "scan_2.ply")
    assert cloud.columns["label"].tolist() == [10, 11, 12]
    assert cloud.columns["truth"].tolist() == [10, -1, 29]
    np.testing.assert_allclose(cloud.points, np.eye(3) + 1e6, atol=1e-6)


def test_objects_become_lines(tmp_path):
    writer = PredictionWriter(tmp_path / "out", OBJECTS, False)
    writer.write(answer("test 0", [1], [1]))
    writer.write(answer("test 1", [-1], [14]))
    writer.close()
    assert (tmp_path / "out" / "predictions.csv").read_text().splitlines() == [
        "object,truth,prediction,confidence",
        "test 0,bin,bin,0.5000",
        "test 1,ignored,toilet,0.5000",
    ]


def test_what_is_there_is_kept_unless_told_otherwise(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        PredictionWriter(tmp_path, SCENES, False)
    with pytest.raises(InputError, match="is a file"):
        PredictionWriter(tmp_path / "note", SCENES, True)
    PredictionWriter(tmp_path, SCENES, True).close()
    PredictionWriter(tmp_path / "new", SCENES, False).close()
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
