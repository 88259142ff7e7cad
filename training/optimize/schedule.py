"""Learning rate and coordinate-loss weight as plain functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dela.training.settings.train import ScheduleConfig


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up from ``start`` to ``peak``, then half a cosine down to ``final``.

    Attributes:
        warmup_steps: the first of them already moves (one step above ``start``), the last reaches
            ``peak``.
        warmup_inside: the cosine spans the warm-up too and is joined where it stands after it, a
            little below ``peak`` (the published schedule); otherwise it begins after it.
    """

    total_steps: int
    warmup_steps: int
    peak: float
    final: float = 0.0
    start: float = 0.0
    warmup_inside: bool = False

    def at(self, step: int) -> float:
        """The learning rate of the step about to be taken, 0 .. total_steps - 1."""
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * (step + 1) / self.warmup_steps
        skipped = 0 if self.warmup_inside else self.warmup_steps
        progress = (step - skipped) / max(1, self.total_steps - skipped)
        cosine = math.cos(math.pi * min(1.0, progress))
        return self.final + (self.peak - self.final) * 0.5 * (1.0 + cosine)


def scheduled_rate(
    schedule: ScheduleConfig, steps_per_epoch: int, total_steps: int
) -> LearningRate:
    """The learning rate of ``[train]``."""
    return LearningRate(
        total_steps,
        round(schedule.warmup * steps_per_epoch),
        schedule.learning_rate,
        schedule.final_rate * schedule.learning_rate,
        schedule.warmup_start * schedule.learning_rate,
        schedule.warmup_inside,
    )


def coordinate_weight(step: int, total_steps: int, start: float, decay: float = 0.003) -> float:
    """lambda(t) = start * decay^t, with t = step / total_steps (published: 0.25 * 0.003^t)."""
    return start * decay ** (step / max(1, total_steps))
