"""The demo end to end on a network too small to be any good."""

from __future__ import annotations

import numpy as np
import pytest

from dela.cli.main import main, run_command
from dela.cloud.formats import read_cloud
from dela.errors import InputError

CONFIG = """
[model]
dims = [16, 32]
depths = [1, 1]
neighbors = [8, 8]
grid = [0.1, 0.2]
attributes = ["red", "green", "blue", "height"]

[data]
kind = "rooms"
train_rooms = 2
val_rooms = 1
test_rooms = 0
room_points = 6000
points = 2000

[train]
epochs = 1
steps_per_epoch = 2
batch_size = 1
warmup = 0.0
workers = 0
"""


def test_demo_leaves_its_files_and_a_closing_table(tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(CONFIG)
    folder = tmp_path / "out"
    words = ["demo", "-o", str(folder), "--config", str(tmp_path / "tiny.toml")]
    words += ["--points", "20000"]
    run_command(words)
    out = capsys.readouterr().out
    for command in ("room", "train", "export", "predict", "verify", "view"):
        assert f"$ dela {command} " in out
    for text in ("in all", "mIoU", "our kernels", "function bodies", "labels agree on"):
        assert text in out
    assert (folder / "room.png").stat().st_size > 10_000
    room = read_cloud(folder / "room.ply")
    ply, las = (read_cloud(folder / f"room_labelled.{kind}") for kind in ("ply", "las"))
    assert np.array_equal(ply.columns["label"], las.columns["classification"])
    for labelled, truth in ((ply, "classification"), (las, "input_classification")):
        assert np.array_equal(labelled.columns[truth], room.columns["classification"])
    assert np.array_equal(ply.points, room.points)

    with pytest.raises(InputError, match="not empty"):
        run_command(words)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["demo", "-o", str(tmp_path / "file")])
    assert ended.value.code == 1
