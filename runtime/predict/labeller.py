"""From a prepared scan to the label of every point, on the host; and what a GPU's way gives too."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.model.inputs import Inputs
from dela.runtime.backends.finite import finite_run
from dela.scan.attributes import compute_attributes
from dela.scan.votes import VoteOptions, predict_voxels
from dela.scan.voxels import Voxels

if TYPE_CHECKING:
    from collections.abc import Callable

    from dela.runtime.backends.base import Backend


@dataclass(frozen=True)
class Labels:
    """What a network says of the first points of a scan.

    Attributes:
        classes: [N] int32, index into the model's classes.
        confidence: [N] float32, the probability of that class.
        probabilities: [N, classes] float32 when asked for, else None.
        voxels: points the network saw.
        runs: of the network.
        network_seconds: that its runs took; on a GPU by the GPU's clock.
    """

    classes: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None
    voxels: int
    runs: int
    network_seconds: float


class Labeller(Protocol):
    """A backend, and where voxels, neighbors and labels are made for it."""

    def wait(self) -> None:
        """Waits until the pyramid made last is there."""

    def run(self, pyramid: Inputs) -> Any:
        """The network's logits, where :meth:`label` takes them."""

    def label(
        self,
        forward: Callable[[Inputs], Any],
        cloud: PointCloud,
        points: int,
        options: VoteOptions,
        probabilities: bool = False,
    ) -> Labels:
        """Labels of a finite scan.

        Args:
            forward: :meth:`run`, and whatever the caller wants to know of it.
            cloud: the scan.
            points: how many of the scan's points, from the first one on, get labels.
            options: tiles, votes and who hears of them.
            probabilities: give those of every class too.

        Raises:
            InputError: a column that the network needs is missing or holds NaN, or several points
                that all fall into one voxel.
        """


class HostLabeller:
    """:class:`Labeller` on the CPU, for every backend and task."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._run = finite_run(backend)

    def wait(self) -> None:
        """Nothing to wait for."""

    def run(self, pyramid: Inputs) -> np.ndarray:
        """Logits on the host."""
        return self._run(pyramid)

    def label(
        self,
        forward: Callable[[Inputs], Any],
        cloud: PointCloud,
        points: int,
        options: VoteOptions,
        probabilities: bool = False,
    ) -> Labels:
        """As :meth:`Labeller.label`."""
        config = self._backend.config
        attributes = compute_attributes(cloud, config.input_columns)
        seconds = 0.0

        def timed(pyramid: Inputs) -> Any:
            nonlocal seconds
            start = time.perf_counter()
            logits = forward(pyramid)
            seconds += time.perf_counter() - start
            return logits

        answer = predict_voxels(
            timed,
            cloud.points - cloud.points.min(axis=0),
            lambda pick: Voxels.of(cloud, attributes, config, pick),
            config,
            options,
        )
        rows = answer.row_of_point[:points]
        return Labels(
            answer.probabilities.argmax(axis=1).astype(np.int32)[rows],
            answer.probabilities.max(axis=1)[rows],
            answer.probabilities[rows] if probabilities else None,
            len(answer.voxels),
            answer.runs,
            seconds,
        )
