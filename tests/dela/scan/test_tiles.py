"""Cutting a scene into tiles: every row once, never above the limit, always the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dela.errors import InputError
from dela.scan.tiles import cut_tiles


def tiles_of(points: np.ndarray, limit: int, context: float = 0.5):
    return list(cut_tiles(points.astype(np.float32), limit, context))


def assert_partition(points: np.ndarray, tiles, limit: int) -> None:
    owners = np.zeros(len(points), dtype=int)
    for tile in tiles:
        assert len(tile.rows) <= limit
        assert np.all(np.diff(tile.rows) > 0)
        assert tile.core.any()
        owners[tile.rows[tile.core]] += 1
    assert np.all(owners == 1)


@given(
    count=st.integers(0, 400),
    limit=st.integers(1, 120),
    scale=st.tuples(*[st.floats(0.01, 30)] * 3),
    context=st.floats(0, 5),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_row_belongs_to_one_core_and_tiles_keep_the_limit(count, limit, scale, context, seed):
    points = np.random.default_rng(seed).uniform(0, 1, (count, 3)) * scale
    assert_partition(points, tiles_of(points, limit, context), limit)


def test_a_scene_within_the_limit_is_one_tile():
    points = np.random.default_rng(0).uniform(0, 9, (50, 3))
    (tile,) = tiles_of(points, 50)
    assert tile.core.all() and len(tile.rows) == 50


def test_all_context_within_reach_is_present_where_it_fits():
    points = np.random.default_rng(1).uniform(0, 20, (4000, 3)) * (1, 1, 0.05)
    context = 1.0
    for tile in tiles_of(points, 1500, context):
        core = points[tile.rows[tile.core]]
        low, high = core.min(axis=0) - context + 1e-4, core.max(axis=0) + context - 1e-4
        near = np.flatnonzero(((points >= low) & (points <= high)).all(axis=1))
        assert np.isin(near, tile.rows).all()


def test_a_column_denser_than_the_limit_keeps_the_nearest_context():
    points = np.random.default_rng(2).uniform(0, 1, (2000, 3)) * (0.2, 0.2, 1.0)
    tiles = tiles_of(points, 200, context=5.0)
    assert_partition(points, tiles, 200)
    assert all(len(tile.rows) == 200 for tile in tiles)
    for tile in tiles:
        core, others = points[tile.rows[tile.core]], np.setdiff1d(np.arange(2000), tile.rows)
        low, high = core.min(axis=0), core.max(axis=0)

        def outside(rows, low=low, high=high):
            return np.maximum(low - points[rows], points[rows] - high).max(axis=1).clip(0)

        assert outside(tile.rows).max() <= outside(others).min() + 1e-6


def test_equal_points_are_split_too():
    points = np.zeros((100, 3))
    assert_partition(points, tiles_of(points, 7), 7)


def test_the_cut_is_the_same_every_time():
    points = np.random.default_rng(3).uniform(0, 10, (3000, 3))
    first, second = tiles_of(points, 500), tiles_of(points, 500)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.rows, b.rows) and np.array_equal(a.core, b.core)


def test_a_limit_below_one_is_refused():
    with pytest.raises(InputError, match="max points is 0"):
        tiles_of(np.zeros((3, 3)), 0)
