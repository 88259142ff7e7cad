"""What ``dela eval -o`` leaves: every scan with its true and predicted labels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dela.cloud.formats import write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.files import atomic_path
from dela.model.contract import Contract
from dela.scores.confusion import IGNORED
from dela.training.evaluate.split import ScanAnswer

TABLE = "predictions.csv"
UNLABELLED = -1


class PredictionWriter:
    """Writes predictions into a folder as they come.

    Scenes become PLY files with the columns ``label`` and ``truth`` (class codes, -1: none) and
    ``confidence``; objects become the lines of ``predictions.csv``.
    """

    def __init__(self, folder: Path, model: Contract, overwrite: bool) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give a folder with -o")
        if not overwrite and folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; pass --overwrite or another folder with -o")
        self._folder = folder
        self._model = model
        self._overwrite = overwrite
        self._codes = np.array([*(info.code for info in model.classes), UNLABELLED], np.int32)
        self._names: set[str] = set()
        self._lines = ["object,truth,prediction,confidence"]

    def write(self, answer: ScanAnswer) -> None:
        """Write one scan, or remember one object for :meth:`close`."""
        truth = np.where(answer.scan.labels == IGNORED, len(self._codes) - 1, answer.scan.labels)
        if self._model.task == "classification":
            names = [*(info.name for info in self._model.classes), "ignored"]
            self._lines.append(
                f"{answer.scan.name},{names[truth[0]]},{names[answer.predicted[0]]},"
                f"{answer.confidence[0]:.4f}"
            )
            return
        columns = {
            "label": self._codes[answer.predicted],
            "truth": self._codes[truth],
            "confidence": answer.confidence.astype(np.float32),
        }
        cloud = PointCloud(np.asarray(answer.scan.points) + answer.scan.origin, columns)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_cloud(self._folder / f"{self._name(answer.scan.name)}.ply", cloud, self._overwrite)

    def close(self) -> None:
        """Write the table of objects, if there are any."""
        if len(self._lines) > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._folder / TABLE, self._overwrite) as temporary:
                temporary.write_text("\n".join(self._lines) + "\n", encoding="utf-8")

    def _name(self, scan: str) -> str:
        """A file name of its own for a scan that is named by its file or its scene."""
        base = re.sub(r"[^\w.-]+", "_", Path(scan).stem if "/" in scan else scan) or "scan"
        name, number = base, 1
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name
