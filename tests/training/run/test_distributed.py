"""Two processes (gloo, CPU) train as one process with twice the batch does."""

import csv
import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dela.artifacts.checkpoint import load_checkpoint  # noqa: E402
from dela.errors import ConfigError, DelaError, InputError  # noqa: E402
from dela.families.layers import BatchNorm  # noqa: E402
from dela.training.optimize.synced_norm import SyncedBatchNorm, synchronize_norms  # noqa: E402
from dela.training.run.distributed import Group, join_group  # noqa: E402
from dela.training.run.loop import train  # noqa: E402
from processes import run_group, train_quietly  # noqa: E402


def _rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def calm(with_schedule):
    """The tiny configuration without the random choices that a batch makes inside the network."""

    def configured(**changes):
        config = with_schedule(norm_batches=2, **changes)
        model = dataclasses.replace(
            config.model, drop_path=0.0, head_drop=0.0, coordinate_loss=False
        )
        return dataclasses.replace(config, model=model)

    return configured


def _assert_same_run(first, second, tolerance):
    for one, other in zip(_rows(first), _rows(second), strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"seconds"}:
            assert float(one[name] or -1) == pytest.approx(float(other[name] or -1), rel=tolerance)
    one, other = (load_checkpoint(run / "last.pt").model.state_dict() for run in (first, second))
    # Biases before another norm have no gradient but rounding, which Adam makes steps of.
    for name in ("head.classify.weight", "ellipsoids.0.shapes", "head.norm.running_var"):
        error = (one[name] - other[name]).norm() / one[name].norm()
        assert error < tolerance, name


def test_two_processes_follow_one_with_twice_the_batch(calm, tmp_path):
    train(calm(batch_size=4), tmp_path / "one", log=lambda line: None)
    config = calm(batch_size=2, sync_norm=True, checkpoint=True)
    run_group(2, train_quietly, config, tmp_path / "two")
    _assert_same_run(tmp_path / "one", tmp_path / "two", 2e-3)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "best.pt",
        "config.toml",
        "last.pt",
        "metrics.csv",
        "metrics.json",
        "summary.html",
    ]


def test_accumulated_batches_make_the_same_step_in_one_process_or_two(calm, tmp_path):
    # Without synchronized norms every batch is normalized by itself, wherever it is computed; the
    # norms' running statistics are then the first process's.
    changes = {"batch_size": 1, "weight_average": 0.0}
    train(calm(accumulate=4, **changes), tmp_path / "one", log=lambda line: None)
    run_group(2, train_quietly, calm(accumulate=2, **changes), tmp_path / "two")
    one, two = (_rows(tmp_path / name) for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        for name in ("step", "loss", "cross_entropy", "gradient_norm", "train_oa", "train_miou"):
            assert float(first[name]) == pytest.approx(float(second[name]), rel=1e-3), name


def test_a_resumed_pair_ends_where_an_uninterrupted_one_does(calm, tmp_path):
    config = calm(batch_size=1, epochs=1, steps_per_epoch=4, weight_average=0.9)
    run_group(2, train_quietly, config, tmp_path / "whole")
    run_group(2, _train_until, config, tmp_path / "cut", 2)
    assert load_checkpoint(tmp_path / "cut" / "last.pt").extra["step"] == 2
    with pytest.raises(ConfigError, match="was trained by 2 processes, not 1"):
        train(config, tmp_path / "cut", resume=True)
    run_group(2, train_quietly, config, tmp_path / "cut", True)
    first, second = (
        load_checkpoint(tmp_path / name / "last.pt").model.state_dict() for name in ("whole", "cut")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def _train_until(config, run, step):
    """A signal to one process stops both after the same step."""
    import os
    import signal

    from dela.training.run.loop import TrainingInterrupted

    def press(taken, loss):
        if taken == step and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    torch.set_num_threads(1)
    with pytest.raises(TrainingInterrupted, match=f"after step {step}"):
        train(config, run, log=lambda line: None, after_step=press)


def test_an_existing_run_stops_both_processes_in_words(calm, tmp_path):
    (tmp_path / "last.pt").touch()
    run_group(2, _refused, calm(epochs=1), tmp_path, InputError, "holds a run already")


def test_a_process_that_ends_alone_stops_the_other_in_words(calm, tmp_path):
    run_group(2, _left_alone, calm(epochs=1), tmp_path)


def _refused(config, run, kind, said):
    with pytest.raises(kind, match=said):
        train(config, run, log=lambda line: None)


def _left_alone(config, run):
    import os

    def leave(taken, loss):
        raise ValueError("gone")

    torch.set_num_threads(1)
    if os.environ["RANK"] == "1":
        with pytest.raises(ValueError, match="gone"):
            train(config, run, log=lambda line: None, after_step=leave)
    else:
        _refused(config, run, DelaError, "process 0 stops: another process ended")


def test_synchronized_norms_see_the_rows_of_both(tmp_path):
    run_group(2, _normalize_half, tmp_path)
    rows, weights = _norm_inputs()
    norm = BatchNorm(3, momentum=0.3).double()
    rows.requires_grad_(True)
    expected = norm(rows)
    (expected * weights).sum().backward()
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    joined = {name: torch.cat([half[name] for half in halves]) for name in ("out", "input_grad")}
    torch.testing.assert_close(joined["out"], expected.detach())
    torch.testing.assert_close(joined["input_grad"], rows.grad)
    for half in halves:
        torch.testing.assert_close(half["mean"], norm.running_mean)
        torch.testing.assert_close(half["var"], norm.running_var)
    torch.testing.assert_close(
        halves[0]["weight_grad"] + halves[1]["weight_grad"], norm.weight.grad
    )
    torch.testing.assert_close(halves[0]["bias_grad"] + halves[1]["bias_grad"], norm.bias.grad)


def _norm_inputs():
    generator = np.random.default_rng(0)
    rows = generator.normal(100.0, [1.0, 3.0, 0.01], (11, 3))
    return torch.from_numpy(rows), torch.from_numpy(generator.normal(size=(11, 3)))


def _normalize_half(folder):
    with join_group("cpu") as group:
        model = torch.nn.Sequential(BatchNorm(3, momentum=0.3).double())
        synchronize_norms(model)
        norm = model[0]
        assert type(norm) is SyncedBatchNorm
        span = slice(0, 1) if group.rank == 0 else slice(1, 11)  # one row against ten
        rows, weights = (values[span].clone() for values in _norm_inputs())
        rows.requires_grad_(True)
        out = model(rows)
        (out * weights).sum().backward()
        result = {
            "out": out.detach(),
            "input_grad": rows.grad,
            "mean": norm.running_mean,
            "var": norm.running_var,
            "weight_grad": norm.weight.grad,
            "bias_grad": norm.bias.grad,
        }
        torch.save(result, folder / f"{group.rank}.pt")


def test_a_process_alone_is_a_group_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_group("cpu") as group:
        assert group == Group(torch.device("cpu"))
        assert group.leads and group.share([1, 2, 3]) == [1, 2, 3] and group.gather("a") == ["a"]
        model = torch.nn.Linear(1, 1)
        assert group.parallel(model) is model


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(InputError, match="give --device cuda, each takes its own"),
        join_group("cuda:1"),
    ):
        pass
