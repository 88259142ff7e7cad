"""Memory and speed options of a step: the same numbers with less kept, failures in words."""

import dataclasses

import numpy as np
import pytest

from train_hooks import silent

torch = pytest.importorskip("torch")

from dela.errors import DelaError  # noqa: E402
from dela.families import create_model  # noqa: E402
from dela.families.dela import Network  # noqa: E402
from dela.families.layers import BatchNorm  # noqa: E402
from dela.training.data.batches import BatchMaker  # noqa: E402
from dela.training.data.kinds import open_dataset  # noqa: E402
from dela.training.data.prefetch import on_device  # noqa: E402
from dela.training.run.devices import explain_out_of_memory, peak_memory, smaller_steps  # noqa: E402
from dela.training.run.loop import train  # noqa: E402


@pytest.fixture
def batch(tiny_config):
    dataset = open_dataset(tiny_config.data, tiny_config.model, "train", tiny_config.augment)
    return BatchMaker(dataset, tiny_config.train, 3, 6)(0)[0]


def _deep(config):
    """Blocks deep enough to hold every kind of layer; stochastic depth makes random choices."""
    return dataclasses.replace(config.model, depths=(3, 4), drop_path=0.3)


def _step(model, batch, dtype=None):
    """Loss, gradients and buffers of one training pass."""
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        logits, coordinate = model(batch.pyramid)
    loss = logits.float().square().mean() + coordinate.float()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return loss.detach(), gradients | dict(model.named_buffers())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_checkpointed_blocks_give_the_same_gradients_and_statistics(tiny_config, batch, dtype):
    results = []
    for checkpointed in (False, True):
        model = create_model(_deep(tiny_config), seed=0)
        for module in model.modules():  # as after some training, where every layer counts
            if isinstance(module, BatchNorm):
                torch.nn.init.constant_(module.weight, 0.7)
        model.checkpoint_blocks = checkpointed
        results.append(_step(model, batch, dtype))
    (first_loss, first), (second_loss, second) = results
    assert torch.equal(first_loss, second_loss)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert second["stages.1.block.mlps.0.norm.num_batches_tracked"] == 1


def test_checkpointed_blocks_keep_less(tiny_config, batch):
    """Bytes that the forward pass saves for the backward pass."""
    kept = []
    for checkpointed in (False, True):
        model = create_model(_deep(tiny_config), seed=0)
        model.checkpoint_blocks = checkpointed
        saved = {}

        def pack(tensor, saved=saved):
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            _, _ = model(batch.pyramid)
        kept.append(sum(saved.values()))
    assert kept[1] < 0.6 * kept[0]


def test_the_training_pass_compiles_to_one_graph_for_any_size(tiny_config, batch):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    plain, compiled = (create_model(tiny_config.model, seed=0) for _ in range(2))
    compiled.compile_training(backend=counter, fullgraph=True)
    dataset = open_dataset(tiny_config.data, tiny_config.model, "train", tiny_config.augment)
    for points in (300, 170, 240):
        data = dataclasses.replace(tiny_config.data, points=points)
        dataset.data = data
        other = BatchMaker(dataset, tiny_config.train, 3, 6)(points)[0]
        for model in (plain, compiled):
            model.zero_grad()
        loss, values = _step(compiled, other)
        expected_loss, expected = _step(plain, other)
        torch.testing.assert_close(loss, expected_loss)
        for name, value in expected.items():
            torch.testing.assert_close(values[name], value, msg=name)
    assert counter.frame_count == 1


def test_a_compiled_network_is_trained_and_saved_as_any_other(with_schedule, tmp_path, monkeypatch):
    def one_stage(**changes):  # tracing takes seconds a stage
        config = with_schedule(epochs=1, **changes)
        sizes = {"dims": (16,), "depths": (1,), "neighbors": (8,), "grid": (0.25,)}
        model = dataclasses.replace(config.model, **sizes, spread=(1.6,))
        return dataclasses.replace(config, model=model)

    plain = train(one_stage(), tmp_path / "plain", log=silent)
    original = Network.compile_training
    monkeypatch.setattr(
        Network, "compile_training", lambda self: original(self, backend="aot_eager")
    )
    compiled = train(
        one_stage(compile=True, checkpoint=True, weight_average=0.9),
        tmp_path / "compiled",
        log=silent,
    )
    assert compiled.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_names_the_ways_out(with_schedule, tmp_path, monkeypatch, error):
    def fail(self, pyramid):
        raise error

    monkeypatch.setattr(Network, "forward", fail)
    with pytest.raises(DelaError) as caught:
        train(with_schedule(batch_size=4, accumulate=2), tmp_path, log=silent)
    text = str(caught.value)
    assert "out of memory in a batch of 1,200 points" in text
    assert "train.batch_size = 2 with train.accumulate = 4 (now 4 and 2)" in text
    assert 'try train.dtype = "bf16", or train.checkpoint = true, or train.batch_size' in text
    assert "data.points below 300" in text


def test_advice_leaves_out_what_is_done_already(with_schedule):
    cpu = torch.device("cpu")
    config = with_schedule(batch_size=1, checkpoint=True, dtype="bf16")
    assert smaller_steps(config, cpu) == "data.points below 300"
    with (
        pytest.raises(RuntimeError, match="something else"),
        explain_out_of_memory("it", "less", cpu),
    ):
        raise RuntimeError("something else")


def test_a_validation_that_runs_out_of_memory_names_its_own_way_out(
    with_schedule, tmp_path, monkeypatch
):
    import dela.training.run.loop as loop

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(loop, "score_split", fail)
    with pytest.raises(
        DelaError, match=r"memory in the validation .*data\.eval_points below 60,000"
    ):
        train(with_schedule(), tmp_path, log=silent)


def test_the_largest_batch_is_computed_before_the_first_step(with_schedule, tmp_path):
    lines, statistics = [], []

    def look(step, loss):
        statistics.append(step)

    train(with_schedule(epochs=1), tmp_path, log=lines.append, after_step=look)
    assert lines[1].startswith("largest batch, 600 points: ") and lines[1].endswith("of memory")
    assert statistics == [1, 2, 3]
    assert float(peak_memory(torch.device("cpu")).split()[0]) > 0.05


def test_norms_have_seen_the_data_before_the_first_step(with_schedule, tmp_path, monkeypatch):
    """Running statistics start from the largest batch, not from 0 and 1."""
    import dela.training.run.setup as setup

    make, seen = setup.make_network, {}

    def remember(*arguments, **options):
        seen["model"] = make(*arguments, **options)
        return seen["model"]

    monkeypatch.setattr(setup, "make_network", remember)

    def look(step, loss):
        norm = seen["model"].stages[0].encoding.distance_norm
        seen.setdefault("mean", norm.running_mean.clone())

    config = with_schedule(epochs=1)
    train(config, tmp_path, log=silent, after_step=look)
    data = open_dataset(config.data, config.model, "train", config.augment)
    batch, _ = BatchMaker(data, config.train, 3, 3).largest()
    model = create_model(config.model, seed=0)
    model.stages[0].encoding.distance_norm.momentum = 1.0
    model.ellipsoids.load_state_dict(seen["model"].ellipsoids.state_dict())
    model(batch.pyramid)
    expected = model.stages[0].encoding.distance_norm.running_mean
    # One step of momentum 0.02 later; the start at zero would be far off.
    torch.testing.assert_close(seen["mean"], expected, rtol=0.1, atol=0.1)
    assert expected.abs().mean() > 0.5


def test_moving_a_batch_keeps_it(batch):
    moved = on_device(batch.pyramid.to_tensors(), torch.device("cpu"))
    for (name, expected), (other, found) in zip(
        batch.pyramid.inputs(), moved.inputs(), strict=True
    ):
        assert name == other
        np.testing.assert_array_equal(expected, found.numpy())
    assert moved.lengths == batch.pyramid.lengths


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_follows_the_curve_of_the_cpu(with_schedule, tmp_path):
    changes = {"accumulate": 2, "checkpoint": True, "norm_batches": 2}
    losses = []
    for device in ("cpu", "cuda"):
        result = train(with_schedule(**changes), tmp_path / device, device=device, log=silent)
        losses.append(result.metrics["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    resumed = train(
        with_schedule(**changes), tmp_path / "cuda", resume=True, device="cuda", log=silent
    )
    assert resumed.metrics["loss"] == losses[1]
    half = with_schedule(epochs=1, dtype="bf16", worker_processes=True, compile=True)
    assert np.isfinite(train(half, tmp_path / "bf16", device="cuda", log=silent).metrics["loss"])
