"""Scores of a labelling: confusion matrix, accuracies, intersection over union."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dela.errors import InputError

IGNORED = -1


class Confusion:
    """Counts of (true class, predicted class) pairs, summed over any number of clouds.

    Attributes:
        counts: [classes, classes] int64; row = truth, column = prediction.
    """

    def __init__(self, num_classes: int, counts: np.ndarray | None = None) -> None:
        if num_classes < 1:
            raise InputError(f"a confusion matrix of {num_classes} classes; give at least 1")
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        if counts is not None:
            counts = np.asarray(counts)
            if counts.shape != self.counts.shape:
                raise InputError(f"counts have shape {counts.shape}; expected {self.counts.shape}")
            self.counts += counts.astype(np.int64)

    @property
    def num_classes(self) -> int:
        return len(self.counts)

    def add(self, truth: Any, predicted: Any) -> None:
        """Count one cloud; points whose truth is -1 are left out.

        Args:
            truth: [N] integers, -1 (ignored) or 0 .. classes - 1.
            predicted: [N] integers, 0 .. classes - 1.

        Raises:
            InputError: lengths that differ, or a class out of range.
        """
        truth = np.asarray(truth).reshape(-1)
        predicted = np.asarray(predicted).reshape(-1)
        if len(truth) != len(predicted):
            raise InputError(f"{len(truth)} true labels but {len(predicted)} predictions")
        counted = truth != IGNORED
        truth = truth[counted].astype(np.int64)
        predicted = predicted[counted].astype(np.int64)
        for name, labels in (("true", truth), ("predicted", predicted)):
            wrong = (labels < 0) | (labels >= self.num_classes)
            if wrong.any():
                raise InputError(
                    f"{name} label {labels[wrong][0]} is outside 0..{self.num_classes - 1}"
                )
        pairs = np.bincount(truth * self.num_classes + predicted, minlength=self.counts.size)
        self.counts += pairs.reshape(self.counts.shape)

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.num_classes, self.counts + other.counts)

    @property
    def points(self) -> int:
        """Points counted."""
        return int(self.counts.sum())

    @property
    def oa(self) -> float:
        """Overall accuracy: points labelled right / points; NaN before the first point."""
        return _ratio(np.trace(self.counts), self.points)

    @property
    def accuracy(self) -> np.ndarray:
        """[classes] share of a class's points labelled right; NaN where truth has none."""
        return _ratios(np.diag(self.counts), self.counts.sum(1))

    @property
    def iou(self) -> np.ndarray:
        """[classes] intersection over union; NaN where no point has or is given the class."""
        hits = np.diag(self.counts)
        return _ratios(hits, self.counts.sum(0) + self.counts.sum(1) - hits)

    @property
    def macc(self) -> float:
        """Mean of :attr:`accuracy` over the classes that occur."""
        return _mean(self.accuracy)

    @property
    def miou(self) -> float:
        """Mean of :attr:`iou` over the classes that occur in truth or prediction."""
        return _mean(self.iou)

    def per_class(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """One dictionary a class: ``name``, ``points``, ``iou``, ``accuracy``, ``precision``.

        Undefined scores are None, so that the result is valid JSON.
        """
        if names is None:
            names = [str(number) for number in range(self.num_classes)]
        if len(names) != self.num_classes:
            raise InputError(f"{len(names)} class names for {self.num_classes} classes")
        precision = _ratios(np.diag(self.counts), self.counts.sum(0))
        return [
            {
                "name": name,
                "points": int(self.counts[row].sum()),
                "iou": _finite(self.iou[row]),
                "accuracy": _finite(self.accuracy[row]),
                "precision": _finite(precision[row]),
            }
            for row, name in enumerate(names)
        ]

    def to_dict(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Plain JSON types: ``oa``, ``macc``, ``miou``, ``points``, ``classes``, ``confusion``."""
        return {
            "oa": _finite(self.oa),
            "macc": _finite(self.macc),
            "miou": _finite(self.miou),
            "points": self.points,
            "classes": self.per_class(names),
            "confusion": self.counts.tolist(),
        }

    def table(self, names: Sequence[str] | None = None) -> str:
        """The scores as aligned text, one line a class and a line of means."""
        rows = self.per_class(names)
        width = max(len("class"), *(len(row["name"]) for row in rows))
        lines = [f"{'class':<{width}}  {'points':>10}  {'IoU':>6}  {'recall':>6}  {'precis.':>7}"]
        for row in rows:
            lines.append(
                f"{row['name']:<{width}}  {row['points']:>10,}  {_percent(row['iou']):>6}  "
                f"{_percent(row['accuracy']):>6}  {_percent(row['precision']):>7}"
            )
        lines.append(
            f"{'mean':<{width}}  {self.points:>10,}  {_percent(self.miou):>6}  "
            f"{_percent(self.macc):>6}  overall accuracy {_percent(self.oa)}"
        )
        return "\n".join(lines)

    def matrix_table(self, names: Sequence[str] | None = None) -> str:
        """The confusion matrix as aligned text: of each class's points (a line), the percentage
        that was given each class (a column, numbered as the lines are)."""
        rows = self.per_class(names)
        width = max(len(row["name"]) for row in rows) + len(str(len(rows))) + 1
        labels = [f"{number} {row['name']}" for number, row in enumerate(rows)]
        lines = [f"{'true':<{width}} " + "".join(f"{n:>6}" for n in range(len(rows)))]
        for label, counts in zip(labels, self.counts, strict=True):
            total = counts.sum()
            shares = [f"{100 * count / total:.1f}" if total else "-" for count in counts]
            lines.append(f"{label:<{width}} " + "".join(f"{share:>6}" for share in shares))
        return "\n".join(lines)


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _ratios(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    result = np.full(len(part), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _percent(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{100 * value:.2f}"
