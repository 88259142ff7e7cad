"""The pyramid, the network's input: built outside the graph, its sizes depend on the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dela.errors import InputError
from dela.geometry.cpu import SearchTree, farthest_point_sampling, voxel_grid
from dela.model.inputs import host_array

# A scene's lowest corner, where every stage's voxels are counted from.
CORNER = np.zeros(3)


class PyramidConfig(Protocol):
    """What a pyramid needs of a network's configuration: its stages' sizes and its columns."""

    @property
    def task(self) -> str: ...
    @property
    def stages(self) -> int: ...
    @property
    def neighbors(self) -> tuple[int, ...]: ...
    @property
    def grid(self) -> tuple[float, ...]: ...
    @property
    def points(self) -> tuple[int, ...]: ...
    @property
    def input_columns(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class Pyramid:
    """Clouds packed one after the other, at every stage; numpy arrays or tensors alike.

    For S stages with N_d points in all at stage d and B clouds:

    Attributes:
        points: [N_0, 3] float32, meters, shifted near the origin.
        attributes: [N_0, F] float32, scaled to about 0..1; F may be 0.
        neighbors: S tables [N_d, k_d] int32, rows of stage d (the point itself included).
        kept: S - 1 lists [N_d] int32 for d = 1..S-1: the rows of stage d - 1 that stage d keeps.
        nearest: S - 1 lists [N_0] int32: for every row of stage 0 the nearest row of stage d.
            Empty for classification.
        lengths: S lists of B ints: points of each cloud at each stage.
    """

    points: Any
    attributes: Any
    neighbors: tuple[Any, ...]
    kept: tuple[Any, ...]
    nearest: tuple[Any, ...]
    lengths: tuple[tuple[int, ...], ...]

    @property
    def stages(self) -> int:
        return len(self.neighbors)

    @property
    def clouds(self) -> int:
        return len(self.lengths[0])

    @property
    def rows(self) -> int:
        """Points of stage 0 over all clouds."""
        return len(self.points)

    def each(self, change: Callable[[Any], Any]) -> Pyramid:
        """The same pyramid with ``change`` applied to its arrays."""
        return Pyramid(
            change(self.points),
            change(self.attributes),
            tuple(map(change, self.neighbors)),
            tuple(map(change, self.kept)),
            tuple(map(change, self.nearest)),
            self.lengths,
        )

    @classmethod
    def packed(cls, parts: Sequence[Pyramid]) -> Pyramid:
        """One pyramid of several, see :func:`pack`."""
        return pack(parts)

    def inputs(self) -> Iterator[tuple[str, Any]]:
        """Name and array of every graph input, in the order of the exported file.

        ``points``, ``attributes`` (when F > 0), ``neighbors_0`` .., ``kept_1`` .., ``nearest_1`` ..
        """
        yield "points", self.points
        if self.attributes.shape[1]:
            yield "attributes", self.attributes
        for stage, table in enumerate(self.neighbors):
            yield f"neighbors_{stage}", table
        for stage, rows in enumerate(self.kept, start=1):
            yield f"kept_{stage}", rows
        for stage, rows in enumerate(self.nearest, start=1):
            yield f"nearest_{stage}", rows

    def validate(self) -> Pyramid:
        """Checks shapes, dtypes and index ranges; returns the pyramid itself.

        Index arrays may be int32 or int64, coordinates and attributes float32 or float64; numpy
        arrays and tensors alike.

        Raises:
            InputError: names the array, the row and the value that do not fit.
        """
        self._check_lists()
        rows = self._check_tables(self._check_columns())
        self._check_lengths(rows)
        return self

    def _check_lists(self) -> None:
        """Whether there are as many tables, lists and lengths as stages."""
        stages = self.stages
        if stages < 1:
            raise InputError("the pyramid has no neighbors table; it needs one per stage")
        if len(self.kept) != stages - 1:
            raise InputError(f"kept has {len(self.kept)} lists; {stages} stages need {stages - 1}")
        if len(self.nearest) not in (0, stages - 1):
            raise InputError(
                f"nearest has {len(self.nearest)} lists; {stages} stages need {stages - 1}, "
                "or none for classification"
            )
        if len(self.lengths) != stages:
            raise InputError(
                f"lengths has {len(self.lengths)} lists; give one per stage ({stages})"
            )

    def _check_columns(self) -> int:
        """Points and attributes; returns the rows of stage 0."""
        points = _floats(self.points, "points")
        if points.ndim != 2 or points.shape[1] != 3:
            raise InputError(f"points has shape {list(points.shape)}; expected [N, 3]")
        attributes = _floats(self.attributes, "attributes")
        if attributes.ndim != 2 or len(attributes) != len(points):
            raise InputError(
                f"attributes has shape {list(attributes.shape)}; expected [{len(points)}, F]"
            )
        for name, values in (("points", points), ("attributes", attributes)):
            finite = np.isfinite(values)
            if not finite.all():
                row, column = np.argwhere(~finite)[0]
                raise InputError(f"{name} row {row} holds {values[row, column]}; expected numbers")
        return len(points)

    def _check_tables(self, first: int) -> list[int]:
        """Index tables; returns the rows of every stage, ``first`` those of stage 0."""
        rows = [first]
        for stage, table in enumerate(self.neighbors):
            if stage:
                kept = _indices(self.kept[stage - 1], f"kept_{stage}", 1, rows[-1])
                rows.append(len(kept))
            table = _indices(table, f"neighbors_{stage}", 2, rows[-1])
            if len(table) != rows[-1] or not table.shape[1]:
                raise InputError(
                    f"neighbors_{stage} has shape {list(table.shape)}; expected [{rows[-1]}, k]"
                )
        for stage, nearest in enumerate(self.nearest, start=1):
            nearest = _indices(nearest, f"nearest_{stage}", 1, rows[stage])
            if len(nearest) != rows[0]:
                raise InputError(f"nearest_{stage} has {len(nearest)} rows; expected {rows[0]}")
        return rows

    def _check_lengths(self, rows: Sequence[int]) -> None:
        """Whether every stage's clouds add up to its rows."""
        for stage, lengths in enumerate(self.lengths):
            if len(lengths) != self.clouds:
                raise InputError(
                    f"lengths of stage {stage} has {len(lengths)} clouds, stage 0 {self.clouds}"
                )
            if sum(lengths) != rows[stage] or any(length < 0 for length in lengths):
                raise InputError(
                    f"lengths of stage {stage} is {list(lengths)}; "
                    f"it must add up to the stage's {rows[stage]} points"
                )

    def to_tensors(self, device: Any = None) -> Pyramid:
        """The same pyramid as torch tensors: float32 and int32, on ``device`` (None: the CPU)."""
        import torch

        def floats(values: Any) -> Any:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        def indices(values: Any) -> Any:
            return torch.as_tensor(values, dtype=torch.int32, device=device)

        return Pyramid(
            floats(self.points),
            floats(self.attributes),
            tuple(indices(table) for table in self.neighbors),
            tuple(indices(rows) for rows in self.kept),
            tuple(indices(rows) for rows in self.nearest),
            self.lengths,
        )


def build_pyramid(
    points: np.ndarray,
    attributes: np.ndarray | None,
    config: PyramidConfig,
    seed: int | None = None,
    pick: int | None = 0,
    origin: np.ndarray | None = None,
) -> Pyramid:
    """The pyramid of one cloud.

    Segmentation: ``points`` are stage 0 as they are, one per voxel of ``config.grid[0]``; every
    later stage is a voxel grid over the stage before. Classification: stage 0 is farthest point
    sampling to ``config.points[0]`` points (repeated where the cloud has fewer), later stages are
    prefixes of that order; with ``pick=None`` it is, as in the published training, a random choice
    in random order out of 1200/1024 as many samples.

    Args:
        points: [N, 3] float32 meters, near the origin, N >= 1.
        attributes: [N, F] float32, F = ``len(config.input_columns)``; None when F is 0.
        config: stages, neighbors, grid sizes or point counts.
        seed: of the random choices; None draws one from the system.
        pick: n takes the n-th point of every voxel, None a random one (training).
        origin: [3] where the voxels of later stages are counted from, which then keep the order of
            the given points: a part of a scene gets the stages that the whole has there, except
            at its edge. None counts from each stage's lowest corner.

    Raises:
        InputError: no points, shapes that do not fit, or values that are not finite.
    """
    points, attributes = checked_cloud(points, attributes, config)
    if config.task == "classification":
        return classification_pyramid(points, config, seed, pick)[0]

    seeds = stage_seeds(seed, config)
    stage_0 = points
    trees = [SearchTree(points)]
    neighbors = [trees[0].knn(config.neighbors[0])]
    kept = []
    for stage in range(1, config.stages):
        grid = voxel_grid(points, config.grid[stage], pick, int(seeds[stage]), origin=origin)
        # Morton order depends on where the cloud begins, the order of its points does not.
        rows = grid.kept if origin is None else np.sort(grid.kept)
        kept.append(rows)
        points = points[rows]
        trees.append(SearchTree(points))
        neighbors.append(trees[-1].knn(config.neighbors[stage]))
    return Pyramid(
        stage_0,
        attributes,
        tuple(neighbors),
        tuple(kept),
        tuple(tree.knn(1, trees[0])[:, 0] for tree in trees[1:]),
        tuple((len(tree),) for tree in trees),
    )


def checked_cloud(
    points: np.ndarray, attributes: np.ndarray | None, config: PyramidConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] and attributes [N, F] as C-contiguous float32, as a pyramid needs them.

    Raises:
        InputError: no points, shapes that do not fit, or attributes that are not finite.
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"points have shape {list(points.shape)}; expected [N, 3]")
    if not len(points):
        raise InputError("the cloud is empty; a pyramid needs at least one point")
    columns = len(config.input_columns)
    if attributes is None:
        attributes = np.zeros((len(points), 0), dtype=np.float32)
    attributes = np.ascontiguousarray(attributes, dtype=np.float32)
    if attributes.shape != (len(points), columns):
        raise InputError(
            f"attributes have shape {list(attributes.shape)}; expected [{len(points)}, {columns}]"
        )
    bad = len(attributes) - int(np.isfinite(attributes).all(axis=1).sum())
    if bad:
        raise InputError(f"{bad} of {len(attributes)} points have NaN or infinite attributes")
    return points, attributes


def stage_seeds(seed: int | None, config: PyramidConfig) -> np.ndarray:
    """uint64 [S]: the seed of each stage's random picks; None draws them from the system."""
    return np.random.SeedSequence(seed).generate_state(config.stages, np.uint64)


def classification_pyramid(
    points: np.ndarray,
    config: PyramidConfig,
    seed: int | None = None,
    pick: int | None = 0,
) -> tuple[Pyramid, np.ndarray]:
    """:func:`build_pyramid` for classification, and the row of ``points`` behind each of its rows.

    Returns:
        The pyramid and int32 [config.points[0]].
    """
    count = config.points[0]
    if pick is None:
        # The published training samples 1200 points and keeps 1024 of them in random order.
        more = farthest_point_sampling(points, math.ceil(count * 1200 / 1024))
        rows = np.random.default_rng(seed).permutation(more)[:count]
    else:
        rows = farthest_point_sampling(points, count)
    points = points[rows]
    pyramid = Pyramid(
        points,
        np.zeros((count, 0), dtype=np.float32),
        tuple(
            SearchTree(points[:size]).knn(k)
            for size, k in zip(config.points, config.neighbors, strict=True)
        ),
        tuple(np.arange(size, dtype=np.int32) for size in config.points[1:]),
        (),
        tuple((size,) for size in config.points),
    )
    return pyramid, rows


def pack(pyramids: Sequence[Pyramid]) -> Pyramid:
    """One pyramid of several: clouds one after the other, indices moved along.

    Raises:
        InputError: no pyramid, or pyramids of different networks (stages, k, attributes).
    """
    if not pyramids:
        raise InputError("nothing to pack; give at least one pyramid")
    shapes = [
        (
            pyramid.attributes.shape[1],
            tuple(table.shape[1] for table in pyramid.neighbors),
            len(pyramid.nearest),
        )
        for pyramid in pyramids
    ]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise InputError(
                f"pyramid {number} has {shape[0]} attributes and k {list(shape[1])}, pyramid 0 has "
                f"{shapes[0][0]} and {list(shapes[0][1])}; pack pyramids of one network"
            )
    stages = pyramids[0].stages
    sizes = np.array([[len(table) for table in pyramid.neighbors] for pyramid in pyramids])
    offsets = np.cumsum(sizes, axis=0) - sizes
    if sizes.sum(axis=0).max() > np.iinfo(np.int32).max:
        raise InputError("the packed clouds have more than 2^31 - 1 points; pack fewer")

    def joined(lists: list[Any], stage: int) -> np.ndarray:
        moved = [
            np.asarray(values) + np.int32(offsets[number, stage])
            for number, values in enumerate(lists)
        ]
        return np.concatenate(moved).astype(np.int32, copy=False)

    return Pyramid(
        np.concatenate([np.asarray(pyramid.points) for pyramid in pyramids]),
        np.concatenate([np.asarray(pyramid.attributes) for pyramid in pyramids]),
        tuple(joined([p.neighbors[stage] for p in pyramids], stage) for stage in range(stages)),
        tuple(
            joined([p.kept[stage - 1] for p in pyramids], stage - 1) for stage in range(1, stages)
        ),
        tuple(
            joined([p.nearest[stage - 1] for p in pyramids], stage)
            for stage in range(1, len(pyramids[0].nearest) + 1)
        ),
        tuple(
            tuple(length for pyramid in pyramids for length in pyramid.lengths[stage])
            for stage in range(stages)
        ),
    )


def _floats(values: Any, name: str) -> np.ndarray:
    array = host_array(values)
    if array.dtype not in (np.float32, np.float64):
        raise InputError(f"{name} is {array.dtype}; expected float32")
    return array


def _indices(values: Any, name: str, dimensions: int, limit: int) -> np.ndarray:
    array = host_array(values)
    if array.dtype not in (np.int32, np.int64):
        raise InputError(f"{name} is {array.dtype}; expected int32")
    if array.ndim != dimensions:
        shape = "[N, k]" if dimensions == 2 else "[N]"
        raise InputError(f"{name} has shape {list(array.shape)}; expected {shape}")
    if array.size and (array.min() < 0 or array.max() >= limit):
        at = tuple(np.argwhere((array < 0) | (array >= limit))[0])
        raise InputError(
            f"{name} row {at[0]} holds {array[at]}; every value must be in [0, {limit})"
        )
    return array
