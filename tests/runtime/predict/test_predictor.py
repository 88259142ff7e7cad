"""Predictions come back at full resolution, in order, however the scene is cut or turned."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.families.dela.config import DelaConfig
from dela.model.contract import AttributeInfo
from dela.pyramid.cpu import Pyramid
from dela.runtime import Predictor, load_backend
from dela.scan.attributes import compute_attributes
from dela.scan.context import join_clouds
from dela.scan.votes import vote_matrix
from dela.scan.voxels import Voxels
from small_networks import CONFIG, make_cloud


class HeightBackend:
    """Tells class by height alone: the answer for every point is known."""

    name = "height"
    path = Path("height")
    metadata = None
    sha256 = ""
    max_points = None

    def __init__(self, config: DelaConfig = CONFIG) -> None:
        self.config = config
        self.sizes: list[int] = []

    def run(self, pyramid: Pyramid) -> np.ndarray:
        self.sizes.append(len(pyramid.points))
        height = pyramid.attributes[:, 3] * 3.0
        middles = np.array([0.3, 1.0, 1.7])
        return (-50 * np.abs(height[:, None] - middles)).astype(np.float32)


def by_height(cloud: PointCloud) -> np.ndarray:
    """Class index of points that lie clear of the two borders and their voxels' spread."""
    height = cloud.points[:, 2] - cloud.points[:, 2].min()
    index = np.digitize(height, [0.65, 1.35])
    unclear = (np.abs(height - 0.65) < 0.11) | (np.abs(height - 1.35) < 0.11)
    return np.where(unclear, -1, index)


def test_labels_stand_in_the_clouds_order(cloud):
    expected = by_height(cloud)
    clear = expected >= 0
    result = Predictor(HeightBackend()).predict(cloud)
    assert np.array_equal(result.classes[clear], expected[clear])
    codes = np.array([2, 5, 6])
    assert np.array_equal(result.labels, codes[result.classes])
    assert result.confidence.shape == (len(cloud),) and result.confidence.dtype == np.float32
    order = np.random.default_rng(0).permutation(len(cloud))
    shuffled = Predictor(HeightBackend()).predict(cloud.select(order))
    assert np.array_equal(shuffled.classes[clear[order]], expected[order][clear[order]])


def test_heights_are_the_scenes_not_the_tiles():
    """A tall scene in tiles: heights measured per tile would shift every class."""
    cloud = make_cloud(6000, (2.0, 2.0, 2.0))
    expected = by_height(cloud)
    backend = HeightBackend()
    result = Predictor(backend).predict(cloud, max_points=400)
    assert len(backend.sizes) > 5 and max(backend.sizes) <= 400
    assert np.array_equal(result.classes[expected >= 0], expected[expected >= 0])


def test_tiles_with_context_agree_with_the_whole(network):
    """A tile has the whole scene's voxels at every stage; only what lies beyond it is missing."""
    predictor = Predictor(load_backend(network.onnx))
    cloud = make_cloud(30_000, (12.0, 12.0, 0.5))
    whole = predictor.predict(cloud, probabilities=True)
    tiled = predictor.predict(cloud, max_points=6000, probabilities=True)
    assert whole.tiles == 1 and tiled.tiles >= 4
    assert np.mean(whole.classes == tiled.classes) > 0.9999
    error = np.abs(whole.probabilities - tiled.probabilities).max(axis=1)
    assert error.mean() < 1e-6 and np.mean(error < 1e-5) > 0.999


@pytest.mark.parametrize("votes", [1, 3])
def test_surroundings_are_seen_and_get_no_label(network, votes):
    whole = make_cloud(20_000, (12.0, 12.0, 0.5))
    inside = whole.points[:, 0] < np.median(whole.points[:, 0])
    cloud, around = whole.select(inside), whole.select(~inside)
    options = {"votes": votes, "probabilities": True}
    predictor = Predictor(load_backend(network.onnx))
    alone = predictor.predict(cloud, **options)
    found = predictor.predict(cloud, around=around, **options)
    together = predictor.predict(join_clouds([cloud, around]), **options)
    assert found.labels.shape == found.confidence.shape == (len(cloud),)
    assert np.array_equal(found.probabilities, together.probabilities[: len(cloud)])
    border = cloud.points[:, 0] > cloud.points[:, 0].max() - 0.1
    assert np.abs(found.probabilities - alone.probabilities)[border].max() > 1e-3


def test_invalid_points_of_the_scan_keep_their_place_beside_surroundings(cloud):
    around = make_cloud(500)
    around.points[:, 0] += 40.0
    cloud.points[[0, 3999]] = np.nan
    predictor = Predictor(HeightBackend())
    result = predictor.predict(cloud, around=around, drop_invalid=True)
    assert result.invalid == 2 and len(result.labels) == 4000
    assert np.flatnonzero(result.labels == -1).tolist() == [0, 3999]


def test_a_network_for_whole_clouds_takes_no_surroundings(classifier):
    predictor = Predictor(load_backend(classifier.onnx))
    with pytest.raises(InputError, match="whole clouds"):
        predictor.predict(make_cloud(100), around=make_cloud(100))


def test_probabilities_belong_to_the_labels(network, cloud):
    result = Predictor(load_backend(network.onnx)).predict(cloud, probabilities=True)
    assert np.allclose(result.probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(result.probabilities.argmax(axis=1), result.classes)
    assert np.allclose(result.probabilities.max(axis=1), result.confidence)


def test_prediction_is_the_same_every_time(network, cloud):
    predictor = Predictor(load_backend(network.onnx))
    first, second = (predictor.predict(cloud, votes=2, max_points=2000) for _ in range(2))
    assert np.array_equal(first.classes, second.classes)
    assert np.array_equal(first.confidence, second.confidence)


def test_votes_run_the_network_on_turned_scenes(cloud):
    backend = HeightBackend()
    result = Predictor(backend).predict(cloud, votes=3)
    assert result.tiles == 3 and len(set(backend.sizes)) == 1
    expected = by_height(cloud)
    assert np.array_equal(result.classes[expected >= 0], expected[expected >= 0])


def test_votes_keep_distances_and_turn_normals_with_the_scene():
    normals = tuple(AttributeInfo(f"normal_{axis}") for axis in "xyz")
    config = dataclasses.replace(CONFIG, attributes=(), directions=normals)
    generator = np.random.default_rng(0)
    points = generator.uniform(0, 3, (300, 3))
    vectors = generator.normal(size=(300, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cloud = PointCloud(points, {info.name: vectors[:, i] for i, info in enumerate(normals)})
    voxels = Voxels.of(cloud, compute_attributes(cloud, config.input_columns), config)
    for vote in (1, 2, 3):
        turned = voxels.turned(vote_matrix(vote, 4), config)
        # What a normal means is unchanged: its angles with all offsets and other normals.
        before = np.einsum("ijk,ik->ij", voxels.points[None] - voxels.points[:, None],
                           voxels.attributes)  # fmt: skip
        after = np.einsum("ijk,ik->ij", turned.points[None] - turned.points[:, None],
                          turned.attributes)  # fmt: skip
        assert np.allclose(before, after, atol=1e-4)
        assert np.array_equal(turned.points[:, 2], voxels.points[:, 2])
        assert not np.allclose(turned.points, voxels.points, atol=0.1)


def test_invalid_points_are_counted_or_left_unlabelled(cloud):
    cloud.points[[3, 100], [0, 2]] = np.nan, np.inf
    predictor = Predictor(HeightBackend())
    with pytest.raises(InputError, match=r"2 of 4,?000 points"):
        predictor.predict(cloud)
    result = predictor.predict(cloud, drop_invalid=True)
    assert result.invalid == 2 and len(result.labels) == 4000
    assert result.labels[[3, 100]].tolist() == [-1, -1]
    assert result.confidence[[3, 100]].tolist() == [0, 0]
    assert (np.delete(result.labels, [3, 100]) > 0).all()


def test_one_point_and_a_handful_of_voxels(network):
    predictor = Predictor(load_backend(network.onnx))
    for count, size in ((1, (1, 1, 1)), (2, (1, 1, 1)), (500, (0.15, 0.01, 0.01))):
        result = predictor.predict(make_cloud(count, size))
        assert 1 <= result.voxels <= 8 and len(result.labels) == count
        assert np.isfinite(result.confidence).all()


def test_a_scan_within_one_voxel_is_refused_as_not_in_metres(network):
    predictor = Predictor(load_backend(network.onnx))
    for cloud in (make_cloud(500, (0.01, 0.01, 0.01)), make_cloud(1).select(np.zeros(50, int))):
        with pytest.raises(InputError, match="fall into one voxel"):
            predictor.predict(cloud)


def test_empty_cloud_and_missing_columns(network, cloud):
    predictor = Predictor(load_backend(network.onnx))
    with pytest.raises(InputError, match="empty"):
        predictor.predict(cloud.select(np.zeros(0, dtype=int)))
    del cloud.columns["green"]
    with pytest.raises(InputError, match="'green'"):
        predictor.predict(cloud)
    with pytest.raises(InputError, match="votes is 0"):
        predictor.predict(cloud, votes=0)


def test_progress_ends_at_the_total(cloud):
    seen: list[tuple[int, int]] = []
    result = Predictor(HeightBackend()).predict(
        cloud, max_points=500, votes=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (2 * result.voxels, 2 * result.voxels)
    assert all(a[0] < b[0] for a, b in itertools.pairwise(seen))


@pytest.mark.parametrize("name", ["checkpoint", "onnx"])
def test_classification_gives_the_cloud_one_label(classifier, name):
    predictor = Predictor(load_backend(getattr(classifier, name)))
    for count in (40, 700):
        result = predictor.predict(make_cloud(count, (1, 1, 1)), votes=2)
        assert result.labels.shape == (count,) and len(np.unique(result.labels)) == 1
        assert len(np.unique(result.confidence)) == 1


def test_points_without_an_attribute_are_refused_or_left_unlabelled(network):
    predictor = Predictor(load_backend(network.onnx))
    cloud = make_cloud()
    name = next(info.name for info in predictor.config.input_columns if info.name in cloud.columns)
    missing = np.zeros(len(cloud), bool)
    missing[[3, 700, 3999]] = True
    expected = predictor.predict(cloud.select(~missing))
    cloud.columns[name] = cloud.columns[name].astype(np.float32)
    cloud.columns[name][missing] = np.nan
    with pytest.raises(InputError, match=r"3 NaN values of 4000.*\n?.*--drop-invalid"):
        predictor.predict(cloud)
    found = predictor.predict(cloud, drop_invalid=True)
    assert found.invalid == 3
    assert (found.labels[missing] == -1).all()
    np.testing.assert_array_equal(found.labels[~missing], expected.labels)
    cloud.columns[name][:] = np.nan
    with pytest.raises(InputError, match="all 4,000 points have NaN"):
        predictor.predict(cloud, drop_invalid=True)
