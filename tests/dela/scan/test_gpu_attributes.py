"""Attributes made on the device are those of the CPU, and those of float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dela.cloud.formats import find_scans, read_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.families import resolve_config
from dela.model.contract import AttributeInfo
from dela.plugins.cuda.driver import CudaUnavailable, Device, Stream
from dela.pyramid import gpu_ground
from dela.pyramid.gpu import PyramidBuilder
from dela.scan.attributes import compute_attributes, height_above_ground
from dela.scan.gpu_attributes import scan_columns
from dela.scan.gpu_votes import GpuScan

rng = np.random.default_rng(8)
UTM = np.array([640_000.25, 5_100_000.5, 312.7])
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?", "f2", ">i4", ">f8")


@pytest.fixture
def cuda(emulated_cuda):
    emulated_cuda.check_initialised = True
    emulated_cuda.defer = True
    emulated_cuda.order = "shuffled"
    return emulated_cuda


def cloud_of(columns: dict[str, np.ndarray], n: int) -> PointCloud:
    return PointCloud(rng.random((n, 3)) * [6, 6, 3] + UTM, columns)


def made(cloud: PointCloud, infos: list[AttributeInfo]) -> np.ndarray:
    """Attributes [N, F] as the device makes them."""
    config = resolve_config("s3dis", attributes=tuple(infos), grid=(0.1, 0.2, 0.4, 0.8))
    builder = PyramidBuilder(config, Stream(Device()))
    scan = GpuScan.of(builder, cloud.points, scan_columns(cloud, infos))
    return scan.voxels.scan_attributes.to_host(builder.stream)


def test_columns_of_every_dtype_are_those_of_the_cpu(cuda):
    n, columns, infos = 300, {}, []
    for number, name in enumerate(DTYPES):
        dtype = np.dtype(name)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = rng.integers(limits.min, limits.max, n, dtype.newbyteorder("="), endpoint=True)
        else:
            values = rng.normal(0, 50, n) if dtype.kind == "f" else rng.random(n) > 0.5
        columns[f"column {number}"] = values.astype(dtype)
        scale = float(np.abs(values.astype(np.float64)).max()) / 6  # some are cut
        infos.append(AttributeInfo(f"column {number}", scale, 0.3 * scale))
    cloud = cloud_of(columns, n)
    found = made(cloud, infos)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, compute_attributes(cloud, infos))
    assert (np.abs(found) == 5).any()
    for at, info in enumerate(infos):
        wide = columns[info.name].astype(np.float64)
        expected = np.clip((wide - info.offset) / info.scale, -5, 5)
        np.testing.assert_allclose(found[:, at], expected, rtol=1e-7, atol=1e-7)


def test_heights_and_logarithms_are_those_of_the_cpu(cuda):
    n = 400
    values = np.r_[rng.normal(0, 40, n - 4), 0.0, -0.0, np.inf, -np.inf]
    cloud = cloud_of({"depth": values, "many": rng.integers(0, 9, 2 * n)[::2]}, n)
    infos = [
        AttributeInfo("height", 3.3, 0.2),
        AttributeInfo("depth", 2.0, 0.5, log=0.1),
        AttributeInfo("many", -4.0),
    ]
    found, expected = made(cloud, infos), compute_attributes(cloud, infos)
    for at, info in enumerate(infos):
        if info.log:
            np.testing.assert_array_max_ulp(found[:, at], expected[:, at], 1)
        else:
            np.testing.assert_array_equal(found[:, at], expected[:, at])
    with np.errstate(invalid="ignore"):
        log = (np.sign(values) * np.log1p(np.abs(values) / 0.1) - 0.5) / 2
    np.testing.assert_allclose(found[:, 1], np.clip(log, -5, 5), rtol=1e-6, atol=1e-6)


def terrain(n: int, side: float, generator: np.random.Generator) -> np.ndarray:
    """Hills with a house, trees, a pit below the ground and a part without points."""
    x, y = generator.uniform(0, side, (2, n))
    z = 2 * np.sin(x / 9) * np.cos(y / 7) + 0.03 * generator.random(n)
    house = (np.abs(x - side / 2) < 4) & (np.abs(y - side / 2) < 5)
    z = np.where(house, 6.0, z)
    z += np.where(generator.random(n) < 0.2, generator.uniform(0, 8, n), 0.0)
    z[:2] = -7.0
    there = ~((np.abs(x - side / 4) < side / 9) & (y < side / 2))
    points = np.stack([x, y, z], axis=1)[there]
    return points + UTM


FAR = np.array([190.0, 150.0, 3.0])
SCENES = {
    "hills": lambda: terrain(3000, 40.0, np.random.default_rng(1)),
    "hills to the centimeter": lambda: np.round(terrain(3000, 30.0, np.random.default_rng(2)), 2),
    "a narrow strip": lambda: rng.random((400, 3)) * [90, 0.7, 2],
    "along y": lambda: rng.random((400, 3)) * [0.3, 70, 1],
    "within one cell": lambda: rng.random((50, 3)) * 0.9,
    "one point": lambda: np.array([[3.5, 2.5, 1.0]]),
    "far apart": lambda: np.r_[rng.random((90, 3)) * 5, rng.random((4, 3)) + FAR],
    "all above": lambda: np.round(rng.random((200, 3)) * [6, 6, 30]),
}


@pytest.mark.parametrize("name", SCENES)
def test_heights_above_ground_are_those_of_the_cpu(cuda, name):
    cloud = PointCloud(SCENES[name]())
    if len(cloud) > 1:
        assert made(cloud, []).shape == (len(cloud), 0)
    infos = [AttributeInfo("height_above_ground", 30.0), AttributeInfo("height")]
    infos.append(AttributeInfo("height_above_ground", 2.0, 0.1, log=0.3))
    before = cuda.count("bytes_up")
    found = made(cloud, infos)
    assert cuda.count("bytes_up") - before == cloud.points.nbytes
    expected = compute_attributes(cloud, infos)
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-9)
    heights = height_above_ground(cloud.points)
    np.testing.assert_allclose(30 * found[:, 0], heights, rtol=2e-7, atol=1e-7)


def test_heights_of_a_lidar_tile_are_those_of_the_cpu(cuda, lidar_dir: Path):
    cloud = read_cloud(find_scans([lidar_dir])[0])
    middle = cloud.points.mean(axis=0)
    near = (np.abs(cloud.points - middle) < 35)[:, :2].all(axis=1)
    cloud = PointCloud(cloud.points[near][::5])
    assert len(cloud) > 1000
    infos = [AttributeInfo("height_above_ground", 10.0)]
    found, expected = made(cloud, infos), compute_attributes(cloud, infos)
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-9)


@pytest.mark.gpu
def test_heights_on_a_gpu():
    try:
        Device()
    except CudaUnavailable as error:
        pytest.skip(str(error))
    infos = [AttributeInfo("height_above_ground", 10.0), AttributeInfo("height", 3.0)]
    for side in (60.0, 500.0):
        cloud = PointCloud(terrain(300_000, side, np.random.default_rng(4)))
        found, expected = made(cloud, infos), compute_attributes(cloud, infos)
        np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-9)


def test_wide_scans_after_small_ones(cuda, monkeypatch):
    monkeypatch.setattr(gpu_ground, "FIRST_CAPACITY", 1000)
    monkeypatch.setattr(gpu_ground, "MOST_CAPACITY", 4000)
    infos = [AttributeInfo("height_above_ground", 3.0)]
    config = resolve_config("s3dis", attributes=tuple(infos))
    builder, waits = PyramidBuilder(config, Stream(Device())), []
    for side in (20.0, 50.0, 80.0, 52.0):
        cloud = PointCloud(terrain(400, side, np.random.default_rng(3)))
        before = cuda.count("synchronisations")
        scan = GpuScan.of(builder, cloud.points, scan_columns(cloud, infos))
        waits.append(cuda.count("synchronisations") - before)
        found = scan.voxels.scan_attributes.to_host(builder.stream)
        expected = compute_attributes(cloud, infos)
        np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-9)
    assert waits == [1, 2, 2, 1]


@pytest.mark.parametrize("count", [0, 1, 8, 9, 17])
def test_any_number_of_columns(cuda, count):
    columns = {f"column {number}": rng.integers(0, 99, 50) for number in range(count)}
    cloud, infos = cloud_of(columns, 50), [AttributeInfo(name, 33.0) for name in columns]
    np.testing.assert_array_equal(made(cloud, infos), compute_attributes(cloud, infos))


def test_a_column_of_several_attributes_goes_up_once(cuda):
    values = rng.random(500)
    cloud = cloud_of({"depth": values}, 500)
    infos = [AttributeInfo("depth", 2.0), AttributeInfo("depth", 1.0, log=0.2)]
    before = cuda.count("bytes_up")
    made(cloud, infos)
    assert cuda.count("bytes_up") - before == cloud.points.nbytes + values.nbytes


@pytest.mark.parametrize("missing", ["depth", "nothing", "normal_x"])
def test_columns_that_cannot_be_used_are_refused_in_the_cpus_words(cuda, missing):
    values = rng.random(60)
    values[[3, 9]] = np.nan
    cloud = cloud_of({"fine": rng.random(60), "depth": values}, 60)
    infos, messages = [AttributeInfo("fine"), AttributeInfo(missing)], []
    for make in (made, compute_attributes):
        with pytest.raises(InputError) as refused:
            make(cloud, infos)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]
