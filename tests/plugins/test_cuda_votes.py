"""The kernels that turn a scene, add up answers and label points, compared with numpy.

Arrays have exactly the promised sizes, and the emulator faults at the first byte read or written
outside them, or read before it was written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dela.scan.votes import softmax, vote_matrix

CLASSES = [1, 2, 13, 300, 2500]


class Votes:
    """The kernels on numpy arrays."""

    def __init__(self) -> None:
        from dela.plugins.cuda.driver import Device, Stream
        from dela.plugins.cuda.kernels import Kernels

        self.stream = Stream(Device())
        self.kernels = Kernels.of(self.stream.device, "geometry")

    def up(self, array: np.ndarray | None) -> Any:
        from dela.plugins.cuda.arrays import DeviceArray

        return None if array is None else DeviceArray.from_host(array, self.stream)

    def new(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        from dela.plugins.cuda.arrays import DeviceArray

        return DeviceArray.empty(shape, dtype, stream=self.stream)

    def launch(self, name: str, threads: int, *arguments: Any) -> None:
        self.kernels.launch(name, -(-threads // 128), 128, arguments, self.stream)

    def softmax(self, logits: np.ndarray, rows: np.ndarray | None, out: np.ndarray) -> np.ndarray:
        sizes, there = map(np.int32, logits.shape), self.up(out)
        self.launch("dela_softmax", len(logits), self.up(logits), self.up(rows), *sizes, there)
        return there.to_host(self.stream)

    def labels(
        self, values: np.ndarray, weights: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n, there = len(values), self.up(values)
        found, confidence = self.new((n,), np.int32), self.new((n,))
        sizes = map(np.int32, values.shape)
        self.launch("dela_label_rows", n, self.up(weights), *sizes, there, found, confidence)
        return tuple(array.to_host(self.stream) for array in (found, confidence, there))


@pytest.fixture(params=["forward", "shuffled"])
def kernels(emulated_cuda, request) -> Votes:
    emulated_cuda.check_initialised = True
    emulated_cuda.order = request.param
    return Votes()


def random_logits(n: int, classes: int, spread: float = 4.0) -> np.ndarray:
    generator = np.random.default_rng(classes)
    return generator.normal(0, spread, (n, classes)).astype(np.float32)


@pytest.mark.parametrize("classes", CLASSES)
def test_probabilities_are_those_of_float64(kernels, classes):
    logits = random_logits(200, classes)
    logits[0], logits[1] = 1e4 * logits[0], -5e7
    found = kernels.softmax(logits, None, np.full_like(logits, np.inf))
    wide = logits.astype(np.float64)
    expected = np.exp(wide - wide.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found, softmax(logits), rtol=1e-6, atol=1e-8)


def test_the_core_of_a_tile_goes_to_its_rows_and_nothing_else(kernels):
    logits, rows = random_logits(6, 3), np.array([4, -1, 0, 7, -1, 2], np.int32)
    before = np.full((8, 3), -3.0, np.float32)
    found = kernels.softmax(logits, rows, before)
    expected = before.copy()
    expected[rows[rows >= 0]] = softmax(logits[rows >= 0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_logits_that_are_no_numbers_are_numpys(kernels):
    logits = random_logits(8, 4)
    logits[1, 2], logits[2], logits[3, 0] = np.nan, np.nan, np.inf
    logits[4, 1], logits[5] = -np.inf, -np.inf
    logits[6] = [-np.inf, np.nan, -np.inf, -np.inf]
    with np.errstate(invalid="ignore"):
        expected = softmax(logits)
    found = kernels.softmax(logits, None, np.zeros_like(logits))
    assert np.array_equal(np.isnan(found), np.isnan(expected)) and np.isnan(found).any()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_are_numpys_ties_and_nan_included(kernels, classes, weighted):
    generator = np.random.default_rng(classes)
    # Few values, so that most rows have several highest ones.
    values = generator.integers(0, 4, (300, classes)).astype(np.float32) / 3
    values[generator.random(values.shape) < 0.3 / classes] = np.nan
    values[5] = np.nan
    values[6], values[7] = -1.0, -np.inf
    weights = generator.uniform(0.1, 3, len(values)).astype(np.float32) if weighted else None
    expected = values / weights[:, None] if weighted else values
    found, confidence, shares = kernels.labels(values, weights)
    assert np.array_equal(found, expected.argmax(axis=1))
    assert np.array_equal(confidence, expected.max(axis=1), equal_nan=True)
    assert np.array_equal(shares, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [1, 7, 300])
def test_votes_weigh_by_the_distance_of_their_points(kernels, dtype, classes):
    generator = np.random.default_rng(classes)
    n, voxels, reach, far = 500, 60, 0.05, 1e-3
    origin = np.array([651_000.25, 6_860_000.5, 120.0]) if dtype == np.float64 else np.zeros(3)
    points = (origin + generator.uniform(0, 0.2, (n, 3))).astype(dtype)
    of_point = generator.integers(0, voxels, n).astype(np.int32)
    points_there, of_point_there = kernels.up(points), kernels.up(of_point)
    labelled = n - 100  # the points behind are surroundings
    totals, weights = kernels.new((labelled, classes)), kernels.new((labelled,))
    expected, expected_weights = np.zeros((labelled, classes)), np.zeros(labelled)
    for vote in range(3):
        standing = generator.uniform(0, 0.2, (voxels, 3)).astype(np.float32)
        probabilities = generator.random((voxels, classes)).astype(np.float32)
        kernels.launch(
            "dela_add_vote",
            labelled,
            points_there,
            of_point_there,
            kernels.up(standing),
            kernels.up(probabilities),
            *map(np.int32, (dtype == np.float64, vote == 0, labelled, classes)),
            *map(np.float64, (*origin, reach**2, far)),
            totals,
            weights,
        )
        rows = of_point[:labelled]
        apart = points[:labelled].astype(np.float64) - origin - standing[rows]
        weight = np.exp(-(np.linalg.norm(apart, axis=1) ** 2) / reach**2) + far
        expected += weight[:, None] * probabilities[rows]
        expected_weights += weight
    found = weights.to_host(kernels.stream)
    assert expected_weights.min() < 0.01 and expected_weights.max() > 0.5
    np.testing.assert_allclose(found, expected_weights, rtol=1e-6)
    np.testing.assert_allclose(totals.to_host(kernels.stream), expected, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 3, 511, 512, 5000])
def test_the_middle_is_the_mean_of_all_points(kernels, n):
    points = np.random.default_rng(n).uniform(0, 900, (n, 3)).astype(np.float32)
    middle = kernels.new((3,), np.float64)
    arguments = (kernels.up(points), np.int32(n), middle)
    kernels.kernels.launch("dela_middle", 1, 512, arguments, kernels.stream)
    expected = points.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(middle.to_host(kernels.stream), expected, rtol=1e-14)


def test_points_and_vectors_turn_by_any_matrix(kernels):
    generator = np.random.default_rng(3)
    points = generator.uniform(0, 50, (300, 3)).astype(np.float32)
    values = generator.normal(size=(300, 8)).astype(np.float32)
    middle = points.mean(axis=0, dtype=np.float64)
    tilted = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    for matrix in (vote_matrix(1, 3), tilted):
        turn, out, vectors = tuple(matrix.reshape(9)), kernels.new((300, 3)), kernels.up(values)
        there = kernels.up(points), kernels.up(middle)
        kernels.launch("dela_turn_points", 300, *there, np.int32(300), *turn, out)
        sizes = map(np.int32, (300, 8, 4))
        kernels.launch("dela_turn_vectors", 300, *sizes, *turn, vectors)
        expected = (points - middle) @ matrix.T + middle
        np.testing.assert_allclose(out.to_host(kernels.stream), expected, rtol=1e-7, atol=1e-6)
        turned = values.astype(np.float64)
        turned[:, 4:7] = turned[:, 4:7] @ matrix.T
        np.testing.assert_allclose(vectors.to_host(kernels.stream), turned, rtol=1e-6, atol=1e-7)
