"""An interrupted and resumed run ends exactly where an uninterrupted one does."""

import csv
import multiprocessing
import os
import signal
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from train_hooks import silent, stop_at

torch = pytest.importorskip("torch")

from dela.artifacts.checkpoint import load_checkpoint  # noqa: E402
from dela.errors import DelaError, InputError  # noqa: E402
from dela.training.data.prefetch import prefetch  # noqa: E402
from dela.training.run.loop import TrainingInterrupted, train  # noqa: E402
from dela.training.run.state import Interruption  # noqa: E402
from processes import prefetch_forever, square_below_20, start, train_quietly  # noqa: E402


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
    whole = train(config, tmp_path / "whole", log=silent)
    with pytest.raises(TrainingInterrupted, match=f"interrupted after step {stop} of 6"):
        train(config, tmp_path / "cut", log=silent, after_step=stop_at(stop))
    assert load_checkpoint(tmp_path / "cut" / "last.pt").extra["step"] == stop
    resumed = train(config, tmp_path / "cut", resume=True, log=silent)

    for a, b in ((whole.last_path, resumed.last_path), (whole.best_path, resumed.best_path)):
        first, second = load_checkpoint(a), load_checkpoint(b)
        _same(dict(first.model.state_dict()), dict(second.model.state_dict()))
        _same(first.extra, second.extra)
    assert whole.metrics == resumed.metrics
    assert _log(tmp_path / "whole" / "metrics.csv") == _log(tmp_path / "cut" / "metrics.csv")


def test_an_interrupted_validation_is_made_up_for(tiny_config, tmp_path, monkeypatch):
    import dela.training.run.loop as loop

    whole = train(tiny_config, tmp_path / "whole", log=silent)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "score_split", interrupted)
        with pytest.raises(TrainingInterrupted, match="after step 3"):
            train(tiny_config, tmp_path / "cut", log=silent)
    resumed = train(tiny_config, tmp_path / "cut", resume=True, log=silent)
    assert resumed.metrics == whole.metrics
    assert _log(tmp_path / "whole" / "metrics.csv") == _log(tmp_path / "cut" / "metrics.csv")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_an_epoch_is_saved_leaves_what_was_saved(with_schedule, tmp_path, monkeypatch):
    """The network of an epoch's end has its norms measured anew; an interruption keeps that."""
    import dela.training.run.loop as loop

    config = with_schedule(epochs=1, norm_batches=2)
    whole = train(config, tmp_path / "whole", log=silent)
    monkeypatch.setattr(loop, "write_summary", lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(TrainingInterrupted, match="after step 3 of 3"):
        train(config, tmp_path / "cut", log=silent)
    resumed = train(config, tmp_path / "cut", resume=True, log=silent)
    assert resumed.metrics == whole.metrics
    first, second = (load_checkpoint(result.last_path).model for result in (whole, resumed))
    _same(dict(first.state_dict()), dict(second.state_dict()))


def test_a_run_that_died_after_logging_repeats_its_epoch_without_a_double_line(
    tiny_config, tmp_path
):
    whole = train(tiny_config, tmp_path / "whole", log=silent)
    with pytest.raises(TrainingInterrupted):
        train(tiny_config, tmp_path / "cut", log=silent, after_step=stop_at(5))
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        line = (tmp_path / "whole" / "metrics.csv").read_text().splitlines()[-1]
        file.write(line + "\n")
    resumed = train(tiny_config, tmp_path / "cut", resume=True, log=silent)
    assert resumed.metrics == whole.metrics
    assert [int(row["epoch"]) for row in _log(tmp_path / "cut" / "metrics.csv")] == [1, 2]


def test_resuming_a_finished_run_changes_nothing(with_schedule, tmp_path):
    config = with_schedule(epochs=1)
    first = train(config, tmp_path, log=silent)
    before = (tmp_path / "last.pt").read_bytes()
    again = train(config, tmp_path, resume=True, log=silent)
    assert again.metrics == first.metrics
    assert (tmp_path / "last.pt").read_bytes() == before


def test_killed_at_any_moment_it_resumes_to_the_same_bits(with_schedule, tmp_path):
    # A checkpoint after every step, so that many kills fall into the writing of one.
    config = with_schedule(epochs=3, steps_per_epoch=20, weight_average=0.9, save_steps=1)
    whole = start(train_quietly, config, tmp_path / "whole")
    whole.join(60)
    assert whole.exitcode == 0

    run = tmp_path / "cut"
    last = run / "last.pt"
    generator = np.random.default_rng()
    killed_at = []
    while len(killed_at) < 3:
        before = last.stat().st_ino if last.exists() else None
        process = start(train_quietly, config, run, bool(killed_at))
        deadline = time.monotonic() + 60
        while not last.exists() or last.stat().st_ino == before:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.03))
        process.kill()
        process.join()
        killed_at.append(load_checkpoint(last).extra["step"])
    assert killed_at == sorted(killed_at) and killed_at[0] < 60
    finish = start(train_quietly, config, run, True)
    finish.join(60)
    assert finish.exitcode == 0

    for name in ("last.pt", "best.pt"):
        first, second = (load_checkpoint(tmp_path / run / name) for run in ("whole", "cut"))
        _same(dict(first.model.state_dict()), dict(second.model.state_dict()))
        _same(first.extra, second.extra)
    assert _log(tmp_path / "whole" / "metrics.csv") == _log(run / "metrics.csv")
    assert {path.name for path in run.iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_a_run_killed_before_its_first_checkpoint_starts_again(with_schedule, tmp_path):
    config = with_schedule(epochs=1)
    whole = train(config, tmp_path / "whole", log=silent)
    run = tmp_path / "cut"
    train(config, run, log=silent)
    (run / "last.pt").unlink()
    (run / ".last.0a1b2c3d.pt").write_bytes(b"torn")
    with (run / "metrics.csv").open("a") as file:
        file.write("2,6,0.1")
    again = train(config, run, resume=True, log=silent)
    assert again.metrics == whole.metrics
    assert _log(tmp_path / "whole" / "metrics.csv") == _log(run / "metrics.csv")
    assert not list(run.glob(".*"))


def test_what_changes_no_number_may_change_on_resume(with_schedule, tmp_path):
    whole = train(with_schedule(), tmp_path / "whole", log=silent)
    with pytest.raises(TrainingInterrupted):
        train(with_schedule(), tmp_path / "cut", log=silent, after_step=stop_at(4))
    changed = with_schedule(checkpoint=True, workers=0, save_steps=1, save_minutes=0.0)
    resumed = train(changed, tmp_path / "cut", resume=True, log=silent)
    first, second = (load_checkpoint(result.last_path).model for result in (whole, resumed))
    _same(dict(first.state_dict()), dict(second.state_dict()))


def test_checkpoints_within_an_epoch_come_by_count_and_by_clock(with_schedule, tmp_path):
    for name, changes in (("count", {"save_steps": 2}), ("clock", {"save_minutes": 1e-9})):
        found = []

        def look(taken, loss, last=tmp_path / name / "last.pt", found=found):
            found.append(load_checkpoint(last).extra["step"] if last.exists() else 0)

        schedule = {"save_minutes": 0.0, "epochs": 1, "steps_per_epoch": 5} | changes
        train(with_schedule(**schedule), tmp_path / name, log=silent, after_step=look)
        assert found == ([0, 0, 2, 2, 4] if name == "count" else [0, 1, 2, 3, 4])


def test_a_second_run_in_the_same_folder_is_refused(with_schedule, tmp_path):
    config = with_schedule(epochs=1)

    def intrude(taken, loss):
        with pytest.raises(InputError, match="another process trains in"):
            train(config, tmp_path, resume=True, log=silent)

    train(config, tmp_path, log=silent, after_step=intrude)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_step_saves_that_step(with_schedule, tmp_path, number):
    def press(taken, loss):
        if taken == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(TrainingInterrupted, match="after step 2"):
        train(with_schedule(), tmp_path, log=silent, after_step=press)
    assert load_checkpoint(tmp_path / "last.pt").extra["step"] == 2


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_does_not_wait():
    with Interruption() as interruption, pytest.raises(KeyboardInterrupt), interruption.held():
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")
    assert interruption.hurried


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_waits_until_the_step_is_done():
    done = []
    with Interruption() as interruption, pytest.raises(KeyboardInterrupt), interruption.held():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("rest of the step")
    assert done and interruption.asked and not interruption.hurried
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_a_run_started_to_ignore_ctrl_c_ignores_it_and_hears_sigterm():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert not interruption.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("ctrl_c")
def test_a_launchers_ctrl_c_is_heard_though_it_was_ignored_at_the_start():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption(agreed=True) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


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


def test_processes_make_the_same_and_end_with_the_run():
    before = {child.pid for child in multiprocessing.active_children()}
    values = prefetch(square_below_20, 2, 30, workers=1, processes=True)
    assert [next(values) for _ in range(3)] == [4, 9, 16]
    with pytest.raises(ValueError, match="no more"):
        list(values)
    assert {child.pid for child in multiprocessing.active_children()} <= before


def test_worker_processes_leave_sigterm_to_the_run():
    values = prefetch(square_below_20, 2, 18, workers=1, processes=True)
    assert next(values) == 4
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGTERM)
    assert list(values) == [n * n for n in range(3, 18)]


def test_a_killed_worker_process_is_told_and_the_others_end():
    before = set(multiprocessing.active_children())
    # More work than the other worker could end before the death is noticed.
    values = prefetch(abs, 2, 10_000_000, workers=2, ahead=1, processes=True)
    assert next(values) == 2
    first, *_ = set(multiprocessing.active_children()) - before
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(DelaError, match=r"a worker process .* set train.workers below 2"):
        deque(values, maxlen=0)
    assert set(multiprocessing.active_children()) <= before


def test_worker_processes_do_not_outlive_a_killed_run(tmp_path):
    run = start(prefetch_forever, tmp_path / "worker")
    deadline = time.monotonic() + 60
    while not (tmp_path / "worker").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker = int((tmp_path / "worker").read_text())
    run.kill()
    run.join()
    while Path(f"/proc/{worker}").exists():
        # Gone, or dead and not yet waited for.
        if Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_worker_processes_change_no_number(with_schedule, tmp_path):
    results = [
        train(with_schedule(epochs=1, **changes), tmp_path / str(number), log=silent)
        for number, changes in enumerate(({}, {"worker_processes": True}))
    ]
    first, second = (load_checkpoint(result.last_path).model for result in results)
    _same(dict(first.state_dict()), dict(second.state_dict()))


def test_prefetching_stays_within_its_bound_and_ends_when_left():
    made = []
    values = prefetch(lambda n: made.append(n) or n, 0, 1000, workers=1, ahead=2)
    assert next(values) == 0
    values.close()
    assert len(made) <= 4
