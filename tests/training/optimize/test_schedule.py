"""Schedules at the points where their value is known."""

import itertools
import math

import pytest

from dela.training.optimize.schedule import LearningRate, coordinate_weight


def test_warm_up_is_linear_and_reaches_the_peak():
    rates = [LearningRate(100, 10, 1.0).at(step) for step in range(10)]
    assert rates == pytest.approx([(step + 1) / 10 for step in range(10)])


def test_cosine_starts_at_the_peak_and_ends_at_the_final_rate():
    assert LearningRate(110, 10, 2.0, 0.5).at(10) == pytest.approx(2.0)
    assert LearningRate(110, 10, 2.0, 0.5).at(60) == pytest.approx(1.25)
    assert LearningRate(110, 10, 2.0, 0.5).at(110) == pytest.approx(0.5)
    assert LearningRate(110, 10, 1.0).at(35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_no_warm_up_and_a_single_step_work():
    assert LearningRate(1, 0, 0.1).at(0) == pytest.approx(0.1)
    assert LearningRate(1, 1, 0.1).at(0) == pytest.approx(0.1)


def test_the_rate_never_rises_after_the_warm_up():
    rates = [LearningRate(200, 20, 1.0).at(step) for step in range(19, 200)]
    assert all(a >= b for a, b in itertools.pairwise(rates))


def test_coordinate_weight_decays_to_three_thousandths():
    assert coordinate_weight(0, 100, 0.25) == pytest.approx(0.25)
    assert coordinate_weight(50, 100, 0.25) == pytest.approx(0.25 * math.sqrt(0.003))
    assert coordinate_weight(100, 100, 0.25) == pytest.approx(0.00075)


def test_the_published_schedule_spans_the_warm_up():
    """Peak 6e-3 over 100 steps, 10 of them warm-up from a twentieth, to a ten-thousandth."""
    peak = 6e-3
    rates = [
        LearningRate(100, 10, peak, peak / 1e4, peak / 20, True).at(step) for step in range(100)
    ]
    climb = [peak / 20 + (peak - peak / 20) * (step + 1) / 10 for step in range(10)]
    assert rates[:10] == pytest.approx(climb)
    cosine = [
        peak / 1e4 + (peak - peak / 1e4) * (1 + math.cos(math.pi * step / 100)) / 2
        for step in range(10, 100)
    ]
    assert rates[10:] == pytest.approx(cosine)
    assert 0.97 < rates[10] / peak < 0.98  # a small step down where the cosine is joined
