"""Learning rate and coordinate-loss weight as plain functions of the step."""

from __future__ import annotations

import math


def learning_rate(
    step: int,
    total_steps: int,
    warmup_steps: int,
    peak: float,
    final: float = 0.0,
    start: float = 0.0,
    warmup_inside: bool = False,
) -> float:
    """Linear warm-up from ``start`` to ``peak``, then half a cosine down to ``final``.

    Args:
        step: the step about to be taken, 0 .. total_steps - 1. Step 0 of a warm-up already moves
            (one step above ``start``); the last warm-up step reaches ``peak``.
        warmup_inside: the cosine spans the warm-up too and is joined where it stands after it, a
            little below ``peak`` (the published schedule); otherwise it begins after it.
    """
    if step < warmup_steps:
        return start + (peak - start) * (step + 1) / warmup_steps
    skipped = 0 if warmup_inside else warmup_steps
    progress = (step - skipped) / max(1, total_steps - skipped)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def coordinate_weight(step: int, total_steps: int, start: float, decay: float = 0.003) -> float:
    """lambda(t) = start * decay^t, with t = step / total_steps (published: 0.25 * 0.003^t)."""
    return start * decay ** (step / max(1, total_steps))
