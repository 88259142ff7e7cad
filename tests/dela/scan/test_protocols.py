"""Published test protocols against the same steps in plain numpy and scipy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.special import softmax

from dela.families import resolve_config
from dela.model.contract import AttributeInfo
from dela.scan.protocols import PROTOCOLS, Look, add_looks
from dela.scan.votes import VoteOptions

NORMALS = tuple(AttributeInfo(f"normal_{axis}") for axis in "xyz")
CONFIG = resolve_config(
    "s3dis",
    dims=(16, 16),
    depths=(1, 1),
    neighbors=(4, 4),
    spread=(1.6, 3.8),
    grid=(0.2, 0.4),
    head_dim=8,
    num_classes=3,
    attributes=(AttributeInfo("intensity"), AttributeInfo("height", 2.0, 0.5)),
    directions=NORMALS,
)


def scene(seed: int = 0, count: int = 700) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = rng.uniform([100, 200, 5], [103, 202, 6], (count, 3))
    normals = rng.standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    height = (points[:, 2:] - points[:, 2].min() - 0.5) / 2
    attributes = np.concatenate([rng.uniform(0, 1, (count, 1)), height, normals], axis=1)
    return points, attributes.astype(np.float32)


def logits_of(points: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """Something that tells place, heights and normals apart."""
    x, y, z = np.asarray(points, np.float64).T
    intensity, height, *normal = np.asarray(attributes, np.float64).T
    return np.stack(
        [np.sin(5 * x) + intensity, np.cos(4 * y) * (1 + height), normal[0] - normal[1] * z], axis=1
    )


def forward(pyramid) -> np.ndarray:
    pyramid.validate()
    return logits_of(pyramid.points, pyramid.attributes).astype(np.float32)


def expected_logits(points, attributes, looks) -> np.ndarray:
    total = np.zeros((len(points), 3))
    for look in looks:
        plane = (points[:, 0] + 1j * points[:, 1]) * np.exp(1j * look.turn)
        moved = look.scale * np.stack([plane.real, plane.imag, points[:, 2]], axis=1)
        moved -= moved.min(axis=0)
        members: dict[tuple[int, ...], list[int]] = {}
        for row, cell in enumerate(np.floor(moved / 0.2).astype(int)):
            members.setdefault(tuple(cell), []).append(row)
        kept = np.array([rows[look.pick % len(rows)] for rows in members.values()])
        columns = attributes[kept].astype(np.float64)
        raised = (2 * columns[:, 1] + 0.5) * look.scale
        columns[:, 1] = (raised - 0.5) / 2
        normal = (columns[:, 2] + 1j * columns[:, 3]) * np.exp(1j * look.turn)
        columns[:, 2], columns[:, 3] = normal.real, normal.imag
        nearest = cKDTree(moved[kept]).query(moved)[1]
        total += logits_of(moved[kept], columns)[nearest]
    return total


@pytest.mark.parametrize(
    "looks",
    [(Look(),), (Look(0), Look(5), Look(10)), PROTOCOLS["scannet"][:7], PROTOCOLS["scannet"]],
)
def test_looks_add_up_to_the_logits_of_plain_numpy(looks):
    points, attributes = scene()
    calls = []
    answer = add_looks(
        forward,
        points,
        attributes,
        CONFIG,
        looks,
        VoteOptions(max_points=10_000, progress=lambda *call: calls.append(call)),
    )
    expected = softmax(expected_logits(points, attributes, looks) / len(looks), axis=1)
    np.testing.assert_allclose(answer.probabilities, expected, atol=2e-4)
    assert np.array_equal(answer.row_of_point, np.arange(len(points)))
    assert answer.runs == len(looks)
    assert calls == [(number + 1, len(looks)) for number in range(len(looks))]


def test_a_scene_larger_than_a_run_is_cut_and_answered_alike():
    points, attributes = scene()
    sizes = []

    def watched(pyramid):
        sizes.append(len(pyramid.points))
        return forward(pyramid)

    looks = PROTOCOLS["scannet"][:3]
    whole = add_looks(forward, points, attributes, CONFIG, looks, VoteOptions(max_points=10_000))
    cut = add_looks(watched, points, attributes, CONFIG, looks, VoteOptions(max_points=150))
    assert max(sizes) <= 150
    assert cut.runs == len(sizes) > 6
    np.testing.assert_allclose(cut.probabilities, whole.probabilities, atol=1e-5)


def test_the_published_looks():
    assert [look.pick for look in PROTOCOLS["s3dis"]] == list(range(0, 60, 5))
    assert {(look.turn, look.scale) for look in PROTOCOLS["s3dis"]} == {(0.0, 1.0)}
    looks = PROTOCOLS["scannet"]
    assert len(set(looks)) == 48
    assert sorted({round(np.degrees(look.turn)) for look in looks}) == [0, 90, 180, 270]
    assert {look.scale for look in looks} == {0.95, 1.0, 1.05}
    assert {look.pick for look in looks} == {0, 1, 2, 3}


def test_without_directions_and_with_one_point():
    config = dataclasses.replace(CONFIG, directions=())
    points, attributes = scene(count=1)

    def bare(pyramid):
        return np.ones((len(pyramid.points), 3), np.float32)

    answer = add_looks(
        bare, points, attributes[:, :2], config, (Look(3, 1.0),), VoteOptions(max_points=5)
    )
    np.testing.assert_allclose(answer.probabilities, np.full((1, 3), 1 / 3), atol=1e-6)
