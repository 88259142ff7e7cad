"""Voxel grid and nearest neighbors in device memory: :mod:`dela.geometry.cpu` on a CUDA device.

Same groups, same picks and the same neighbor tables as on the CPU, value for value. Work is queued
on one stream; the few places that wait for it, because a size is needed, say so. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dela.errors import InputError
from dela.geometry.bounds import Bounds
from dela.geometry.cpu import pick_seed, starts_of_clouds, starts_of_queries
from dela.geometry.gpu_queue import DIGIT_BITS, TILE, WORD, is_wide, sort_bytes
from dela.geometry.gpu_trees import AXIS_BITS, GpuTrees
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.launch import BLOCK, divide_up

MOST_CELLS = 2.0**42  # along an axis


@dataclass(frozen=True)
class GpuVoxelGrid:
    """:class:`dela.geometry.cpu.VoxelGrid` in device memory.

    Attributes:
        kept: [V] int32.
        voxel_of_point: [N] int32.
    """

    kept: DeviceArray
    voxel_of_point: DeviceArray


@dataclass(frozen=True)
class Members:
    """Which points lie in each voxel of a grid: addresses in device memory.

    Attributes:
        rows: of n uint32: points by voxel, those of one voxel in ascending order.
        first: of n uint32: where each voxel begins in ``rows``; the first V values.
        count: of one uint32: V.
        bounds: of the words of the points' bounds, where voxels count from their lowest corner.
        n: points.
    """

    rows: int
    first: int
    count: int
    bounds: int
    n: int


@dataclass(frozen=True)
class Cells:
    """A grid: floor((point - origin) / size) - base, fewer than 2^bits cells along each axis."""

    origin: tuple[float, ...]
    base: tuple[float, ...]
    size: float
    bits: tuple[int, ...]
    device_passes: int = 0

    @classmethod
    def of(cls, bounds: Bounds, size: float, origin: Sequence[float] | np.ndarray | None) -> Cells:
        if not (math.isfinite(size) and size > 0):
            raise InputError(f"voxel size is {size}; it must be above 0")
        start = bounds.low if origin is None else np.asarray(origin, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            base = np.floor((bounds.low - start) / size)
            most = np.floor((bounds.high - start) / size) - base
        if not (most < MOST_CELLS).all():
            raise InputError(
                f"voxels of {size} over an extent of {bounds.extent:.6g} are more than 2^42 along "
                "an axis; use larger voxels or remove stray points"
            )
        return cls(
            tuple(start.tolist()),
            tuple(base.tolist()),
            float(size),
            tuple(int(cells).bit_length() for cells in most),
        )

    @classmethod
    def of_device(cls, size: float, passes: int) -> Cells:
        """A grid that counts from the lowest corner, known on the device only; of 2^21 cells along
        an axis at most, and no more of them than ``passes`` digits of a sort can tell apart."""
        nothing = (0.0, 0.0, 0.0)
        return cls(nothing, nothing, size, (), passes)

    @property
    def fits_one_sort(self) -> bool:
        """Whether :meth:`of_device` serves, with passes enough."""
        return max(self.bits) <= AXIS_BITS

    def levels(self) -> Iterator[tuple[int, tuple[int, ...], int]]:
        """What to sort by, one after the other: levels of the cells from the first one up, which
        bits of the axes to take up to, and how many digits of a sort these are."""
        if self.device_passes:
            yield 0, (-1, -1, -1), self.device_passes
            return
        for level in range(0, max(*self.bits, 1), AXIS_BITS):
            bits = tuple(min(max(axis - level, 0), AXIS_BITS) for axis in self.bits)
            passes = max(1, divide_up(sum(bits), DIGIT_BITS))
            yield level, tuple(level + axis for axis in bits), passes

    @property
    def passes(self) -> int:
        """Digits of the first sort."""
        return next(self.levels())[2]

    def arguments(self) -> tuple[float, ...]:
        """Origin, base and size, as kernels take them."""
        return (*self.origin, *self.base, self.size)


class GpuGeometry(GpuTrees):
    """The geometry of clouds on one stream, with scratch memory that is reused from call to call.

    Results are new memory unless ``out`` is given. Points are :class:`DeviceArray` [N, 3] or any
    array on the device that :func:`as_device_array` takes, float32 or, for grids, float64.

    Raises:
        CudaUnavailable: no driver, no GPU, or one that is too old.
    """

    def voxel_grid(
        self,
        points: Any,
        size: float,
        pick: int | None = 0,
        seed: int | None = None,
        origin: np.ndarray | None = None,
        bounds: Bounds | None = None,
    ) -> GpuVoxelGrid:
        """:func:`dela.geometry.cpu.voxel_grid`; waits twice: for the bounds, for the number of
        voxels.

        Args:
            points: [N, 3] float32 or float64.
            size, pick, seed, origin: as there.
            bounds: of the points, where known; then it waits once.

        Raises:
            InputError: a shape, size or coordinate that cannot be used, or more than 2^42 cells
                along an axis.
        """
        points = self.points(points, wide=True)
        seed = pick_seed(pick, seed)
        bounds = bounds or self.bounds(points)
        voxel_of_point = self.empty((len(points),), np.int32)
        if not len(points):
            return GpuVoxelGrid(self.empty((0,), np.int32), voxel_of_point)
        self.stream.device.make_current()
        kept = self.scratch.array("kept", (len(points),), np.int32)
        count = self.scratch.array("count", (1,), np.uint32)
        members = self.queue_voxels(
            points,
            Cells.of(bounds, size, origin),
            voxel_of_point=voxel_of_point.pointer,
            count=count.pointer,
        )
        self.queue_pick(members, pick, seed, kept=kept.pointer)
        picked = self.empty((int(self.read(count)[0]),), np.int32)
        picked.copy_from(kept.view(picked.shape), self.stream)
        return GpuVoxelGrid(picked, voxel_of_point)

    def queue_voxels(
        self,
        points: DeviceArray,
        cells: Cells,
        bounds: int = 0,
        *,
        voxel_of_point: int,
        count: int,
        name: str = "rows",
    ) -> Members:
        """Queues a voxel grid of at least one point.

        Args:
            points: [N, 3] float32 or float64.
            cells: the grid.
            bounds: address of the words of :meth:`queue_bounds`: cells then count from the lowest
                corner.
            voxel_of_point: address of [N] int32, written.
            count: address of a uint32, written.
            name: what is returned is valid until the next grid of this name.
        """
        n = len(points)
        tiles, passes = divide_up(n, TILE), cells.passes
        states = self.zeroed("states", sort_bytes(n, passes) + WORD * (1 + tiles))
        where = (bounds, is_wide(points), n, *cells.arguments())
        order = self._queue_sorted_by_cell(points, cells, where, states, name)
        first = self.scratch.address(f"first {name}", 4 * n)
        states += sort_bytes(n, passes)
        self.queue(
            "dela_number_cells",
            tiles,
            *(points.pointer, order, *where, states, voxel_of_point, first, count),
        )
        return Members(order, first, count, bounds, n)

    def _queue_sorted_by_cell(
        self, points: DeviceArray, cells: Cells, where: tuple[Any, ...], states: int, name: str
    ) -> int:
        """Queues sorting: address of the points' rows in the order of their cells."""
        n = len(points)
        keys = self.scratch.address("keys", WORD * n)
        order = 0
        # Beyond 21 bits per axis the lower levels are sorted first, then the upper ones.
        for level, bits, passes in cells.levels():
            if level:
                states = self.zeroed("more states", sort_bytes(n, passes))
            self.queue(
                "dela_cell_keys",
                divide_up(n, BLOCK),
                *(points.pointer, order, *where, level, *bits, keys),
            )
            order = self.queue_sort(keys, order, n, passes, states, name)
        return order

    def queue_pick(
        self, members: Members, pick: int | None, seed: int = 0, *, kept: int = 0, is_kept: int = 0
    ) -> None:
        """Queues picking one point of every voxel.

        Args:
            members: of the voxels.
            pick, seed: as for :meth:`voxel_grid`.
            kept: address of int32, written: [V] or longer; rows in the order of the voxels.
            is_kept: address of [N] uint8, zero before: 1 for the rows that are picked.
        """
        self.queue(
            "dela_pick_points",
            divide_up(members.n, BLOCK),
            *(members.rows, members.first, members.count, members.n),
            *(-1 if pick is None else pick, seed & 0xFFFFFFFFFFFFFFFF, kept, is_kept),
        )

    def knn(
        self,
        points: Any,
        k: int,
        queries: Any = None,
        lengths: Sequence[int] | None = None,
        query_lengths: Sequence[int] | None = None,
    ) -> DeviceArray:
        """:func:`dela.geometry.cpu.knn`: int32 [M, k]; waits to check the coordinates.

        Raises:
            InputError: as there.
        """
        points = self.points(points)
        if not len(points):
            raise InputError("a neighbor search needs at least one point, there are none")
        self.bounds(points).check_range()
        self.stream.device.make_current()
        starts = starts_of_clouds(lengths, len(points), "lengths", "points")
        asked = points
        if queries is not None:
            asked = self.points(queries, "queries")
            self.bounds(asked).check_range()
        rows = None if queries is None else len(asked)
        asked_starts = starts_of_queries(rows, starts, lengths, query_lengths)
        out = self.empty((len(asked), k), np.int32)
        for cloud in range(len(starts) - 1):
            begin, end = map(int, starts[cloud : cloud + 2])
            first, last = map(int, asked_starts[cloud : cloud + 2])
            if first == last:
                continue
            if begin == end:
                raise InputError(f"cloud {cloud} has queries but no points to search")
            tree = self.tree(row_range(points, begin, end))
            other = None
            if queries is not None:
                other = self.tree(row_range(asked, first, last), name="queries")
            self.search(tree, k, other, begin, row_range(out, first, last))
        return out

    def nearest(
        self,
        points: Any,
        queries: Any,
        lengths: Sequence[int] | None = None,
        query_lengths: Sequence[int] | None = None,
    ) -> DeviceArray:
        """The nearest point of every query: :meth:`knn` with k = 1, as int32 [M]."""
        found = self.knn(points, 1, queries, lengths, query_lengths)
        return found.view(found.shape[:1])


def row_range(array: DeviceArray, begin: int, end: int) -> DeviceArray:
    """``array[begin:end]``, the same memory."""
    width = array.nbytes // max(len(array), 1)
    return array.view((end - begin, *array.shape[1:]), offset=begin * width)
