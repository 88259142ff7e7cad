"""The pyramid: what it is built of, how clouds are packed, and what its checks find."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dela.errors import InputError
from dela.families.dela.config import PRESETS, DelaConfig
from dela.geometry.cpu import farthest_point_sampling, voxel_grid
from dela.model.contract import AttributeInfo, ClassInfo
from dela.pyramid.cpu import Pyramid, build_pyramid, classification_pyramid, pack


def segmentation(stages: int = 3, attributes: int = 2) -> DelaConfig:
    return DelaConfig(
        task="segmentation",
        classes=(ClassInfo("a", 0), ClassInfo("b", 1)),
        dims=(8,) * stages,
        depths=(1,) * stages,
        neighbors=tuple(6 + stage for stage in range(stages)),
        spread=(1.0,) * stages,
        coordinate_scale=1.0,
        grid=tuple(0.1 * 2**stage for stage in range(stages)),
        head_dim=8,
        attributes=tuple(AttributeInfo(f"column_{i}") for i in range(attributes)),
    )


def classification(points: tuple[int, ...] = (64, 20, 5)) -> DelaConfig:
    return dataclasses.replace(
        PRESETS["scanobjectnn"],
        dims=(8,) * len(points),
        depths=(1,) * len(points),
        neighbors=(7,) * len(points),
        spread=(1.0,) * len(points),
        points=points,
    )


def cloud(count: int, seed: int = 0, columns: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.random((count, 3), dtype=np.float32),
        rng.random((count, columns), dtype=np.float32),
    )


def assert_is_exact(pyramid: Pyramid, config: DelaConfig) -> None:
    """Every table of one cloud against float64 brute force."""
    stage_points = [pyramid.points.astype(np.float64)]
    for stage in range(config.stages):
        if stage:
            stage_points.append(stage_points[-1][pyramid.kept[stage - 1]])
        points, table = stage_points[stage], pyramid.neighbors[stage]
        distances = np.linalg.norm(points[:, None] - points[None], axis=2)
        reached = min(config.neighbors[stage], len(points))
        found = np.take_along_axis(distances, table[:, :reached], axis=1)
        assert np.allclose(found, np.sort(distances, axis=1)[:, :reached], rtol=1e-6)
        assert np.array_equal(table[:, 0], np.arange(len(points)))
    for stage, rows in enumerate(pyramid.nearest, start=1):
        distances = np.linalg.norm(stage_points[0][:, None] - stage_points[stage][None], axis=2)
        found = distances[np.arange(len(rows)), rows]
        assert np.allclose(found, distances.min(axis=1), rtol=1e-6)


@pytest.mark.parametrize("stages", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 3, 400])
def test_segmentation_pyramids_are_exact(stages, count):
    config = segmentation(stages)
    points, attributes = cloud(count)
    pyramid = build_pyramid(points, attributes, config)
    pyramid.validate()
    assert_is_exact(pyramid, config)
    assert np.array_equal(pyramid.points, points)
    assert np.array_equal(pyramid.attributes, attributes)
    for stage in range(1, stages):
        points = points if stage == 1 else points[pyramid.kept[stage - 2]]
        grid = voxel_grid(points, config.grid[stage])
        assert np.array_equal(pyramid.kept[stage - 1], grid.kept)
    assert [name for name, _ in pyramid.inputs()] == [
        "points",
        "attributes",
        *(f"neighbors_{stage}" for stage in range(stages)),
        *(f"kept_{stage}" for stage in range(1, stages)),
        *(f"nearest_{stage}" for stage in range(1, stages)),
    ]


def test_random_picks_follow_the_seed():
    config, (points, attributes) = segmentation(), cloud(2000)
    first, again, other = (
        build_pyramid(points, attributes, config, seed=seed, pick=None) for seed in (1, 1, 2)
    )
    for stage in range(2):
        assert np.array_equal(first.kept[stage], again.kept[stage])
    assert not np.array_equal(first.kept[0], other.kept[0])
    assert_is_exact(other, config)


@pytest.mark.parametrize("count", [1, 30, 64, 500])
def test_classification_stages_are_prefixes_of_the_sampling(count):
    config, (points, _) = classification(), cloud(count)
    pyramid, rows = classification_pyramid(points, config)
    pyramid.validate()
    assert np.array_equal(rows, farthest_point_sampling(points, 64))
    assert np.array_equal(pyramid.points, points[rows])
    assert [kept.tolist() for kept in pyramid.kept] == [list(range(20)), list(range(5))]
    assert [len(table) for table in pyramid.neighbors] == [64, 20, 5]
    assert pyramid.nearest == () and pyramid.attributes.shape == (64, 0)
    assert_is_exact(pyramid, config)


def test_classification_training_takes_a_random_part_of_a_longer_sampling():
    config, (points, _) = classification(), cloud(500)
    pyramid, rows = classification_pyramid(points, config, seed=3, pick=None)
    longer = farthest_point_sampling(points, 75)  # 64 * 1200 / 1024
    assert len(set(rows)) == 64 and set(rows) <= set(longer)
    assert not np.array_equal(rows, longer[:64])
    assert np.array_equal(rows, classification_pyramid(points, config, seed=3, pick=None)[1])
    assert_is_exact(pyramid, config)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    stages=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_packed_clouds_come_apart_again(counts, stages, seed):
    config = segmentation(stages)
    parts = [build_pyramid(*cloud(n, seed + i), config) for i, n in enumerate(counts)]
    packed = pack(parts).validate()
    starts = np.cumsum([[0] * stages, *packed_sizes(parts)], axis=0)
    assert packed.clouds == len(parts)
    for number, part in enumerate(parts):
        rows = [slice(starts[number][d], starts[number + 1][d]) for d in range(stages)]
        assert np.array_equal(packed.points[rows[0]], part.points)
        assert np.array_equal(packed.attributes[rows[0]], part.attributes)
        for d in range(stages):
            assert np.array_equal(
                packed.neighbors[d][rows[d]] - starts[number][d], part.neighbors[d]
            )
            assert packed.lengths[d][number] == len(part.neighbors[d])
        for d in range(1, stages):
            kept = packed.kept[d - 1][rows[d]] - starts[number][d - 1]
            assert np.array_equal(kept, part.kept[d - 1])
            back = packed.nearest[d - 1][rows[0]] - starts[number][d]
            assert np.array_equal(back, part.nearest[d - 1])
    assert all(table.dtype == np.int32 for table in (*packed.neighbors, *packed.kept))


def packed_sizes(parts: list[Pyramid]) -> list[list[int]]:
    return [[len(table) for table in part.neighbors] for part in parts]


def test_packing_packed_clouds_is_packing_all_of_them():
    config = segmentation()
    parts = [build_pyramid(*cloud(n, n), config) for n in (20, 30, 40)]
    twice, once = pack([pack(parts[:2]), parts[2]]), pack(parts)
    assert twice.lengths == once.lengths
    for (name, a), (_, b) in zip(twice.inputs(), once.inputs(), strict=True):
        assert np.array_equal(a, b), name


def test_only_pyramids_of_one_network_are_packed():
    first = build_pyramid(*cloud(20), segmentation(2))
    with pytest.raises(InputError, match=r"pyramid 1 has 2 attributes and k \[6, 7, 8\]"):
        pack([first, build_pyramid(*cloud(20), segmentation(3))])
    with pytest.raises(InputError, match="nothing to pack"):
        pack([])


def hand_filled() -> Pyramid:
    """Two stages of one cloud as lists written by hand, in the reference's own integer types."""
    return Pyramid(
        points=np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [9, 0, 0]], np.float32),
        attributes=np.zeros((4, 0), np.float32),
        neighbors=(
            np.array([[1, 0], [0, 1], [1, 2], [2, 3]], np.int32),
            np.array([[0, 1], [1, 0]], np.int32),
        ),
        kept=(np.array([3, 0], np.int64),),
        nearest=(np.array([1, 1, 1, 0], np.int32),),
        lengths=((4,), (2,)),
    )


def test_a_pyramid_filled_by_hand_passes():
    assert hand_filled().validate().stages == 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("points", np.zeros((4, 2), np.float32), r"points has shape \[4, 2\]"),
        ("points", np.zeros((4, 3), np.int32), "points is int32; expected float32"),
        ("points", np.full((4, 3), np.nan, np.float32), "points row 0 holds nan"),
        (
            "attributes",
            np.zeros((3, 1), np.float32),
            r"attributes has shape \[3, 1\]; expected \[4",
        ),
        ("attributes", np.full((4, 1), np.inf, np.float32), "attributes row 0 holds inf"),
        ("neighbors", (), "no neighbors table"),
        (
            "neighbors",
            (np.array([[0, 1], [1, 4], [0, 0], [0, 0]], np.int32), np.zeros((2, 2), np.int32)),
            r"neighbors_0 row 1 holds 4; every value must be in \[0, 4\)",
        ),
        (
            "neighbors",
            (np.zeros((4, 2), np.int32), np.array([[0, 1], [-1, 0]], np.int32)),
            r"neighbors_1 row 1 holds -1; every value must be in \[0, 2\)",
        ),
        (
            "neighbors",
            (np.zeros((3, 2), np.int32), np.zeros((2, 2), np.int32)),
            r"neighbors_0 has shape \[3, 2\]; expected \[4, k\]",
        ),
        (
            "neighbors",
            (np.zeros((4, 2), np.float32), np.zeros((2, 2), np.int32)),
            "neighbors_0 is float32; expected int32",
        ),
        ("kept", (np.array([4, 0], np.int64),), "kept_1 row 0 holds 4"),
        ("kept", (), "kept has 0 lists; 2 stages need 1"),
        ("kept", (np.zeros((2, 1), np.int32),), r"kept_1 has shape \[2, 1\]; expected \[N\]"),
        ("nearest", (np.array([0, 0, 0], np.int32),), "nearest_1 has 3 rows; expected 4"),
        ("nearest", (np.array([0, 0, 0, 2], np.int32),), "nearest_1 row 3 holds 2"),
        ("nearest", (np.zeros(4, np.int32),) * 2, "nearest has 2 lists"),
        ("lengths", ((4,), (3,)), r"lengths of stage 1 is \[3\]; .* 2 points"),
        ("lengths", ((4,),), "lengths has 1 lists"),
        ("lengths", ((4,), (1, 1)), "lengths of stage 1 has 2 clouds, stage 0 1"),
    ],
)
def test_what_does_not_fit_is_named(name, value, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(hand_filled(), **{name: value}).validate()


def test_tensors_hold_the_same_values():
    torch = pytest.importorskip("torch")
    pyramid = build_pyramid(*cloud(50), segmentation())
    tensors = pyramid.to_tensors()
    for (name, array), (_, tensor) in zip(pyramid.inputs(), tensors.inputs(), strict=True):
        assert tensor.dtype in (torch.float32, torch.int32)
        assert np.array_equal(array, tensor.numpy()), name
    tensors.validate()
    assert hand_filled().to_tensors().kept[0].dtype == torch.int32


@pytest.mark.parametrize(
    ("points", "attributes", "message"),
    [
        (np.zeros((0, 3)), np.zeros((0, 2)), "the cloud is empty"),
        (np.zeros((5, 2)), np.zeros((5, 2)), r"points have shape \[5, 2\]"),
        (np.zeros((5, 3)), np.zeros((4, 2)), r"attributes have shape \[4, 2\]; expected \[5, 2\]"),
        (np.zeros((5, 3)), None, r"attributes have shape \[5, 0\]; expected \[5, 2\]"),
        (np.full((5, 3), np.nan), np.zeros((5, 2)), "5 of 5 points have NaN"),
        (np.zeros((5, 3)), np.full((5, 2), np.nan), "5 of 5 points have NaN or infinite attr"),
    ],
)
def test_clouds_that_make_no_pyramid_say_why(points, attributes, message):
    with pytest.raises(InputError, match=message):
        build_pyramid(points, attributes, segmentation())
