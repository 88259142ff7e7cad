"""From a scan to the network's input and back to every point."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.families.dela.config import PRESETS, DelaConfig
from dela.model.contract import AttributeInfo
from dela.scan.attributes import compute_attributes
from whole_scene import prepare_scene

CONFIG: DelaConfig = dataclasses.replace(
    PRESETS["s3dis"], attributes=(AttributeInfo("red", 250.0), AttributeInfo("height", 3.3))
)


def scan(count: int = 3000, origin: tuple[float, float, float] = (0, 0, 0)) -> PointCloud:
    rng = np.random.default_rng(0)
    # Multiples of 1/64 m: exact in float64 at any of the origins used here.
    local = rng.integers(0, 64, (count, 3)) / 64.0
    return PointCloud(local + np.array(origin), {"red": rng.integers(0, 255, count)})


def test_every_point_of_the_scan_finds_its_voxel():
    cloud = scan()
    scene = prepare_scene(cloud, CONFIG)
    scene.pyramid.validate()
    low = cloud.points.min(axis=0)
    cells = np.floor((cloud.points - low) / CONFIG.grid[0])
    assert np.array_equal(cells[scene.kept][scene.voxel_of_point], cells)
    assert np.array_equal(scene.voxel_of_point[scene.kept], np.arange(len(scene.kept)))
    assert np.array_equal(scene.origin, low)
    assert np.array_equal(scene.pyramid.points, (cloud.points - low)[scene.kept])
    expected = compute_attributes(cloud, CONFIG.input_columns)[scene.kept]
    assert np.array_equal(scene.pyramid.attributes, expected)


def test_distant_origins_change_nothing():
    near = prepare_scene(scan(), CONFIG)
    far = prepare_scene(scan(origin=(651_234.5, 6_860_000.25, -30.0)), CONFIG)
    for (name, a), (_, b) in zip(near.pyramid.inputs(), far.pyramid.inputs(), strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-6), name
    assert np.array_equal(near.kept, far.kept)
    assert far.origin[0] >= 651_234.5


def test_picks_and_seeds_choose_other_points_of_the_same_voxels():
    cloud = scan(20_000)
    scenes = [
        prepare_scene(cloud, CONFIG, pick=pick, seed=seed)
        for pick, seed in ((0, None), (1, None), (None, 1), (None, 2), (None, 1))
    ]
    for scene in scenes[1:]:
        assert np.array_equal(scene.voxel_of_point, scenes[0].voxel_of_point)
    for a, b in ((0, 1), (1, 2), (2, 3)):
        assert not np.array_equal(scenes[a].kept, scenes[b].kept)
    assert np.array_equal(scenes[2].kept, scenes[4].kept)


def test_invalid_points_are_refused_or_left_out():
    cloud = scan()
    cloud.points[[5, 700]] = np.nan
    with pytest.raises(InputError, match="2 of 3000 points"):
        prepare_scene(cloud, CONFIG)
    scene = prepare_scene(cloud, CONFIG, drop_invalid=True)
    assert np.flatnonzero(scene.voxel_of_point < 0).tolist() == [5, 700]
    assert not np.isin([5, 700], scene.kept).any()
    valid = np.delete(np.arange(3000), [5, 700])
    alone = prepare_scene(cloud.select(valid), CONFIG)
    assert np.array_equal(scene.kept, valid[alone.kept])
    assert np.array_equal(scene.voxel_of_point[valid], alone.voxel_of_point)


def test_a_scan_of_one_point_is_a_pyramid_of_one_point():
    scene = prepare_scene(scan().select(np.array([7])), CONFIG)
    assert scene.pyramid.validate().lengths == ((1,),) * CONFIG.stages
    assert scene.kept.tolist() == scene.voxel_of_point.tolist() == [0]


def test_classification_answers_for_the_whole_cloud():
    config = PRESETS["scanobjectnn"]
    cloud = scan(300, origin=(5e5, 0, 0))
    scene = prepare_scene(PointCloud(cloud.points), config)
    scene.pyramid.validate()
    assert scene.pyramid.lengths == ((1024,), (256,), (64,))
    assert not scene.voxel_of_point.any() and len(scene.voxel_of_point) == 300
    shifted = (cloud.points - scene.origin).astype(np.float32)
    assert np.array_equal(scene.pyramid.points, shifted[scene.kept])


@pytest.mark.parametrize(
    ("cloud", "options", "message"),
    [
        (PointCloud(np.zeros((0, 3)), {"red": np.zeros(0)}), {}, "the scan is empty"),
        (
            PointCloud(np.full((4, 3), np.nan), {"red": np.zeros(4)}),
            {"drop_invalid": True},
            "all 4 points have NaN",
        ),
        (
            PointCloud(np.random.default_rng(0).random((9, 3)) / 1000, {"red": np.zeros(9)}),
            {},
            "all 9 points fall into one voxel of 0.04 m",
        ),
        (scan(), {"max_points": 10}, "voxels of 0.04 m, more than 10"),
        (PointCloud(scan().points), {}, "'red'"),
    ],
)
def test_scans_that_cannot_be_prepared_say_why(cloud, options, message):
    with pytest.raises(InputError, match=message):
        prepare_scene(cloud, CONFIG, **options)


def test_an_airborne_tile_is_prepared_whole(lidar_dir):
    from dela.cloud.formats import read_cloud

    cloud = read_cloud(sorted(lidar_dir.glob("*.laz"))[0])
    config = dataclasses.replace(
        PRESETS["s3dis"],
        grid=(0.5, 1.0, 2.0, 4.0),
        attributes=(AttributeInfo("height_above_ground", 10.0),),
    )
    scene = prepare_scene(cloud, config)
    scene.pyramid.validate()
    assert scene.pyramid.points.min() >= 0
    assert np.abs(scene.origin).max() > 1e5
    back = scene.pyramid.points[scene.voxel_of_point] + scene.origin
    assert np.abs(back - cloud.points).max() < 0.51
