"""Augmentation: what must stay the same stays, what must move moves, nothing in place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela.families.dela.config import PRESETS
from dela.model.contract import AttributeInfo
from dela.training.augment import columns as columns_of
from dela.training.augment import steps as a
from dela.training.augment.columns import Columns
from dela.training.settings.augment import NOTHING, AugmentConfig

SCANNET = Columns.of(PRESETS["scannet"])
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


def height_columns(*scaling: float) -> Columns:
    return Columns.of(
        dataclasses.replace(
            PRESETS["s3dis"], attributes=(AttributeInfo("height", *scaling),), directions=()
        )
    )


@given(seeds, st.sampled_from("xyz"))
def test_rotation_and_flip_keep_distances_and_heights(seed, up):
    points, _ = cloud()
    config = dataclasses.replace(NOTHING, rotate_z=180, flip=True, up=up)
    moved, motion = a.move_points(points, config, np.random.default_rng(seed))
    assert np.allclose(distances(moved), distances(points), atol=1e-4)
    axis = "xyz".index(up)
    assert np.allclose(moved[:, axis], points[:, axis], atol=1e-5)
    assert motion.growth == 1
    assert motion.lift is None
    assert abs(abs(np.linalg.det(motion.linear)) - 1) < 1e-9


@given(seeds)
def test_one_scale_for_all_axes_multiplies_every_distance_alike(seed):
    points, _ = cloud()
    config = dataclasses.replace(NOTHING, scale=(0.5, 2.0))
    moved, motion = a.move_points(points, config, np.random.default_rng(seed))
    ratio = distances(moved) / distances(points)
    assert 0.5 <= motion.growth <= 2
    assert np.allclose(ratio, motion.growth, rtol=1e-4)


@given(seeds)
def test_an_object_is_stretched_along_its_own_axes_before_it_is_turned(seed):
    config = dataclasses.replace(NOTHING, scale=(0.5, 2.0), scale_axes=True, rotate_all=True)
    moved, motion = a.move_points(np.eye(3, dtype=np.float32), config, np.random.default_rng(seed))
    lengths = np.linalg.norm(moved, axis=1)
    assert ((lengths >= 0.5 - 1e-6) & (lengths <= 2 + 1e-6)).all()
    assert lengths[2] == pytest.approx(motion.growth, rel=1e-5)
    # Its axes stay at right angles: turned before it were stretched, they would not.
    assert np.allclose(moved @ moved.T, np.diag(lengths**2), atol=1e-5)


def test_heights_follow_what_elastic_distortion_does_to_z():
    points, attributes = cloud(n=500)
    config = dataclasses.replace(NOTHING, elastic=((0.5, 0.4),), elastic_share=1.0)
    moved, motion = a.move_points(points, config, np.random.default_rng(0))
    assert not np.allclose(moved, points, atol=0.01)
    np.testing.assert_allclose(motion.lift, moved[:, 2] - points[:, 2], atol=1e-6)
    some = np.arange(0, 500, 3)
    changed = a.move_attributes(attributes[some], SCANNET, motion.select(some))
    raw = 2.6 * (changed[:, 3] - attributes[some, 3])
    np.testing.assert_allclose(raw, (moved - points)[some, 2], atol=1e-5)


def test_elastic_distortion_reaches_its_share_of_the_samples():
    points, _ = cloud(n=20)
    config = dataclasses.replace(NOTHING, elastic=((1.0, 0.4),), elastic_share=0.5)
    rng = np.random.default_rng(0)
    moved = [a.move_points(points, config, rng)[1].lift is not None for _ in range(200)]
    assert 70 < sum(moved) < 130


def test_heights_grow_with_z_in_raw_units():
    columns = height_columns(2.0, 1.0)
    raw = np.array([[0.0], [1.0], [3.0]], np.float32)
    scaled = (raw - 1) / 2
    grown = columns_of.scale_height(scaled, columns, 1.5)
    assert np.allclose(grown * 2 + 1, raw * 1.5)
    assert np.allclose(columns_of.shift_height(scaled, columns, 0.5) * 2 + 1, raw + 0.5)


def test_logarithmic_heights_grow_and_shift_in_metres():
    columns = height_columns(2.0, 0.5, 0.1)
    info = columns.infos[0]
    raw = np.array([[-0.2], [0.0], [0.05], [12.0]], np.float32)
    scaled = info.scaled(raw)
    np.testing.assert_allclose(
        columns_of.scale_height(scaled, columns, 1.5), info.scaled(raw * 1.5), atol=1e-5
    )
    np.testing.assert_allclose(
        columns_of.shift_height(scaled, columns, 0.5), info.scaled(raw + 0.5), atol=1e-5
    )


def test_intensity_is_multiplied_in_raw_units():
    config = dataclasses.replace(
        PRESETS["s3dis"], attributes=(AttributeInfo("intensity", 100.0, 50.0),)
    )
    columns = Columns.of(config)
    scaled = np.array([[0.5], [2.0]], np.float32)
    assert np.allclose(columns_of.scale_intensity(scaled, columns, 2) * 100 + 50, [[200], [500]])


@pytest.mark.parametrize(
    "change",
    [{"color_drop": 1.0}, {"color_contrast": 1.0}, {"color_jitter": 0.1}, {"color_shift": 0.2}],
)
def test_color_changes_touch_color_alone_and_stay_in_range(change):
    _, attributes = cloud()
    before = attributes.copy()
    changed = columns_of.change_color(
        attributes, SCANNET, dataclasses.replace(NOTHING, **change), np.random.default_rng(3)
    )
    assert np.array_equal(attributes, before)
    assert np.array_equal(changed[:, 3:], attributes[:, 3:])
    assert not np.array_equal(changed[:, :3], attributes[:, :3])
    assert changed[:, :3].min() >= 0
    assert changed[:, :3].max() <= 255 / 250 + 1e-6
    assert (change != {"color_drop": 1.0}) or not changed[:, :3].any()


def test_contrast_blends_with_the_colors_stretched_to_the_full_range():
    _, attributes = cloud()
    attributes[:, :3] = 0.3 + 0.2 * attributes[:, :3]
    config = dataclasses.replace(NOTHING, color_contrast=1.0)
    changed = columns_of.change_color(attributes, SCANNET, config, np.random.default_rng(1))
    color = attributes[:, :3] * 250 / 255
    full = (color - color.min(0)) / np.ptp(color, axis=0)
    # One blend for all points and channels, between none and all of it.
    blend = (changed[:, :3] * 250 / 255 - color) / (full - color)
    assert 0 < np.median(blend) < 1
    assert np.allclose(blend[np.abs(full - color) > 0.05], np.median(blend), atol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_normals_are_dropped_whole_and_as_often_as_asked(share):
    _, attributes = cloud(n=10)
    config = dataclasses.replace(NOTHING, normal_drop=share)
    rng = np.random.default_rng(0)
    without = 0
    for _ in range(200):
        changed = a.change_attributes(attributes, SCANNET, config, rng)
        assert np.allclose(changed[:, :4], attributes[:, :4], atol=1e-6)
        kept = changed[:, 4:].any(axis=1)
        assert kept.all() or not kept.any()
        without += not kept.any()
    assert abs(without / 200 - share) < 0.08


def test_nothing_switched_on_changes_nothing():
    points, attributes = cloud()
    rng = np.random.default_rng(0)
    moved, motion = a.move_points(points, NOTHING, rng)
    changed = a.move_attributes(attributes, SCANNET, motion)
    changed = a.change_attributes(changed, SCANNET, NOTHING, rng)
    assert np.allclose(moved, points)
    assert np.allclose(changed, attributes, atol=1e-6)
    assert moved.dtype == changed.dtype == np.float32


EVERYTHING = AugmentConfig(
    tilt=10,
    scale_axes=True,
    elastic=((0.5, 0.4), (1.5, 0.8)),
    color_drop=0.3,
    color_contrast=0.5,
    color_jitter=0.1,
    color_shift=0.1,
    height_shift=0.2,
    normal_drop=0.3,
)


@given(seeds)
def test_a_seed_gives_the_same_sample_and_the_given_arrays_stay(seed):
    def changed() -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        moved, motion = a.move_points(points, EVERYTHING, rng)
        with_place = a.move_attributes(attributes, SCANNET, motion)
        return moved, a.change_attributes(with_place, SCANNET, EVERYTHING, rng)

    points, attributes = cloud()
    before = points.copy(), attributes.copy()
    first, second = changed(), changed()
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    assert all(np.isfinite(array).all() and array.dtype == np.float32 for array in first)
    assert np.array_equal(points, before[0])
    assert np.array_equal(attributes, before[1])


def test_columns_are_found_by_name():
    assert SCANNET.color == (0, 1, 2)
    assert SCANNET.height == (3,)
    assert SCANNET.directions == (4, 5, 6)
    assert SCANNET.intensity == ()


def test_the_share_of_mixed_samples_goes_evenly_to_its_end():
    config = AugmentConfig(mix=0.5, mix_end=0.0)
    assert [config.mix_at(t) for t in (0, 0.25, 1)] == [0.5, 0.375, 0.0]
    assert AugmentConfig(mix=0.5).mix_at(0.7) == 0.5
