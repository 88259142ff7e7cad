"""Labels for every point of a cloud: voxels, tiles, votes, and back to full resolution."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.runtime.backends.base import Backend
from dela.runtime.predict.labeller import HostLabeller, Labeller, Labels
from dela.scan.context import join_clouds
from dela.scan.votes import Progress, VoteOptions
from dela.scan.voxels import valid_points

# Voxels in one run of the network; the S3DIS preset then needs about 1.4 GB.
MAX_POINTS = 200_000
UNLABELLED = -1


@dataclass(frozen=True)
class Prediction:
    """The answer for each point of a cloud, in the cloud's own order.

    Attributes:
        classes: [N] int32, index into the model's classes; -1 for a point left out as invalid.
        labels: [N] int32, the class's label code; -1 for a point left out.
        confidence: [N] float32, the winner's probability (softmax); 0 for a point left out.
        probabilities: [N, classes] float32 when asked for, else None.
        voxels: points the network saw.
        tiles: runs of the network, votes included.
        invalid: points of the cloud left out because a coordinate is NaN or infinite, or an
            attribute NaN.
        seconds: time spent on ``network`` and, with all the rest (attributes, voxels, neighbors,
            labels), on ``pyramid``.
    """

    classes: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None
    voxels: int
    tiles: int
    invalid: int
    seconds: dict[str, float] = field(default_factory=dict)


class PredictOptions(TypedDict, total=False):
    """How :meth:`Predictor.predict` looks at a cloud; what is left out has the value of `_Asked`.

    Attributes:
        max_points: voxels in one run (200,000); a larger scene is cut into overlapping tiles. Never
            more than the backend takes.
        votes: looks at the scene (1), see :func:`dela.scan.votes.take_votes`: each takes other
            points of the voxels and sees the scene turned about z, every second one mirrored.
        drop_invalid: leave points with NaN or infinite coordinates, or NaN in a column that the
            network takes, out instead of refusing the cloud; they keep their place in the result,
            unlabelled.
        probabilities: return those of every class too.
        progress: called as ``progress(voxels done, voxels in all)``, votes included.
    """

    max_points: int
    votes: int
    drop_invalid: bool
    probabilities: bool
    progress: Progress | None


@dataclass(frozen=True)
class _Asked:
    """:class:`PredictOptions` with what was left out."""

    max_points: int = MAX_POINTS
    votes: int = 1
    drop_invalid: bool = False
    probabilities: bool = False
    progress: Progress | None = None


class Predictor:
    """Runs a backend over whole clouds.

    Args:
        backend: that runs the network.
        gpu_pyramid: find voxels, neighbors and labels on the GPU of an engine; the answer is the
            same. Threads then take turns; with a predictor each, over one backend, only in the
            network. None: where the backend can, which is an engine for segmentation.

    Raises:
        InputError: ``gpu_pyramid`` with another backend, or for classification.

    >>> predictor = Predictor(load_backend("model.onnx"))
    >>> predictor.predict(dela.read_cloud("scan.laz")).labels
    """

    def __init__(self, backend: Backend, *, gpu_pyramid: bool | None = None) -> None:
        self.backend = backend
        self.config = backend.config
        self._labeller = labeller_of(backend, gpu_pyramid)
        self._codes = np.array([*(info.code for info in self.config.classes), UNLABELLED], np.int32)

    def predict(
        self,
        cloud: PointCloud,
        *,
        around: PointCloud | None = None,
        **options: Unpack[PredictOptions],
    ) -> Prediction:
        """Labels every point at full resolution.

        Args:
            cloud: needs the model's attribute columns.
            around: points of neighboring scans, see :mod:`dela.scan.context`; the network sees
                them and they get no label. Not for classification.
            options: ``max_points``, ``votes``, ``drop_invalid``, ``probabilities`` and
                ``progress``, see :class:`PredictOptions`.

        Raises:
            InputError: an empty cloud, non-finite coordinates, a missing column, votes below 1.
        """
        asked = _Asked(**options)
        if asked.votes < 1:
            raise InputError(f"votes is {asked.votes}; give at least 1")
        size = len(cloud)
        if around is not None and len(around):
            if self.config.task == "classification":
                raise InputError("a network that names whole clouds takes no surrounding points")
            cloud = join_clouds([cloud, around])
        valid = valid_points(cloud, asked.drop_invalid, self.config.input_columns)
        if not valid.all():
            cloud = cloud.select(valid)
        valid = valid[:size]
        points = int(np.count_nonzero(valid))
        start = time.perf_counter()
        most = min(asked.max_points, self.backend.max_points or asked.max_points)
        votes = VoteOptions(most, asked.votes, progress=asked.progress)
        found = self._labeller.label(self._labeller.run, cloud, points, votes, asked.probabilities)
        return self._prediction(found, valid, time.perf_counter() - start)

    def _prediction(self, found: Labels, valid: np.ndarray, spent: float) -> Prediction:
        """Labels of the valid points among all points; seconds spent in all."""
        classes = _scatter(found.classes, valid, UNLABELLED)
        return Prediction(
            classes=classes,
            labels=self._codes[classes],
            confidence=_scatter(found.confidence, valid, 0.0),
            probabilities=None
            if found.probabilities is None
            else _scatter(found.probabilities, valid, 0.0),
            voxels=found.voxels,
            tiles=found.runs,
            invalid=int(np.count_nonzero(~valid)),
            seconds={
                "pyramid": spent - found.network_seconds,
                "network": found.network_seconds,
            },
        )


def labeller_of(backend: Backend, gpu_pyramid: bool | None) -> Labeller:
    """What labels scans with a backend: on the CPU, or on the GPU of an engine.

    Args:
        backend: that runs the network.
        gpu_pyramid: None: on the GPU where the backend can.

    Raises:
        InputError: ``gpu_pyramid`` with another backend, or for classification.
    """
    on_host = getattr(backend, "device", None) is None
    if gpu_pyramid is False or (gpu_pyramid is None and on_host):
        return HostLabeller(backend)
    from dela.runtime.predict.gpu_labeller import GpuLabeller, serves

    if gpu_pyramid is None and not serves(backend):
        return HostLabeller(backend)
    return GpuLabeller(backend)


def _scatter(values: np.ndarray, valid: np.ndarray, fill: float) -> np.ndarray:
    """Values of the valid points back among all points."""
    if valid.all():
        return values
    result = np.full((len(valid), *values.shape[1:]), fill, dtype=values.dtype)
    result[valid] = values
    return result
