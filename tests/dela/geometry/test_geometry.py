"""Voxel grid, neighbors and sampling against brute force in numpy, for every instruction set."""

from __future__ import annotations

import multiprocessing
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dela.errors import InputError
from dela.geometry.cpu import (
    LARGEST_COORDINATE,
    SearchTree,
    check_finite,
    farthest_point_sampling,
    knn,
    nearest,
    voxel_grid,
)
from dela.plugins import native


def available_isas() -> list[str]:
    names = []
    for name in native.ISA_NAMES:
        try:
            native.set_isa(name)
        except native.NativeLibraryError:
            continue
        names.append(name)
    native.set_isa("auto")
    return names


ISAS = available_isas()


@pytest.fixture(params=ISAS)
def isa(request):
    native.set_isa(request.param)
    yield request.param
    native.set_isa("auto")


KINDS = ("volume", "plane", "line", "lattice", "identical", "uneven", "far", "pairs")


def make_cloud(kind: str, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = rng.random((count, 3))
    if kind == "plane":
        points[:, 2] = 0.5
    elif kind == "line":
        points[:, :2] = 0.0
    elif kind == "lattice":
        points = np.round(points * 4)
    elif kind == "identical":
        points[:] = 3.25
    elif kind == "uneven":
        points = (points - 0.5) * 2.0 ** rng.uniform(-30, 10, (count, 1))
    elif kind == "far":
        points = points * 50 + 1e6
    elif kind == "pairs":
        points = np.repeat(points, 2, axis=0)[rng.permutation(2 * count)[:count]]
    return points.astype(np.float32)


def squared_distances(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float32, in the order of operations that decides ties."""
    x, y, z = ((queries[:, None, axis] - points[None, :, axis]) ** 2 for axis in range(3))
    return (x + y) + z


def brute_knn(points: np.ndarray, k: int, queries: np.ndarray | None = None) -> np.ndarray:
    distances = squared_distances(points if queries is None else queries, points)
    if queries is None:
        np.fill_diagonal(distances, -1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    missing = np.repeat(order[:, :1], k - order.shape[1], axis=1)
    return np.concatenate([order, missing], axis=1)


def brute_farthest(points: np.ndarray, count: int) -> np.ndarray:
    away = np.full(len(points), np.inf, np.float32)
    rows = [0]
    while len(rows) < count:
        away = np.minimum(away, squared_distances(points[rows[-1:]], points)[0])
        away[rows] = -1
        rows.append(int(away.argmax()))
    return np.array(rows)


def cells_of(points: np.ndarray, size: float) -> np.ndarray:
    points = points.astype(np.float64)
    return np.floor((points - points.min(axis=0)) / size)


def assert_is_voxel_grid(points: np.ndarray, size: float, grid) -> None:
    """Same voxel exactly where same cell; the kept point is a member of its voxel."""
    _, first, cell = np.unique(
        cells_of(points, size), axis=0, return_index=True, return_inverse=True
    )
    assert len(grid.kept) == len(first)
    assert np.array_equal(grid.voxel_of_point[grid.kept], np.arange(len(first)))
    pairs = np.unique(np.stack([cell.ravel(), grid.voxel_of_point], axis=1), axis=0)
    assert len(pairs) == len(first)


# ------------------------------------------------------------------------------------- neighbors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33, 600])
def test_neighbors_equal_brute_force(isa, kind, count):
    points = make_cloud(kind, count)
    queries = make_cloud(kind, 40, seed=1)
    for k in (1, 2, 24, 33, 150, 300):
        assert np.array_equal(knn(points, k), brute_knn(points, k)), k
        assert np.array_equal(knn(points, k, queries), brute_knn(points, k, queries)), k


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 400),
    k=st.integers(1, 64),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    offset=st.sampled_from([0.0, 1.0, 1e6]),
    levels=st.sampled_from([2, 7, 1000, 10**9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_neighbor_distances_are_the_smallest_in_float64(count, k, scale, offset, levels, seed):
    rng = np.random.default_rng(seed)
    points = (rng.integers(0, levels, (count, 3)) / levels * scale + offset).astype(np.float32)
    table = knn(points, k)
    exact = np.linalg.norm(points[:, None].astype(np.float64) - points[None], axis=2)
    reached = min(k, count)
    found = np.take_along_axis(exact, table[:, :reached], axis=1)
    best = np.sort(exact, axis=1)[:, :reached]
    assert np.allclose(found, best, rtol=1e-6, atol=0)
    assert np.array_equal(table[:, 0], np.arange(count))
    assert all(len(set(row)) == reached for row in table[:, :reached])


def test_a_point_is_its_own_first_neighbor_among_duplicates():
    points = np.zeros((5, 3), np.float32)
    assert knn(points, 3).tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 0, 1], [4, 0, 1]]


def test_missing_neighbors_are_filled_with_the_nearest():
    points = np.array([[0, 0, 0], [1, 0, 0]], np.float32)
    assert knn(points, 4).tolist() == [[0, 1, 0, 0], [1, 0, 1, 1]]
    assert knn(points, 3, np.array([[0.9, 0, 0]], np.float32)).tolist() == [[1, 0, 1]]


def test_packed_clouds_are_searched_each_on_its_own():
    clouds = [make_cloud("volume", n, seed=n) for n in (30, 1, 200)]
    queries = [make_cloud("volume", n, seed=n + 7) for n in (5, 3, 0)]
    lengths, query_lengths = [30, 1, 200], [5, 3, 0]
    packed = np.concatenate(clouds)
    starts = np.cumsum([0, *lengths])
    expected = [brute_knn(cloud, 8) + start for cloud, start in zip(clouds, starts, strict=False)]
    assert np.array_equal(knn(packed, 8, lengths=lengths), np.concatenate(expected))
    expected = [
        brute_knn(cloud, 1, query)[:, 0] + start
        for cloud, query, start in zip(clouds, queries, starts, strict=False)
    ]
    found = nearest(packed, np.concatenate(queries), lengths, query_lengths)
    assert np.array_equal(found, np.concatenate(expected))


def test_a_search_tree_answers_as_often_as_asked():
    points, queries = make_cloud("volume", 500), make_cloud("volume", 90, seed=3)
    tree, asked = SearchTree(points), SearchTree(queries)
    for k in (1, 9):
        assert np.array_equal(tree.knn(k), brute_knn(points, k))
        assert np.array_equal(tree.knn(k, asked), brute_knn(points, k, queries))
    assert len(tree) == 500


@pytest.mark.parametrize("kind", ["volume", "lattice", "uneven"])
def test_threads_and_instruction_sets_change_nothing(kind):
    points = make_cloud(kind, 9_000)
    results = []
    for name in ISAS:
        native.set_isa(name)
        for threads in (1, 3):
            grid = voxel_grid(points, 0.03, pick=None, seed=4, threads=threads)
            results.append(
                (
                    knn(points, 17, threads=threads),
                    nearest(points[::3], points, threads=threads),
                    grid.kept,
                    grid.voxel_of_point,
                    farthest_point_sampling(points, 200, [3_000] * 3, threads=threads),
                )
            )
    native.set_isa("auto")
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_voxels_of_a_cloud_large_enough_for_threads():
    points = np.random.default_rng(0).random((2_200_000, 3), dtype=np.float32)
    alone, shared = (voxel_grid(points, 0.02, None, 5, threads=threads) for threads in (1, 3))
    assert np.array_equal(alone.kept, shared.kept)
    assert np.array_equal(alone.voxel_of_point, shared.voxel_of_point)


def test_a_forked_child_searches_after_its_parent_did():
    points = make_cloud("volume", 40_000)
    expected = knn(points, 8, threads=2)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(0 if np.array_equal(knn(points, 8), expected) else 1)
    )
    child.start()
    child.join(timeout=60)
    finished = child.exitcode
    child.kill()
    assert finished == 0


def hard_clouds(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, count)
    elevation = np.resize(np.linspace(-0.4, 0.1, 64), count)
    away = np.minimum(1.8 / np.maximum(-np.sin(elevation), 1e-2), rng.uniform(5, 120, count))
    ring = [np.cos(elevation) * np.cos(angle), np.cos(elevation) * np.sin(angle), np.sin(elevation)]
    outliers = rng.uniform(-1e5, 1e5, (count // 100, 3))
    return {
        "identical": np.zeros((count, 3)),
        "two places": np.repeat([[0.0, 0, 0], [1e6, 0, 0]], count // 2, axis=0),
        "thirty octaves": rng.normal(size=(count, 3)) * 2.0 ** rng.uniform(-30, 0, (count, 1)),
        "cluster and outliers": np.concatenate([rng.normal(0, 0.01, (count, 3)), outliers]),
        "small clusters": np.repeat(rng.uniform(0, 1e4, (count // 10, 3)), 10, axis=0)
        + rng.normal(0, 0.01, (count, 3)),
        "lidar rings": np.stack(ring, axis=1) * away[:, None],
    }


def test_uneven_density_costs_no_more_than_a_few_even_clouds():
    count = 40_000

    def seconds(points: np.ndarray) -> float:
        points = points.astype(np.float32)
        best = np.inf
        for _ in range(2):
            start = time.process_time()
            knn(points, 24, threads=1)
            nearest(points[::4], points, threads=1)
            best = min(best, time.process_time() - start)
        return best

    even = seconds(np.random.default_rng(0).random((count, 3)))
    for name, points in hard_clouds(count).items():
        # A search that looks at every point takes several hundred times as long.
        assert seconds(points) < 25 * even, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn(np.zeros((0, 3), np.float32), 3), "at least one point, there are none"),
        (lambda: knn(np.zeros((4, 2), np.float32), 3), r"\[4, 2\]; expected \[N, 3\]"),
        (lambda: knn(np.zeros((4, 3), np.float32), 0), "k is 0"),
        (lambda: knn(np.full((4, 3), np.nan, np.float32), 2), "4 of 4 points have NaN"),
        (lambda: knn(np.full((4, 3), 3e18, np.float32), 2), "coordinate is 3e\\+18"),
        (lambda: knn(np.zeros((4, 3), np.float32), 2, lengths=[1, 2]), "must add up to the 4"),
        (lambda: knn(np.zeros((4, 3), np.float32), 2, lengths=[5, -1]), "must add up to the 4"),
        (
            lambda: knn(np.zeros((1, 3)), 2, np.zeros((4, 3)), [1, 0], [2, 2]),
            "cloud 1 has queries but no points",
        ),
        (lambda: knn(np.zeros((1, 3)), 2, np.zeros((4, 3)), [1]), "both lengths and query_lengths"),
        (lambda: nearest(np.zeros((1, 3)), np.full((4, 3), np.inf)), "4 of 4 points have NaN"),
    ],
)
def test_searches_that_cannot_be_answered_say_why(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_no_queries_give_no_rows():
    assert nearest(np.zeros((3, 3)), np.zeros((0, 3))).shape == (0,)


def test_coordinates_up_to_the_limit_are_searched():
    points = make_cloud("volume", 50) * np.float32(LARGEST_COORDINATE)
    assert np.array_equal(knn(points, 5), brute_knn(points, 5))


# ------------------------------------------------------------------------------------ voxel grid


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 500),
    size=st.floats(1e-3, 10),
    extent=st.sampled_from([0.0, 0.1, 5.0, 1e6]),
    offset=st.sampled_from([0.0, -3.0, 6.8e6]),
    pick=st.one_of(st.none(), st.integers(0, 10)),
    seed=st.integers(0, 2**32 - 1),
    single=st.booleans(),
)
def test_voxels_partition_the_points_by_cell(count, size, extent, offset, pick, seed, single):
    points = np.random.default_rng(seed).random((count, 3)) * extent + offset
    points = points.astype(np.float32 if single else np.float64)
    grid = voxel_grid(points, size, pick, seed)
    assert grid.kept.dtype == grid.voxel_of_point.dtype == np.int32
    assert_is_voxel_grid(points, size, grid)


@pytest.mark.parametrize("kind", KINDS)
def test_voxels_on_every_instruction_set(isa, kind):
    points = make_cloud(kind, 20_000)
    for dtype in (np.float32, np.float64):
        grid = voxel_grid(points.astype(dtype), 0.05)
        assert_is_voxel_grid(points, 0.05, grid)


def test_pick_counts_members_in_row_order_and_wraps():
    points = np.array([[0, 0, 0], [5, 0, 0], [0.1, 0, 0], [0.2, 0, 0]], np.float32)
    kept = [sorted(voxel_grid(points, 1.0, pick).kept.tolist()) for pick in range(4)]
    assert kept == [[0, 1], [1, 2], [1, 3], [0, 1]]


def test_random_pick_follows_the_seed_and_reaches_every_member():
    points = np.zeros((10, 3), np.float32)
    picks = [int(voxel_grid(points, 1.0, None, seed).kept[0]) for seed in range(200)]
    assert set(picks) == set(range(10))
    assert picks == [int(voxel_grid(points, 1.0, None, seed).kept[0]) for seed in range(200)]
    many = make_cloud("volume", 5000)
    unseeded = [voxel_grid(many, 0.2, None).kept.tobytes() for _ in range(3)]
    assert len(set(unseeded)) == 3


def test_voxels_come_in_morton_order():
    points = np.stack(np.meshgrid(*[np.arange(4.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = voxel_grid(points[np.random.default_rng(0).permutation(64)], 1.0)
    cells = points[np.random.default_rng(0).permutation(64)][grid.kept].astype(int)
    codes = sum(
        ((cells[:, axis] >> bit) & 1) << (3 * bit + axis) for axis in range(3) for bit in (0, 1)
    )
    assert np.array_equal(codes, np.arange(64))


@pytest.mark.parametrize(
    ("extent", "size"),
    [(1e6, 0.02), (1e6, 1e-6), (3e4, 0.01), (1e12, 1.0)],
    ids=["26 bits an axis", "40 bits", "22 bits", "40 bits, huge"],
)
def test_points_far_apart_need_no_table_of_cells(extent, size):
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.random((500, 3)) * size * 3, rng.random((500, 3)) * extent])
    points[-1] = extent
    assert_is_voxel_grid(points, size, voxel_grid(points, size))


@pytest.mark.parametrize("offset", [(0, 0, 0), (-3.3, 7.7, 0.05), (6.5e5, 6.8e6, -40)])
def test_cells_counted_from_an_origin_are_the_same_for_a_part_of_the_cloud(offset):
    points = np.random.default_rng(0).uniform(-5, 5, (3000, 3)) + offset
    origin = np.array(offset) - 0.3
    whole = voxel_grid(points, 0.7, origin=origin)
    cells = np.floor((points - origin) / 0.7)
    assert np.array_equal(cells[whole.kept][whole.voxel_of_point], cells)
    assert len(whole.kept) == len(np.unique(cells, axis=0))
    rows = np.flatnonzero(points[:, 0] > offset[0] + 1.234)
    part = voxel_grid(points[rows], 0.7, origin=origin)
    assert np.array_equal(cells[rows][part.kept][part.voxel_of_point], cells[rows])
    assert len(part.kept) == len(np.unique(cells[rows], axis=0))
    from_corner = voxel_grid(points, 0.7, origin=points.min(axis=0))
    plain = voxel_grid(points, 0.7)
    assert np.array_equal(from_corner.kept, plain.kept)
    assert np.array_equal(from_corner.voxel_of_point, plain.voxel_of_point)


def test_cells_too_many_to_count_from_an_origin_are_refused():
    points = np.array([[0.0, 0, 0], [1e300, 0, 0]])
    for size in (1.0, 1e-20):
        with pytest.raises(InputError, match=r"more than 2\^42|largest usable"):
            voxel_grid(points, size, origin=np.zeros(3))
    with pytest.raises(InputError, match="1 of 2 points have NaN"):
        voxel_grid(np.array([[0.0, 0, 0], [np.nan, 0, 0]]), 1.0, origin=np.zeros(3))


@pytest.mark.parametrize("number", [0, 1, 7])
def test_picked_points_are_those_of_a_search_with_that_pick(number):
    points = np.random.default_rng(1).uniform(0, 3, (2000, 3))
    assert np.array_equal(
        voxel_grid(points, 0.5).picked(number), voxel_grid(points, 0.5, pick=number).kept
    )


def test_large_coordinates_lose_nothing_in_float64():
    rng = np.random.default_rng(0)
    local = rng.integers(0, 500, (3000, 3)) / 64.0  # exact at any of these origins
    for origin in (0.0, 651_234.5, 6_860_000.25):
        grid = voxel_grid(local + origin, 0.125)
        assert np.array_equal(grid.kept, voxel_grid(local, 0.125).kept)
        assert np.array_equal(grid.voxel_of_point, voxel_grid(local, 0.125).voxel_of_point)


def test_no_points_make_no_voxels():
    grid = voxel_grid(np.zeros((0, 3)), 0.1)
    assert grid.kept.shape == grid.voxel_of_point.shape == (0,)


@pytest.mark.parametrize(
    ("points", "size", "pick", "message"),
    [
        (np.zeros((3, 2)), 1.0, 0, r"\[3, 2\]; expected \[N, 3\]"),
        (np.zeros((3, 3)), 0.0, 0, "voxel size is 0.0"),
        (np.zeros((3, 3)), float("nan"), 0, "voxel size is nan"),
        (np.zeros((3, 3)), 1.0, -1, "pick is -1"),
        (np.array([[0, 0, 0], [1, np.nan, 0], [np.inf, 0, 0]]), 1.0, 0, "2 of 3 points have NaN"),
        (np.array([[0.0, 0, 0], [1e9, 0, 0]]), 1e-6, 0, "more than 2\\^42 along an axis"),
    ],
)
def test_grids_that_cannot_be_made_say_why(points, size, pick, message):
    with pytest.raises(InputError, match=message):
        voxel_grid(points, size, pick)


# --------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("kind", ["volume", "plane", "lattice", "uneven", "pairs"])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 700])
def test_farthest_points_equal_brute_force(isa, kind, count):
    points = make_cloud(kind, count)
    wanted = min(count, 300)
    assert np.array_equal(farthest_point_sampling(points, wanted), brute_farthest(points, wanted))


def test_farthest_points_repeat_their_order_when_too_few():
    points = np.array([[0, 0, 0], [1, 0, 0], [5, 0, 0]], np.float32)
    assert farthest_point_sampling(points, 7).tolist() == [0, 2, 1, 0, 2, 1, 0]


def test_identical_points_are_each_taken_once():
    rows = farthest_point_sampling(np.ones((100, 3), np.float32), 100)
    assert rows.tolist() == list(range(100))


def test_farthest_points_of_packed_clouds():
    clouds = [make_cloud("volume", n, seed=n) for n in (40, 1, 90)]
    rows = farthest_point_sampling(np.concatenate(clouds), 30, [40, 1, 90])
    assert np.array_equal(rows[0], brute_farthest(clouds[0], 30))
    assert np.array_equal(rows[1], np.full(30, 40))
    assert np.array_equal(rows[2], brute_farthest(clouds[2], 30) + 41)


@pytest.mark.parametrize(
    ("points", "count", "lengths", "message"),
    [
        (np.zeros((0, 3)), 4, None, "at least one point"),
        (np.zeros((3, 3)), 0, None, "count is 0"),
        (np.zeros((3, 3)), 2, [3, 0], "at least one point in every cloud"),
        (np.full((3, 3), np.nan), 2, None, "3 of 3 points have NaN"),
    ],
)
def test_samplings_that_cannot_be_made_say_why(points, count, lengths, message):
    with pytest.raises(InputError, match=message):
        farthest_point_sampling(points, count, lengths)


# ------------------------------------------------------------------------------- finite and origin


def test_invalid_points_are_counted_or_dropped():
    points = np.zeros((5, 3))
    points[1, 2], points[3, 0] = np.nan, -np.inf
    with pytest.raises(InputError, match=r"2 of 5 points .*row 1.*--drop-invalid"):
        check_finite(points)
    assert check_finite(points, drop_invalid=True).tolist() == [True, False, True, False, True]


def test_finite_points_whose_sum_overflows_are_finite():
    assert check_finite(np.full((3, 3), 1e308)).all()
