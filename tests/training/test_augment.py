"""Augmentation: what must stay the same stays, what must move moves, nothing in place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela.config import PRESETS, AttributeInfo
from dela.training import augment as a
from dela.training.config import AugmentConfig

STILL = AugmentConfig(rotate_z=0, flip=False, scale=(1, 1))
SCANNET = a.Columns.of(PRESETS["scannet"])
seeds = st.integers(0, 2**31)


def cloud(seed: int = 0, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-3, 3, (n, 3)).astype(np.float32)
    attributes = rng.uniform(0, 1, (n, 7)).astype(np.float32)
    attributes[:, 4:] = rng.standard_normal((n, 3))
    attributes[:, 4:] /= np.linalg.norm(attributes[:, 4:], axis=1, keepdims=True)
    return points, attributes


def distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[1:].astype(float) - points[:-1], axis=1)


@given(seeds)
def test_rotation_and_flip_keep_distances_and_heights(seed):
    rng = np.random.default_rng(seed)
    points, _ = cloud()
    moved, linear, growth = a.augment_points(
        points, dataclasses.replace(STILL, rotate_z=180, flip=True), rng
    )
    assert np.allclose(distances(moved), distances(points), atol=1e-4)
    assert np.allclose(moved[:, 2], points[:, 2], atol=1e-5)
    assert growth == 1
    assert abs(abs(np.linalg.det(linear)) - 1) < 1e-9


@given(seeds, st.floats(0.1, 30))
def test_tilt_is_a_rotation_of_at_most_that_many_degrees(seed, degrees):
    turn = a.random_rotation(0, degrees, np.random.default_rng(seed))
    assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(turn) > 0
    assert np.degrees(np.arccos(np.clip(turn[2, 2], -1, 1))) <= degrees + 1e-6


@given(seeds)
def test_one_scale_for_all_axes_multiplies_every_distance_alike(seed):
    points, _ = cloud()
    config = dataclasses.replace(STILL, scale=(0.5, 2.0))
    moved, _, growth = a.augment_points(points, config, np.random.default_rng(seed))
    ratio = distances(moved) / distances(points)
    assert 0.5 <= growth <= 2
    assert np.allclose(ratio, growth, rtol=1e-4)


def test_scale_per_axis_differs_between_axes():
    factors = a.random_scale((0.5, 2.0), True, np.random.default_rng(0))
    assert len(set(factors)) == 3
    assert ((factors >= 0.5) & (factors <= 2)).all()


def test_jitter_is_clipped_at_three_standard_deviations():
    points = np.zeros((20_000, 3), np.float32)
    moved = a.jitter(points, 0.01, np.random.default_rng(0))
    assert np.abs(moved).max() <= 0.03 + 1e-7
    assert abs(moved.std() - 0.01) < 5e-4


@given(seeds)
def test_normals_stay_perpendicular_to_their_surface_under_any_map(seed):
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(3)
    normal /= np.linalg.norm(normal)
    along = np.linalg.svd(normal[None])[2][1:]
    linear = np.diag(rng.uniform(0.5, 2, 3)) @ a.random_rotation(180, 20, rng)
    turned = a.transform_directions(normal[None].astype(np.float32), linear)[0]
    assert abs(np.linalg.norm(turned) - 1) < 1e-5
    assert np.abs((along @ linear.T) @ turned).max() < 1e-4


def test_missing_normals_stay_zero():
    assert not a.transform_directions(np.zeros((3, 3), np.float32), np.eye(3) * 2).any()


def test_heights_grow_with_z_in_raw_units():
    config = dataclasses.replace(
        PRESETS["s3dis"], attributes=(AttributeInfo("height", 2.0, 1.0),), directions=()
    )
    columns = a.Columns.of(config)
    raw = np.array([[0.0], [1.0], [3.0]], np.float32)
    scaled = (raw - 1) / 2
    grown = a.scale_height(scaled, columns, 1.5)
    assert np.allclose(grown * 2 + 1, raw * 1.5)
    assert np.allclose(a.shift_height(scaled, columns, 0.5) * 2 + 1, raw + 0.5)


def test_intensity_is_multiplied_in_raw_units():
    config = dataclasses.replace(
        PRESETS["s3dis"], attributes=(AttributeInfo("intensity", 100.0, 50.0),)
    )
    columns = a.Columns.of(config)
    scaled = np.array([[0.5], [2.0]], np.float32)
    assert np.allclose(a.scale_intensity(scaled, columns, 2) * 100 + 50, [[200], [500]])


@pytest.mark.parametrize(
    "change",
    [{"color_drop": 1.0}, {"color_contrast": 1.0}, {"color_jitter": 0.1}, {"color_shift": 0.2}],
)
def test_color_changes_touch_color_alone_and_stay_in_range(change):
    _, attributes = cloud()
    before = attributes.copy()
    changed = a.change_color(
        attributes, SCANNET, dataclasses.replace(STILL, **change), np.random.default_rng(3)
    )
    assert np.array_equal(attributes, before)
    assert np.array_equal(changed[:, 3:], attributes[:, 3:])
    assert not np.array_equal(changed[:, :3], attributes[:, :3])
    assert changed[:, :3].min() >= 0
    assert changed[:, :3].max() <= 255 / 250 + 1e-6
    assert (change != {"color_drop": 1.0}) or not changed[:, :3].any()


def test_nothing_switched_on_changes_nothing():
    points, attributes = cloud()
    rng = np.random.default_rng(0)
    moved, linear, growth = a.augment_points(points, STILL, rng)
    changed = a.augment_attributes(attributes, SCANNET, STILL, rng, linear, growth)
    assert np.allclose(moved, points)
    assert np.allclose(changed, attributes, atol=1e-6)
    assert moved.dtype == changed.dtype == np.float32


@given(seeds, st.floats(0, 0.95), st.integers(1, 300))
def test_left_out_points_are_at_most_about_the_share_and_never_all(seed, drop, count):
    rows = a.keep_rows(count, drop, np.random.default_rng(seed))
    assert len(rows) >= 1
    assert (np.diff(rows) > 0).all()
    assert rows[-1] < count


def test_columns_are_found_by_name():
    assert SCANNET.color == (0, 1, 2)
    assert SCANNET.height == (3,)
    assert SCANNET.directions == (4, 5, 6)
    assert SCANNET.intensity == ()


@given(seeds, st.floats(-50, 50))
def test_mixed_scenes_share_their_ground(seed, lift):
    first, _ = cloud(seed)
    second, _ = cloud(seed + 1, 300)
    mixed = a.mix_scenes(first, second + np.array([0, 0, lift], np.float32))
    assert mixed.dtype == np.float32
    np.testing.assert_array_equal(mixed[:200], first)
    np.testing.assert_allclose(mixed[200:, :2], second[:, :2])
    ground = [np.percentile(part[:, 2], 2) for part in (mixed[:200], mixed[200:])]
    assert ground[0] == pytest.approx(ground[1], abs=1e-4)
