"""Votes and tiles: what the network is shown, and how its answers come together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.special

from dela.families.dela.config import DelaConfig
from dela.geometry.cpu import voxel_grid
from dela.model.contract import AttributeInfo, ClassInfo
from dela.pyramid.cpu import CORNER
from dela.scan.votes import VoteOptions, predict_voxels, softmax, vote_matrix
from dela.scan.voxels import Voxels

CONFIG = DelaConfig(
    task="segmentation",
    classes=(ClassInfo("a", 0), ClassInfo("b", 1), ClassInfo("c", 2)),
    dims=(8, 8, 8),
    depths=(1, 1, 1),
    neighbors=(6, 6, 6),
    spread=(1.0, 1.0, 1.0),
    coordinate_scale=1.0,
    grid=(0.2, 0.4, 0.8),
    head_dim=8,
    attributes=(AttributeInfo("number"),),
)


def scan(count: int = 4000, size=(12.0, 6.0, 1.0)):
    """Points, and what ``look`` shows of them; the attribute is the point's own row."""
    points = np.random.default_rng(0).uniform(0, size, (count, 3)).astype(np.float32)
    points -= points.min(axis=0)
    number = np.arange(count, dtype=np.float32)[:, None]
    grid = voxel_grid(points.astype(np.float64), CONFIG.grid[0])

    def look(pick: int) -> Voxels:
        kept = grid.picked(pick)
        return Voxels(points[kept], number[kept], grid.voxel_of_point)

    return points, grid, look


def logits_of(number: np.ndarray) -> np.ndarray:
    """Any three logits for each point, told by its row."""
    return np.sin(np.multiply.outer(number, [1.0, 2.0, 3.0])).astype(np.float32) * 4


def test_each_point_listens_most_to_the_votes_whose_point_stood_near():
    points, grid, look = scan()
    answer = predict_voxels(
        lambda pyramid: logits_of(pyramid.attributes[:, 0]),
        points,
        look,
        CONFIG,
        VoteOptions(max_points=400, votes=3),
    )
    total = np.zeros((len(points), 3))
    weights = np.zeros((len(points), 1))
    for vote in range(3):
        standing = grid.picked(vote)[grid.voxel_of_point]
        distance = np.linalg.norm(points.astype(float) - points[standing], axis=1, keepdims=True)
        weight = np.exp(-((distance / (0.2 * CONFIG.grid[0])) ** 2)) + 1e-3
        total += weight * softmax(logits_of(standing.astype(np.float32)))
        weights += weight
    assert np.array_equal(answer.row_of_point, np.arange(len(points)))
    np.testing.assert_allclose(answer.probabilities, total / weights, atol=1e-5)
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1, atol=1e-5)
    assert answer.runs % 3 == 0 and answer.runs > 3


def test_one_vote_is_the_scan_as_it_is():
    points, grid, look = scan()
    shown = []

    def forward(pyramid):
        shown.append(pyramid)
        return logits_of(pyramid.attributes[:, 0])

    plain = predict_voxels(forward, points, look, CONFIG, VoteOptions(max_points=10**6))
    assert np.array_equal(plain.probabilities, softmax(logits_of(grid.kept)))
    assert np.array_equal(plain.row_of_point, grid.voxel_of_point)
    predict_voxels(forward, points, look, CONFIG, VoteOptions(max_points=10**6, votes=4))
    for (name, alone), (_, first) in zip(shown[0].inputs(), shown[1].inputs(), strict=True):
        assert np.array_equal(alone, first), name


def test_every_vote_turns_by_an_equal_step_and_mirrors_every_second():
    for votes in (1, 2, 5, 8):
        for vote in range(votes):
            matrix = vote_matrix(vote, votes)
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
            assert np.linalg.det(matrix) == pytest.approx(-1 if vote % 2 else 1)
            step = np.exp(2j * np.pi * vote / votes)
            x_goes_to = complex(*(matrix @ [-1.0 if vote % 2 else 1.0, 0, 0])[:2])
            assert x_goes_to == pytest.approx(step)
            assert matrix[2].tolist() == [0, 0, 1]


@pytest.mark.parametrize("axis", ["x", "y"])
def test_votes_turn_about_another_axis_as_about_z(axis):
    names = {"x": "yzx", "y": "zxy"}[axis]  # what stands for x, y, z
    rows = ["xyz".index(name) for name in names]
    for vote in range(5):
        matrix = vote_matrix(vote, 5, axis)
        np.testing.assert_array_equal(matrix[np.ix_(rows, rows)], vote_matrix(vote, 5))
        assert matrix["xyz".index(axis)].tolist() == [float(name == axis) for name in "xyz"]


@pytest.mark.parametrize("axis", ["", "y", "z"])
def test_a_network_sees_scans_turned_about_its_own_axis_alone(axis):
    points, _, look = scan()
    config = dataclasses.replace(CONFIG, vote_axis=axis)
    seen = []

    def forward(pyramid):
        seen.append(np.asarray(pyramid.points, np.float64))
        return logits_of(pyramid.attributes[:, 0])

    predict_voxels(forward, points, look, config, VoteOptions(max_points=10**6, votes=3))
    for vote in range(3):
        standing = look(vote).points.astype(np.float64)
        along = ["xyz".index(axis)] if axis else [0, 1, 2]
        np.testing.assert_allclose(seen[vote][:, along], standing[:, along], atol=1e-4)
        if vote and axis:
            across = [i for i in range(3) if i not in along]
            assert np.abs(seen[vote][:, across] - standing[:, across]).max() > 0.1


def test_a_tile_has_the_voxels_of_the_whole_scene_at_every_stage():
    """Within a tile, two coarse voxels from its edge, every stage keeps the same points."""
    _, _, look = scan()
    for voxels in (look(0), look(1).turned(vote_matrix(1, 3), CONFIG)):
        (all_of_it,) = voxels.cut(CONFIG, 10**6)
        whole = voxels.inputs(all_of_it, CONFIG)
        tiles = voxels.cut(CONFIG, 900)
        assert len(tiles) >= 4
        for tile in tiles:
            part = voxels.inputs(tile, CONFIG)
            rows, mine = np.arange(len(voxels.points)), tile.rows
            core = voxels.points[tile.rows[tile.core]]
            low, high = core.min(axis=0), core.max(axis=0)
            for stage in (0, 1):
                rows, mine = rows[whole.kept[stage]], mine[part.kept[stage]]
                inside = ((voxels.points >= low) & (voxels.points <= high)).all(axis=1)
                assert np.array_equal(rows[inside[rows]], mine[inside[mine]])
                assert inside[mine].any()


def test_later_stages_pick_one_point_of_every_cell_counted_from_the_corner():
    points, grid, look = scan(500)
    voxels = look(0)
    pyramid = voxels.inputs(voxels.cut(CONFIG, 10**6)[0], CONFIG)
    stage = points[grid.kept]
    for size, kept in zip(CONFIG.grid[1:], pyramid.kept, strict=True):
        cells = np.floor((stage.astype(np.float64) - CORNER) / size)
        assert len(kept) == len(np.unique(cells, axis=0)) == len(np.unique(cells[kept], axis=0))
        assert np.all(np.diff(kept) > 0)
        stage = stage[kept]


def test_progress_counts_every_voxel_of_every_vote():
    points, _, look = scan()
    seen = []
    answer = predict_voxels(
        lambda pyramid: logits_of(pyramid.attributes[:, 0]),
        points,
        look,
        CONFIG,
        VoteOptions(max_points=500, votes=2, progress=lambda *call: seen.append(call)),
    )
    size = len(answer.voxels.points)
    assert len(seen) == answer.runs
    assert seen[-1] == (2 * size, 2 * size)


@pytest.mark.parametrize("classes", [1, 3, 13, 2500])
def test_softmax_is_that_of_float64(classes):
    logits = np.random.default_rng(classes).normal(0, 4, (50, classes)).astype(np.float32)
    expected = scipy.special.softmax(logits.astype(np.float64), axis=1)
    for given in (logits, np.asfortranarray(logits), logits.astype(np.float64)):
        before = given.copy()
        np.testing.assert_allclose(softmax(given), expected, rtol=1e-6, atol=1e-12)
        np.testing.assert_array_equal(given, before)
    assert softmax(np.zeros((0, classes), np.float32)).shape == (0, classes)


def test_softmax_survives_large_logits():
    answer = softmax(np.array([[1000.0, 999.0], [-1000.0, -1000.0]], np.float32))
    np.testing.assert_allclose(answer, [[0.731059, 0.268941], [0.5, 0.5]], atol=1e-6)
