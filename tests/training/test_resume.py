"""An interrupted and resumed run ends exactly where an uninterrupted one does."""

import csv
import os
import signal

import pytest

torch = pytest.importorskip("torch")

from dela.checkpoint import load_checkpoint  # noqa: E402
from dela.training.loop import TrainingInterrupted, train  # noqa: E402
from dela.training.prefetch import prefetch  # noqa: E402
from dela.training.state import Interruption  # noqa: E402


def _silent(line):
    pass


def _stop_at(step):
    def hook(taken, loss):
        if taken == step:
            raise KeyboardInterrupt

    return hook


def _log(path):
    """``metrics.csv`` without the seconds, which no two runs share."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def _same(first, second, where=""):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            if key != "seconds":
                _same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for number, (a, b) in enumerate(zip(first, second, strict=True)):
            _same(a, b, f"{where}[{number}]")
    else:
        assert first == second, where


@pytest.mark.parametrize(("stop", "average"), [(2, 0.0), (3, 0.9), (5, 0.9)])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    with_schedule, tmp_path, stop, average
):
    config = with_schedule(weight_average=average, norm_batches=2 if average else 0)
    whole = train(config, tmp_path / "whole", log=_silent)
    with pytest.raises(TrainingInterrupted, match=f"interrupted after step {stop} of 6"):
        train(config, tmp_path / "cut", log=_silent, after_step=_stop_at(stop))
    assert load_checkpoint(tmp_path / "cut" / "last.pt").extra["step"] == stop
    resumed = train(config, tmp_path / "cut", resume=True, log=_silent)

    for a, b in ((whole.last_path, resumed.last_path), (whole.best_path, resumed.best_path)):
        first, second = load_checkpoint(a), load_checkpoint(b)
        _same(dict(first.model.state_dict()), dict(second.model.state_dict()))
        _same(first.extra, second.extra)
    assert whole.metrics == resumed.metrics
    assert _log(tmp_path / "whole" / "metrics.csv") == _log(tmp_path / "cut" / "metrics.csv")


def test_an_interrupted_validation_is_made_up_for(tiny_config, tmp_path, monkeypatch):
    import dela.training.loop as loop

    whole = train(tiny_config, tmp_path / "whole", log=_silent)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", interrupted)
        with pytest.raises(TrainingInterrupted, match="after step 3"):
            train(tiny_config, tmp_path / "cut", log=_silent)
    resumed = train(tiny_config, tmp_path / "cut", resume=True, log=_silent)
    assert resumed.metrics == whole.metrics
    assert _log(tmp_path / "whole" / "metrics.csv") == _log(tmp_path / "cut" / "metrics.csv")


def test_a_run_that_died_after_logging_repeats_its_epoch_without_a_double_line(
    tiny_config, tmp_path
):
    whole = train(tiny_config, tmp_path / "whole", log=_silent)
    with pytest.raises(TrainingInterrupted):
        train(tiny_config, tmp_path / "cut", log=_silent, after_step=_stop_at(5))
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        line = (tmp_path / "whole" / "metrics.csv").read_text().splitlines()[-1]
        file.write(line + "\n")
    resumed = train(tiny_config, tmp_path / "cut", resume=True, log=_silent)
    assert resumed.metrics == whole.metrics
    assert [int(row["epoch"]) for row in _log(tmp_path / "cut" / "metrics.csv")] == [1, 2]


def test_resuming_a_finished_run_changes_nothing(with_schedule, tmp_path):
    config = with_schedule(epochs=1)
    first = train(config, tmp_path, log=_silent)
    before = (tmp_path / "last.pt").read_bytes()
    again = train(config, tmp_path, resume=True, log=_silent)
    assert again.metrics == first.metrics
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_signal_waits_until_the_step_is_done():
    done = []
    with Interruption() as interruption, pytest.raises(KeyboardInterrupt), interruption.held():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("rest of the step")
    assert done and interruption.asked and not interruption.hurried
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetching_keeps_the_order(workers):
    assert list(prefetch(lambda n: n * n, 2, 40, workers)) == [n * n for n in range(2, 40)]
    assert list(prefetch(lambda n: n, 5, 5, workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_preparing_arrives_in_its_turn(workers):
    def make(number):
        if number == 3:
            raise ValueError("three")
        return number

    received = []
    with pytest.raises(ValueError, match="three"):
        for value in prefetch(make, 0, 10, workers):
            received.append(value)
    assert received == [0, 1, 2]


def test_prefetching_stays_within_its_bound_and_ends_when_left():
    made = []
    values = prefetch(lambda n: made.append(n) or n, 0, 1000, workers=1, ahead=2)
    assert next(values) == 0
    values.close()
    assert len(made) <= 4
