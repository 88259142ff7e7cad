"""Scores of a split are those of the predictions a user gets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dela.formats import read_cloud
from dela.metrics import Confusion
from dela.runtime import Predictor
from dela.training.datasets import open_dataset
from dela.training.evaluate import evaluate


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
    scored = evaluate(backend.run, dataset, votes)

    (scan,) = dataset.scans
    predicted = Predictor(backend).predict(read_cloud(scan.name), max_points=most, votes=votes)
    again = Confusion(2)
    again.add(scan.labels, predicted.classes)
    assert np.array_equal(scored.counts, again.counts)
    assert (scored.counts > 100).all()
