"""Changes to coordinates: rotations, elastic distortion, noise, holes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import uniform_filter1d

from dela.training.augment import geometry as g

seeds = st.integers(0, 2**31)


@given(seeds, st.floats(0.1, 30), st.integers(0, 2))
def test_tilt_is_a_rotation_of_at_most_that_many_degrees(seed, degrees, vertical):
    turn = g.random_rotation(0, degrees, np.random.default_rng(seed), vertical)
    assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(turn) > 0
    upright = np.clip(turn[vertical, vertical], -1, 1)
    assert np.degrees(np.arccos(upright)) <= degrees + 1e-6


def test_turns_about_the_vertical_fill_their_range():
    rng = np.random.default_rng(0)
    turns = [g.random_rotation(30, 0, rng) for _ in range(300)]
    angles = np.degrees([np.arctan2(turn[1, 0], turn[0, 0]) for turn in turns])
    assert -30 <= angles.min() < -27
    assert 27 < angles.max() <= 30


def test_rotations_in_space_are_spread_evenly():
    rng = np.random.default_rng(0)
    turns = np.array([g.any_rotation(rng) for _ in range(4000)])
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(turns), 1)
    # Every axis may end up anywhere: each coordinate of a turned axis is uniform in -1..1.
    for row in range(3):
        for column in range(3):
            quantiles = np.quantile(turns[:, row, column], [0.25, 0.5, 0.75])
            assert np.allclose(quantiles, [-0.5, 0, 0.5], atol=0.07)
    # The angle has density (1 - cos) / pi: its mean is pi / 2 + 2 / pi.
    angle = np.arccos(np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert angle.mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.04)


def test_a_rotation_turns_by_the_right_hand_rule():
    turned = g.rotation(np.array([0.0, 0, 1]), np.pi / 2) @ [1, 0, 0]
    assert np.allclose(turned, [0, 1, 0])


def test_scale_per_axis_differs_between_axes():
    factors = g.random_scale((0.5, 2.0), True, np.random.default_rng(0))
    assert len(set(factors)) == 3
    assert ((factors >= 0.5) & (factors <= 2)).all()


def test_jitter_is_clipped_at_three_standard_deviations():
    points = np.zeros((20_000, 3), np.float32)
    moved = g.jitter(points, 0.01, np.random.default_rng(0))
    assert np.abs(moved).max() <= 0.03 + 1e-7
    assert abs(moved.std() - 0.01) < 5e-4


@given(seeds)
def test_normals_stay_perpendicular_to_their_surface_under_any_map(seed):
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(3)
    normal /= np.linalg.norm(normal)
    along = np.linalg.svd(normal[None])[2][1:]
    linear = np.diag(rng.uniform(0.5, 2, 3)) @ g.random_rotation(180, 20, rng)
    turned = g.transform_directions(normal[None].astype(np.float32), linear)[0]
    assert abs(np.linalg.norm(turned) - 1) < 1e-5
    assert np.abs((along @ linear.T) @ turned).max() < 1e-4


def test_missing_normals_stay_zero():
    assert not g.transform_directions(np.zeros((3, 3), np.float32), np.eye(3) * 2).any()


@pytest.mark.parametrize("granularity", [0.2, 0.7, 5.0])
def test_elastic_offsets_are_smoothed_noise_between_grid_nodes(granularity):
    points = np.random.default_rng(1).uniform(-1, 2, (300, 3)).astype(np.float32)
    found = g.elastic_offsets(points, granularity, 0.8, np.random.default_rng(5))

    low = points.min(0)
    nodes = ((points.max(0) - low) // granularity).astype(int) + 3
    noise = np.random.default_rng(5).standard_normal((*nodes, 3), np.float32)
    for _ in range(2):
        for axis in range(3):
            noise = uniform_filter1d(noise, 3, axis=axis, mode="constant")
    axes = [low[i] + granularity * (np.arange(nodes[i]) - 1) for i in range(3)]
    expected = 0.8 * RegularGridInterpolator(axes, noise)(points)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_elastic_offsets_differ_little_between_neighbors_and_much_across_the_scene():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 10, (500, 3)).astype(np.float32)
    near = points + np.float32(0.01)
    # One more point at each end keeps the noise grid in its place.
    ends = np.array([[-1, -1, -1], [11, 11, 11]], np.float32)
    first, second = (
        g.elastic_offsets(np.concatenate([p, ends]), 0.8, 1.6, np.random.default_rng(3))[:-2]
        for p in (points, near)
    )
    assert np.abs(first - second).max() < 0.1 * np.ptp(first)
    assert first.std() > 0.05


def test_elastic_offsets_of_one_point_are_finite():
    single = np.ones((1, 3), np.float32)
    assert np.isfinite(g.elastic_offsets(single, 0.2, 0.4, np.random.default_rng(0))).all()


@given(seeds, st.floats(0, 0.95), st.integers(1, 300))
def test_left_out_points_are_at_most_about_the_share_and_never_all(seed, drop, count):
    rows = g.keep_rows(count, drop, np.random.default_rng(seed))
    assert len(rows) >= 1
    assert (np.diff(rows) > 0).all()
    assert rows[-1] < count


@given(seeds, st.integers(0, 10))
def test_holes_are_balls_about_points(seed, most):
    points = np.random.default_rng(seed).uniform(0, 4, (400, 3)).astype(np.float32)
    left = g.cut_out(points, most, 0.5, np.random.default_rng(seed))
    assert (np.diff(left) > 0).all()
    gone = np.setdiff1d(np.arange(400), left)
    # Every point that is gone lies within a ball, and no ball is larger than asked.
    apart = np.linalg.norm(points[gone, None] - points[None, gone], axis=2)
    centers = [
        row
        for row, distances in zip(gone, apart, strict=True)
        if np.linalg.norm(points[left] - points[row], axis=1).min(initial=9) >= 0.5 - 1e-5
    ]
    assert len(centers) >= 1
    assert (np.linalg.norm(points[gone, None] - points[centers], axis=2).min(1) < 0.5 + 1e-5).all()
    assert len(gone) <= max(1, most) * 60


def test_a_hole_never_takes_the_last_point():
    points = np.zeros((5, 3), np.float32)
    assert len(g.cut_out(points, 3, 1.0, np.random.default_rng(0))) == 5
    assert len(g.cut_out(points[:1], 3, 1.0, np.random.default_rng(0))) == 1
