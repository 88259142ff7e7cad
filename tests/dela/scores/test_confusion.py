"""Scores against values worked out by hand."""

import numpy as np
import pytest

from dela.errors import InputError
from dela.scores.confusion import Confusion


@pytest.fixture
def confusion() -> Confusion:
    # truth      0 0 0 0 1 1 2 -1
    # prediction 0 0 0 1 1 2 2  0
    result = Confusion(4)
    result.add(np.array([0, 0, 0, 0, 1, 1, 2, -1]), np.array([0, 0, 0, 1, 1, 2, 2, 0]))
    return result


def test_scores_of_a_hand_counted_labelling(confusion):
    assert confusion.points == 7
    assert confusion.oa == pytest.approx(5 / 7)
    np.testing.assert_allclose(confusion.accuracy, [3 / 4, 1 / 2, 1, np.nan])
    np.testing.assert_allclose(confusion.iou, [3 / 4, 1 / 3, 1 / 2, np.nan])
    assert confusion.macc == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert confusion.miou == pytest.approx((3 / 4 + 1 / 3 + 1 / 2) / 3)
    assert [row["precision"] for row in confusion.per_class()] == [1, 1 / 2, 1 / 2, None]


def test_a_class_that_is_only_predicted_has_iou_zero_and_no_accuracy():
    result = Confusion(3)
    result.add([0, 0], [0, 2])
    assert result.iou[2] == 0.0
    assert np.isnan(result.accuracy[2])
    assert result.miou == pytest.approx((0.5 + 0.0) / 2)
    assert result.macc == pytest.approx(0.5)


def test_rows_are_truth_and_columns_prediction(confusion):
    np.testing.assert_array_equal(
        confusion.counts, [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    )


def test_adding_clouds_equals_adding_their_concatenation():
    generator = np.random.default_rng(0)
    truth = generator.integers(-1, 5, 1000).astype(np.uint8).astype(np.int32)
    truth[truth == 255] = -1
    predicted = generator.integers(0, 5, 1000)
    whole, first, second = Confusion(5), Confusion(5), Confusion(5)
    whole.add(truth, predicted)
    first.add(truth[:300], predicted[:300])
    second.add(truth[300:], predicted[300:])
    np.testing.assert_array_equal((first + second).counts, whole.counts)
    expected = [
        np.sum((truth == c) & (predicted == c))
        / np.sum((truth >= 0) & ((truth == c) | (predicted == c)))
        for c in range(5)
    ]
    np.testing.assert_allclose(whole.iou, expected)


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([3], [0], "true label 3 is outside 0..2"),
        ([-2], [0], "true label -2"),
        ([0], [-1], "predicted label -1"),
        ([0], [7], "predicted label 7"),
        ([0, 1], [0], "2 true labels but 1 predictions"),
    ],
)
def test_labels_that_cannot_be_counted_are_named(truth, predicted, message):
    with pytest.raises(InputError, match=message):
        Confusion(3).add(truth, predicted)


def test_no_points_is_not_a_division_by_zero():
    result = Confusion(2)
    result.add([], [])
    assert np.isnan(result.oa) and np.isnan(result.miou)
    assert result.to_dict()["miou"] is None
    assert "-" in result.table()


def test_table_and_dictionary_carry_the_class_names(confusion):
    names = ["ground", "roof", "tree", "water"]
    table = confusion.table(names).splitlines()
    assert [line.split()[0] for line in table] == ["class", *names, "mean"]
    assert "75.00" in table[1]
    scores = confusion.to_dict(names)
    assert scores["classes"][1]["iou"] == pytest.approx(1 / 3)
    assert scores["classes"][3]["iou"] is None
    with pytest.raises(InputError, match="2 class names for 4 classes"):
        confusion.per_class(["a", "b"])
