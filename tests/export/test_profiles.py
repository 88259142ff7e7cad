"""Sizes an engine is built for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela.artifacts.metadata import ModelMetadata
from dela.artifacts.sidecar import SizeRange
from dela.errors import InputError
from dela.export.profiles import default_profile, input_shapes, parse_profile
from dela.families.dela.config import PRESETS

RATIOS = (
    {"min": 1.0, "mean": 1.0, "max": 1.0},
    {"min": 0.25, "mean": 0.375, "max": 0.5},
    {"min": 0.125, "mean": 0.1875, "max": 0.25},
    {"min": 0.03125, "mean": 0.0625, "max": 0.125},
)


def metadata(preset: str = "s3dis", ratios=RATIOS) -> ModelMetadata:
    return ModelMetadata(PRESETS[preset], "fp32", stage_ratios=ratios)


def test_coarser_stages_follow_the_measured_ratios_with_room():
    profile = parse_profile("5000:30000:120000", metadata())
    assert profile.stages == (
        SizeRange(5000, 30000, 120000),
        SizeRange(1, 11250, 90000),
        SizeRange(1, 5625, 45000),
        SizeRange(1, 1875, 22500),
    )


def test_a_maximum_never_exceeds_the_finer_stage():
    profile = parse_profile("1:100:1000", metadata(), headroom=100.0)
    assert [stage.max for stage in profile.stages] == [1000, 1000, 1000, 1000]


def test_stages_of_their_own_replace_the_ratios():
    profile = parse_profile("5000:30000:120000,10:20000:40000", metadata())
    assert profile.stages[1] == SizeRange(10, 20000, 40000)
    # the measured share of stage 0, but no more than stage 1 may have
    assert profile.stages[2] == SizeRange(1, 5625, 40000)


def test_without_ratios_a_surface_thins_by_its_grid():
    profile = parse_profile("1:1000:8000", metadata(ratios=()))
    # grids double: 2^-1.5 of the points stay on average, 1.5 * 2^-1 at most
    assert profile.stages[1] == SizeRange(1, 354, 6000)
    assert profile.stages[3] == SizeRange(1, 45, 1500)


def test_classification_counts_clouds():
    profile = parse_profile("1:8:32", metadata("scanobjectnn", ()))
    assert profile.stages == (
        SizeRange(1024, 8192, 32768),
        SizeRange(256, 2048, 8192),
        SizeRange(64, 512, 2048),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5000", "'5000' is not MIN:OPT:MAX"),
        ("1:2", "is not MIN:OPT:MAX"),
        ("a:b:c", "is not MIN:OPT:MAX"),
        ("1:2:3:4", "is not MIN:OPT:MAX"),
        ("0:10:20", "must ascend from 1 on"),
        ("10:5:20", "must ascend"),
        ("10:50:20", "must ascend"),
        ("1:10:20,1:1:1,1:1:1,1:1:1,1:1:1", "5 sizes are given; the network has 4 stages"),
        ("1:10:20,1:10:21", "stage 1 has max 21, more than stage 0"),
        ("1:10:20,1:11:20", "stage 1 has opt 11, more than stage 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_words(text, message):
    with pytest.raises(InputError, match=message):
        parse_profile(text, metadata())


def test_classification_takes_no_points_of_stages():
    with pytest.raises(InputError, match="the points of a cloud are fixed"):
        parse_profile("1:8:32,1:2:3", metadata("scanobjectnn", ()))


def test_headroom_below_one_is_refused():
    with pytest.raises(InputError, match=r"headroom is 0\.5"):
        parse_profile("1:2:3", metadata(), headroom=0.5)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_input_of_a_preset_gets_shapes(preset):
    described = metadata(preset, ())
    profile = parse_profile(default_profile(described.config), described)
    shapes = input_shapes(described, profile)
    assert list(shapes) == list(described.expected_inputs())
    for name, (_, expected) in described.expected_inputs().items():
        for shape in shapes[name]:
            assert shape[1:] == expected[1:]
    stages = profile.stages
    assert shapes["points"] == tuple((n, 3) for n in (stages[0].min, stages[0].opt, stages[0].max))
    k = described.config.neighbors[1]
    assert shapes["neighbors_1"][2] == (stages[1].max, k)
    assert shapes["kept_2"][1] == (stages[2].opt,)
    if described.config.task == "segmentation":
        # one row of stage 0 each, whatever stage it points into
        assert shapes["nearest_2"][2] == (stages[0].max,)


@given(
    sizes=st.tuples(*[st.integers(1, 10**6)] * 3).map(sorted),
    shares=st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6),
    headroom=st.floats(1.0, 10.0),
)
def test_ranges_ascend_and_stages_never_grow(sizes, shares, headroom):
    ratios = [RATIOS[0]]
    for stage in range(3):
        mean, largest = sorted(shares[2 * stage : 2 * stage + 2])
        ratios.append({"min": 0.0, "mean": mean, "max": largest})
    text = ":".join(map(str, sizes))
    profile = parse_profile(text, metadata(ratios=tuple(ratios)), headroom)
    for finer, coarser in zip(profile.stages, profile.stages[1:], strict=False):
        assert 1 <= coarser.min <= coarser.opt <= coarser.max <= finer.max
        assert coarser.opt <= finer.opt
