"""Input columns: scaling, missing columns, height above local ground."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dela.cloud.formats import find_scans, read_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.families.dela.config import PRESETS
from dela.model.contract import AttributeInfo
from dela.scan.attributes import compute_attributes, has_attributes, height_above_ground


def test_columns_are_scaled_in_the_given_order() -> None:
    cloud = PointCloud(
        np.array([[0.0, 0.0, 10.0], [1.0, 1.0, 12.5]]),
        {"intensity": np.array([100, 300], np.uint16), "red": np.array([0, 250], np.uint8)},
    )
    infos = [
        AttributeInfo("red", 250.0),
        AttributeInfo("height", 2.5),
        AttributeInfo("intensity", 200.0, offset=100.0),
    ]
    result = compute_attributes(cloud, infos)
    assert result.dtype == np.float32
    assert result.tolist() == [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


@given(
    st.floats(-1e4, 1e4),
    st.floats(0.01, 100).map(lambda x: x if x > 0.02 else -x),
    st.floats(-3, 3),
    st.one_of(st.just(0.0), st.floats(1e-2, 1e2)),
)
def test_a_column_comes_back_from_what_the_network_sees(
    value: float, scale: float, offset: float, log: float
) -> None:
    info = AttributeInfo("height", scale, offset, log)
    raw = np.array([value, -value, 0.0])
    np.testing.assert_allclose(info.raw(info.scaled(raw)), raw, rtol=1e-6, atol=1e-6)


def test_a_logarithmic_column_shows_centimetres_and_tens_of_metres() -> None:
    cloud = PointCloud(np.zeros((4, 3)), {"depth": np.array([0.0, 0.1, -0.3, 20.0])})
    info = AttributeInfo("depth", scale=2.0, offset=0.5, log=0.1)
    expected = [(sign * math.log(n) - 0.5) / 2 for sign, n in ((1, 1), (1, 2), (-1, 4), (1, 201))]
    np.testing.assert_allclose(compute_attributes(cloud, [info])[:, 0], expected, rtol=1e-6)


def test_no_columns_and_no_points() -> None:
    cloud = PointCloud(np.zeros((0, 3)), {"intensity": np.zeros(0)})
    assert compute_attributes(cloud, []).shape == (0, 0)
    infos = [AttributeInfo(name) for name in ("intensity", "height", "height_above_ground")]
    assert compute_attributes(cloud, infos).shape == (0, 3)


def test_missing_column_names_what_is_needed_and_what_is_there() -> None:
    cloud = PointCloud(np.zeros((2, 3)), {"intensity": np.zeros(2), "label": np.zeros(2)})
    with pytest.raises(InputError) as raised:
        compute_attributes(cloud, PRESETS["s3dis"].input_columns)
    message = str(raised.value)
    assert "'red'" in message
    assert "red, green, blue, height" in message
    assert "intensity, label" in message


def test_missing_normals_say_how_to_get_them() -> None:
    with pytest.raises(InputError, match=r"'normal_y'[\s\S]*CloudCompare"):
        compute_attributes(PointCloud(np.zeros((2, 3))), [AttributeInfo("normal_y")])


def test_nan_in_a_column_is_counted() -> None:
    cloud = PointCloud(np.zeros((3, 3)), {"intensity": np.array([1.0, np.nan, np.nan])})
    with pytest.raises(InputError, match="'intensity' holds 2 NaN values of 3"):
        compute_attributes(cloud, [AttributeInfo("intensity")])


@pytest.mark.parametrize("value", [0, 7, np.inf, -np.inf, 1e300, np.iinfo(np.int64).max])
def test_constant_and_huge_values_stay_finite(value: float) -> None:
    cloud = PointCloud(np.zeros((5, 3)), {"intensity": np.full(5, value)})
    result = compute_attributes(cloud, [AttributeInfo("intensity", 1e-3), AttributeInfo("height")])
    assert np.isfinite(result).all()
    assert np.abs(result).max() <= 5


def test_heights_of_utm_coordinates_are_exact() -> None:
    z = np.array([0.0, 0.25, 3.5])
    points = np.stack([np.full(3, 770500.0), np.full(3, 6277500.0), z + 1e6], axis=1)
    heights = compute_attributes(PointCloud(points), [AttributeInfo("height")])
    assert heights[:, 0].tolist() == z.tolist()


def _patch(generator: np.random.Generator, low: list[float], high: list[float]) -> np.ndarray:
    area = (high[0] - low[0] or 1) * (high[1] - low[1] or 1) * (high[2] - low[2] or 1)
    return generator.uniform(low, high, (max(50, int(60 * area)), 3))


def test_floor_of_a_room_is_its_ground() -> None:
    generator = np.random.default_rng(0)
    floor = _patch(generator, [0, 0, 0], [5, 4, 0])
    # No floor points under the bed: its top is the lowest thing there.
    bed = (floor[:, 0] > 3) & (floor[:, 1] > 2)
    parts = {
        "floor": floor[~bed],
        "bed": _patch(generator, [3, 2, 0.5], [5, 4, 0.5]),
        "table": _patch(generator, [1, 1, 0.75], [2.5, 1.8, 0.75]),
        "ceiling": _patch(generator, [0, 0, 2.6], [5, 4, 2.6]),
        "wall": _patch(generator, [0, 0, 0], [0, 4, 2.6]),
    }
    heights = height_above_ground(np.concatenate(list(parts.values())))
    ends = np.cumsum([len(part) for part in parts.values()])
    found = dict(zip(parts, np.split(heights, ends[:-1]), strict=True))
    for name, expected in {"floor": 0.0, "bed": 0.5, "table": 0.75, "ceiling": 2.6}.items():
        np.testing.assert_allclose(found[name], expected, atol=0.02, err_msg=name)
    assert found["wall"].max() == pytest.approx(2.6, abs=0.05)


def test_hill_with_a_house_a_tree_and_stray_points_below() -> None:
    generator = np.random.default_rng(1)
    ground = _patch(generator, [0, 0, 0], [60, 60, 0])[:40000]

    def terrain(xy: np.ndarray) -> np.ndarray:
        return 0.08 * xy[:, 0] + 1.0 * np.sin(xy[:, 1] / 20)

    ground[:, 2] = terrain(ground)
    house = (np.abs(ground[:, 0] - 30) < 6) & (np.abs(ground[:, 1] - 30) < 8)
    ground[house, 2] += 6.0
    tree = _patch(generator, [10, 10, 3], [14, 14, 8])
    tree[:, 2] += terrain(tree)
    stray = generator.uniform([0, 0, -30], [60, 60, -5], (5, 3))
    heights = height_above_ground(np.concatenate([ground, tree, stray]))
    on_ground = heights[: len(ground)][~house]
    assert np.median(np.abs(on_ground)) < 0.1
    assert np.quantile(np.abs(on_ground), 0.99) < 0.5
    np.testing.assert_allclose(heights[: len(ground)][house], 6.0, atol=0.8)
    assert np.median(heights[len(ground) : -5]) == pytest.approx(5.5, abs=0.5)
    assert (heights[-5:] < -3).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.sampled_from([0.0, 1e-9, 1.0, 1e3, 1e9]),
    st.sampled_from([(1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 0, 1), (0, 0, 0)]),
    st.sampled_from([0.0, 1e6, -1e6]),
    st.integers(0, 5),
)
def test_any_cloud_gets_finite_heights(
    count: int, size: float, flat: tuple[int, int, int], origin: float, seed: int
) -> None:
    points = np.random.default_rng(seed).uniform(0, size, (count, 3)) * flat + origin
    heights = height_above_ground(points)
    assert heights.shape == (count,)
    assert np.isfinite(heights).all()
    assert np.abs(heights).max() <= np.ptp(points[:, 2]) + 1e-9


def test_non_finite_rows_touch_no_other() -> None:
    points = np.random.default_rng(0).uniform(0, 10, (200, 3))
    broken = np.insert(points, 50, [[np.nan, 1, 1], [1, 1, -np.inf]], axis=0)
    heights = height_above_ground(broken)
    assert np.isnan(heights[50:52]).all()
    np.testing.assert_array_equal(np.delete(heights, [50, 51]), height_above_ground(points))


def test_stray_point_far_away_costs_no_memory() -> None:
    points = np.random.default_rng(0).uniform(0, 10, (1000, 3))
    heights = height_above_ground(np.append(points, [[1e8, 1e8, 0]], axis=0))
    assert np.isfinite(heights).all()


def test_distant_parts_of_a_cloud_keep_their_own_ground() -> None:
    generator = np.random.default_rng(0)
    here = _patch(generator, [0, 0, 0], [10, 10, 0])
    there = _patch(generator, [0, 0, 0], [10, 10, 0]) + np.array([40_000.0, 90_000.0, 25.0])
    np.testing.assert_allclose(height_above_ground(np.concatenate([here, there])), 0, atol=1e-9)


def test_heights_move_and_mirror_with_the_cloud() -> None:
    generator = np.random.default_rng(2)
    points = np.round(generator.uniform(0, 20, (2000, 3)) * [1, 1, 0.05], 2)
    moved = height_above_ground(points + np.array([7e5, 6e6, 500.0]))
    np.testing.assert_allclose(moved, height_above_ground(points), atol=1e-6)


def test_the_order_of_many_points_changes_no_height() -> None:
    generator = np.random.default_rng(4)
    points = generator.random((70_001, 3)) * [90.0, 60.0, 1.0]
    points[:, 2] += points[:, 0] / 50
    order = generator.permutation(len(points))
    np.testing.assert_allclose(
        height_above_ground(points[order]), height_above_ground(points)[order], atol=1e-9
    )


def test_grass_stands_above_uneven_ground_by_centimetres() -> None:
    generator = np.random.default_rng(3)
    points = generator.uniform([0, 0, 0], [40, 40, 0], (20_000, 3))
    points[:, 2] = 0.05 * points[:, 0] + 0.3 * np.sin(points[:, 1])
    points[:, 2] += generator.normal(0, 0.02, len(points))
    grass = generator.random(len(points)) < 0.3
    points[grass, 2] += 0.25
    heights = height_above_ground(points)
    assert abs(np.median(heights[~grass])) < 0.01
    assert np.quantile(np.abs(heights[~grass]), 0.95) < 0.1
    assert np.median(heights[grass]) == pytest.approx(0.25, abs=0.02)


def test_airborne_tiles_against_their_own_ground_class(lidar_dir: Path) -> None:
    for path in find_scans([lidar_dir]):
        cloud = read_cloud(path)
        heights = height_above_ground(cloud.points)
        classes = cloud.columns["classification"]
        ground, building = heights[classes == 2], heights[classes == 6]
        assert np.median(np.abs(ground)) < 0.03, path.name
        assert np.quantile(np.abs(ground), 0.99) < 0.2, path.name
        # Tall blocks fill two of the tiles: their roofs stand 16 m high.
        assert 2 < np.median(building) < 18, path.name
        assert 0.1 < np.median(heights[classes == 3]) < 0.5, path.name


def test_points_that_lack_an_attribute_are_told_apart() -> None:
    columns = {
        "intensity": np.array([1.0, np.nan, np.inf, 2.0]),
        "other": np.array([np.nan] * 4),
        "label": np.arange(4),
        "height": np.array([np.nan] * 4),
        "category": np.array([0.0, 1.0, 0.0, np.nan]),
    }
    cloud = PointCloud(np.zeros((4, 3)), columns)
    for names, expected in (
        (["intensity", "height", "label"], [True, False, True, True]),
        (["category_0", "category_1"], [True, True, True, False]),
        (["missing"], [True] * 4),
        ([], [True] * 4),
    ):
        infos = [AttributeInfo(name) for name in names]
        assert has_attributes(cloud, infos).tolist() == expected
