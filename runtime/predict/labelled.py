"""A cloud with its prediction beside the input's own columns, and scores against given labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.model.contract import ClassInfo
from dela.runtime.predict.predictor import Prediction
from dela.scores.confusion import IGNORED, Confusion

# Names of what a prediction adds, and the prefix under which a column it displaces is kept.
LAS_LABEL, LABEL, CONFIDENCE = "classification", "label", "confidence"
KEPT_PREFIX = "input_"
_LAS_SUFFIXES = (".las", ".laz")
_LAS_NEVER_CLASSIFIED = 0


def label_column(path: Path) -> str:
    """The column that holds labels in a file of this suffix."""
    return LAS_LABEL if path.suffix.lower() in _LAS_SUFFIXES else LABEL


def with_prediction(cloud: PointCloud, prediction: Prediction, path: Path) -> PointCloud:
    """The cloud to write at ``path``: every input column, the label codes and the confidence.

    The label column is ``classification`` in LAS (the type LAS gives it; unlabelled is 0, "never
    classified") and ``label`` elsewhere (int32; unlabelled is -1). A column of that name in the
    input is kept as ``input_classification`` or ``input_label``.

    Raises:
        InputError: a label code that LAS cannot hold.
    """
    name = label_column(path)
    labels = prediction.labels
    if name == LAS_LABEL:
        highest = int(labels.max(initial=0))
        if highest > 255 or int(np.min(labels[labels != -1], initial=0)) < 0:
            raise InputError(
                f"{path}: LAS holds label codes 0 to 255, the model has {highest}; write PLY or NPZ"
            )
        labels = np.where(labels < 0, _LAS_NEVER_CLASSIFIED, labels).astype(np.uint8)
    columns = dict(cloud.columns)
    for column in (name, CONFIDENCE):
        if column in columns and KEPT_PREFIX + column not in columns:
            columns[KEPT_PREFIX + column] = columns[column]
    columns[name] = labels
    columns[CONFIDENCE] = prediction.confidence.astype(np.float32)
    source = cloud.source
    return PointCloud(cloud.points, columns, source)


def classes_of_codes(
    codes: np.ndarray, infos: Sequence[ClassInfo], aliases: Mapping[int, int] | None = None
) -> np.ndarray:
    """[N] int32 class index of each label code; -1 for a code that no class has.

    Args:
        codes: [N] label codes, as files hold them.
        infos: the model's classes.
        aliases: code in the file -> code of a class, for files with finer classes.
    """
    index_of = {info.code: index for index, info in enumerate(infos)}
    for code, stands_for in (aliases or {}).items():
        if stands_for not in index_of:
            raise InputError(
                f"code {code} is to count as {stands_for}, which no class has; "
                f"codes: {', '.join(str(known) for known in index_of)}"
            )
        index_of[code] = index_of[stands_for]
    values, inverse = np.unique(codes, return_inverse=True)
    table = np.array([index_of.get(int(value), IGNORED) for value in values], dtype=np.int32)
    return table[inverse]


def score(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> Confusion:
    """Scores over the points that have both a true class and a prediction (neither is -1)."""
    confusion = Confusion(num_classes)
    both = (truth >= 0) & (predicted >= 0)
    confusion.add(truth[both], predicted[both])
    return confusion


def column_of(cloud: PointCloud, name: str) -> np.ndarray:
    """A column by name.

    Raises:
        InputError: it is missing; names those present.
    """
    if name not in cloud.columns:
        present = ", ".join(sorted(cloud.columns)) or "coordinates only"
        raise InputError(f"the scan has no column {name!r}; it has {present}")
    return cloud.columns[name]
