import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela.cloud.formats import read_cloud, write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.scan.context import ContextFiles, context_points, join_clouds

UTM = np.array([770_500.0, 6_277_550.0, 120.0])


def cloud(points, **columns):
    return PointCloud(np.asarray(points, dtype=np.float64) + UTM, columns)


def test_joined_clouds_keep_order_and_the_columns_all_have():
    first = cloud([[0, 0, 0], [1, 0, 0]], intensity=np.array([5, 6]), red=np.array([1, 2]))
    second = cloud([[2, 0, 0]], intensity=np.array([7]))
    joined = join_clouds([first, second])
    assert list(joined.columns) == ["intensity"]
    np.testing.assert_array_equal(joined.columns["intensity"], [5, 6, 7])
    np.testing.assert_array_equal(joined.points[:, 0] - UTM[0], [0, 1, 2])


def test_joining_nothing_is_an_error():
    with pytest.raises(InputError, match="no scan to join"):
        join_clouds([])


@given(
    width=st.floats(0, 60),
    seed=st.integers(0, 2**16),
)
def test_surroundings_are_the_points_within_the_widened_box(width, seed):
    generator = np.random.default_rng(seed)
    scan = cloud(generator.uniform(0, 50, (30, 3)))
    others = [cloud(generator.uniform(-80, 130, (40, 3)), index=np.arange(40)) for _ in range(2)]
    found = context_points(scan, others, width)
    low, high = scan.points[:, :2].min(0), scan.points[:, :2].max(0)
    expected = [
        point
        for other in others
        for point in other.points
        if all(low[a] - width <= point[a] <= high[a] + width for a in (0, 1))
    ]
    np.testing.assert_array_equal(found.points, np.reshape(expected, (-1, 3)))


def test_points_that_are_not_finite_neither_count_nor_come_along():
    scan = cloud([[0, 0, 0], [10, 10, 0], [np.nan, 0, 0]])
    other = cloud([[11, 5, 0], [11, 5, np.inf], [np.nan, 5, 0]])
    found = context_points(scan, [other], 2.0)
    np.testing.assert_array_equal(found.points - UTM, [[11, 5, 0]])


@pytest.mark.parametrize("points", [np.zeros((0, 3)), [[np.nan, np.nan, np.nan]]])
def test_a_scan_without_a_finite_point_has_no_surroundings(points):
    assert len(context_points(cloud(points), [cloud([[0, 0, 0]])], 100.0)) == 0


def test_nothing_near_gives_an_empty_cloud():
    assert len(context_points(cloud([[0, 0, 0]]), [cloud([[500, 0, 0]])], 10.0)) == 0
    assert len(context_points(cloud([[0, 0, 0]]), [], 10.0)) == 0


@pytest.mark.parametrize("width", [-1.0, float("nan")])
def test_a_width_below_zero_is_refused(width):
    with pytest.raises(InputError, match="width of the surroundings"):
        context_points(cloud([[0, 0, 0]]), [], width)


@pytest.mark.parametrize("suffix", [".laz", ".ply"])
def test_context_files_give_what_lies_around_a_file(tmp_path, suffix):
    generator = np.random.default_rng(0)
    tiles = {}
    for east in (0, 50, 500):
        points = generator.uniform((east, 0, 0), (east + 50, 50, 50), (200, 3)).round(2)
        path = tmp_path / f"{east}{suffix}"
        write_cloud(path, cloud(points))
        tiles[east] = (path, read_cloud(path))
    files = ContextFiles(path for path, _ in tiles.values())
    path, scan = tiles[0]
    found = files.points(path, scan, 12.0)
    expected = context_points(scan, [tiles[50][1]], 12.0)
    assert 20 < len(expected) < 80
    np.testing.assert_array_equal(found.points, expected.points)
    assert len(files.points(*tiles[500], 12.0)) == 0


def test_far_lidar_files_are_not_even_read(tmp_path):
    write_cloud(tmp_path / "near.laz", cloud([[0, 0, 0], [1, 1, 1]]))
    write_cloud(tmp_path / "far.laz", cloud([[900, 0, 0], [901, 1, 1]]))
    data = (tmp_path / "far.laz").read_bytes()
    files = ContextFiles(sorted(tmp_path.glob("*.laz")))
    (tmp_path / "far.laz").write_bytes(data[:-40])
    scan = read_cloud(tmp_path / "near.laz")
    assert len(files.points(tmp_path / "near.laz", scan, 10.0)) == 0
    with pytest.raises(InputError, match=r"far\.laz"):
        files.points(tmp_path / "near.laz", scan, 2000.0)
