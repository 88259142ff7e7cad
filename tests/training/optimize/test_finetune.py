"""Starting from another network: what is taken, what is frozen, what learns more slowly."""

import csv
import dataclasses

import numpy as np
import pytest

from train_hooks import silent

torch = pytest.importorskip("torch")

from dela.artifacts.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from dela.cli.main import run_command  # noqa: E402
from dela.errors import CheckpointError, ConfigError, InputError  # noqa: E402
from dela.families import create_model  # noqa: E402
from dela.families.dela.published import import_reference, reference_state_dict  # noqa: E402
from dela.model.contract import AttributeInfo, generic_classes  # noqa: E402
from dela.training.optimize.finetune import (  # noqa: E402
    freeze_parts,
    make_optimizer,
    parameter_groups,
    take_weights,
)
from dela.training.run.folder import to_toml  # noqa: E402
from dela.training.run.loop import train  # noqa: E402


@pytest.fixture
def other(tiny_config, tmp_path):
    """Saves a network like the tiny one but for some fields, returns it and its file."""

    def saved(**changes):
        model = create_model(dataclasses.replace(tiny_config.model, **changes), seed=7)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.fill_(0.25)
        path = tmp_path / "other.pt"
        save_checkpoint(path, model)
        return model, path

    return saved


def test_a_network_of_the_same_classes_is_taken_whole(tiny_config, other):
    source, path = other()
    model = create_model(tiny_config.model, seed=1)
    taken = take_weights(model, path)
    assert not taken.fresh and not taken.remarks and taken.share == 1.0
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    assert taken.sha256 == load_checkpoint(path).sha256
    assert len(taken.lines()) == 1 and "100.0 % of the parameters" in taken.lines()[0]


def test_other_classes_get_a_new_classifier(tiny_config, other):
    source, path = other(classes=generic_classes(5))
    model = create_model(tiny_config.model, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taken = take_weights(model, path)
    assert taken.fresh == ("head.classify.weight", "head.classify.bias")
    assert "new: head.classify.weight, head.classify.bias" in taken.lines()
    for name, value in model.state_dict().items():
        origin = before if name in taken.fresh else source.state_dict()
        assert torch.equal(value, origin[name]), name


def test_ellipsoids_follow_the_input_columns_by_name(tiny_config, other):
    _, height = tiny_config.model.attributes
    source, path = other(attributes=(height, AttributeInfo("red", 250.0)))
    model = create_model(tiny_config.model, seed=1)
    start = model.ellipsoids[0].attributes.detach().view(2, -1).clone()
    taken = take_weights(model, path)
    found = model.ellipsoids[0].attributes.detach().view(2, -1)
    assert torch.equal(found[0], start[0])  # intensity: unknown there
    assert torch.equal(found[1], source.ellipsoids[0].attributes.detach().view(2, -1)[0])
    assert any("model.attributes were height / 3, red / 250 there" in r for r in taken.remarks)
    # Other units are told: the numbers that the ellipsoids stand on no longer mean the same.
    again = AttributeInfo("height", 3.0, 0.5, log=0.1)
    _, path = other(attributes=(again, AttributeInfo("red", 250.0)))
    remarks = take_weights(model, path).remarks
    assert any("were height / 3 (offset 0.5, log 0.1), red / 250 there" in r for r in remarks)
    # Without a column in common they are new.
    _, path = other(attributes=(AttributeInfo("red", 250.0),))
    assert "ellipsoids.0.attributes" in take_weights(model, path).fresh


def test_differing_sizes_are_told_or_refused(tiny_config, other):
    model = create_model(tiny_config.model, seed=1)
    _, path = other(grid=(0.1, 0.2), neighbors=(6, 6), depths=(1, 2))
    taken = take_weights(model, path)
    assert "model.grid was [0.1, 0.2] there, is [0.25, 0.5] here" in taken.remarks
    assert any(r.startswith("model.neighbors was [6, 6]") for r in taken.remarks)
    _, path = other(dims=(20, 40))
    with pytest.raises(ConfigError, match=r"no stage of .* fits: its model\.dims is \[20, 40\]"):
        take_weights(model, path)
    (path.parent / "text.pt").write_text("no checkpoint")
    with pytest.raises(CheckpointError):
        take_weights(model, path.parent / "text.pt")


def test_an_imported_reference_checkpoint_is_a_start(tiny_config, tmp_path):
    """The published layout has neither intensity nor our classes: the body is taken."""
    published = dataclasses.replace(
        tiny_config.model,
        classes=generic_classes(4),
        attributes=(
            *(AttributeInfo(name, 250.0) for name in ("red", "green", "blue")),
            AttributeInfo("height", 3.3),
        ),
    )
    state = reference_state_dict(create_model(published, seed=3))
    save_checkpoint(tmp_path / "imported.pt", import_reference({"model": state}, published))
    model = create_model(tiny_config.model, seed=1)
    taken = take_weights(model, tmp_path / "imported.pt")
    assert set(taken.fresh) == {"head.classify.weight", "head.classify.bias"}
    assert taken.share > 0.95


def test_the_command_starts_from_a_checkpoint_and_keeps_frozen_parts(
    with_schedule, other, tmp_path, capsys
):
    source, path = other(classes=generic_classes(3))
    config_file = tmp_path / "tiny.toml"
    schedule = {"epochs": 1, "freeze": ("ellipsoids", "stages.0"), "norm_batches": 2}
    config_file.write_text(to_toml(with_schedule(**schedule)), encoding="utf-8")
    run = tmp_path / "run"
    run_command(["train", str(config_file), "-o", str(run), "--init", str(path)])
    printed = capsys.readouterr().out
    assert "new: head.classify.weight, head.classify.bias" in printed
    assert " k of them trained)" in printed

    last = load_checkpoint(run / "last.pt")
    assert last.extra["init"]["sha256"] == load_checkpoint(path).sha256
    assert last.extra["training"]["train"]["init"] == str(path)
    before = source.state_dict()
    for name, value in last.model.state_dict().items():
        if name.startswith(("ellipsoids.", "stages.0.")):
            assert torch.equal(value, before[name]), name  # statistics of norms included
        elif name in ("stages.1.encoding.reduce.weight", "head.norm.running_mean"):
            assert not torch.equal(value, before[name]), name

    # A resumed run needs the option no more than it needs the file.
    path.unlink()
    run_command(["train", str(run / "config.toml"), "-o", str(run), "--resume"])


def test_a_missing_start_is_told_before_any_data_is_read(with_schedule, tmp_path):
    config = with_schedule(init=str(tmp_path / "nowhere.pt"))
    data = dataclasses.replace(config.data, train=("nowhere.ply",))
    with pytest.raises(CheckpointError, match=r"train\.init: there is no checkpoint file at"):
        train(dataclasses.replace(config, data=data), tmp_path / "runs" / "mine", log=silent)
    assert not (tmp_path / "runs").exists()


def test_frozen_parts_are_named_by_whole_words(tiny_config):
    model = create_model(tiny_config.model, seed=0)
    modules = freeze_parts(model, ["stages.0.block", "head.classify.bias"])
    assert "stages.0.block.mlps.0.norm" in modules and "stages.0.encoding" not in modules
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {n for n, _ in model.named_parameters() if n.startswith("stages.0.block.")} | {
        "head.classify.bias"
    }
    with pytest.raises(ConfigError, match=r"no part is called 'stage', parts are ellipsoids\.0, "):
        freeze_parts(model, ["stage"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze_parts(model, ["ellipsoids", "stages", "head", "coordinate_heads"])


def test_stages_far_from_the_head_learn_more_slowly(with_schedule):
    model = create_model(with_schedule().model, seed=0)
    groups = parameter_groups(model, with_schedule(layer_decay=0.5).train)
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 1.0
        if name.startswith("stages.1."):
            expected = 0.5
        elif name.startswith(("stages.0.", "ellipsoids.")):
            expected = 0.25
        assert scale[id(parameter)] == expected, name
    assert all((group["weight_decay"] > 0) == (group["params"][0].ndim > 1) for group in groups)


def test_layer_decay_reaches_the_steps(with_schedule, tmp_path):
    """Adam's first step is as long as the learning rate, whatever the gradient."""
    config = with_schedule(
        epochs=1,
        steps_per_epoch=1,
        warmup=0,
        layer_decay=0.1,
        weight_decay=0.0,
        learning_rate=1e-3,
    )
    source = create_model(config.model, seed=2)
    save_checkpoint(tmp_path / "start.pt", source)
    schedule = dataclasses.replace(config.train, init=str(tmp_path / "start.pt"))
    result = train(dataclasses.replace(config, train=schedule), tmp_path / "run", log=silent)
    after = load_checkpoint(result.last_path).model.state_dict()
    before = source.state_dict()
    for name, expected in (
        ("head.classify.weight", 1e-3),
        ("stages.1.encoding.reduce.weight", 1e-4),
        ("stages.0.encoding.reduce.weight", 1e-5),
    ):
        step = (after[name] - before[name]).abs().max().item()
        assert step == pytest.approx(expected, rel=0.02), name
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["learning_rate"]) == pytest.approx(1e-3)


def test_low_rank_adapters_train_merge_and_export(with_schedule, tmp_path):
    from torch.nn.utils import parametrize

    from dela.export import export_onnx
    from dela.families.dela import freeze
    from dela.runtime import load_backend
    from dela.training.data.kinds import open_dataset

    class LowRank(torch.nn.Module):
        def __init__(self, rows, columns):
            super().__init__()
            self.up = torch.nn.Parameter(torch.zeros(rows, 2))
            self.down = torch.nn.Parameter(torch.full((2, columns), 0.1))

        def forward(self, weight):
            return weight + self.up @ self.down

    config = with_schedule(learning_rate=0.05, weight_decay=0.0)
    model = create_model(config.model, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.requires_grad_(False)
    layer = model.stages[1].block.mlps[0].expand
    parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape))
    optimizer = make_optimizer(model, config.train)
    training = open_dataset(config.data, config.model, "train")
    pyramid = training.sample(np.random.default_rng(0)).pyramid
    for _ in range(2):
        optimizer.zero_grad()
        model(pyramid)[0].square().mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        adapted = model(pyramid)
        parametrize.remove_parametrizations(layer, "weight")
        torch.testing.assert_close(freeze(model)(pyramid), adapted, rtol=1e-4, atol=1e-4)
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["stages.1.block.mlps.0.expand.weight"]
    save_checkpoint(tmp_path / "merged.pt", model)
    torch.testing.assert_close(load_checkpoint(tmp_path / "merged.pt").model(pyramid), adapted)

    export_onnx(tmp_path / "merged.pt", tmp_path / "merged.onnx", check=False)
    exported = torch.from_numpy(load_backend(tmp_path / "merged.onnx").run(pyramid))
    torch.testing.assert_close(exported, adapted, rtol=1e-4, atol=1e-4)

    model.stages[1].block.mlps[0].expand = torch.nn.Sequential(layer)
    with pytest.raises(InputError, match=r"stages\.1\.block\.mlps\.0\.expand is a Sequential"):
        freeze(model)
