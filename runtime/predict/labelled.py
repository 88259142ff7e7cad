"""A cloud with its prediction beside the input's own columns, and scores against given labels."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dela.cloud.formats import Format, format_of, read_cloud, write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError, ScanWarning
from dela.model.contract import ClassInfo
from dela.runtime.predict.predictor import UNLABELLED, Prediction
from dela.scores.confusion import IGNORED, Confusion

# What a prediction adds beside its label, and the prefix under which a column it displaces is kept.
CONFIDENCE = "confidence"
KEPT_PREFIX = "input_"


def with_prediction(cloud: PointCloud, prediction: Prediction, path: Path) -> PointCloud:
    """The cloud to write at ``path``: every input column, the label codes and the confidence.

    The label column is the format's: ``classification`` in LAS (the type LAS gives it; unlabelled
    is 0, "never classified") and ``label`` elsewhere (int32; unlabelled is -1). A column of that
    name in the input is kept as ``input_classification`` or ``input_label``.

    Raises:
        InputError: a label code that the format cannot hold.
    """
    form = format_of(path)
    name, labels = form.label_column, prediction.labels
    if not np.can_cast(labels.dtype, form.label_dtype):
        _check_codes(labels, form, path)
    if form.unlabelled != UNLABELLED:
        labels = np.where(labels == UNLABELLED, form.unlabelled, labels)
    labels = labels.astype(form.label_dtype, copy=False)
    columns = dict(cloud.columns)
    for column in (name, CONFIDENCE):
        if column in columns and KEPT_PREFIX + column not in columns:
            columns[KEPT_PREFIX + column] = columns[column]
    columns[name] = labels
    columns[CONFIDENCE] = prediction.confidence.astype(np.float32)
    source = cloud.source
    return PointCloud(cloud.points, columns, source)


def check_target(
    cloud: PointCloud, classes: Sequence[ClassInfo], path: Path, drop_invalid: bool = False
) -> None:
    """Whether the result of a scan can be written, before a network runs over it.

    A few of its points, one for every class and one without, are written to a file that is read
    back and thrown away: a format's limits on codes, names, versions and header are those of its
    writer and its reader.

    Args:
        cloud: as read.
        classes: of the network.
        path: the file to write later.
        drop_invalid: points without finite coordinates are written too, unlabelled.

    Raises:
        InputError: what the format cannot hold.
    """
    if not len(cloud):
        return
    known = np.array([*range(len(classes)), UNLABELLED])
    rows = np.arange(len(known)) % len(cloud)
    if drop_invalid:
        gaps = np.flatnonzero(~np.isfinite(cloud.points).all(axis=1))
        rows[-1:] = gaps[:1] if len(gaps) else rows[-1:]
    codes = np.array([*(info.code for info in classes), UNLABELLED], np.int32)
    confidence = np.ones(len(known), np.float32)
    answer = Prediction(known, codes, confidence, None, voxels=0, tiles=0, invalid=0)
    with tempfile.TemporaryDirectory() as folder:
        rehearsed = Path(folder) / path.name
        try:
            write_cloud(rehearsed, with_prediction(cloud.select(rows), answer, path))
            if not format_of(path).labels_only:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ScanWarning)  # told when the scan was read
                    read_cloud(rehearsed)
        except InputError as error:
            raise InputError(str(error).replace(str(rehearsed), str(path))) from error


def _check_codes(labels: np.ndarray, form: Format, path: Path) -> None:
    limits = np.iinfo(form.label_dtype)
    highest = int(labels.max(initial=0))
    if highest > limits.max or int(np.min(labels[labels != UNLABELLED], initial=0)) < limits.min:
        raise InputError(
            f"{path}: {form.name} holds label codes {limits.min} to {limits.max}, the model has "
            f"{highest}; write PLY or NPZ"
        )


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
