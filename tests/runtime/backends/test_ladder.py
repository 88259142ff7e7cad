"""Sets of rows that clouds share: none too small, few of them, little padding."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dela.artifacts.metadata import ModelMetadata
from dela.artifacts.sidecar import Profile, SizeRange
from dela.cloud.formats import read_cloud
from dela.errors import EngineError, InputError
from dela.export.profiles import parse_profile
from dela.runtime.backends.graphs import MAX_GRAPHS
from dela.runtime.backends.ladder import Ladder, spread, waste
from dela.runtime.backends.profiles import bucket
from small_networks import CLASSIFICATION, CONFIG

PROFILE = Profile((SizeRange(100, 500, 10_000), SizeRange(1, 120, 4000), SizeRange(1, 40, 1500)))
SMALLER = Profile((SizeRange(1, 500, 1000), SizeRange(1, 120, 400), SizeRange(1, 40, 150)))

counts_in_profile = st.tuples(st.integers(0, 10_000), st.integers(0, 4000), st.integers(0, 1500))


def within(rows, profile) -> bool:
    return all(
        limits.min <= size <= limits.max for size, limits in zip(rows, profile.stages, strict=True)
    )


def holds(rows, counts) -> bool:
    return all(row >= count for row, count in zip(rows, counts, strict=True))


@settings(deadline=None)
@given(st.lists(counts_in_profile, min_size=1, max_size=40), st.integers(1, 6))
def test_every_cloud_fits_its_rows_and_its_rows_are_a_set(clouds, most):
    ladder = Ladder([PROFILE], most=most)
    for counts in clouds:
        rows = ladder.rows(0, counts)
        assert holds(rows, counts) and within(rows, PROFILE)
        assert ladder.rows(0, rows) == rows == ladder.rows(0, counts)
        assert len(ladder) <= most


@settings(deadline=None)
@given(counts_in_profile, counts_in_profile)
def test_a_larger_cloud_makes_a_larger_set(some, more):
    more = tuple(map(max, some, more))
    made = [Ladder([PROFILE], most=4).rows(0, counts) for counts in (some, more)]
    assert holds(made[1], made[0])


@settings(deadline=None)
@given(st.lists(counts_in_profile, min_size=1, max_size=40), st.integers(1, 6))
def test_a_shared_set_wastes_little_more_than_one_of_its_own(clouds, most):
    ladder = Ladder([PROFILE], most=most)
    for counts in clouds:
        own = Ladder([PROFILE], most=1).rows(0, counts)
        limit = 0.5 if len(ladder) == most else 0.25
        assert waste(ladder.rows(0, counts), counts) <= max(limit, waste(own, counts))


@settings(deadline=None)
@given(st.lists(st.integers(1, 32), min_size=1, max_size=30))
def test_batches_are_filled_with_whole_clouds(batches):
    per_cloud = CLASSIFICATION.points
    profile = parse_profile("2:8:32", ModelMetadata(CLASSIFICATION, "fp32"))
    ladder = Ladder([profile], per_cloud, most=8)
    for clouds in batches:
        counts = tuple(clouds * points for points in per_cloud)
        rows = ladder.rows(0, counts)
        padded = rows[0] // per_cloud[0]
        assert rows == tuple(padded * points for points in per_cloud)
        assert max(clouds, 2) <= padded <= max(2, 1.5 * clouds)


def test_the_least_wasteful_set_that_holds_a_cloud_is_taken():
    ladder = Ladder([PROFILE], most=4)
    for rows in ((1280, 512, 128), (1152, 512, 128), (1024, 480, 96)):
        ladder.keep(0, rows)
    assert ladder.rows(0, (1000, 470, 90)) == (1024, 480, 96)
    assert ladder.rows(0, (1000, 470, 97)) == (1152, 512, 128)
    assert ladder.rows(0, (1200, 470, 120)) == (1280, 512, 128)
    assert len(ladder) == 3


def test_sets_of_another_profile_are_not_taken():
    ladder = Ladder([SMALLER, PROFILE], most=4)
    rows = ladder.keep(1, (992, 400, 144))
    assert ladder.rows(0, (990, 400, 140)) == (1000, 400, 150) != rows


def test_the_set_unused_for_longest_gives_way():
    ladder = Ladder([PROFILE], most=2)
    first = ladder.rows(0, (400, 150, 50))
    second = ladder.rows(0, (4000, 1500, 500))
    assert ladder.rows(0, (400, 150, 50)) == first
    ladder.rows(0, (9000, 3500, 1200))
    # The second gave way to the third: a cloud it would have held makes a set of its own.
    assert len(ladder) == 2
    cloud = tuple(row - 32 for row in second)
    assert holds(second, cloud) and ladder.rows(0, cloud) not in (first, second)


def test_waste_counts_every_stage_alike():
    assert waste((1100, 300), (1000, 200)) == pytest.approx((0.1 + 0.5) / 2)
    assert waste((64, 32), (64, 0)) == pytest.approx(31 / 2)


def test_likely_sets_hold_clouds_of_usual_and_of_large_shares():
    shares = ({"min": 1.0, "mean": 1.0, "max": 1.0}, {"min": 0.2, "mean": 0.3, "max": 0.5})
    metadata = dataclasses.replace(ModelMetadata(CONFIG, "fp32"), stage_ratios=shares)
    profile = parse_profile("1:2000:8000", metadata)
    sets = Ladder([profile], most=4).likely([1000, 4000], metadata)
    # Half-way between the shares, a tenth more, then to the next size: 0.275 and 0.44 of each.
    assert sets == [
        (0, (bucket(size), bucket(round(size * share))))
        for size, share in itertools.product((4000, 1000), (0.44, 0.275))
    ]


def test_likely_sets_keep_to_the_profile_that_takes_them():
    metadata = ModelMetadata(CONFIG, "fp32")
    profiles = [parse_profile(text, metadata) for text in ("1:500:1000", "1:4000:8000,1:9:2000")]
    ladder = Ladder(profiles, most=9)
    for profile, rows in ladder.likely([900, 1100, 8000], metadata):
        assert profile == (rows[0] > 1000)
        assert within(rows, profiles[profile])
    with pytest.raises(EngineError, match=r"model\.engine: 8001 points at stage 0"):
        ladder.likely([8001], metadata, "model.engine")
    with pytest.raises(InputError, match="size to warm up is 0; give 1 or more"):
        ladder.likely([900, 0], metadata)
    sizes = list(range(100, 1000, 100))
    with pytest.raises(InputError, match=r"graphs would be captured, 9 are kept; .*--graphs \d+"):
        ladder.likely(sizes, metadata)


def test_likely_batches_are_whole_clouds():
    metadata = ModelMetadata(CLASSIFICATION, "fp32")
    ladder = Ladder([parse_profile("2:8:32", metadata)], CLASSIFICATION.points, most=4)
    assert ladder.likely([1, 2, 7], metadata) == [(0, (7 * 128, 7 * 32)), (0, (2 * 128, 2 * 32))]


def test_sizes_spread_by_one_factor():
    assert spread(1000, 8000, 4) == [1000, 2000, 4000, 8000]
    assert spread(5, 7, 12) == [5, 6, 7]
    assert spread(3000, 9000, 1) == [9000] == spread(9000, 9000, 4)
    for wrong in ((0, 5), (6, 5)):
        with pytest.raises(InputError, match=rf"{wrong[0]}:{wrong[1]} must ascend from 1 on"):
            spread(*wrong, 3)


@pytest.fixture(scope="module")
def figures():
    """The script that counts replays and padding."""
    path = Path(__file__).parents[3] / "benchmarks" / "ladder.py"
    spec = importlib.util.spec_from_file_location("ladder_figures", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def lidar_crops(figures, lidar_dir) -> np.ndarray:
    """[600, 4] points per stage of random square crops, 15 to 35 m wide, of airborne lidar."""
    tiles = [np.asarray(read_cloud(path).points) for path in sorted(lidar_dir.glob("*.laz"))]
    return figures.crop_counts(tiles, 600, seed=0)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_most_lidar_scans_are_replayed_and_little_of_them_is_padding(
    figures, lidar_crops, warm, record_property
):
    sizes = spread(3000, 36_000, MAX_GRAPHS // 2) if warm else []
    metadata = figures.network_of(lidar_crops[300:])
    rows_of, ready = figures.ladder_rows(metadata, MAX_GRAPHS, sizes)
    found = figures.replay(lidar_crops[:300], rows_of, MAX_GRAPHS, ready)
    assert found.later >= 0.9 and found.replayed >= (0.95 if warm else 0.75)
    # By stages that count alike, as the ladder weighs them, and by rows in all.
    assert found.padding <= 0.25 and found.more_rows <= 0.25
    record_property(
        "figure",
        f"{'warm' if warm else 'cold'} ladder: {found.replayed:.1%} of 300 crops replayed, "
        f"{found.later:.1%} after 100; padding {found.padding:.1%} by stages, "
        f"{found.more_rows:.1%} by rows; {found.captures} captures",
    )


def test_stages_bucketed_by_themselves_are_hardly_ever_replayed(figures, lidar_crops):
    """What the ladder is for: nearly every scan would have rows of its own."""
    found = figures.replay(lidar_crops[:300], lambda counts: tuple(map(bucket, counts)), MAX_GRAPHS)
    assert found.replayed < 0.1


def test_replays_and_padding_are_counted(figures):
    """A, A, A, B, B, A with room for one graph: A is replayed, gives way to B and returns."""
    counts = np.array([[90, 40], [80, 30], [100, 50], [190, 100], [200, 90], [100, 50]])
    rows = {True: (100, 50), False: (200, 100)}
    found = figures.replay(counts, lambda counts: rows[counts[0] <= 100], 1, first=2)
    assert found.replayed == pytest.approx(1 / 6) and found.later == 1 / 4
    assert found.captures == 3
    padding = [10 / 90 + 10 / 40, 20 / 80 + 20 / 30, 0, 10 / 190, 10 / 90, 0]
    assert found.padding == pytest.approx(sum(padding) / 12)
    assert found.more_rows == pytest.approx(1200 / counts.sum() - 1)
