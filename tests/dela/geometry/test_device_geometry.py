"""Geometry and pyramid in device memory give the CPU's answers, value for value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.families.dela.config import PRESETS, DelaConfig
from dela.geometry import cpu as geometry
from dela.geometry.gpu import GpuGeometry
from dela.model.contract import AttributeInfo, ClassInfo
from dela.plugins.cuda.arrays import DeviceArray, as_device_array
from dela.plugins.cuda.driver import CudaUnavailable, Device, Stream
from dela.pyramid.cpu import build_pyramid
from dela.pyramid.gpu import PyramidBuilder, build_device_pyramid
from dela.scan.voxels import Voxels
from whole_scene import prepare_scene

# The fixture is the same for every example; what an example leaves behind is scratch memory.
examples = settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
rng = np.random.default_rng(5)


def lattice(side: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3) * 0.5


CLOUDS = {
    "one point": np.zeros((1, 3)),
    "fewer than k": rng.random((5, 3)),
    "random": rng.random((400, 3)) * 5,
    "duplicates": np.repeat(rng.random((3, 3)), 40, axis=0),
    "one place": np.full((90, 3), 2.5),
    "line": np.linspace(0, 30, 200)[:, None] * [1, 0, 0],
    "plane": rng.random((250, 3)) * [9, 9, 0],
    "lattice full of ties": rng.permutation(lattice(6)),
    "circle of ties but for rounding": np.stack(
        [np.sin(np.arange(90)), np.cos(np.arange(90)), np.zeros(90)], axis=1
    )
    * (np.arange(90) > 0)[:, None],
    "far outliers": np.r_[rng.random((200, 3)), rng.random((3, 3)) * 1e6],
}


@pytest.fixture
def device(emulated_cuda) -> GpuGeometry:
    emulated_cuda.check_initialised = True
    emulated_cuda.defer = True
    emulated_cuda.order = "shuffled"
    return GpuGeometry(Stream(Device()))


def up(array: np.ndarray, device: GpuGeometry) -> DeviceArray:
    return DeviceArray.from_host(array, device.stream)


def down(array: DeviceArray, device: GpuGeometry) -> np.ndarray:
    return array.to_host(device.stream)


def assert_same_grid(device: GpuGeometry, points: np.ndarray, size: float, **options) -> None:
    expected = geometry.voxel_grid(points, size, **options)
    found = device.voxel_grid(up(points, device), size, **options)
    np.testing.assert_array_equal(down(found.kept, device), expected.kept)
    np.testing.assert_array_equal(down(found.voxel_of_point, device), expected.voxel_of_point)


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxel_grid_is_that_of_the_cpu(device, name, dtype):
    points = CLOUDS[name].astype(dtype)
    assert_same_grid(device, points, 0.5, pick=3)
    assert_same_grid(device, points, 2.0, pick=None, seed=11)
    assert_same_grid(device, points, 0.9, origin=np.array([-1.3, 2.0, 0.05]))


def test_voxel_grid_of_utm_coordinates(device):
    points = rng.random((500, 3)) * [40, 40, 8] + [512_345.67, 5_412_345.67, 250.0]
    assert_same_grid(device, points, 0.4)
    assert_same_grid(device, np.round(points, 2), 0.01)


@pytest.mark.parametrize("size", [0.05, 0.1, 0.3, 0.7])
def test_voxel_grid_of_a_ruler(device, size):
    # 0.3 / 0.1 is below 3 in double, 0.3 * 10 is not: the very operation counts.
    assert_same_grid(device, np.arange(300)[:, None] * 0.05 * np.ones(3), size)


def test_voxel_grid_of_more_than_63_bits(device):
    points = np.r_[rng.random((60, 3)) * 1e-3, rng.random((5, 3)) * 1e5]
    assert_same_grid(device, points, 1e-5, pick=1)


def test_voxel_grid_over_several_tiles_of_the_sort(device):
    points = np.round(rng.random((4500, 3)) * 9, 1)
    assert_same_grid(device, points, 0.5, pick=2)


@examples
@given(
    st.lists(st.tuples(*[st.integers(-40, 40)] * 3), min_size=1, max_size=60),
    st.sampled_from([0.1, 0.25, 1.0, 3.0]),
    st.integers(0, 4),
)
def test_voxel_grid_of_points_on_borders(device, places, size, pick):
    # Multiples of 0.05 lie on the borders of most of these cells, or a rounding beside them.
    assert_same_grid(device, np.array(places) * 0.05, size, pick=pick)


@pytest.mark.parametrize("name", CLOUDS)
def test_neighbors_are_those_of_the_cpu(device, name):
    points = (CLOUDS[name] - CLOUDS[name].min(axis=0)).astype(np.float32)
    for k in (1, 9, 40):
        found = down(device.knn(up(points, device), k), device)
        np.testing.assert_array_equal(found, geometry.knn(points, k))
    queries = points[::3] + np.float32(0.01)
    for k in (1, 4):
        found = down(device.knn(up(points, device), k, up(queries, device)), device)
        np.testing.assert_array_equal(found, geometry.knn(points, k, queries))
    found = down(device.nearest(up(points, device), up(queries, device)), device)
    np.testing.assert_array_equal(found, geometry.nearest(points, queries))


def test_neighbors_by_brute_force(device):
    # Whole numbers: distances are exact, so the definition can be computed without rounding.
    points = rng.integers(0, 9, (250, 3)).astype(np.float32)
    distance = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distance, -1)
    expected = np.argsort(distance, axis=1, kind="stable")[:, :12]
    np.testing.assert_array_equal(down(device.knn(up(points, device), 12), device), expected)


def test_neighbors_of_packed_clouds(device):
    lengths, query_lengths = [40, 1, 0, 200, 3], [7, 2, 0, 1, 0]
    points = rng.random((sum(lengths), 3)).astype(np.float32)
    queries = rng.random((sum(query_lengths), 3)).astype(np.float32)
    found = device.knn(up(points, device), 6, lengths=lengths)
    np.testing.assert_array_equal(down(found, device), geometry.knn(points, 6, lengths=lengths))
    found = device.knn(up(points, device), 3, up(queries, device), lengths, query_lengths)
    expected = geometry.knn(points, 3, queries, lengths, query_lengths)
    np.testing.assert_array_equal(down(found, device), expected)


@examples
@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 3), min_size=1, max_size=50),
    st.integers(1, 36),
)
def test_neighbors_of_any_points(device, places, k):
    points = np.array(places, dtype=np.float32)
    found = down(device.knn(up(points, device), k), device)
    np.testing.assert_array_equal(found, geometry.knn(points, k))


@pytest.mark.parametrize("ordered", [False, True])
def test_the_order_of_the_points_changes_nothing(device, ordered):
    points = (rng.random((1100, 3)) * 4).astype(np.float32)
    points[7] = 1e6  # alone in its part of the curve
    tree = device.tree(up(points, device), ordered)
    np.testing.assert_array_equal(down(device.search(tree, 8), device), geometry.knn(points, 8))


def test_gathered_rows(device):
    values = rng.integers(0, 99, (10, 3)).astype(np.int32)
    rows = np.array([3, 3, -1, 9, 10, 0], dtype=np.int32)
    found = down(device.gather(up(values, device), up(rows, device), missing=-7), device)
    expected = np.full((6, 3), -7)
    expected[[0, 1, 3, 5]] = values[[3, 3, 9, 0]]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda g, p: g.voxel_grid(p(np.zeros((3, 3))), 0.0), "voxel size is 0.0"),
        (lambda g, p: g.voxel_grid(p(np.zeros((3, 3))), 1.0, pick=-2), "pick is -2"),
        (lambda g, p: g.voxel_grid(p(np.full((3, 3), np.nan)), 1.0), "3 of 3 points have NaN"),
        (lambda g, p: g.voxel_grid(p(np.eye(3) * 1e9), 1e-9), "more than 2\\^42"),
        (lambda g, p: g.voxel_grid(p(np.zeros((3, 2))), 1.0), r"shape \[3, 2\]"),
        (lambda g, p: g.knn(p(np.zeros((3, 3))), 2), "points are float64"),
        (lambda g, p: g.knn(p(np.zeros((0, 3), np.float32)), 2), "needs at least one point"),
        (lambda g, p: g.knn(p(np.zeros((3, 3), np.float32)), 0), "k is 0"),
        (lambda g, p: g.knn(p(np.full((3, 3), 1e19, np.float32)), 2), "a coordinate is 1e\\+19"),
        (lambda g, p: g.knn(p(np.zeros((3, 3), np.float32)), 2, lengths=[1, 1]), "add up to the 3"),
    ],
)
def test_what_cannot_be_used_is_said(device, call, message):
    with pytest.raises(InputError, match=message):
        call(device, lambda array: up(array, device))


def network(stages: int = 3, attributes: int = 1) -> DelaConfig:
    names = ("height", "intensity")[:attributes]
    return DelaConfig(
        task="segmentation",
        classes=(ClassInfo("a", 0), ClassInfo("b", 1)),
        dims=(8, 16, 16)[:stages],
        depths=(1, 1, 1)[:stages],
        neighbors=(6, 8, 40)[:stages],
        spread=(1.0, 2.0, 3.0)[:stages],
        coordinate_scale=40.0,
        grid=(0.25, 0.5, 1.0)[:stages],
        head_dim=8,
        attributes=tuple(AttributeInfo(name) for name in names),
    )


def assert_same_pyramid(found, expected, device: GpuGeometry) -> None:
    assert found.lengths == expected.lengths
    for (name, theirs), (expected_name, ours) in zip(
        found.inputs(), expected.inputs(), strict=True
    ):
        assert name == expected_name
        assert theirs.dtype == ours.dtype
        np.testing.assert_array_equal(down(theirs, device), ours, err_msg=name)


@pytest.mark.parametrize("origin", [None, np.zeros(3), np.array([0.3, -7.1, 2.2])])
@pytest.mark.parametrize("name", ["one point", "fewer than k", "random", "one place", "plane"])
def test_the_pyramid_is_that_of_the_cpu(device, name, origin):
    config, points = network(), CLOUDS[name].astype(np.float32)
    attributes = rng.random((len(points), 1)).astype(np.float32)
    builder = PyramidBuilder(config, device.stream)
    for pick in (0, 2):
        found = builder.pyramid(
            up(points, device), up(attributes, device), pick=pick, origin=origin
        )
        expected = build_pyramid(points, attributes, config, pick=pick, origin=origin)
        assert_same_pyramid(found, expected, device)


@pytest.mark.parametrize("where", [lambda points, device: points, up])
def test_a_pyramid_of_one_stage_and_no_attributes(device, where):
    config, points = network(stages=1, attributes=0), CLOUDS["random"].astype(np.float32)
    found = build_device_pyramid(where(points, device), None, config, device.stream)
    assert_same_pyramid(found, build_pyramid(points, None, config), device)


def test_another_stream_waits_for_the_pyramid_it_takes(device):
    config, points = network(attributes=0), CLOUDS["random"].astype(np.float32)
    expected = build_pyramid(points, None, config).neighbors[-1]
    builder, other = PyramidBuilder(config, device.stream), Stream(device.stream.device)
    # Allocating may wait for the device, so all memory is there before, with other values.
    builder.pyramid(points[::-1].copy())
    copy = DeviceArray.from_host(np.zeros_like(expected), other)
    found = builder.pyramid(points)
    copy.copy_from(as_device_array(found.neighbors[-1], other), other)
    np.testing.assert_array_equal(copy.to_host(other), expected)


def test_the_voxels_of_a_scan_and_the_way_back(device):
    config = network()
    points = rng.random((900, 3)) * [6, 6, 2] + [640_000.25, 5_100_000.5, 300.0]
    attributes = rng.random((len(points), 1)).astype(np.float32)
    builder = PyramidBuilder(config, device.stream)
    voxels = builder.voxels(points, attributes)
    scene = prepare_scene(PointCloud(points), network(attributes=0))
    np.testing.assert_array_equal(down(voxels.kept, device), scene.kept)
    np.testing.assert_array_equal(voxels.origin, scene.origin)
    of_cpu = Voxels.of(PointCloud(points), attributes, config)
    np.testing.assert_array_equal(down(voxels.points, device), of_cpu.points)
    whole = of_cpu.cut(config, 10**6)
    assert len(whole) == 1
    assert_same_pyramid(builder.tile(voxels), of_cpu.inputs(whole[0], config), device)

    labels = rng.integers(0, 9, len(scene.kept)).astype(np.int32)
    for count in (len(points), 300, 0):
        of_points = device.empty((count,), np.int32)
        builder.spread(up(labels, device), voxels, of_points)
        expected = labels[scene.voxel_of_point[:count]]
        np.testing.assert_array_equal(down(of_points, device), expected)


def test_scans_of_any_extent_after_one_another(device):
    config = network(attributes=0)
    builder = PyramidBuilder(config, device.stream)
    for extent in (4.0, 3000.0, 4.0, 3000.0, 2e6, 50.0):  # the last but one: 2^23 cells on an axis
        points = rng.random((300, 3)) * [extent, extent, 2] + [640_000.25, 5_100_000.5, 300.0]
        points[::3] = points[0] + rng.random((100, 3))
        voxels = builder.voxels(points)
        of_cpu = Voxels.of(PointCloud(points), np.zeros((300, 0), np.float32), config)
        np.testing.assert_array_equal(down(voxels.points, device), of_cpu.points)
        found_voxel = down(voxels.voxel_of_point, device)
        np.testing.assert_array_equal(found_voxel, of_cpu.voxel_of_point)
        (whole,) = of_cpu.cut(config, 10**6)
        assert_same_pyramid(builder.tile(voxels), of_cpu.inputs(whole, config), device)


def test_a_scan_waits_once_unless_it_is_larger_than_any_before(device, emulated_cuda):
    builder = PyramidBuilder(network(attributes=0), device.stream)
    waits = []
    for extent in (4.0, 3000.0, 4.0, 3000.0):
        before = emulated_cuda.count("synchronisations")
        builder.voxels(rng.random((50, 3)) * extent)
        waits.append(emulated_cuda.count("synchronisations") - before)
    assert waits == [1, 2, 1, 1]


def test_a_look_between_two_pyramids_of_a_scan(device):
    config, points = network(attributes=0), rng.random((700, 3)) * [5, 5, 1]
    builder = PyramidBuilder(config, device.stream)
    voxels = builder.voxels(points)
    for pick in (1, 0):
        of_cpu = Voxels.of(PointCloud(points), np.zeros((700, 0), np.float32), config, pick)
        (whole,) = of_cpu.cut(config, 10**6)
        seen = builder.look(voxels, pick) if pick else voxels
        assert_same_pyramid(builder.tile(seen), of_cpu.inputs(whole, config), device)


def test_nearest_of_more_points_than_a_block_merges_boxes_of(device):
    points = (rng.random((140_000, 3)) * [90, 90, 4]).astype(np.float32)
    points = points[np.argsort(points[:, 0])]
    queries = points[::2800] + np.float32(0.013)
    tree = device.tree(up(points, device), ordered=True)
    asked = device.tree(up(queries, device), name="queries")
    found = down(device.search(tree, 1, asked), device)
    np.testing.assert_array_equal(found[:, 0], geometry.nearest(points, queries))


def test_tiles_of_a_scan(device):
    config = network()
    points = rng.random((1200, 3)) * [8, 8, 1]
    attributes = rng.random((len(points), 1)).astype(np.float32)
    of_cpu = Voxels.of(PointCloud(points), attributes, config, pick=1)
    builder = PyramidBuilder(config, device.stream)
    voxels = builder.look(builder.voxels(points, attributes), 1)
    tiles = of_cpu.cut(config, 400, context=0.5)
    assert len(tiles) > 2
    for tile in tiles[:2]:
        found = builder.tile(voxels, tile.rows)
        assert_same_pyramid(found, of_cpu.inputs(tile, config), device)


def test_a_second_pyramid_of_no_more_points_allocates_nothing(device, emulated_cuda):
    builder = PyramidBuilder(network(), device.stream)
    sets = []
    for count in (400, 350, 20):
        points = CLOUDS["random"][:count].astype(np.float32)
        sets.append((up(points, device), up(np.zeros((count, 1), np.float32), device)))
    builder.pyramid(*sets[0])
    before = emulated_cuda.count("allocations")
    for one in sets[1:]:
        builder.pyramid(*one)
    assert emulated_cuda.count("allocations") == before


@pytest.mark.parametrize(
    "points,attributes,message",
    [
        (np.zeros((0, 3), np.float32), np.zeros((0, 1), np.float32), "the cloud is empty"),
        (np.zeros((2, 3), np.float32), np.zeros((3, 1), np.float32), r"shape \[3, 1\]"),
        (np.zeros((2, 3), np.float32), np.full((2, 1), np.inf, np.float32), "2 of 2 points have"),
        (np.full((2, 3), 2e18, np.float32), np.zeros((2, 1), np.float32), "a coordinate is 2e"),
    ],
)
def test_clouds_that_cannot_be_used_are_refused(device, points, attributes, message):
    builder = PyramidBuilder(network(), device.stream)
    with pytest.raises(InputError, match=message):
        builder.pyramid(up(points, device), up(attributes, device))


def test_scans_that_cannot_be_used_are_refused(device):
    builder = PyramidBuilder(network(attributes=0), device.stream)
    with pytest.raises(InputError, match="all 4 points fall into one voxel"):
        builder.voxels(np.full((4, 3), 5.0))
    with pytest.raises(InputError, match="the scan is empty"):
        builder.voxels(np.zeros((0, 3)))
    with pytest.raises(InputError, match="pick is -1"):
        builder.look(builder.voxels(np.eye(3)), -1)
    with pytest.raises(InputError, match="the tile is empty"):
        builder.tile(builder.voxels(np.eye(3)), np.zeros(0, int))
    with pytest.raises(InputError, match="classification are built on the CPU"):
        PyramidBuilder(PRESETS["scanobjectnn"], device.stream)


# ------------------------------------------------------------------------ a real GPU


@pytest.fixture
def gpu() -> GpuGeometry:
    try:
        return GpuGeometry(Stream(Device()))
    except CudaUnavailable as error:
        pytest.skip(str(error))


LARGE = np.round(rng.random((60_000, 3)) * [60, 60, 6] + [640_000, 5_100_000, 200], 2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CLOUDS, "large"])
def test_grids_and_neighbors_on_a_gpu(gpu, name):
    points = CLOUDS.get(name, LARGE)
    for size in (0.1, 0.5, 2.0):
        assert_same_grid(gpu, points, size, pick=1)
        assert_same_grid(gpu, points, size, origin=np.array([-1.3, 2.0, 0.05]))
    near = (points - points.min(axis=0)).astype(np.float32)
    for k in (1, 24, 32, 40):
        found = down(gpu.knn(up(near, gpu), k), gpu)
        np.testing.assert_array_equal(found, geometry.knn(near, k))


@pytest.mark.gpu
def test_a_scan_on_a_gpu(gpu):
    config = network()
    attributes = rng.random((len(LARGE), 1)).astype(np.float32)
    of_cpu = Voxels.of(PointCloud(LARGE), attributes, config)
    builder = PyramidBuilder(config, gpu.stream)
    voxels = builder.voxels(LARGE, attributes)
    for tile in of_cpu.cut(config, 20_000):
        expected = of_cpu.inputs(tile, config)
        assert_same_pyramid(builder.tile(voxels, tile.rows), expected, gpu)
