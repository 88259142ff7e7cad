"""Which profile takes a pyramid, how far it is padded, and what is said when none does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela.artifacts.sidecar import Profile, SizeRange
from dela.errors import EngineError
from dela.runtime.backends.profiles import bucket, choose_profile, padded_counts

SMALL = Profile((SizeRange(100, 500, 1000), SizeRange(1, 120, 400)))
LARGE = Profile((SizeRange(500, 4000, 8000), SizeRange(1, 1000, 3200)))
CLOUDS = Profile((SizeRange(2 * 128, 4 * 128, 8 * 128), SizeRange(2 * 32, 4 * 32, 8 * 32)))
PER_CLOUD = (128, 32)


def within(rows, profile) -> bool:
    return all(
        limits.min <= size <= limits.max for size, limits in zip(rows, profile.stages, strict=True)
    )


@given(st.integers(1, 2_000_000))
def test_buckets_hold_the_count_and_waste_at_most_an_eighth(count):
    size = bucket(count)
    assert size >= count and size % 32 == 0 and bucket(size) == size
    assert size - count < max(32, count / 8)
    assert bucket(count, 1) - count <= count / 8


def test_buckets_are_eight_per_doubling():
    assert len({bucket(count) for count in range(16_385, 32_769)}) == 8


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        ((500, 100), 0),
        ((1000, 400), 0),
        ((1000, 401), 1),
        ((1001, 200), 1),
        ((50, 10), 0),  # too few for both: the one that is padded less
    ],
)
def test_the_smallest_profile_that_fits_is_chosen(counts, chosen):
    assert choose_profile([SMALL, LARGE], counts) == chosen
    assert choose_profile([LARGE, SMALL], counts) == 1 - chosen


def test_a_profile_without_padding_comes_before_a_smaller_one_with():
    wide = Profile((SizeRange(10, 500, 2000), SizeRange(1, 120, 800)))
    assert choose_profile([SMALL, wide], (50, 10)) == 1


def test_too_many_points_name_the_stage_the_range_and_the_points_to_build_with():
    with pytest.raises(EngineError) as failed:
        choose_profile([SMALL, LARGE], (9000, 2000), source="model.engine")
    message = str(failed.value)
    assert message.startswith("model.engine: 9000 points at stage 0")
    assert "500:4000:8000" in message and "--points 500:4000:9216" in message
    assert "--max-points" in message


def test_a_crowded_coarser_stage_asks_for_more_points_at_stage_0():
    with pytest.raises(EngineError, match=r"400[01] points at stage 1 .*1:1000:3200") as failed:
        choose_profile([LARGE], (7000, 4000))
    assert f"--points 500:4000:{bucket(8000 * 4000 // 3200)}" in str(failed.value)


def test_too_many_clouds_are_counted_in_clouds():
    with pytest.raises(EngineError, match=r"9 clouds .*2:4:8 .*pack fewer.*--points 2:4:"):
        choose_profile([CLOUDS], (9 * 128, 9 * 32), PER_CLOUD)


@given(st.integers(1, 1000), st.integers(1, 400))
def test_padded_counts_are_the_profiles_least_or_the_counts(first, second):
    rows = padded_counts((first, second), SMALL)
    assert within(rows, SMALL) and rows == (max(first, 100), second)


@given(st.integers(1, 8))
def test_only_whole_clouds_are_added(clouds):
    counts = tuple(clouds * size for size in PER_CLOUD)
    rows = padded_counts(counts, CLOUDS, PER_CLOUD)
    assert within(rows, CLOUDS)
    assert rows == tuple(max(clouds, 2) * size for size in PER_CLOUD)
