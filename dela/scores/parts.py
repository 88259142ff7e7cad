"""Scores of part segmentation: intersection over union of parts, averaged over objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dela.model.contract import CategoryInfo


class PartScores:
    """Intersection over union of every object, collected object by object.

    An object's score is the mean over the parts of its category; a part that neither the truth nor
    the prediction has counts as 1, as in the benchmark (Yi et al. 2016; PointNet, 2017).
    """

    def __init__(self, categories: Sequence[CategoryInfo]) -> None:
        self.categories = tuple(categories)
        self._scores: list[list[float]] = [[] for _ in self.categories]

    def add(self, category: int, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count one object.

        Args:
            category: its index.
            truth, predicted: [N] class indices; points whose truth is -1 are left out.
        """
        counted = np.asarray(truth) >= 0
        truth, predicted = np.asarray(truth)[counted], np.asarray(predicted)[counted]
        found = []
        for part in self.categories[category].classes:
            union = int(((truth == part) | (predicted == part)).sum())
            both = int(((truth == part) & (predicted == part)).sum())
            found.append(both / union if union else 1.0)
        self._scores[category].append(float(np.mean(found)))

    def __add__(self, other: PartScores) -> PartScores:
        total = PartScores(self.categories)
        total._scores = [a + b for a, b in zip(self._scores, other._scores, strict=True)]
        return total

    @property
    def objects(self) -> int:
        """Objects counted."""
        return sum(map(len, self._scores))

    @property
    def instance_miou(self) -> float:
        """Mean over all objects; NaN before the first."""
        scores = [score for scores in self._scores for score in scores]
        return float(np.mean(scores)) if scores else float("nan")

    @property
    def category_miou(self) -> float:
        """Mean over the categories that occur of the mean over their objects."""
        means = [float(np.mean(scores)) for scores in self._scores if scores]
        return float(np.mean(means)) if means else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; None where nothing was counted."""
        return {
            "objects": self.objects,
            "instance_miou": self.instance_miou if self.objects else None,
            "category_miou": self.category_miou if self.objects else None,
            "categories": [
                {
                    "name": info.name,
                    "objects": len(scores),
                    "miou": float(np.mean(scores)) if scores else None,
                }
                for info, scores in zip(self.categories, self._scores, strict=True)
            ],
        }

    def table(self) -> str:
        """One aligned line a category and one of means."""
        rows = [row for row in self.to_dict()["categories"] if row["objects"]]
        width = max(len("category"), *(len(row["name"]) for row in rows), 0) if rows else 8
        lines = [f"{'category':<{width}}  {'objects':>8}  {'mIoU':>6}"]
        lines += [
            f"{row['name']:<{width}}  {row['objects']:>8,}  {100 * row['miou']:>6.2f}"
            for row in rows
        ]
        lines.append(
            f"{'mean':<{width}}  {self.objects:>8,}  {100 * self.category_miou:>6.2f}  "
            f"over objects {100 * self.instance_miou:.2f}"
        )
        return "\n".join(lines)
