"""The training loop on a tiny scan: it learns, it leaves what it promises, it stops in words."""

import csv
import dataclasses
import json
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dela.artifacts.checkpoint import load_checkpoint  # noqa: E402
from dela.cli.main import run_command  # noqa: E402
from dela.errors import ConfigError, DelaError, InputError  # noqa: E402
from dela.families import create_model  # noqa: E402
from dela.training.data.kinds import open_dataset  # noqa: E402
from dela.training.evaluate.split import network_forward, score_split  # noqa: E402
from dela.training.optimize.average import WeightAverage, measure_batch_norms  # noqa: E402
from dela.training.optimize.finetune import make_optimizer  # noqa: E402
from dela.training.optimize.losses import cross_entropy, gradient_norm, label_weight  # noqa: E402
from dela.training.optimize.network import training_pass  # noqa: E402
from dela.training.run.devices import computes_in_bf16  # noqa: E402
from dela.training.run.folder import to_toml  # noqa: E402
from dela.training.run.loop import train  # noqa: E402
from dela.training.settings.train import TrainConfig, load_config  # noqa: E402
from raw_layouts import write_h5  # noqa: E402


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_learns_and_leaves_a_complete_run_folder(with_schedule, tmp_path):
    config = with_schedule(
        epochs=6, steps_per_epoch=6, validate_every=4, norm_batches=4, label_smoothing=0.0
    )
    lines = []
    result = train(config, tmp_path / "run", log=lines.append)

    rows = _rows(tmp_path / "run" / "metrics.csv")
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [int(row["step"]) for row in rows] == [6, 12, 18, 24, 30, 36]
    assert float(rows[-1]["cross_entropy"]) < 0.7 * float(rows[0]["cross_entropy"])
    assert [row["val_miou"] != "" for row in rows] == [False, False, False, True, False, True]
    assert "val_iou_floor" in rows[0] and "val_iou_box" in rows[0]
    assert float(rows[-1]["learning_rate"]) < float(rows[0]["learning_rate"])

    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert scores == result.metrics
    assert scores["validation"]["miou"] > 0.8
    assert scores["validation"]["points"] == 4000 - 20
    assert [c["name"] for c in scores["validation"]["classes"]] == ["floor", "box"]
    assert len(lines) == 8

    best = load_checkpoint(result.best_path)
    assert TrainConfig.from_dict(best.extra["training"]) == config
    assert best.extra["stage_ratios"][0] == {"min": 1.0, "mean": 1.0, "max": 1.0}
    ratio = best.extra["stage_ratios"][1]
    assert 0.1 < ratio["min"] <= ratio["mean"] <= ratio["max"] < 0.6
    assert load_config(tmp_path / "run" / "config.toml") == config


def test_saved_network_gives_the_validation_scores_again(tiny_config, tmp_path):
    result = train(tiny_config, tmp_path, log=lambda line: None)
    dataset = open_dataset(tiny_config.data, tiny_config.model, "val")
    again = score_split(network_forward(load_checkpoint(result.last_path).model), dataset).confusion
    assert again.to_dict(["floor", "box"]) == result.metrics["validation"]


def test_without_validation_data_best_is_the_last_network(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, data=dataclasses.replace(tiny_config.data, val=()))
    result = train(config, tmp_path, log=lambda line: None)
    assert result.metrics["validation"] is None
    best, last = load_checkpoint(result.best_path), load_checkpoint(result.last_path)
    for name, value in best.model.state_dict().items():
        assert torch.equal(value, last.model.state_dict()[name]), name
    assert "resume" not in best.extra


def test_the_same_seed_gives_the_same_network_for_any_number_of_workers(with_schedule, tmp_path):
    networks = [
        load_checkpoint(train(with_schedule(workers=w, seed=s), tmp_path / str(i)).last_path).model
        for i, (w, s) in enumerate([(0, 3), (2, 3), (0, 4)])
    ]
    first, second, third = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_a_loss_that_is_not_finite_stops_with_step_and_scan(with_schedule, tmp_path, monkeypatch):
    import dela.training.optimize.network as network

    def broken(step, *rest):
        return 1e-3 if step < 4 else float("nan")

    monkeypatch.setattr(network, "coordinate_weight", broken)
    with pytest.raises(DelaError, match=r"loss is nan at step 5 \(samples from .*train\.ply"):
        train(with_schedule(), tmp_path, log=lambda line: None)
    # The state before the bad step is there, and finite.
    last = load_checkpoint(tmp_path / "last.pt")
    assert last.extra["step"] == 3
    assert all(torch.isfinite(value).all() for value in last.model.state_dict().values())


def test_every_loss_of_the_network_is_weighted_and_logged(with_schedule, tmp_path, monkeypatch):
    import dela.training.run.gradients as gradients

    def with_another(network, inputs, config):
        logits, losses = training_pass(network, inputs, config)
        return logits, losses | {"size_loss": logits.square().mean()}

    def weights(schedule, step, total_steps):
        return {"coordinate_loss": 0.5, "size_loss": 2.0}

    monkeypatch.setattr(gradients, "training_pass", with_another)
    monkeypatch.setattr(gradients, "auxiliary_weights", weights)
    train(with_schedule(epochs=1, accumulate=2), tmp_path, log=lambda line: None)
    (row,) = ({k: float(v or 0) for k, v in row.items()} for row in _rows(tmp_path / "metrics.csv"))
    assert row["size_loss"] > 0 and row["coordinate_loss"] > 0
    parts = row["cross_entropy"] + 0.5 * row["coordinate_loss"] + 2.0 * row["size_loss"]
    assert row["loss"] == pytest.approx(parts, rel=1e-4)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_take_it(
    with_schedule, tmp_path, monkeypatch
):
    import dela.training.run.gradients as gradients

    real, calls = gradients.gradient_norm, []

    def broken(model):
        calls.append(model)  # the first call is before the first step
        return real(model) if len(calls) < 6 else torch.tensor(float("inf"))

    monkeypatch.setattr(gradients, "gradient_norm", broken)
    with pytest.raises(
        DelaError, match=r"gradient's norm is inf at step 5 .*last\.pt is from before"
    ):
        train(with_schedule(), tmp_path, log=lambda line: None)
    assert load_checkpoint(tmp_path / "last.pt").extra["step"] == 3


def test_gradient_norm_is_that_of_all_gradients_together():
    model = torch.nn.Linear(3, 2)
    model.weight.grad = torch.full((2, 3), 2.0)
    model.bias.grad = torch.tensor([1.0, 0.0])
    assert gradient_norm(model).item() == pytest.approx(5.0)
    model.bias.grad[1] = float("nan")
    assert not torch.isfinite(gradient_norm(model))


@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 1.0]])
def test_means_over_batches_add_up_to_the_mean_over_all(weight):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=generator)
    labels = torch.randint(-1, 3, (40,), generator=generator)
    labels[30:] = -1  # the last batch counts for nothing
    weights = None if weight is None else torch.tensor(weight)
    total = label_weight(labels, weights)
    summed = sum(
        cross_entropy(logits[part], labels[part], 0.1, weights)
        * label_weight(labels[part], weights)
        / total
        for part in (slice(0, 7), slice(7, 30), slice(30, 40))
    )
    torch.testing.assert_close(summed, cross_entropy(logits, labels, 0.1, weights))


def test_accumulated_batches_take_the_samples_of_one_large_one(with_schedule, tmp_path):
    """The same step of eight samples: curves part only by what norms see of it."""
    losses = []
    for name, changes in (("one", {"batch_size": 8}), ("four", {"batch_size": 2, "accumulate": 4})):
        config = with_schedule(epochs=1, warmup=0, **changes)
        train(config, tmp_path / name, log=lambda line: None)
        losses.append(float(_rows(tmp_path / name / "metrics.csv")[0]["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_event_files_are_written_when_asked_for(with_schedule, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(with_schedule(tensorboard=True), tmp_path, log=lambda line: None)
    events = reader.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    steps = events.Scalars("step/loss")
    assert [event.step for event in steps] == [1, 2, 3, 4, 5, 6]
    rows = _rows(tmp_path / "metrics.csv")
    epochs = events.Scalars("epoch/val_miou")
    assert [event.step for event in epochs] == [3, 6]
    assert epochs[1].value == pytest.approx(float(rows[1]["val_miou"]), rel=1e-5)


def test_without_tensorboard_one_line_says_so(with_schedule, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    lines = []
    train(with_schedule(tensorboard=True, epochs=1), tmp_path, log=lines.append)
    assert sum("pip install tensorboard" in line for line in lines) == 1
    assert not (tmp_path / "events").exists()


@pytest.fixture
def train_objects(tmp_path, capsys):
    """The command that trains a small network on spheres and plates, prepared as ScanObjectNN's,
    and writes ``run``; a third of them are plates."""
    pytest.importorskip("h5py")
    generator = np.random.default_rng(0)
    for split in ("training", "test"):
        points = generator.normal(size=(12, 300, 3))
        points /= 2 * np.linalg.norm(points, axis=2, keepdims=True)
        points[::3, :, 2] *= 0.1
        name = f"main_split/{split}_objectdataset_augmentedrot_scale75.h5"
        (tmp_path / "raw" / "main_split").mkdir(parents=True, exist_ok=True)
        arrays = {"data": points.astype(np.float32), "label": np.minimum(np.arange(12) % 3, 1)}
        write_h5(tmp_path / "raw" / name, arrays)
    prepared = tmp_path / "prepared"
    words = ["data", "prepare", "scanobjectnn", str(tmp_path / "raw"), "-o", str(prepared)]
    run_command([*words, "--workers", "1"])
    capsys.readouterr()
    small = ["model.dims=[8,16]", "model.depths=[1,1]", "model.neighbors=8"]
    small += ["model.points=[64,16]", "model.spread=[2.2,4.4]", "train.warmup=1"]
    command = ["train", "scanobjectnn", "--data", str(prepared), "-o", str(tmp_path / "run")]

    def run(*overrides):
        words = [word for change in (*small, *overrides) for word in ("--set", change)]
        run_command([*command, "--json", *words])

    return run


def test_objects_are_classified(train_objects, tmp_path, capsys):
    train_objects(
        "train.epochs=8", "train.steps_per_epoch=6", "train.batch_size=4", "augment.mix=0.2"
    )
    run = tmp_path / "run"
    scores = json.loads(capsys.readouterr().out)
    assert scores["best_measure"] == "oa" and scores["best"] >= 10 / 12
    rows = _rows(run / "metrics.csv")
    assert "val_accuracy_bag" in rows[0] and "val_iou_bag" not in rows[0]
    assert float(rows[-1]["cross_entropy"]) < float(rows[0]["cross_entropy"])


def test_accumulated_batches_of_mixed_objects_weigh_as_one_batch(
    train_objects, tmp_path, monkeypatch
):
    """Some batches have a mixed object, some have not; classes weigh differently."""
    import dela.training.run.gradients as gradients

    seen = []

    def recorded(logits, targets, smoothing, weight):
        seen.append((logits.detach(), targets, smoothing, weight))
        return cross_entropy(logits, targets, smoothing, weight)

    monkeypatch.setattr(gradients, "cross_entropy", recorded)
    train_objects(
        "train.epochs=1",
        "train.steps_per_epoch=1",
        "train.batch_size=2",
        "train.accumulate=8",
        "train.class_weight_power=2.0",
        "augment.mix=0.3",
        "augment.mix_end=0.3",
    )
    step = seen[-8:]  # the largest batch comes before
    assert {targets.is_floating_point() for _, targets, _, _ in step} == {True, False}
    _, _, smoothing, weight = step[0]
    assert weight[1] != weight[0] > 0
    numbers = len(weight)
    logits = torch.cat([logits for logits, *_ in step])
    shares = torch.cat(
        [
            targets if targets.is_floating_point() else torch.eye(numbers)[targets]
            for _, targets, *_ in step
        ]
    )
    expected = cross_entropy(logits, shares, smoothing, weight).item()
    (row,) = _rows(tmp_path / "run" / "metrics.csv")
    assert float(row["cross_entropy"]) == pytest.approx(expected, rel=1e-4)


def test_an_earlier_run_is_kept_unless_told_otherwise(with_schedule, tmp_path):
    config = with_schedule(epochs=1, steps_per_epoch=1)
    train(config, tmp_path, log=lambda line: None)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        train(config, tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == before
    train(config, tmp_path, overwrite=True, seed=9, log=lambda line: None)
    assert (tmp_path / "last.pt").read_bytes() != before
    assert len(_rows(tmp_path / "metrics.csv")) == 1
    assert load_config(tmp_path / "config.toml").train.seed == 9


def test_a_device_that_is_not_there_is_named(tiny_config, tmp_path):
    with pytest.raises(InputError, match="device 'nonsense' is not usable"):
        train(tiny_config, tmp_path / "run", device="nonsense")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("extra", [{"lovasz": 0.5}, {"dtype": "bf16"}, {"clip_gradient": 0.5}])
def test_options_of_the_schedule_train(with_schedule, tmp_path, extra):
    result = train(with_schedule(**extra), tmp_path, log=lambda line: None)
    model = load_checkpoint(result.last_path).model
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_auto_means_bf16_only_where_the_processor_computes_in_it(monkeypatch):
    cpu = torch.device("cpu")
    for able in (True, False):
        answer = {"avx512_bf16": able}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda a=answer: a, raising=False)
        assert computes_in_bf16("auto", cpu) is able
        assert computes_in_bf16("bf16", cpu) is True
        assert computes_in_bf16("fp32", cpu) is False
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert computes_in_bf16("auto", cpu) is False


def test_weight_decay_spares_one_dimensional_parameters(tiny_config):
    model = create_model(tiny_config.model, seed=0)
    decayed, spared = make_optimizer(model, tiny_config.train).param_groups
    assert decayed["weight_decay"] == tiny_config.train.weight_decay
    assert spared["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in spared["params"])
    named = dict(model.named_parameters())
    assert any(p is named["ellipsoids.0.shapes"] for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(named)


def test_weight_average_follows_the_weights():
    layer = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = WeightAverage(layer, 0.9)
    torch.nn.init.ones_(layer.weight)
    expected = 0.0
    for update in range(30):
        average.update()
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay)
        np.testing.assert_allclose(average.model.weight.numpy(), expected, rtol=1e-5)
    assert not average.model.weight.requires_grad


def test_measured_norms_are_the_mean_over_the_inputs():
    norm = torch.nn.BatchNorm1d(3, momentum=0.02)
    dropout = torch.nn.Dropout(0.5)
    model = torch.nn.Sequential(dropout, norm)
    inputs = [torch.randn(50, 3) * 4 + 7 for _ in range(5)]
    measure_batch_norms(model, inputs)
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for x in inputs]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var(0) for x in inputs]).mean(0))
    assert norm.momentum == 0.02
    assert not norm.training


def test_votes_see_every_point_and_agree_with_a_sure_network(tiny_config):
    dataset = open_dataset(tiny_config.data, tiny_config.model, "val")

    def by_height(pyramid):
        box = pyramid.attributes[:, 1] * 3.0 > 0.75
        return np.stack([~box, box], 1).astype(np.float32) * 20

    for votes in (1, 4):
        confusion = score_split(by_height, dataset, votes=votes).confusion
        assert confusion.points == 4000 - 20
        assert confusion.miou > 0.95


def test_votes_turn_the_cloud(tiny_config):
    dataset = open_dataset(tiny_config.data, tiny_config.model, "val")
    seen = []

    def remember(pyramid):
        seen.append(pyramid.points - pyramid.points.mean(axis=0))
        return np.zeros((len(pyramid.points), 2), np.float32)

    score_split(remember, dataset, votes=4)
    plain, turned = seen[:2]
    assert len(seen) == 4 and turned.shape == plain.shape
    # A mirrored quarter turn: (x, y) -> (-y, -x), up to the choice of point within a voxel.
    moved = np.column_stack([-plain[:, 1], -plain[:, 0]])
    assert np.abs(turned[:, :2] - moved).max() < 0.3


def test_effective_configuration_survives_awkward_strings(tiny_config, tmp_path):
    data = dataclasses.replace(tiny_config.data, root=str(tmp_path / 'a "b" \\ é\x7f'))
    config = dataclasses.replace(tiny_config, data=data)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path) == config


def test_resume_needs_a_run_and_the_same_configuration(with_schedule, tmp_path):
    config = with_schedule(epochs=1, steps_per_epoch=1)
    with pytest.raises(InputError, match="nothing to resume"):
        train(config, tmp_path / "none", resume=True)
    train(config, tmp_path / "run", log=lambda line: None)
    with pytest.raises(ConfigError, match=r"train\.epochs is 2, but the run .* has 1"):
        train(with_schedule(epochs=2, steps_per_epoch=1), tmp_path / "run", resume=True)
