"""Adapters train beside frozen weights, go on after an interruption, and are merged to save."""

import csv
import dataclasses
import json
import time

import numpy as np
import pytest

from train_hooks import silent, stop_at

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

from dela.artifacts.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from dela.cli.main import run_command  # noqa: E402
from dela.errors import CheckpointError, ConfigError  # noqa: E402
from dela.families import create_model  # noqa: E402
from dela.families.dela import Network  # noqa: E402
from dela.model.contract import generic_classes  # noqa: E402
from dela.training.data.kinds import open_dataset  # noqa: E402
from dela.training.optimize.adapters import LowRank, adapt_network, merged  # noqa: E402
from dela.training.optimize.finetune import freeze_parts, parameter_groups, take_weights  # noqa: E402
from dela.training.run.folder import to_toml  # noqa: E402
from dela.training.run.loop import TrainingInterrupted, train  # noqa: E402
from processes import run_group, start, train_quietly  # noqa: E402

RANK = 4


@pytest.fixture
def pretrained(tiny_config, tmp_path):
    """Saves a network like the tiny one but for some fields: every tensor away from its start."""

    def saved(**changes):
        model = create_model(dataclasses.replace(tiny_config.model, **changes), seed=7)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in model.parameters():
                value += 0.1 * torch.randn(value.shape, generator=generator)
            for name, value in model.named_buffers():
                if name.endswith("running_var"):
                    value.fill_(0.5)
        save_checkpoint(tmp_path / "pre.pt", model)
        return tmp_path / "pre.pt"

    return saved


@pytest.fixture
def low_rank(with_schedule, pretrained):
    def configured(**changes):
        return with_schedule(init=str(pretrained()), **({"low_rank": RANK} | changes))

    return configured


@pytest.fixture
def pyramid(tiny_config):
    training = open_dataset(tiny_config.data, tiny_config.model, "train")
    return training.sample(np.random.default_rng(0)).pyramid


def _adapted(config, adapt=None):
    model = create_model(config.model, seed=1)
    taken = take_weights(model, config.train.init) if config.train.init else None
    adapt_network(model, config.train, taken.fresh if taken else (), adapt)
    return model


def _logits(model, pyramid):
    with torch.no_grad():
        return model.eval()(pyramid)


def _linear_weights(model):
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if name.startswith("stages.") and isinstance(module, nn.Linear)
    }


def _same_checkpoints(first, second):
    one, other = load_checkpoint(first), load_checkpoint(second)
    for weights in (
        (one.model.state_dict(), other.model.state_dict()),
        (one.extra["resume"]["model"], other.extra["resume"]["model"]),
    ):
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_start_is_the_initial_network_to_the_last_bit(low_rank, pyramid):
    config = low_rank()
    expected = _logits(load_checkpoint(config.train.init).model, pyramid)
    model = _adapted(config)
    assert torch.equal(_logits(model, pyramid), expected)
    assert all(
        adapter.down.std() > 0 for adapter in model.modules() if isinstance(adapter, LowRank)
    )
    again = _adapted(config)
    torch.rand(5)  # torch's own generator changes nothing, and adapters change nothing of it
    state = torch.get_rng_state()
    third = _adapted(config)
    assert torch.equal(state, torch.get_rng_state())
    name = "stages.1.block.mlps.0.expand.parametrizations.weight.0.down"
    first = model.state_dict()[name]
    assert torch.equal(first, again.state_dict()[name])
    assert torch.equal(first, third.state_dict()[name])
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1))
    assert not torch.equal(first, _adapted(other).state_dict()[name])


def test_what_trains_is_all_but_the_linear_weights_of_the_stages(low_rank):
    config = low_rank()
    model = _adapted(config)
    plain = create_model(config.model, seed=0)
    frozen = {
        name.replace("parametrizations.weight.original", "weight")
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    assert frozen == _linear_weights(plain) and len(frozen) == 12
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {n for n, _ in plain.named_parameters()} - frozen < trained


def test_a_merged_weight_is_w_plus_scale_up_down(low_rank, pyramid):
    """Against the formula in float64; a network of the class itself, with the adapted's logits."""
    config = low_rank(low_rank_alpha=6.0)
    model = _adapted(config)
    with torch.no_grad():
        for adapter in model.modules():
            if isinstance(adapter, LowRank):
                adapter.up.normal_(0, 0.05)
    plain = merged(model)
    assert type(plain) is Network and not any(map(parametrize.is_parametrized, plain.modules()))
    assert plain.state_dict().keys() == create_model(config.model).state_dict().keys()
    tensors = model.state_dict()
    for name in _linear_weights(plain):
        stem = name.replace(".weight", ".parametrizations.weight")
        original, up, down = (
            tensors[f"{stem}.{part}"].double() for part in ("original", "0.up", "0.down")
        )
        expected = original + 6.0 / RANK * up @ down
        torch.testing.assert_close(
            plain.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-6
        )
    before = _logits(model, pyramid)
    torch.testing.assert_close(_logits(plain, pyramid), before, rtol=1e-5, atol=1e-5)
    # The adapted network is as it was.
    assert torch.equal(_logits(model, pyramid), before)
    assert merged(plain) is plain


def test_under_autocast_the_weight_that_trains_is_the_weight_that_is_merged():
    layer = nn.Linear(16, 8)
    adapter = LowRank(8, 16, 2, 8.0)
    nn.init.normal_(adapter.up, std=0.02)
    parametrize.register_parametrization(layer, "weight", adapter)
    expected = layer.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight, expected)
        assert layer(torch.ones(3, 16)).dtype == torch.bfloat16


def test_the_command_trains_adapters_and_leaves_ordinary_checkpoints(
    with_schedule, pretrained, pyramid, tmp_path, capsys
):
    """New classes; then eval, export and a further start take the files as any other."""
    from dela.runtime import load_backend

    source = pretrained(classes=generic_classes(5))
    (tmp_path / "tiny.toml").write_text(to_toml(with_schedule(norm_batches=2)), encoding="utf-8")
    run = tmp_path / "run"
    command = ["train", str(tmp_path / "tiny.toml"), "--init", str(source)]
    run_command([*command, "-o", str(run), "--set", f"train.low_rank={RANK}"])
    printed = capsys.readouterr().out
    assert "new: head.classify.weight, head.classify.bias" in printed
    assert "adapters of rank 4 on the 12 Linear weights of the stages" in printed
    assert " k of them trained), 0.1 MiB of gradients and moments" in printed

    last = load_checkpoint(run / "last.pt")
    before, after = load_checkpoint(source).model.state_dict(), last.model.state_dict()
    linear = _linear_weights(last.model)
    for name in linear:
        change = (after[name] - before[name]).double()
        sizes = torch.linalg.svdvals(change)
        assert sizes[0] > 1e-4, name
        # Rounding of the sum leaves directions of its own.
        assert sizes[RANK:].max() < 1e-5, name
    unchanged = [
        name
        for name, _ in last.model.named_parameters()
        if not name.startswith("head.classify.") and torch.equal(after[name], before[name])
    ]
    assert not unchanged
    kept = last.extra["resume"]["model"]
    for name in linear:
        original = kept[name.replace(".weight", ".parametrizations.weight.original")]
        assert torch.equal(original, before[name]), name

    adapted = _adapted(with_schedule(init=str(source), low_rank=RANK))
    adapted.load_state_dict(kept)
    for own, saved in zip(adapted.buffers(), last.model.buffers(), strict=True):
        own.copy_(saved)  # measured anew for the saved network
    expected = _logits(adapted, pyramid)
    torch.testing.assert_close(_logits(last.model, pyramid), expected, rtol=1e-5, atol=1e-5)
    run_command(["eval", str(run / "last.pt"), "--split", "val", "--json"])
    scores = json.loads((run / "metrics.json").read_text())["validation"]
    assert json.loads(capsys.readouterr().out) == scores
    run_command(["export", str(run / "last.pt"), "-o", str(tmp_path / "net.onnx"), "--no-check"])
    exported = torch.from_numpy(load_backend(tmp_path / "net.onnx").run(pyramid))
    torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-4)
    taken = take_weights(create_model(last.config, seed=3), str(run / "best.pt"))
    assert taken.share == 1.0


@pytest.mark.parametrize(
    ("stop", "changes"),
    [
        (2, {}),
        (4, {"weight_average": 0.9, "norm_batches": 2}),
        (5, {"checkpoint": True, "layer_decay": 0.5, "freeze": ("ellipsoids", "stages.0")}),
    ],
)
def test_resumed_adapters_end_as_uninterrupted_ones_bit_for_bit(low_rank, tmp_path, stop, changes):
    config = low_rank(**changes)
    whole = train(config, tmp_path / "whole", log=silent)
    with pytest.raises(TrainingInterrupted, match=f"after step {stop} of 6"):
        train(config, tmp_path / "cut", log=silent, after_step=stop_at(stop))
    (tmp_path / "pre.pt").unlink()
    resumed = train(config, tmp_path / "cut", resume=True, log=silent)
    _same_checkpoints(whole.last_path, resumed.last_path)
    assert whole.metrics == resumed.metrics


def test_killed_while_it_trains_adapters_it_resumes_to_the_same_bits(low_rank, tmp_path):
    config = low_rank(epochs=2, steps_per_epoch=10, weight_average=0.9, save_steps=1)
    whole = start(train_quietly, config, tmp_path / "whole")
    whole.join(60)
    assert whole.exitcode == 0
    last = tmp_path / "cut" / "last.pt"
    process = start(train_quietly, config, tmp_path / "cut")
    deadline = time.monotonic() + 60
    while not last.exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.join()
    assert load_checkpoint(last).extra["step"] < 20
    finish = start(train_quietly, config, tmp_path / "cut", True)
    finish.join(60)
    assert finish.exitcode == 0
    _same_checkpoints(tmp_path / "whole" / "last.pt", last)


def test_the_average_is_saved_merged(low_rank, tmp_path):
    result = train(low_rank(epochs=1, weight_average=0.5), tmp_path / "run", log=silent)
    saved = load_checkpoint(result.last_path)
    average = saved.extra["resume"]["average"]["model"]
    name = "stages.1.block.mlps.0.expand"
    stem = f"{name}.parametrizations.weight"
    product = average[f"{stem}.0.up"].double() @ average[f"{stem}.0.down"].double()
    expected = average[f"{stem}.original"].double() + 8.0 / RANK * product
    found = saved.model.state_dict()[f"{name}.weight"].double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    followed = saved.extra["resume"]["model"]
    assert torch.equal(average[f"{stem}.original"], followed[f"{stem}.original"])
    assert not torch.equal(average[f"{stem}.0.up"], followed[f"{stem}.0.up"])


def test_adapters_train_the_same_compiled_and_checkpointed(low_rank, tmp_path, monkeypatch):
    def one_stage(**changes):  # tracing takes seconds a stage
        config = low_rank(epochs=1, **changes)
        sizes = {"dims": (16,), "depths": (1,), "neighbors": (8,), "grid": (0.25,)}
        model = dataclasses.replace(config.model, **sizes, spread=(1.6,))
        save_checkpoint(config.train.init, create_model(model, seed=7))
        return dataclasses.replace(config, model=model)

    plain = train(one_stage(), tmp_path / "plain", log=silent)
    original = Network.compile_training
    monkeypatch.setattr(
        Network,
        "compile_training",
        lambda self: original(self, backend="aot_eager", fullgraph=True),
    )
    compiled = train(one_stage(compile=True, checkpoint=True), tmp_path / "compiled", log=silent)
    assert compiled.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-4)
    first, second = (
        load_checkpoint(result.last_path).extra["resume"]["model"] for result in (plain, compiled)
    )
    name = "stages.0.block.mlps.0.reduce.parametrizations.weight.0.up"
    torch.testing.assert_close(first[name], second[name], rtol=1e-2, atol=1e-4)


def test_two_processes_train_the_adapters_of_one_with_twice_the_batch(low_rank, tmp_path):
    def calm(**changes):
        config = low_rank(norm_batches=2, epochs=1, weight_average=0.9, **changes)
        model = dataclasses.replace(
            config.model, drop_path=0.0, head_drop=0.0, coordinate_loss=False
        )
        return dataclasses.replace(config, model=model)

    train(calm(batch_size=4), tmp_path / "one", log=silent)
    run_group(2, train_quietly, calm(batch_size=2, sync_norm=True), tmp_path / "two")
    one, two = (load_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    for name in (
        "stages.1.block.mlps.0.expand.parametrizations.weight.0.up",
        "stages.0.encoding.reduce.parametrizations.weight.0.down",
        "head.classify.weight",
    ):
        first, second = (run.extra["resume"]["model"][name] for run in (one, two))
        assert (first - second).norm() < 5e-3 * first.norm(), name
    rows = []
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            rows.append(next(csv.DictReader(file)))
    assert float(rows[0]["loss"]) == pytest.approx(float(rows[1]["loss"]), rel=2e-3)


def test_frozen_parts_and_slow_stages_hold_for_adapters(low_rank):
    config = low_rank(layer_decay=0.5)
    model = _adapted(config)
    freeze_parts(model, ["stages.0.block", "stages.1.encoding.expand.weight"])
    adapters = {
        name: parameter.requires_grad
        for name, parameter in model.named_parameters()
        if name.endswith((".up", ".down"))
    }
    for name, trained in adapters.items():
        frozen = name.startswith(("stages.0.block.", "stages.1.encoding.expand."))
        assert trained is not frozen, name
    scale = {id(p): g["scale"] for g in parameter_groups(model, config.train) for p in g["params"]}
    up = "encoding.reduce.parametrizations.weight.0.up"
    assert scale[id(model.get_parameter(f"stages.1.{up}"))] == 0.5
    assert scale[id(model.get_parameter(f"stages.0.{up}"))] == 0.25
    with pytest.raises(
        ConfigError, match=r"train\.freeze .* no adapter of train\.low_rank is left"
    ):
        freeze_parts(model, ["stages"])


def test_adapters_that_cannot_be_are_refused(with_schedule, low_rank, pretrained, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.low_rank is 4 without train\.init.*--init"):
        with_schedule(low_rank=4)
    with pytest.raises(ConfigError, match=r"train\.low_rank is -1"):
        with_schedule(low_rank=-1)
    with pytest.raises(ConfigError, match=r"train\.low_rank_alpha is 0"):
        low_rank(low_rank_alpha=0)
    with pytest.raises(ConfigError, match=r"low_rank is 17, .* is 32 x 16, of rank 16 at most"):
        train(low_rank(low_rank=17), tmp_path / "run", log=silent)
    config = low_rank()
    pretrained(depths=(1, 0))
    with pytest.raises(ConfigError, match=r"stages\.1\.block\.aggregations\.0\.project\.weight is"):
        train(config, tmp_path / "run", log=silent)
    assert not (tmp_path / "run").exists()


class _Gain(nn.Module):
    """A Linear whose outputs are scaled, each by its own trained number."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.gain = nn.Parameter(torch.ones(layer.out_features))

    def forward(self, x):
        return self.layer(x) * self.gain


class _MergingGain(_Gain):
    def merged(self):
        layer = nn.Linear(self.layer.in_features, self.layer.out_features)
        layer.weight.copy_(self.gain[:, None] * self.layer.weight)
        layer.bias.copy_(self.gain * self.layer.bias)
        return layer


def _gains(model):
    model.requires_grad_(False)
    mlp = model.stages[1].block.mlps[0]
    mlp.expand = _MergingGain(mlp.expand)


def test_a_hook_puts_its_own_modules_into_a_block(with_schedule, pretrained, pyramid, tmp_path):
    """After the weights are taken and before a resumed state; what trains, requires_grad says."""
    config = with_schedule(init=str(pretrained()), weight_average=0.5, norm_batches=1)
    source = load_checkpoint(config.train.init).model.state_dict()
    seen = []

    def adapt(model):
        seen.append(torch.equal(model.head.classify.weight, source["head.classify.weight"]))
        _gains(model)

    whole = train(config, tmp_path / "whole", log=silent, adapt=adapt)
    with pytest.raises(TrainingInterrupted):
        train(config, tmp_path / "cut", log=silent, adapt=adapt, after_step=stop_at(4))
    resumed = train(config, tmp_path / "cut", resume=True, log=silent, adapt=adapt)
    assert seen == [True, True, False]
    _same_checkpoints(whole.last_path, resumed.last_path)

    last = load_checkpoint(whole.last_path)
    changed = {n for n, p in last.model.named_parameters() if not torch.equal(p, source[n])}
    name = "stages.1.block.mlps.0.expand"
    assert changed == {f"{name}.weight", f"{name}.bias"}
    gain = last.extra["resume"]["average"]["model"][f"{name}.gain"]
    assert torch.equal(last.model.state_dict()[f"{name}.bias"], gain * source[f"{name}.bias"])

    for wrong, said in (
        (None, r"the interrupted run, with these adapters, does not fit .*missing: .*expand\.bias"),
        (lambda m: (_gains(m), m.head.requires_grad_(True)), "trained other parameters"),
    ):
        with pytest.raises(CheckpointError, match=said):
            train(config, tmp_path / "cut", resume=True, log=silent, adapt=wrong)


def test_a_hook_and_low_rank_adapters_merge_together(low_rank, pyramid):
    def adapt(model):
        layer = model.head.classify
        parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape, 1, 1.0))

    model = _adapted(low_rank(), adapt)
    with torch.no_grad():
        for adapter in model.modules():
            if isinstance(adapter, LowRank):
                adapter.up.normal_(0, 0.05)
    expected = _logits(model, pyramid)
    torch.testing.assert_close(_logits(merged(model), pyramid), expected, rtol=1e-5, atol=1e-5)


def test_a_hook_whose_network_no_checkpoint_holds_is_refused_at_the_start(tiny_config, tmp_path):
    class Shifted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    def wrapped(model):
        model.stages[0].encoding.expand = _Gain(model.stages[0].encoding.expand)

    def replaced(model):
        model.head.classify = Shifted(16, 2)

    def reshaped(model):
        _gains(model)
        model.stages[1].block.mlps[0].expand.merged = lambda: nn.Linear(3, 3)

    def added(model):
        model.stages[1].block.side = nn.Linear(3, 3)

    def patched(model):
        mlp = model.stages[1].block.mlps[0]
        mlp.forward = lambda *inputs: 2 * type(mlp).forward(mlp, *inputs)

    for adapt, said in (
        (wrapped, r"adapt put a _Gain in the place of stages\.0\.encoding\.expand.*merged\(\)"),
        (replaced, r"adapt put a Shifted in the place of head\.classify"),
        (reshaped, r"adapted network .*expand\.weight is \[3, 3\], not .*adapt may parametrize"),
        (added, r"adapted network .*stages\.1\.block\.side\.weight.*adapt may parametrize"),
        (patched, r"adapt put a \w+ in the place of stages\.1\.block\.mlps\.0"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(tiny_config, tmp_path / "run", log=silent, adapt=adapt)
        assert not (tmp_path / "run").exists()
