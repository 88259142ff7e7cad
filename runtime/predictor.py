"""Labels for every point of a cloud: voxels, tiles, votes, and back to full resolution."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dela.attributes import compute_attributes
from dela.cloud import PointCloud
from dela.config import ModelConfig
from dela.errors import InputError
from dela.pyramid import Pyramid
from dela.runtime.backends import Backend
from dela.scene import Voxels, valid_points
from dela.surroundings import join_clouds
from dela.votes import Progress, predict_voxels

if TYPE_CHECKING:
    from dela.device_pyramid import PyramidBuilder

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
        invalid: points left out because a coordinate is NaN or infinite.
        seconds: time spent on ``pyramid`` (attributes, voxels, neighbours) and ``network``.
    """

    classes: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None
    voxels: int
    tiles: int
    invalid: int
    seconds: dict[str, float] = field(default_factory=dict)


class Predictor:
    """Runs a backend over whole clouds.

    Args:
        backend: that runs the network.
        gpu_pyramid: find voxels and neighbours on the GPU of an engine; the answer is the same.
            Threads then take turns; with a predictor each, over one backend, only in the network.

    Raises:
        InputError: ``gpu_pyramid`` with another backend, or for classification.

    >>> predictor = Predictor(load_backend("model.onnx"))
    >>> predictor.predict(dela.read_cloud("scan.laz")).labels
    """

    def __init__(self, backend: Backend, *, gpu_pyramid: bool = False) -> None:
        self.backend = backend
        self.config = backend.config
        self._builder: PyramidBuilder | None = None
        self._turn: AbstractContextManager[object] = nullcontext()
        if gpu_pyramid:
            from dela.runtime.device_scan import pyramid_builder

            self._builder = pyramid_builder(backend)
            # Its pyramids are valid until it builds the next one.
            self._turn = threading.Lock()
        self._codes = np.array([*(info.code for info in self.config.classes), UNLABELLED], np.int32)

    def predict(
        self,
        cloud: PointCloud,
        *,
        around: PointCloud | None = None,
        max_points: int = MAX_POINTS,
        votes: int = 1,
        drop_invalid: bool = False,
        probabilities: bool = False,
        progress: Progress | None = None,
    ) -> Prediction:
        """Labels every point at full resolution.

        Args:
            cloud: needs the model's attribute columns.
            around: points of neighbouring scans, see :mod:`dela.surroundings`; the network sees
                them and they get no label. Not for classification.
            max_points: voxels in one run; a larger scene is cut into overlapping tiles. Never more
                than the backend takes.
            votes: looks at the scene, see :func:`dela.votes.predict_voxels`: each takes other
                points of the voxels and sees the scene turned about z, every second one mirrored.
            drop_invalid: leave points with NaN or infinite coordinates out instead of refusing
                the cloud; they keep their place in the result, unlabelled.
            probabilities: return those of every class too.
            progress: called as ``progress(voxels done, voxels in all)``, votes included.

        Raises:
            InputError: an empty cloud, non-finite coordinates, a missing column, votes below 1.
        """
        if votes < 1:
            raise InputError(f"votes is {votes}; give at least 1")
        size = len(cloud)
        if around is not None and len(around):
            if self.config.task == "classification":
                raise InputError("a network that names whole clouds takes no surrounding points")
            cloud = join_clouds([cloud, around])
        valid = valid_points(cloud, drop_invalid)
        invalid = len(cloud) - int(np.count_nonzero(valid))
        if invalid:
            cloud = cloud.select(valid)
        start = time.perf_counter()
        attributes = compute_attributes(cloud, self.config.input_columns)
        network = _Timed(self.backend)
        with self._turn:
            answer = predict_voxels(
                network.run,
                cloud.points - cloud.points.min(axis=0),
                lambda pick: voxels_of(cloud, attributes, self.config, pick, self._builder),
                self.config,
                max_points=min(max_points, self.backend.max_points or max_points),
                votes=votes,
                progress=progress,
            )
        spent = time.perf_counter() - start
        classes = answer.probabilities.argmax(axis=1).astype(np.int32)
        rows = answer.row_of_point[: size - invalid]
        valid = valid[:size]
        found = _scatter(classes[rows], valid, UNLABELLED)
        return Prediction(
            classes=found,
            labels=self._codes[found],
            confidence=_scatter(answer.probabilities.max(axis=1)[rows], valid, 0.0),
            probabilities=_scatter(answer.probabilities[rows], valid, 0.0)
            if probabilities
            else None,
            voxels=len(answer.voxels.points),
            tiles=answer.runs,
            invalid=invalid,
            seconds={"pyramid": spent - network.seconds, "network": network.seconds},
        )


def voxels_of(
    cloud: PointCloud,
    attributes: np.ndarray,
    config: ModelConfig,
    pick: int = 0,
    builder: PyramidBuilder | None = None,
) -> Voxels:
    """:meth:`dela.scene.Voxels.of`, on the GPU where there is a builder."""
    if builder is None:
        return Voxels.of(cloud, attributes, config, pick)
    from dela.runtime.device_scan import ScanOnDevice

    return ScanOnDevice.of_scan(builder, cloud, attributes, pick)


class _Timed:
    """A backend that adds up the seconds its runs take."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.seconds = 0.0

    def run(self, pyramid: Pyramid) -> np.ndarray:
        start = time.perf_counter()
        logits = self._backend.run(pyramid)
        self.seconds += time.perf_counter() - start
        return logits


def _scatter(values: np.ndarray, valid: np.ndarray, fill: float) -> np.ndarray:
    """Values of the valid points back among all points."""
    if valid.all():
        return values
    result = np.full((len(valid), *values.shape[1:]), fill, dtype=values.dtype)
    result[valid] = values
    return result
