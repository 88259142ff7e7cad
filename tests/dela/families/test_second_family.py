"""The seam holds: a second family trains, exports, builds, runs and verifies like the first one.

It lives in ``tests/helpers/pointnet_family`` and enters the package by one entry of one table.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tiny_scans import tiny_scan

torch = pytest.importorskip("torch")

from dela.artifacts.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from dela.artifacts.metadata import ModelMetadata  # noqa: E402
from dela.cli.main import run_command  # noqa: E402
from dela.cloud.formats import read_cloud, write_cloud  # noqa: E402
from dela.errors import CheckpointError, ConfigError, DelaError, InputError  # noqa: E402
from dela.families import FAMILIES, create_model, family_of, resolve_config  # noqa: E402
from dela.model.inputs import InputSpec, RowSize, check_specs, pack_inputs  # noqa: E402
from dela.runtime import load_backend  # noqa: E402

CONFIG = """
[data]
kind = "folder"
train = ["train.ply"]
val = ["val.ply"]
points = 600
margin = 0.5
ignore = [0]

[[data.classes]]
name = "floor"
codes = [2]

[[data.classes]]
name = "box"
codes = [6]

[model]
family = "pointnet"
k = 6
width = 24
grid = [0.2]
attributes = ["intensity", "height"]

[train]
epochs = 4
steps_per_epoch = 12
batch_size = 2
warmup = 0
learning_rate = 0.02
class_weight_power = 0.5
workers = 0
"""


@pytest.fixture(scope="module", autouse=True)
def second_family():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "pointnet", "pointnet_family.family:FAMILY")
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, second_family) -> Path:
    """A folder with scans, a trained run and the exported network."""
    folder = tmp_path_factory.mktemp("second")
    for seed, name in enumerate(("train", "val", "unseen")):
        write_cloud(folder / f"{name}.ply", tiny_scan(seed, 5000))
    (folder / "config.toml").write_text(CONFIG)
    run_command(["train", str(folder / "config.toml"), "-o", str(folder / "run")])
    run_command(["export", str(folder / "run/best.pt"), "-o", str(folder / "model.onnx")])
    return folder


def test_it_trains_and_its_own_loss_stands_in_the_log(trained):
    scores = json.loads((trained / "run/metrics.json").read_text())
    with open(trained / "run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(float(row["smoothness"]) > 0 for row in rows)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert max(float(row["mIoU"]) if "mIoU" in row else 0 for row in rows) >= 0
    checkpoint = load_checkpoint(trained / "run/best.pt")
    assert checkpoint.config.family == "pointnet" and checkpoint.config.k == 6
    assert scores


def test_a_resumed_run_ends_with_the_same_weights(trained, tmp_path):
    from dela.training.run.loop import TrainingInterrupted, train
    from dela.training.settings.train import load_config

    def stop(step: int, loss: float) -> None:
        if step == 20:
            raise KeyboardInterrupt

    config = load_config(trained / "config.toml", ["train.save_steps=10"])
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path, log=lambda line: None, after_step=stop)
    train(config, tmp_path, log=lambda line: None, resume=True)
    whole = load_checkpoint(trained / "run/last.pt").model.state_dict()
    resumed = load_checkpoint(tmp_path / "last.pt").model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_predict_and_verify_run_it(trained, tmp_path):
    out = tmp_path / "labelled.ply"
    run_command(["predict", str(trained / "unseen.ply"), "-m", str(trained / "model.onnx"),
                 "-o", str(out), "--votes", "2"])  # fmt: skip
    cloud = read_cloud(out)
    known = cloud.columns["classification"] > 0
    right = (cloud.columns["label"] == cloud.columns["classification"])[known]
    assert right.mean() > 0.9
    run_command(["verify", str(trained / "model.onnx"), "--checkpoint",
                 str(trained / "run/best.pt"), "--input", str(trained / "unseen.ply")])  # fmt: skip


def test_every_backend_gives_what_torch_gives_on_its_inputs(trained):
    checkpoint = load_backend(trained / "run/best.pt")
    family, config = family_of(checkpoint.config), checkpoint.config
    inputs = family.example(config, 321, seed=5)
    expected = checkpoint.run(inputs)
    for kernels in (True, False):
        found = load_backend(trained / "model.onnx", kernels=kernels).run(inputs)
        assert found.shape == (321, 2)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_packed_clouds_answer_as_they_do_alone(trained):
    checkpoint = load_backend(trained / "run/best.pt")
    family, config = family_of(checkpoint.config), checkpoint.config
    parts = [family.example(config, size, seed=size) for size in (60, 1, 90)]
    together = checkpoint.run(pack_inputs(parts))
    alone = np.concatenate([checkpoint.run(part) for part in parts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_tensorrt_for_rtx_builds_an_engine_of_it(trained, tmp_path, dtype):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is missing")
    from dela.export.engine import BuildRequest, build_engine
    from dela.export.onnx_export import export_onnx

    model = tmp_path / "model.onnx"
    export_onnx(trained / "run/best.pt", model, dtype)
    request = BuildRequest(backend="tensorrt-rtx", profiles=["1:500:3000"])
    sidecar = build_engine(model, tmp_path / "model.engine", request)
    assert sidecar.plugin_layers == {} and sidecar.metadata().config.family == "pointnet"
    assert [str(size) for size in sidecar.profiles[0].stages] == ["1:500:3000"]
    described = run_command(["info", str(tmp_path / "model.engine"), "--json"])
    assert described["family"] == "pointnet" and described["width"] == 24


@pytest.mark.parametrize("graphs", [True, False])
def test_an_engine_runs_it_at_sizes_it_pads(trained, tmp_path, emulated_cuda, monkeypatch, graphs):
    from dela.plugins.tensorrt import bindings
    from standin_tensorrt import StandInTensorRT, write_engine

    stand_in = StandInTensorRT()
    monkeypatch.setattr(bindings, "load", lambda flavour: stand_in)
    engine = load_backend(
        write_engine(tmp_path, trained / "model.onnx", "64:500:3000"), graphs=graphs
    )
    reference = load_backend(trained / "model.onnx")
    family, config = family_of(engine.config), engine.config
    for size in (50, 333, 333, 333, 2999):
        inputs = family.example(config, size, seed=size)
        expected = reference.run(inputs)
        found = engine.run(inputs)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()
    assert not stand_in.problems


def test_the_exported_file_names_its_inputs_and_family(trained):
    import onnx

    proto = onnx.load(trained / "model.onnx")
    assert [value.name for value in proto.graph.input] == [
        "points", "position", "attributes", "nearby",
    ]  # fmt: skip
    metadata = ModelMetadata.from_properties({p.key: p.value for p in proto.metadata_props})
    assert metadata.format_version == 2 and metadata.config.family == "pointnet"
    assert len(metadata.stage_ratios) == 1


def test_files_of_other_families_are_refused(trained, tmp_path):
    config = resolve_config("s3dis", num_classes=2, attributes=(), dims=(16,), depths=(1,),
                            neighbors=(8,), spread=(1.6,), grid=(0.2,))  # fmt: skip
    save_checkpoint(tmp_path / "dela.pt", create_model(config, seed=0))
    with pytest.raises(InputError, match="networks: family is pointnet there, dela"):
        run_command(
            [
                "verify",
                str(trained / "model.onnx"),
                "--input",
                str(trained / "unseen.ply"),
                "--checkpoint",
                str(tmp_path / "dela.pt"),
            ]
        )
    with pytest.raises(ConfigError, match=r"dela\.pt is for dela, model\.family is pointnet"):
        run_command(["train", str(trained / "config.toml"), "-o", str(tmp_path / "run"),
                     "--init", str(tmp_path / "dela.pt")])  # fmt: skip
    model = load_checkpoint(trained / "run/best.pt").model
    with pytest.raises(InputError, match=r"takes a Pyramid, not a NamedInputs"):
        create_model(config, seed=0).eval()(family_of(model.config).example(model.config, 50))


def test_a_dela_without_the_family_says_that_a_newer_one_may_have_it(trained, monkeypatch):
    monkeypatch.delitem(FAMILIES, "pointnet")
    with pytest.raises(CheckpointError, match=r"unknown family 'pointnet'.* a newer one may have"):
        load_checkpoint(trained / "run/best.pt")
    with pytest.raises(CheckpointError, match="unknown family 'pointnet'"):
        load_backend(trained / "model.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "model.family=pointnets",
            "model.family is 'pointnets'; it must be one of: dela, pointnet",
        ),
        ("model.dims=[16]", "unknown key 'dims'"),
        ("model.k=0", "k is 0 and width 24; both must be at least 1"),
        ('model.family=["dela"]', "model.family is .'dela'.; expected a string"),
        ('model.preset=["s3dis"]', "model.preset is .'s3dis'.; expected a string"),
        ('train.freeze=["body"]', "no part is called 'body', parts are embed.0"),
        ("model.k=many", "model.k is 'many'; expected a whole number"),
        ("train.checkpoint=true", "train.checkpoint is on, which the family pointnet cannot do"),
        ("train.gpu_pyramid=true", "gpu_pyramid"),
    ],
)
def test_what_the_family_cannot_take_is_said_in_words(trained, tmp_path, change, message):
    with pytest.raises(DelaError, match=message):
        run_command(["train", str(trained / "config.toml"), "-o", str(tmp_path / "run"),
                     "--set", change])  # fmt: skip


def test_a_run_is_not_resumed_with_another_family(trained, tmp_path):
    run_command(["train", "rooms", "-o", str(tmp_path / "run"), "--set", "train.epochs=1",
                 "--set", "train.steps_per_epoch=1", "--set", "data.points=500",
                 "--set", "train.workers=0", "--set", "model.dims=[8]", "--set", "model.depths=[1]",
                 "--set", "model.grid=[0.1]", "--set", "model.neighbors=8",
                 "--set", "data.train_rooms=1", "--set", "data.val_rooms=1"])  # fmt: skip
    with pytest.raises(ConfigError, match=r"family is 'pointnet', but the run in .* 'dela'"):
        run_command(["train", str(trained / "config.toml"), "-o", str(tmp_path / "run"),
                     "--resume"])  # fmt: skip


def test_a_whole_network_of_the_family_is_taken_over(trained, tmp_path):
    lines = []
    from dela.training.run.loop import train
    from dela.training.settings.train import load_config

    config = load_config(
        trained / "config.toml", [f'train.init="{trained}/run/best.pt"', "train.epochs=1"]
    )
    train(config, tmp_path, log=lines.append)
    assert any("6 of 6 tensors taken (100.0 %" in line for line in lines)


def test_defaults_take_over_what_fits_where_a_family_names_no_parts():
    from dela.families.base import FamilyDefaults

    class Plain(FamilyDefaults):
        name = "plain"

    config = resolve_config("tiny-pointnet")
    own = {"token": torch.zeros(3), "weight": torch.zeros(2, 2)}
    offered = {"token": torch.ones(3), "weight": torch.ones(4, 4)}
    assert list(Plain().carry_over(own, offered, config, config)) == ["token"]
    with pytest.raises(ConfigError, match="no part of that network fits"):
        Plain().carry_over({"other": torch.zeros(1)}, offered, config, config)


@pytest.mark.parametrize(
    ("sizes", "specs", "clouds", "message"),
    [
        (
            ("n0", "n1"),
            ("n0",),
            False,
            r"sizes \['n0', 'n1'\] and the inputs' rows \['n0'\] differ",
        ),
        (("n0",), ("n0", "n2"), False, "differ"),
        (("n0",), ("n0",), True, "size n0 has no per_cloud"),
    ],
)
def test_a_family_whose_inputs_do_not_hold_together_is_refused(sizes, specs, clouds, message):
    described = [InputSpec(f"x{i}", "float32", rows) for i, rows in enumerate(specs)]
    with pytest.raises(InputError, match=message):
        check_specs([RowSize(name) for name in sizes], described, clouds)


def test_adapters_and_layer_decay_go_by_its_parts(trained, tmp_path):
    lines = []
    from dela.training.run.loop import train
    from dela.training.settings.train import load_config

    config = load_config(
        trained / "config.toml",
        [f'train.init="{trained}/run/best.pt"', "train.low_rank=2", "train.epochs=1",
         "train.layer_decay=0.5"],
    )  # fmt: skip
    train(config, tmp_path, log=lines.append)
    assert any("adapters of rank 2 on the 2 Linear weights" in line for line in lines)
    before = load_checkpoint(trained / "run/best.pt").model.state_dict()
    after = load_checkpoint(tmp_path / "last.pt").model.state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["embed.0.weight"], after["embed.0.weight"])
    assert torch.equal(before["head.weight"], after["head.weight"]) is False
