"""Attributes made on the device are those of the CPU, and those of float64."""

from __future__ import annotations

import numpy as np
import pytest

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.families import resolve_config
from dela.model.contract import AttributeInfo
from dela.plugins.cuda.driver import Device, Stream
from dela.pyramid.gpu import PyramidBuilder
from dela.scan.attributes import compute_attributes
from dela.scan.gpu_attributes import scan_columns
from dela.scan.gpu_votes import GpuScan

rng = np.random.default_rng(8)
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?", "f2", ">i4", ">f8")


@pytest.fixture
def cuda(emulated_cuda):
    emulated_cuda.check_initialised = True
    emulated_cuda.defer = True
    emulated_cuda.order = "shuffled"
    return emulated_cuda


def cloud_of(columns: dict[str, np.ndarray], n: int) -> PointCloud:
    points = rng.random((n, 3)) * [6, 6, 3] + [640_000.25, 5_100_000.5, 312.7]
    return PointCloud(points, columns)


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
        AttributeInfo("height_above_ground", 2.0, log=0.3),
        AttributeInfo("height_above_ground", 3.0),
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
