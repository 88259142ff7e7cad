"""Sets of object clouds in HDF5: ``data`` [M, P, 3] and ``label`` [M] or [M, 1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dela.errors import InputError
from dela.training.prepare.store import Record


def need_h5py() -> None:
    """Says once, before the work, that the package is missing; not again for every file."""
    import h5py  # noqa: F401


def read_h5_set(path: Path, classes: int, with_normals: bool = False) -> Record:
    """The clouds of a file, in the file's frame (y up).

    Args:
        classes: labels lie in 0 .. classes - 1.
        with_normals: read ``normal`` [M, P, 3] too where it is there.

    Raises:
        InputError: not HDF5, cut short, a missing or misshapen data set, a label out of range.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            for name in ("data", "label"):
                if name not in file:
                    present = ", ".join(file) or "nothing"
                    raise InputError(f"{path} has no data set {name!r}; it holds {present}")
            points = np.asarray(file["data"], np.float32)
            labels = np.asarray(file["label"]).reshape(-1)
            normals = None
            if with_normals and "normal" in file:
                normals = np.asarray(file["normal"], np.float32)
    except OSError as error:
        message = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read as HDF5 (damaged or cut short?): {message}"
        ) from error
    if points.ndim != 3 or points.shape[2] != 3:
        raise InputError(f"{path}: data has shape {list(points.shape)}; expected [M, P, 3]")
    if len(labels) != len(points):
        raise InputError(f"{path}: {len(labels)} labels for {len(points)} clouds")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{path}, cloud {row}: label {labels[row]} is not in 0 .. {classes - 1}")
    finite = np.isfinite(points).all(axis=(1, 2))
    if not finite.all():
        raise InputError(f"{path}, cloud {int(np.argmin(finite))}: coordinates are not finite")
    clouds, size = points.shape[:2]
    columns = {
        "points": points.reshape(-1, 3),
        "offsets": np.arange(clouds + 1) * size,
        "cloud_labels": labels,
    }
    if normals is not None:
        if normals.shape != points.shape:
            raise InputError(f"{path}: normal has shape {list(normals.shape)}, data has not")
        columns["normals"] = normals.reshape(-1, 3)
    return Record(columns)
