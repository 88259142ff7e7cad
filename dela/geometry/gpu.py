"""Voxel grid and nearest neighbors in device memory: :mod:`dela.geometry.cpu` on a CUDA device.

Same groups, same picks and the same neighbor tables as on the CPU, value for value. Work is queued
on one stream; the few places that wait for it, because a size is needed, say so. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dela.errors import InputError
from dela.geometry.bounds import Bounds
from dela.geometry.cpu import LARGEST_K, pick_seed, starts_of_clouds, starts_of_queries
from dela.geometry.gpu_queue import BOUNDS_WORDS, TILE, GpuQueue
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.launch import BLOCK, divide_up

# As in plugins/cuda: geometry.cuh and knn.cu.
AXIS_BITS = 21
LEAF_POINTS = 8
MERGED_NODES = BLOCK
SMALL_CLOUD = 1024  # points that are searched in any order sooner than they are sorted
SEARCH_BLOCK = 64
HELD = (1, 32)  # candidates that a search keeps in shared memory

MOST_CELLS = 2.0**42  # along an axis
LIST_BYTES = 64 << 20  # of candidates in device memory at a time, where k is larger

_i32, _f64 = np.int32, np.float64


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
    """Which points lie in each voxel of a grid, in device memory.

    Attributes:
        rows: [N] uint32: points by voxel, those of one voxel in ascending order.
        first: [N] uint32: where each voxel begins in ``rows``; the first V values.
        count: [1] uint32: V.
    """

    rows: DeviceArray
    first: DeviceArray
    count: DeviceArray


@dataclass(frozen=True)
class Cells:
    """A grid: floor((point - origin) / size) - base, fewer than 2^bits cells along each axis."""

    origin: tuple[float, ...]
    base: tuple[float, ...]
    size: float
    bits: tuple[int, ...]

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

    def arguments(self) -> tuple[np.float64, ...]:
        return tuple(map(_f64, (*self.origin, *self.base, self.size)))


class GpuTree:
    """A search tree over points in device memory; made by :meth:`GpuGeometry.tree`."""

    def __init__(self, placed: DeviceArray, nodes: DeviceArray, rows: int, leaves: int) -> None:
        self.placed, self.nodes, self.rows, self.leaves = placed, nodes, rows, leaves

    def __len__(self) -> int:
        return self.rows


class GpuGeometry(GpuQueue):
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
        kept = self.scratch.array("kept", (len(points),), np.int32)
        members = self.queue_voxels(
            points, Cells.of(bounds, size, origin), None, voxel_of_point=voxel_of_point
        )
        self.queue_pick(members, pick, seed, kept=kept)
        voxels = self.read_count(members.count)
        picked = self.empty((voxels,), np.int32)
        picked.copy_from(kept.view((voxels,)), self.stream)
        return GpuVoxelGrid(picked, voxel_of_point)

    def queue_voxels(
        self,
        points: DeviceArray,
        cells: Cells,
        bounds: DeviceArray | None,
        *,
        voxel_of_point: DeviceArray,
    ) -> Members:
        """Queues a voxel grid of at least one point; what it returns is valid until the next one.

        Args:
            points: [N, 3] float32 or float64.
            cells: the grid.
            bounds: words of :meth:`queue_bounds`; cells then count from the lowest corner.
            voxel_of_point: [N] int32, written.
        """
        order = self._sorted_by_cell(points, cells, bounds)
        n, wide = len(points), _i32(points.dtype == np.float64)
        number, tiles = _i32(n), divide_up(len(points), TILE)
        flags = self.scratch.array("flags", (n,), np.uint8)
        starts = self.scratch.array("starts", (tiles,), np.uint32)
        first = self.scratch.array("first", (n,), np.uint32)
        count = self.scratch.array("count", (1,), np.uint32)
        where = (points, order, bounds, wide, number, *cells.arguments())
        self.launch_tiles("dela_cell_starts", n, *where, flags, starts)
        self.scan(starts, tiles, count)
        self.launch_tiles(
            "dela_number_cells", n, flags, order, starts, number, voxel_of_point, first
        )
        return Members(order, first, count)

    def _sorted_by_cell(
        self, points: DeviceArray, cells: Cells, bounds: DeviceArray | None
    ) -> DeviceArray:
        """Queues sorting: rows of the points in the order of their cells."""
        n, wide = len(points), _i32(points.dtype == np.float64)
        number = _i32(n)
        keys = self.scratch.array("keys", (n,), np.uint64)
        rows = self.scratch.array("rows", (n,), np.uint32)
        order: DeviceArray | None = None
        # Beyond 21 bits per axis the lower levels are sorted first, then the upper ones.
        for level in range(0, max(*cells.bits, 1), AXIS_BITS):
            bits = tuple(min(max(axis - level, 0), AXIS_BITS) for axis in cells.bits)
            self.launch(
                "dela_cell_keys",
                n,
                points,
                order,
                bounds,
                wide,
                number,
                *cells.arguments(),
                *map(_i32, (level, *(level + axis for axis in bits))),
                keys,
                rows if order is None else None,
            )
            order = self.sort(keys, rows if order is None else order, n, sum(bits))
        assert order is not None
        return order

    def queue_pick(
        self,
        members: Members,
        pick: int | None,
        seed: int = 0,
        *,
        kept: DeviceArray | None = None,
        is_kept: DeviceArray | None = None,
    ) -> None:
        """Queues picking one point of every voxel.

        Args:
            members: of the voxels.
            pick, seed: as for :meth:`voxel_grid`.
            kept: int32, written: [V] or longer; rows in the order of the voxels.
            is_kept: [N] uint8, written: 1 for the rows that are picked.
        """
        if is_kept is not None:
            is_kept.fill_zero(self.stream)
        self.launch(
            "dela_pick_points",
            len(members.first),
            members.rows,
            members.first,
            members.count,
            _i32(len(members.rows)),
            np.int64(-1 if pick is None else pick),
            np.uint64(seed & 0xFFFFFFFFFFFFFFFF),
            kept,
            is_kept,
        )

    def tree(self, points: DeviceArray, ordered: bool = False, name: str | None = None) -> GpuTree:
        """A search tree over points [N, 3] float32, N >= 1, finite and within 1e18.

        Args:
            points: as a :class:`DeviceArray`.
            ordered: rows that are near in number are near in space, as after a voxel grid; else
                they are sorted along a curve first. The answers are the same.
            name: reuse the memory of the last tree of this name; None takes new memory.
        """
        n = len(points)
        leaves = 1 << (divide_up(n, LEAF_POINTS) - 1).bit_length()
        order = None
        if not ordered and n > SMALL_CLOUD:
            keys = self.scratch.array("keys", (n,), np.uint64)
            rows = self.scratch.array("rows", (n,), np.uint32)
            words = self.queue_bounds(points, "curve_bounds", BOUNDS_WORDS)
            self.launch("dela_curve_keys", n, points, words, _i32(n), keys, rows)
            order = self.sort(keys, rows, n, 3 * AXIS_BITS)
        shapes = (n, 4), (2 * leaves, 8)
        if name is None:
            placed, nodes = (self.empty(shape, np.float32) for shape in shapes)
        else:
            placed = self.scratch.array(f"placed {name}", shapes[0], np.float32)
            nodes = self.scratch.array(f"nodes {name}", shapes[1], np.float32)
        self.launch("dela_tree_leaves", leaves, points, order, _i32(n), _i32(leaves), placed, nodes)
        level = leaves
        while level > 1:
            grid = divide_up(level, MERGED_NODES)
            self.kernels.launch("dela_tree_merge", grid, BLOCK, (_i32(level), nodes), self.stream)
            level = max(1, level // MERGED_NODES)
        return GpuTree(placed, nodes, n, leaves)

    def search(
        self,
        tree: GpuTree,
        k: int,
        queries: GpuTree | None = None,
        offset: int = 0,
        out: DeviceArray | None = None,
    ) -> DeviceArray:
        """:meth:`dela.geometry.cpu.SearchTree.knn`: int32 [M, k] in the row order of the
        queries."""
        if not 1 <= k <= LARGEST_K:
            raise InputError(f"k is {k}; it must be between 1 and {LARGEST_K}")
        asked = tree if queries is None else queries
        if out is None:
            out = self.empty((len(asked), k), np.int32)
        held = next((held for held in HELD if k <= held), None)
        chunk = max(1, len(asked))
        scratch: tuple[DeviceArray, ...] = ()
        if held is None:
            item_bytes = 8 * min(k, len(tree))
            chunk = SEARCH_BLOCK * max(1, LIST_BYTES // (SEARCH_BLOCK * item_bytes))
            chunk = min(chunk, SEARCH_BLOCK * divide_up(len(asked), SEARCH_BLOCK))
            scratch = (self.scratch.array("lists", (chunk * item_bytes,), np.uint8),)
        for begin in range(0, len(asked), chunk):
            end = min(begin + chunk, len(asked))
            sizes = (len(tree), tree.leaves, begin, end, int(queries is None), k, offset)
            self.kernels.launch(
                f"dela_knn_{held or 'any'}",
                divide_up(end - begin, SEARCH_BLOCK),
                SEARCH_BLOCK,
                (tree.placed, tree.nodes, asked.placed, *map(_i32, sizes), out, *scratch),
                self.stream,
            )
        return out

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
            tree = self.tree(row_range(points, begin, end), name="points")
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
