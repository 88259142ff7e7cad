"""Labels for every point of a cloud: voxels, tiles, votes, and back to full resolution."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dela.attributes import compute_attributes
from dela.cloud import PointCloud
from dela.config import AttributeInfo, ModelConfig
from dela.errors import InputError
from dela.geometry import check_finite, voxel_grid
from dela.pyramid import Pyramid, build_pyramid
from dela.runtime.backends import Backend
from dela.runtime.tiles import Tile, context_width, cut_tiles

# Voxels in one run of the network; the S3DIS preset then needs about 1.4 GB.
MAX_POINTS = 200_000
UNLABELLED = -1

Progress = Callable[[int, int], None]


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


@dataclass(frozen=True)
class SceneTile:
    """A part of a scene, ready for a backend."""

    tile: Tile
    pyramid: Pyramid


@dataclass(frozen=True)
class Voxels:
    """A scene at the resolution of stage 0.

    Attributes:
        points: [V, 3] float32 metres, shifted near the origin.
        attributes: [V, F] float32.
        voxel_of_point: [N] int32: the voxel of each point of the cloud.
    """

    points: np.ndarray
    attributes: np.ndarray
    voxel_of_point: np.ndarray

    @classmethod
    def of(
        cls, cloud: PointCloud, attributes: np.ndarray, config: ModelConfig, pick: int = 0
    ) -> Voxels:
        """Voxels of a finite cloud; ``pick`` chooses which point stands for each.

        Raises:
            InputError: several points that all fall into one voxel.
        """
        points = cloud.points - cloud.points.min(axis=0)
        if config.task == "classification":
            one = np.zeros(len(points), dtype=np.int32)
            return cls(points.astype(np.float32), attributes, one)
        grid = voxel_grid(points, config.grid[0], pick=pick)
        if len(grid.kept) == 1 and len(points) > 1:
            raise InputError(
                f"all {len(points):,} points fall into one voxel of {config.grid[0]} m (extent "
                f"{float(points.max()):.3g}); the model wants coordinates in metres"
            )
        return cls(points[grid.kept].astype(np.float32), attributes[grid.kept], grid.voxel_of_point)

    def tiles(self, config: ModelConfig, max_points: int) -> Iterator[SceneTile]:
        """The scene in parts of at most ``max_points`` voxels; classification never splits."""
        if config.task == "classification":
            everything = np.arange(len(self.points))
            tiles = iter([Tile(everything, np.ones(len(everything), dtype=bool))])
        else:
            tiles = cut_tiles(self.points, max_points, context_width(config))
        for tile in tiles:
            rows = tile.rows
            yield SceneTile(tile, build_pyramid(self.points[rows], self.attributes[rows], config))

    def turned(self, config: ModelConfig, vote: int, votes: int) -> Voxels:
        """The same scene seen by one of several votes: turned about z, every other one mirrored."""
        if vote == 0:
            return self
        matrix = _turn(2 * math.pi * vote / votes, mirror=vote % 2 == 1)
        middle = self.points.mean(axis=0, dtype=np.float64)
        points = ((self.points - middle) @ matrix.T + middle).astype(np.float32)
        attributes = self.attributes.copy()
        for columns in _vectors(config.input_columns):
            attributes[:, columns] = attributes[:, columns] @ matrix.T.astype(np.float32)
        return Voxels(points, attributes, self.voxel_of_point)


class Predictor:
    """Runs a backend over whole clouds.

    >>> predictor = Predictor(load_backend("model.onnx"))
    >>> predictor.predict(dela.read_cloud("scan.laz")).labels
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.config = backend.config
        self._codes = np.array([*(info.code for info in self.config.classes), UNLABELLED], np.int32)

    def predict(
        self,
        cloud: PointCloud,
        *,
        max_points: int = MAX_POINTS,
        votes: int = 1,
        drop_invalid: bool = False,
        probabilities: bool = False,
        progress: Progress | None = None,
    ) -> Prediction:
        """Labels every point at full resolution.

        Args:
            cloud: needs the model's attribute columns.
            max_points: voxels in one run; a larger scene is cut into overlapping tiles.
            votes: runs whose logits are added: each sees other points of the voxels, the scene
                turned about z and every other time mirrored.
            drop_invalid: leave points with NaN or infinite coordinates out instead of refusing
                the cloud; they keep their place in the result, unlabelled.
            probabilities: return those of every class too.
            progress: called as ``progress(voxels done, voxels in all)``.

        Raises:
            InputError: an empty cloud, non-finite coordinates, a missing column, votes below 1.
        """
        if votes < 1:
            raise InputError(f"votes is {votes}; give at least 1")
        valid = valid_points(cloud, drop_invalid)
        invalid = len(cloud) - int(np.count_nonzero(valid))
        if invalid:
            cloud = cloud.select(valid)
        clock = _Clock()
        with clock("pyramid"):
            attributes = compute_attributes(cloud, self.config.input_columns)
        logits, voxels, tiles = self._vote(
            cloud, attributes, max_points, votes, progress or _silent, clock
        )
        probability = _softmax(logits)
        classes = probability.argmax(axis=1).astype(np.int32)
        rows = voxels.voxel_of_point
        return Prediction(
            classes=_scatter(classes[rows], valid, UNLABELLED),
            labels=self._codes[_scatter(classes[rows], valid, UNLABELLED)],
            confidence=_scatter(probability.max(axis=1)[rows], valid, 0.0),
            probabilities=_scatter(probability[rows], valid, 0.0) if probabilities else None,
            voxels=len(voxels.points),
            tiles=tiles,
            invalid=invalid,
            seconds=dict(clock.seconds),
        )

    def _vote(
        self,
        cloud: PointCloud,
        attributes: np.ndarray,
        max_points: int,
        votes: int,
        progress: Progress,
        clock: _Clock,
    ) -> tuple[np.ndarray, Voxels, int]:
        """Summed logits per voxel ([1, classes] for classification), the voxels, runs made."""
        config = self.config
        total = np.zeros((0, config.num_classes), dtype=np.float32)
        done = tiles = 0
        for vote in range(votes):
            with clock("pyramid"):
                voxels = Voxels.of(cloud, attributes, config, pick=vote)
                scene = voxels.turned(config, vote, votes)
            size = len(voxels.points)
            if vote == 0:
                rows = size if config.task == "segmentation" else 1
                total = np.zeros((rows, config.num_classes), dtype=np.float32)
            parts = scene.tiles(config, max_points)
            while True:
                with clock("pyramid"):
                    part = next(parts, None)
                if part is None:
                    break
                with clock("network"):
                    logits = self.backend.run(part.pyramid)
                if config.task == "segmentation":
                    total[part.tile.rows[part.tile.core]] += logits[part.tile.core]
                else:
                    total += logits
                tiles += 1
                done += int(np.count_nonzero(part.tile.core))
                progress(done, votes * size)
        return total, voxels, tiles


def valid_points(cloud: PointCloud, drop_invalid: bool) -> np.ndarray:
    """Boolean mask [N] of the points with finite coordinates.

    Raises:
        InputError: no point at all, or some are not finite and ``drop_invalid`` is off.
    """
    if len(cloud) == 0:
        raise InputError("the cloud is empty: it has no point to label")
    valid = check_finite(cloud.points, drop_invalid)
    if not valid.any():
        raise InputError(f"all {len(cloud):,} points have NaN or infinite coordinates")
    return valid


class _Clock:
    """Adds up wall-clock seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name = ""
        self._start = 0.0

    def __call__(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._start
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + spent


def _silent(done: int, total: int) -> None:
    """The progress callback of who wants none."""


def _turn(angle: float, mirror: bool) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return matrix @ np.diag([-1.0, 1.0, 1.0]) if mirror else matrix


def _vectors(columns: tuple[AttributeInfo, ...]) -> Iterator[list[int]]:
    """Column triples that are the x, y and z of one vector (normals): these turn with the scene."""
    places = {info.name: place for place, info in enumerate(columns)}
    for name in places:
        if name.endswith("_x"):
            triple = [f"{name[:-1]}{axis}" for axis in "xyz"]
            if all(part in places for part in triple):
                yield [places[part] for part in triple]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _scatter(values: np.ndarray, valid: np.ndarray, fill: float) -> np.ndarray:
    """Values of the valid points back among all points."""
    if valid.all():
        return values
    result = np.full((len(valid), *values.shape[1:]), fill, dtype=values.dtype)
    result[valid] = values
    return result
