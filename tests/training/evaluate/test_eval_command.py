"""`dela eval` on splits and on files, with checkpoints and exported networks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dela.artifacts.checkpoint import save_checkpoint  # noqa: E402
from dela.cli.main import run_command  # noqa: E402
from dela.cloud.formats import read_cloud, write_cloud  # noqa: E402
from dela.errors import ConfigError, InputError  # noqa: E402
from dela.export import export_onnx  # noqa: E402
from dela.families import create_model  # noqa: E402
from dela.training.run.folder import to_toml  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@pytest.fixture
def model(tiny_config, folder):
    """A checkpoint and its export, made once, and the configuration of their data."""
    checkpoint, exported, config = (folder / f"model.{kind}" for kind in ("pt", "onnx", "toml"))
    if config.exists():
        return checkpoint, exported, config
    network = create_model(tiny_config.model, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a new network's answers are almost ties
        for module in network.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5, generator=generator)
    save_checkpoint(checkpoint, network, {"training": tiny_config.to_dict()})
    export_onnx(checkpoint, exported, check=False)
    config.write_text(to_toml(tiny_config), encoding="utf-8")
    return checkpoint, exported, config


def scored(capsys, *words) -> dict:
    run_command(["eval", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def test_backends_configurations_and_files_give_the_same_scores(model, tiny_scans, capsys):
    checkpoint, exported, config = model
    by_checkpoint = scored(capsys, checkpoint, "--split", "val")
    assert by_checkpoint["points"] == 4000 - 20
    # Differences of rounding turn a tie or two.
    by_export = scored(capsys, exported, "--config", config, "--split", "val")
    apart = np.abs(np.subtract(by_export["confusion"], by_checkpoint["confusion"])).sum()
    assert apart <= 8
    by_files = scored(capsys, exported, tiny_scans / "val.ply")
    assert by_files["points"] == by_checkpoint["points"]
    apart = np.abs(np.subtract(by_files["confusion"], by_export["confusion"])).sum()
    assert apart <= 400  # another margin around tiles


def test_without_a_test_split_the_validation_split_is_scored(model, capsys):
    checkpoint = model[0]
    assert scored(capsys, checkpoint) == scored(capsys, checkpoint, "--split", "val")


@pytest.mark.parametrize("looks", [["--votes", "2"], ["--protocol", "s3dis"]])
def test_votes_and_protocols_score_every_labelled_point(model, tiny_scans, capsys, looks):
    found = scored(capsys, model[0], tiny_scans / "val.ply", *looks)
    assert found["points"] == 4000 - 20


def test_finer_codes_count_as_the_class_they_are_mapped_to(model, tiny_scans, tmp_path, capsys):
    cloud = read_cloud(tiny_scans / "val.ply")
    finer = cloud.columns["classification"].copy()
    finer[finer == 2] = np.where(np.arange((finer == 2).sum()) % 2, 2, 8)
    columns = {k: v for k, v in cloud.columns.items() if k != "classification"}
    path = tmp_path / "fine.ply"
    write_cloud(path, type(cloud)(cloud.points, columns | {"kind": finer}))

    whole = scored(capsys, model[1], tiny_scans / "val.ply")
    mapped = scored(capsys, model[1], path, "--label", "kind", "--map", "8=2")
    assert mapped["confusion"] == whole["confusion"]

    run_command(["eval", str(model[1]), str(path), "--label", "kind", "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["points"] < whole["points"]
    assert f"not scored: 0 (20), 8 ({(finer == 8).sum():,}) points" in captured.err


def test_predictions_are_kept_beside_the_truth(model, tiny_scans, tmp_path, capsys):
    folder = tmp_path / "answers"
    found = scored(capsys, model[0], tiny_scans / "val.ply", "-o", folder)
    answer = read_cloud(folder / "val.ply")
    given = read_cloud(tiny_scans / "val.ply")
    np.testing.assert_allclose(answer.points, given.points, atol=1e-3)
    truth = given.columns["classification"].astype(int)
    assert np.array_equal(answer.columns["truth"], np.where(truth == 0, -1, truth))
    known = truth > 0
    hits = (answer.columns["label"] == truth)[known].mean()
    assert hits == pytest.approx(found["oa"])
    assert answer.columns["confidence"].min() >= 0.5  # of two classes
    with pytest.raises(InputError, match="is not empty"):
        scored(capsys, model[0], tiny_scans / "val.ply", "-o", folder)
    scored(capsys, model[0], tiny_scans / "val.ply", "-o", folder, "--overwrite")


def test_scenes_are_cut_as_asked(model, tiny_scans, tmp_path, monkeypatch, capsys):
    from dela.runtime.backends.onnx_runtime import OnnxRuntimeBackend

    sizes: list[int] = []
    run = OnnxRuntimeBackend.run

    def watched(self, pyramid):
        sizes.append(len(pyramid.points))
        return run(self, pyramid)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", watched)
    scored(capsys, model[1], tiny_scans / "val.ply")
    (whole,) = sizes
    sizes.clear()
    scored(capsys, model[1], tiny_scans / "val.ply", "--max-points", "400")
    assert len(sizes) > 1
    assert max(sizes) <= 400 < whole


def test_the_table_and_the_matrix(model, tiny_scans, capsys):
    run_command(["eval", str(model[0]), str(tiny_scans / "val.ply"), "--matrix"])
    table, matrix = capsys.readouterr().out.strip().split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == ["class", "floor", "box", "mean"]
    rows = [line.split() for line in matrix.splitlines()]
    assert rows[0] == ["true", "0", "1"]
    assert [row[:2] for row in rows[1:]] == [["0", "floor"], ["1", "box"]]
    assert all(abs(float(row[2]) + float(row[3]) - 100) < 0.11 for row in rows[1:])


WITHOUT_TORCH = """
import sys

sys.modules["torch"] = sys.modules["onnx"] = None  # importing them fails
from dela.cli.main import run_command

run_command(sys.argv[1:])
"""


def test_an_exported_network_is_scored_on_files_without_torch(model, tiny_scans, capsys):
    words = ["eval", str(model[1]), str(tiny_scans / "val.ply"), "--json"]
    run_command(words)
    expected = json.loads(capsys.readouterr().out)
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout) == expected


def test_what_cannot_be_scored_is_said_in_words(model, tiny_scans, tmp_path):
    checkpoint, exported, _ = model
    with pytest.raises(InputError, match="name labelled scans after it, or give --config"):
        run_command(["eval", str(exported)])
    with pytest.raises(InputError, match="to count as 9, which no class has; codes: 2, 6"):
        run_command(["eval", str(exported), str(tiny_scans), "--map", "8=9"])
    with pytest.raises(InputError, match="no label column 'kind'"):
        run_command(["eval", str(exported), str(tiny_scans), "--label", "kind"])
    bare = tmp_path / "bare.pt"
    save_checkpoint(bare, create_model(torch_config(checkpoint), seed=0))
    with pytest.raises(InputError, match="does not say what data it was trained on"):
        run_command(["eval", str(bare)])
    for words in (
        [str(tiny_scans), "--split", "val"],
        ["--label", "kind"],
        ["--protocol", "s3dis", "--votes", "2"],
    ):
        with pytest.raises(SystemExit):
            run_command(["eval", str(checkpoint), *words])


def torch_config(checkpoint):
    from dela.artifacts.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint).config


def nameless_copy(scan, folder):
    """The scan as an array without names, and the names of its columns."""
    cloud = read_cloud(scan)
    path = folder / f"{scan.stem}.npy"
    np.save(path, np.column_stack([cloud.points, *cloud.columns.values()]))
    return path, ["x", "y", "z", *cloud.columns]


def test_nameless_columns_are_named_on_the_command_line(model, tiny_scans, tmp_path, capsys):
    path, names = nameless_copy(tiny_scans / "val.ply", tmp_path)
    expected = scored(capsys, model[1], tiny_scans / "val.ply")
    assert scored(capsys, model[1], path, "--columns", ",".join(names)) == expected
    with pytest.raises(InputError, match="z missing"):
        run_command(["eval", str(model[1]), str(path), "--columns", "x,y"])
    with pytest.raises(SystemExit):
        run_command(["eval", str(model[0]), "--columns", "x,y,z"])


def test_nameless_columns_are_named_in_the_configuration(
    model, tiny_config, tiny_scans, tmp_path, capsys
):
    expected = scored(capsys, model[1], "--config", model[2], "--split", "val")
    names = [nameless_copy(tiny_scans / f"{name}.ply", tmp_path)[1] for name in ("train", "val")]
    data = dataclasses.replace(
        tiny_config.data, root=str(tmp_path), train=("train.npy",), val=("val.npy",)
    )
    assert names[0] == names[1]
    data = dataclasses.replace(data, columns=tuple(names[0]))
    config = tmp_path / "named.toml"
    config.write_text(to_toml(dataclasses.replace(tiny_config, data=data)), encoding="utf-8")
    assert scored(capsys, model[1], "--config", config, "--split", "val") == expected
    with pytest.raises(ConfigError, match=r"data\.columns: columns x,y: z missing"):
        dataclasses.replace(data, columns=("x", "y"))
