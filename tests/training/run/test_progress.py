"""What long work says where no bar is drawn."""

from __future__ import annotations

import time

from dela.training.prepare.report import PrepareProgress
from dela.training.run.progress import TrainingProgress


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_lines_of_a_run_tell_the_time_left(monkeypatch, capsys):
    clock, lines = Clock(monkeypatch), []
    progress = TrainingProgress(100, 20, lines.append)
    clock.now += 500  # what comes before the first step does not count
    with progress:
        clock.now += 30
        progress.step(40, "epoch 2")
        progress.line("epoch 2", 40)  # 20 steps took 30 s, 60 are left
        progress.line("the last", 100)
    assert lines == ["epoch 2, 1 min 30 s left", "the last"]
    assert capsys.readouterr().err == ""


def test_a_preparation_says_every_ten_seconds_where_it_is(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with PrepareProgress() as progress:
        for number in range(1, 7):
            clock.now += 4
            progress(number, 6, f"room {number}")
        progress.line("room 7 has no points")
    assert capsys.readouterr().err.splitlines() == ["3 of 6: room 3", "room 7 has no points"]
