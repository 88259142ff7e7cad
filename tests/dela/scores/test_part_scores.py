"""Part segmentation scores against counts by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dela.model.contract import CategoryInfo
from dela.scores.parts import PartScores

CATEGORIES = (
    CategoryInfo("chair", (0, 1, 2)),
    CategoryInfo("lamp", (3, 4)),
    CategoryInfo("mug", (5,)),
)


def test_an_objects_score_is_the_mean_over_its_categorys_parts():
    scores = PartScores(CATEGORIES)
    # Part 0: 2 of 3; part 1: 1 of 2; part 2 is in neither: 1.
    scores.add(0, np.array([0, 0, 1, 0]), np.array([0, 0, 1, 1]))
    expected = (2 / 3 + 1 / 2 + 1) / 3
    assert scores.instance_miou == pytest.approx(expected)
    # A part of another category is wrong like any other.
    scores.add(1, np.array([3, 3, 4]), np.array([3, 0, 4]))
    lamp = (1 / 2 + 1) / 2
    assert scores.instance_miou == pytest.approx((expected + lamp) / 2)
    assert scores.category_miou == pytest.approx((expected + lamp) / 2)
    scores.add(1, np.array([3, 4]), np.array([3, 4]))
    assert scores.instance_miou == pytest.approx((expected + lamp + 1) / 3)
    assert scores.category_miou == pytest.approx((expected + (lamp + 1) / 2) / 2)
    assert scores.objects == 3


def test_ignored_points_count_nowhere():
    scores = PartScores(CATEGORIES)
    scores.add(1, np.array([3, -1, 4]), np.array([3, 3, 4]))
    assert scores.instance_miou == 1


def test_scores_are_json_and_a_table():
    scores = PartScores(CATEGORIES)
    assert json.loads(json.dumps(scores.to_dict()))["instance_miou"] is None
    assert scores.table().splitlines()[0].split() == ["category", "objects", "mIoU"]
    scores.add(2, np.array([5]), np.array([5]))
    table = scores.table().splitlines()
    assert [line.split()[0] for line in table] == ["category", "mug", "mean"]
    assert scores.to_dict()["categories"][2] == {"name": "mug", "objects": 1, "miou": 1.0}
