"""Latency of a backend from scan to labels: its input prepared, the network, its answer read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.model.contract import CATEGORY, Contract
from dela.model.inputs import Inputs, pack_inputs
from dela.runtime.backends.base import Backend
from dela.runtime.backends.layers import LayerTime
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
# Of the area of a scan.
_SMALLEST_CROP = 0.25


@dataclass(frozen=True)
class Latency:
    """Timed runs of one backend on one input.

    Attributes:
        backend, model: what ran.
        input: the scan's name, or what was made up.
        points: rows of stage 0 that the network saw, over all tiles or clouds; the mean where
            repetitions differ.
        runs: how often the network ran for it, the largest mean rounded up.
        seconds: phase of :data:`PHASES` -> one entry per repetition.
        kinds: how the network ran -> seconds of each such run, those of the warm-up repetitions
            among them. An engine runs a size for the ``first`` time, has its graph ``captured`` or
            ``replayed``; everything else runs a size for the ``first`` time or ``again``.
    """

    backend: str
    model: str
    input: str
    points: int
    runs: int
    seconds: dict[str, tuple[float, ...]]
    kinds: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def total(self) -> tuple[float, ...]:
        """Seconds of each repetition, all phases together."""
        return tuple(map(sum, zip(*self.seconds.values(), strict=True)))

    def median(self, phase: str) -> float:
        return float(np.median(self.seconds[phase]))

    def p90(self, phase: str) -> float:
        """What nine in ten repetitions stay below."""
        return percentiles(self.seconds[phase])["p90"]

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
                **{phase: percentiles(self.seconds[phase]) for phase in PHASES},
                "total": percentiles(self.total),
            },
            "kinds": {
                kind: {"runs": len(values), **percentiles(values)}
                for kind, values in self.kinds.items()
            },
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """What half, nine in ten and 99 in a hundred of at least one time stay below, and the longest.

    Between two of them it is interpolated.
    """
    median, p90, p99, largest = np.percentile(seconds, [50, 90, 99, 100])
    return {
        "median": float(median),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(largest),
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
        crops: different parts of a scan that the repetitions take in turn (segmentation), see
            :func:`crops_of`; 0 for the whole scan every time.
    """

    name: str = ""
    label: str | None = None
    max_points: int = MAX_POINTS
    gpu_pyramid: bool | None = None
    crops: int = 0


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
    if config.task == "classification" and options.crops:
        raise InputError("crops are parts of a scan; classification takes whole clouds")
    for cloud in clouds:
        valid_points(cloud, drop_invalid=False)
    labeller = labeller_of(backend, options.gpu_pyramid)
    limit = min(options.max_points, backend.max_points or options.max_points)
    scans = crops_of(clouds[0], options.crops) if options.crops else clouds[:1]
    clock = _Clock(backend)
    for repetition in range(warmups + repeats):
        clock.start(counted=repetition >= warmups)
        if config.task == "classification":
            _name_clouds(backend, clouds, clock)
        else:
            _label_scan(labeller, scans[repetition % len(scans)], limit, clock)
        if progress is not None:
            progress(repetition + 1, warmups + repeats)
    return Latency(
        options.label or backend.name,
        str(backend.path),
        options.name,
        round(clock.points / repeats),
        -(-clock.runs // repeats),
        {phase: tuple(values) for phase, values in clock.seconds.items()},
        {kind: tuple(values) for kind, values in clock.kinds.items()},
    )


def time_layers(
    backend: Backend,
    clouds: Sequence[PointCloud],
    options: MeasureOptions | None = None,
    *,
    repeats: int = 20,
) -> list[LayerTime]:
    """Every layer's time on one scan, or its first tile, or on a batch of clouds, longest first.

    Clocks inside the network cost time: shares say what to look at, :func:`measure` how long
    a network takes.

    Args:
        backend: of ONNX Runtime or TensorRT.
        clouds, options: as :func:`measure` takes them.
        repeats: runs that are averaged, after one that is not counted.

    Raises:
        InputError: PyTorch, or clouds that cannot be used.
    """
    options = options or MeasureOptions()
    measured = getattr(backend, "time_layers", None)
    if measured is None:
        raise InputError(
            f"{backend.name} does not tell the time of its layers; give the exported network or an "
            "engine, or use torch.profiler"
        )
    for cloud in clouds:
        valid_points(cloud, drop_invalid=False)
    limit = min(options.max_points, backend.max_points or options.max_points)
    found: list[LayerTime] = measured(_inputs_of(backend, clouds, limit), repeats)
    return found


def _inputs_of(backend: Backend, clouds: Sequence[PointCloud], max_points: int) -> Inputs:
    """A network's input, on the host: of a scan's first tile, or of all clouds in one."""
    config = backend.config
    inputs = []
    for cloud in clouds:
        voxels = Voxels.of(cloud, compute_attributes(cloud, config.input_columns), config)
        inputs.append(voxels.inputs(voxels.cut(config, max_points)[0], config))
    return pack_inputs(inputs)


class _Clock:
    """Adds up the seconds of each phase, and what the network was given and how it ran.

    Attributes:
        seconds: phase -> one entry per counted repetition.
        kinds: how the network ran -> seconds of each run.
        points, runs: of the counted repetitions together.
    """

    def __init__(self, backend: Backend) -> None:
        self.seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.kinds: dict[str, list[float]] = {}
        self.points = self.runs = 0
        self._backend = backend
        self._met: set[Any] = set()
        self._counted = False
        self._last = 0.0

    def start(self, counted: bool) -> None:
        """The next repetition begins."""
        self._counted = counted
        if counted:
            for values in self.seconds.values():
                values.append(0.0)
        self._last = time.perf_counter()

    def finish(self, phase: str) -> None:
        """What has passed since a phase ended last was this one."""
        self.end(phase)

    def end(self, phase: str) -> float:
        """:meth:`finish`, and its seconds."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        if self._counted:
            self.seconds[phase][-1] += passed
        return passed

    def run(self, labeller: Labeller, pyramid: Inputs) -> Any:
        """Logits of a pyramid, whose preparation ends here."""
        labeller.wait()
        self.end("preprocess")
        logits = labeller.run(pyramid)
        self.kinds.setdefault(self._kind(pyramid), []).append(self.end("network"))
        if self._counted:
            self.points += pyramid.rows
            self.runs += 1
        return logits

    def _kind(self, pyramid: Inputs) -> str:
        kind = getattr(self._backend, "latest_run", "plain")
        shapes = tuple(tuple(array.shape) for _, array in pyramid.inputs())
        met = shapes in self._met
        self._met.add(shapes)
        if kind != "plain":
            return str(kind)
        return "again" if met else "first"


def _label_scan(labeller: Labeller, cloud: PointCloud, max_points: int, clock: _Clock) -> Labels:
    """Class and confidence of every point."""
    found = labeller.label(
        lambda pyramid: clock.run(labeller, pyramid),
        cloud,
        len(cloud),
        VoteOptions(max_points, progress=lambda done, total: clock.finish("postprocess")),
    )
    clock.end("postprocess")
    return found


def _name_clouds(
    backend: Backend, clouds: Sequence[PointCloud], clock: _Clock
) -> tuple[np.ndarray, np.ndarray]:
    """Class and confidence of every cloud, all of them in one run."""
    pyramid = _inputs_of(backend, clouds, MAX_POINTS)
    probabilities = softmax(clock.run(HostLabeller(backend), pyramid))
    found = probabilities.argmax(axis=1), probabilities.max(axis=1)
    clock.end("postprocess")
    return found


def crops_of(cloud: PointCloud, count: int, seed: int = 0) -> list[PointCloud]:
    """Rectangular parts of a scan, of a quarter of its area up to all of it, in random order.

    Args:
        cloud: at least one point.
        count: of parts, at least 1; their areas ascend by one factor.
        seed: of their places and their order.
    """
    generator = np.random.default_rng(seed)
    ground = cloud.points[:, :2] - cloud.points[:, :2].min(axis=0)
    ground /= np.maximum(ground.max(axis=0), np.finfo(np.float64).tiny)
    areas = generator.permutation(np.geomspace(1, _SMALLEST_CROP, count))
    parts = []
    for side in np.sqrt(areas):
        # Around a point of the scan, so that no part is empty.
        center = ground[generator.integers(len(ground))]
        corner = np.clip(center - side / 2, 0, 1 - side)
        inside = ((ground >= corner) & (ground <= corner + side)).all(axis=1)
        parts.append(cloud.select(inside))
    return parts


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
