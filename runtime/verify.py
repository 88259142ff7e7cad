"""Parity: PyTorch and a backend on the same pyramids, measured and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dela.artifacts.sidecar import Sidecar
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.families import family_of
from dela.model.contract import Contract
from dela.model.parity import Tolerance
from dela.runtime.backends.base import Backend
from dela.scan.attributes import compute_attributes
from dela.scan.votes import Progress
from dela.scan.voxels import Voxels, valid_points


@dataclass(frozen=True)
class ClassParity:
    """Parity among the points PyTorch gives one class."""

    name: str
    points: int
    max_error: float
    agreement: float | None


@dataclass(frozen=True)
class Parity:
    """How far a backend's logits are from PyTorch's.

    Attributes:
        name: the backend, and which kernels it ran.
        points: rows compared (points of stage 0, or clouds).
        largest_logit: the largest absolute logit of PyTorch.
        max_error, mean_error: absolute.
        max_relative, mean_relative: the same as shares of the largest logit.
        cosine: between all logits of both.
        agreement: share of rows with the same label.
        classes: the same per class PyTorch chose.
        tolerance: what it was held to.
    """

    name: str
    points: int
    largest_logit: float
    max_error: float
    mean_error: float
    max_relative: float
    mean_relative: float
    cosine: float
    agreement: float
    classes: tuple[ClassParity, ...]
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        """NaN anywhere fails: no comparison with it holds."""
        return (
            self.max_relative <= self.tolerance.error and self.agreement >= self.tolerance.agreement
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "backend": self.name,
            "passed": self.passed,
            "points": self.points,
            "largest_logit": self.largest_logit,
            "max_error": self.max_error,
            "mean_error": self.mean_error,
            "max_relative_error": self.max_relative,
            "mean_relative_error": self.mean_relative,
            "cosine": self.cosine,
            "label_agreement": self.agreement,
            "tolerance": {"error": self.tolerance.error, "agreement": self.tolerance.agreement},
            "classes": [
                {
                    "name": item.name,
                    "points": item.points,
                    "max_error": item.max_error,
                    "label_agreement": item.agreement,
                }
                for item in self.classes
            ],
        }


def compare_logits(
    name: str,
    expected: np.ndarray,
    found: np.ndarray,
    class_names: Sequence[str],
    tolerance: Tolerance,
) -> Parity:
    """Measures ``found`` against ``expected``, both [N, classes].

    Raises:
        InputError: the shapes differ.
    """
    if expected.shape != found.shape:
        raise InputError(f"{name} gave logits of shape {found.shape}; expected {expected.shape}")
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    difference = np.abs(found - expected)
    largest = float(np.abs(expected).max()) or 1.0
    lengths = float(np.linalg.norm(expected) * np.linalg.norm(found))
    winners = expected.argmax(axis=1)
    same = winners == found.argmax(axis=1)
    classes = []
    for index, class_name in enumerate(class_names):
        rows = winners == index
        count = int(np.count_nonzero(rows))
        classes.append(
            ClassParity(
                class_name,
                count,
                float(difference[rows].max()) if count else 0.0,
                float(same[rows].mean()) if count else None,
            )
        )
    return Parity(
        name=name,
        points=len(expected),
        largest_logit=largest,
        max_error=float(difference.max()),
        mean_error=float(difference.mean()),
        max_relative=float(difference.max()) / largest,
        mean_relative=float(difference.mean()) / largest,
        cosine=float((expected * found).sum()) / lengths if lengths else 1.0,
        agreement=float(same.mean()),
        classes=tuple(classes),
        tolerance=tolerance,
    )


def verify(
    reference: Backend,
    candidates: dict[str, Backend],
    cloud: PointCloud,
    *,
    max_points: int,
    tolerance: Tolerance | None = None,
    progress: Progress | None = None,
) -> list[Parity]:
    """Runs the reference and every candidate on the same pyramids of a scan.

    Args:
        reference: the checkpoint in PyTorch.
        candidates: what to call it -> backend.
        cloud: the scan, all of it finite; cut into tiles when it has more voxels than
            ``max_points`` or than a backend takes.
        tolerance: by each candidate's dtype when None.

    Raises:
        InputError: the scan cannot be used, or a candidate is of a different network.
    """
    config = reference.config
    for candidate in candidates.values():
        _check_same_network(config, str(candidate.path), candidate.config)
    valid_points(cloud, drop_invalid=False)
    voxels = Voxels.of(cloud, compute_attributes(cloud, config.input_columns), config)
    answers: dict[str, list[np.ndarray]] = {name: [] for name in ("", *candidates)}
    done = 0
    limits = [backend.max_points for backend in (reference, *candidates.values())]
    for part in voxels.tiles(config, min(max_points, *(limit or max_points for limit in limits))):
        rows = part.tile.core if config.task == "segmentation" else slice(None)
        answers[""].append(reference.run(part.inputs)[rows])
        for name, candidate in candidates.items():
            answers[name].append(candidate.run(part.inputs)[rows])
        done += int(np.count_nonzero(part.tile.core))
        if progress is not None:
            progress(done, len(voxels.points))
    expected = np.concatenate(answers.pop(""))
    names = [info.name for info in config.classes]
    return [
        compare_logits(
            name,
            expected,
            np.concatenate(logits),
            names,
            tolerance or tolerance_of(candidates[name]),
        )
        for name, logits in answers.items()
    ]


def tolerance_of(backend: Backend) -> Tolerance:
    """The tolerance of a file's dtype; fp32's for a checkpoint.

    TF32, in an engine or in ONNX Runtime on a GPU, rounds factors to float16's 10 bits.
    """
    dtype = backend.metadata.dtype if backend.metadata is not None else "fp32"
    sidecar: Sidecar | None = getattr(backend, "sidecar", None)
    if dtype == "fp32" and getattr(sidecar or backend, "tf32", False):
        dtype = "fp16"
    return family_of(backend.config).parity(dtype)


def _check_same_network(config: Contract, name: str, other: Contract) -> None:
    ours = {"family": config.family} | config.to_dict()
    theirs = {"family": other.family} | other.to_dict()
    differing = [key for key in ours if ours[key] != theirs.get(key)]
    if differing:
        key = differing[0]
        raise InputError(
            f"{name} and the checkpoint are different networks: {key} is {theirs.get(key)} there, "
            f"{ours[key]} in the checkpoint; export the checkpoint again"
        )
