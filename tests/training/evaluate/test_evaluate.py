"""Scores of a split are those of the predictions a user gets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dela.cloud.formats import read_cloud
from dela.families import resolve_config
from dela.geometry.cpu import VoxelGrid
from dela.model.contract import CategoryInfo
from dela.runtime import Predictor
from dela.scores.confusion import Confusion
from dela.training.data.dataset import Dataset
from dela.training.data.kinds import open_dataset
from dela.training.data.scans import Scan
from dela.training.evaluate.split import score_split
from dela.training.settings.data import ClassMap, DataConfig


class ByPosition:
    """A backend that answers by place and intensity, so that tiles, turns and picks all show."""

    name = "position"
    path = Path("position")
    metadata = None
    sha256 = ""
    max_points = None

    def __init__(self, config) -> None:
        self.config = config

    def run(self, pyramid) -> np.ndarray:
        x, y = pyramid.points[:, 0], pyramid.points[:, 1]
        swing = np.sin(3 * x) * np.cos(2 * y) + 2 * pyramid.attributes[:, 0] - 1
        coarse = pyramid.points[pyramid.kept[0]][pyramid.nearest[0]]
        return np.stack([swing, 5 * (coarse[:, 0] - x)], axis=1).astype(np.float32)


@pytest.mark.parametrize("votes", [1, 3])
@pytest.mark.parametrize("most", [300, 100_000])
def test_eval_and_predict_answer_alike(tiny_config, votes, most):
    data = dataclasses.replace(tiny_config.data, eval_points=most, margin=None)
    dataset = open_dataset(data, tiny_config.model, "val")
    backend = ByPosition(tiny_config.model)
    scored = score_split(backend.run, dataset, votes=votes).confusion

    (scan,) = dataset.scans
    predicted = Predictor(backend).predict(read_cloud(scan.name), max_points=most, votes=votes)
    again = Confusion(2)
    again.add(scan.labels, predicted.classes)
    assert np.array_equal(scored.counts, again.counts)
    assert (scored.counts > 100).all()


@pytest.mark.parametrize("votes", [1, 3])
def test_objects_are_scored_in_batches_and_vote_with_other_points(votes):
    config = resolve_config(
        "scanobjectnn",
        dims=(16, 16),
        depths=(1, 1),
        neighbors=(4, 4),
        spread=(2, 4),
        points=(32, 8),
        num_classes=3,
    )
    rng = np.random.default_rng(0)
    rows = np.arange(100, dtype=np.int32)
    scans = [
        Scan(
            f"object {number}",
            (rng.uniform(0, 1, (100, 3)) + number % 3).astype(np.float32),
            np.zeros((100, 0), np.float32),
            np.array([-1 if number == 7 else number % 3], np.int16),
            np.zeros(3),
            VoxelGrid(rows, rows),
        )
        for number in range(40)
    ]
    data = DataConfig(kind="prepared", classes=tuple(ClassMap(str(c), (c,)) for c in range(3)))
    runs, answers, calls = [], [], []

    def by_place(pyramid) -> np.ndarray:
        """Knows the class by the place, but takes every object 5 for one of class 0."""
        pyramid.validate()
        clouds = pyramid.points.reshape(pyramid.clouds, 32, 3)
        runs.append(clouds)
        logits = 5 * np.eye(3, dtype=np.float32)[np.floor(clouds.mean(axis=(1, 2))).astype(int)]
        if pyramid.clouds == 32:
            logits[5] = [5, 0, 0]
        return logits

    scores = score_split(
        by_place,
        Dataset(scans, data, config),
        votes=votes,
        progress=lambda *call: calls.append(call),
        after_scan=answers.append,
    )
    assert [len(clouds) for clouds in runs] == [32] * votes + [8] * votes
    for vote in range(1, votes):
        assert not np.array_equal(runs[0], runs[vote])
    assert [answer.scan.name for answer in answers] == [f"object {n}" for n in range(40)]
    assert scores.confusion.points == 39
    assert scores.confusion.counts[2, 0] == 1
    assert np.trace(scores.confusion.counts) == 38
    sure = np.exp(5) / (np.exp(5) + 2)
    assert answers[0].confidence[0] == pytest.approx(sure, rel=1e-5)
    assert calls[-1] == (40, 40)


def test_parts_are_scored_object_by_object(tiny_config):
    dataset = open_dataset(tiny_config.data, tiny_config.model, "val")
    (scan,) = dataset.scans
    categories = (CategoryInfo("hall", (0,)), CategoryInfo("store", (0, 1)))
    model = dataclasses.replace(tiny_config.model, categories=categories)
    one_hot = np.tile(np.float32([0, 1]), (len(scan.points), 1))
    scan = dataclasses.replace(scan, attributes=np.hstack([scan.attributes, one_hot]))
    scores = score_split(
        lambda pyramid: np.tile(np.float32([1, 0]), (len(pyramid.points), 1)),
        Dataset([scan], tiny_config.data, model),
    )
    found = scores.to_dict(["floor", "box"])["parts"]
    floor = (scan.labels == 0).sum() / (scan.labels >= 0).sum()
    assert found["instance_miou"] == pytest.approx(floor / 2)
    assert [row["objects"] for row in found["categories"]] == [0, 1]
