"""Latency of a backend from scan to labels: its input prepared, the network, its answer read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.model.contract import CATEGORY, Contract
from dela.model.inputs import Inputs, pack_inputs
from dela.runtime.backends.base import Backend
from dela.runtime.predict.labeller import HostLabeller, Labeller, Labels
from dela.runtime.predict.predictor import MAX_POINTS, labeller_of
from dela.scan.attributes import compute_attributes
from dela.scan.votes import VoteOptions, softmax
from dela.scan.voxels import Voxels, valid_points

PHASES = ("preprocess", "network", "postprocess")

# A made-up scan has this many points a voxel, as a scan has before its voxel grid.
_POINTS_PER_VOXEL = 4
# Hills of a made-up surface, in voxels.
_WAVELENGTH, _HEIGHT = 40.0, 8.0


@dataclass(frozen=True)
class Latency:
    """Timed runs of one backend on one input.

    Attributes:
        backend, model: what ran.
        input: the scan's name, or what was made up.
        points: rows of stage 0 that the network saw, over all tiles or clouds.
        runs: how often the network ran for it.
        seconds: phase of :data:`PHASES` -> one entry per repetition.
    """

    backend: str
    model: str
    input: str
    points: int
    runs: int
    seconds: dict[str, tuple[float, ...]]

    @property
    def total(self) -> tuple[float, ...]:
        """Seconds of each repetition, all phases together."""
        return tuple(map(sum, zip(*self.seconds.values(), strict=True)))

    def median(self, phase: str) -> float:
        return float(np.median(self.seconds[phase]))

    def p90(self, phase: str) -> float:
        """What nine in ten repetitions stay below."""
        return float(np.percentile(self.seconds[phase], 90))

    @property
    def points_per_second(self) -> float:
        """Of the network alone."""
        return self.points / self.median("network")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "backend": self.backend,
            "model": self.model,
            "input": self.input,
            "points": self.points,
            "runs": self.runs,
            "repetitions": len(self.total),
            "points_per_second": self.points_per_second,
            "seconds": {
                **{
                    phase: {"median": self.median(phase), "p90": self.p90(phase)}
                    for phase in PHASES
                },
                "total": {
                    "median": float(np.median(self.total)),
                    "p90": float(np.percentile(self.total, 90)),
                },
            },
        }


@dataclass(frozen=True)
class MeasureOptions:
    """How a backend is timed, and what the result calls it.

    Attributes:
        name: of the input.
        label: of the backend; its name when None.
        max_points: voxels in one run; a larger scan is cut into tiles.
        gpu_pyramid: find voxels, neighbors and labels on the GPU of an engine; None: where the
            backend can.
    """

    name: str = ""
    label: str | None = None
    max_points: int = MAX_POINTS
    gpu_pyramid: bool | None = None


def measure(
    backend: Backend,
    clouds: Sequence[PointCloud],
    options: MeasureOptions | None = None,
    *,
    repeats: int = 20,
    warmups: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Latency:
    """Times a backend on one scan, or on a batch of clouds (classification).

    Every repetition goes the whole way: attributes, voxels and neighbors; the network, transfers
    to a GPU and back included; probabilities and the label of every point.

    Args:
        backend: to be timed.
        clouds: one scan in segmentation.
        options: how, and what the result calls it.
        repeats: timed repetitions, at least 1.
        warmups: repetitions before them that are not counted.
        progress: called as ``progress(repetitions done, repetitions in all)``.

    Raises:
        InputError: clouds that cannot be used, or several of them in segmentation.
    """
    options = options or MeasureOptions()
    config = backend.config
    if config.task == "segmentation" and len(clouds) != 1:
        raise InputError(f"segmentation is timed on one scan; {len(clouds)} were given")
    for cloud in clouds:
        valid_points(cloud, drop_invalid=False)
    labeller = labeller_of(backend, options.gpu_pyramid)
    limit = min(options.max_points, backend.max_points or options.max_points)
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for repetition in range(warmups + repeats):
        clock = _Clock()
        if config.task == "classification":
            _name_clouds(backend, clouds, clock)
        else:
            _label_scan(labeller, clouds[0], limit, clock)
        if repetition >= warmups:
            for phase in PHASES:
                seconds[phase].append(clock.seconds[phase])
        if progress is not None:
            progress(repetition + 1, warmups + repeats)
    return Latency(
        options.label or backend.name,
        str(backend.path),
        options.name,
        clock.points,
        clock.runs,
        {phase: tuple(values) for phase, values in seconds.items()},
    )


class _Clock:
    """Adds up the seconds of each phase, and what the network was given."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.points = self.runs = 0
        self._last = time.perf_counter()

    def end(self, phase: str) -> None:
        """What has passed since the last end was this phase."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def run(self, labeller: Labeller, pyramid: Inputs) -> Any:
        """Logits of a pyramid, whose preparation ends here."""
        labeller.wait()
        self.end("preprocess")
        logits = labeller.run(pyramid)
        self.end("network")
        self.points += pyramid.rows
        self.runs += 1
        return logits


def _label_scan(labeller: Labeller, cloud: PointCloud, max_points: int, clock: _Clock) -> Labels:
    """Class and confidence of every point."""
    found = labeller.label(
        lambda pyramid: clock.run(labeller, pyramid),
        cloud,
        len(cloud),
        VoteOptions(max_points, progress=lambda done, total: clock.end("postprocess")),
    )
    clock.end("postprocess")
    return found


def _name_clouds(
    backend: Backend, clouds: Sequence[PointCloud], clock: _Clock
) -> tuple[np.ndarray, np.ndarray]:
    """Class and confidence of every cloud, all of them in one run."""
    config = backend.config
    pyramids = []
    for cloud in clouds:
        voxels = Voxels.of(cloud, compute_attributes(cloud, config.input_columns), config)
        (tile,) = voxels.cut(config, len(cloud))
        pyramids.append(voxels.inputs(tile, config))
    probabilities = softmax(clock.run(HostLabeller(backend), pack_inputs(pyramids)))
    found = probabilities.argmax(axis=1), probabilities.max(axis=1)
    clock.end("postprocess")
    return found


def made_up_clouds(config: Contract, size: int, seed: int = 0) -> list[PointCloud]:
    """Input of about a given size: a hilly surface of so many voxels, or so many random clouds.

    Args:
        config: its grid (or points per cloud) and input columns are met.
        size: voxels of stage 0, hit within a few per cent; clouds in classification.
        seed: of everything random.
    """
    generator = np.random.default_rng(seed)
    if config.task == "classification":
        shapes = generator.normal(size=(size, config.points[0], 3))
        return [PointCloud(points) for points in shapes]
    smallest = 2 * config.grid[0]  # a scan within one voxel is refused
    side = max(math.sqrt(size) * config.grid[0], smallest)
    for _ in range(2):
        cloud = _surface(config, side, generator)
        found = len(Voxels.of(cloud, compute_attributes(cloud, ()), config).points)
        side = max(side * math.sqrt(size / found), smallest)
    return [_surface(config, side, generator)]


def _surface(config: Contract, side: float, generator: np.random.Generator) -> PointCloud:
    grid = config.grid[0]
    count = max(2, round(_POINTS_PER_VOXEL * (side / grid) ** 2))
    x, y = generator.uniform(0, side, (2, count))
    turn = 2 * math.pi / (_WAVELENGTH * grid)
    z = _HEIGHT * grid * np.sin(turn * x) * np.cos(turn * y)
    columns = {info.name: info.raw(generator.uniform(0, 1, count)) for info in config.attributes}
    normals = generator.normal(size=(count, len(config.directions)))
    if config.directions:
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for column, info in enumerate(config.directions):
        columns[info.name] = info.raw(normals[:, column])
    if config.categories:
        columns[CATEGORY] = np.zeros(count)
    return PointCloud(np.stack([x, y, z], axis=1), columns)
