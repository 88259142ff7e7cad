"""Mixed samples: scenes on one floor, objects and the labels they share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela.training.augment.mixing import label_share, mix_objects, mix_scenes

seeds = st.integers(0, 2**31)


@given(seeds, st.floats(-50, 50))
def test_mixed_scenes_stand_on_one_floor(seed, lift):
    rng = np.random.default_rng(seed)
    first = rng.uniform(-3, 3, (200, 3)).astype(np.float32)
    second = rng.uniform(-3, 3, (300, 3)).astype(np.float32) + np.float32([0, 0, lift])
    floors = [part[:, 2].min() for part in (first, second)]
    mixed = mix_scenes(first, second, *floors)
    assert mixed.dtype == np.float32
    np.testing.assert_array_equal(mixed[:200], first)
    np.testing.assert_allclose(mixed[200:, :2], second[:, :2])
    assert mixed[200:, 2].min() == pytest.approx(floors[0], abs=1e-4)


def test_the_floor_is_the_whole_scenes_and_not_the_pieces():
    table = np.array([[0, 0, 0.0]], np.float32)  # a piece about a point 0.8 m above the floor
    shelf = np.array([[0, 0, 0.0]], np.float32)  # and one 2 m above it
    assert mix_scenes(table, shelf, -0.8, -2.0)[1, 2] == pytest.approx(1.2)
    assert mix_scenes(table, shelf, -0.8, -2.0, vertical=1)[1].tolist() == pytest.approx(
        [0, 1.2, 0]
    )


@given(seeds, st.integers(1, 100))
def test_a_mixed_object_keeps_its_size_and_at_least_half_of_itself(seed, count):
    first = np.column_stack([np.arange(count), np.zeros((count, 2))]).astype(np.float32)
    second = first + np.float32([0, 1, 0])
    mixed, share = mix_objects(first, second, np.random.default_rng(seed))
    own = mixed[:, 1] == 0
    assert len(mixed) == count
    assert own.sum() >= count / 2
    assert len(np.unique(mixed, axis=0)) == count
    assert share == label_share((~own).sum() / count)


def test_the_label_share_is_the_published_rule():
    # 2048 points of which `crop` are another's, weights with points per 128 under a logistic.
    for crop in (0, 1, 64, 256, 700, 1024):
        own = (1 - crop / 2048) / (1 + np.exp(-((2048 - crop) / 128 - 2)))
        other = (crop / 2048) / (1 + np.exp(-(crop / 128 - 2)))
        assert label_share(crop / 2048) == pytest.approx(other / (own + other), rel=1e-12)
    assert label_share(0) == 0
    assert label_share(0.5) == 0.5
    assert label_share(0.02) < 0.01
