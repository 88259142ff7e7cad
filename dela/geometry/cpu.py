"""Voxel grid, nearest neighbors and farthest point sampling on numpy arrays, by native code.

Everything here is exact and deterministic: the same input gives the same output for every thread
count and every instruction set. ``threads`` is a number of threads, or None for every core that
this process was given (:mod:`dela.threads`); in a forked child (a data loader's worker) None is
one, because OpenMP's threads do not survive a fork. No torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dela.errors import InputError
from dela.plugins import native
from dela.threads import current_threads

# Squared distances of coordinates up to this stay finite in float32.
LARGEST_COORDINATE = 1e18
LARGEST_K = 1 << 20

_NOT_FINITE = 3
_GRID_TOO_FINE = 4

# 0: as many as OpenMP would start, which does not know a container's quota.
_given = current_threads()
_default_threads = _given.count if _given.limited else 0


def _use_one_thread() -> None:
    global _default_threads
    _default_threads = 1


os.register_at_fork(after_in_child=_use_one_thread)

_limits = threading.local()


@contextlib.contextmanager
def native_threads(count: int | None) -> Iterator[None]:
    """Within the block, calls of this thread that ask for no number of threads use ``count``."""
    before, _limits.count = getattr(_limits, "count", None), count
    try:
        yield
    finally:
        _limits.count = before


def _threads(asked: int | None) -> int:
    return asked or getattr(_limits, "count", None) or _default_threads


@functools.cache
def _library() -> ctypes.CDLL:
    library = native.library()
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    for name, arguments in {
        "dela_voxel_grid": [
            pointer,
            i32,
            i64,
            ctypes.c_double,
            i64,
            ctypes.c_uint64,
            i32,
            pointer,
            pointer,
            ctypes.POINTER(i64),
        ],
        "dela_tree_build": [pointer, i64, i32, ctypes.POINTER(pointer)],
        "dela_tree_knn": [pointer, pointer, i32, i32, i32, pointer],
        "dela_farthest_points": [pointer, pointer, i64, i64, i32, pointer],
    }.items():
        function = getattr(library, name)
        function.restype = i32
        function.argtypes = arguments
    library.dela_tree_free.restype = None
    library.dela_tree_free.argtypes = [pointer]
    return library


def check_finite(points: np.ndarray, drop_invalid: bool = False) -> np.ndarray:
    """Rows of ``points`` [N, 3] whose coordinates are all finite, as a boolean mask [N].

    Raises:
        InputError: some are not and ``drop_invalid`` is off; the message counts them.
    """
    points = np.asarray(points)
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(points.sum(dtype=np.float64))
    if math.isfinite(total):
        return np.ones(len(points), dtype=bool)
    finite: np.ndarray = np.isfinite(points).all(axis=1)
    bad = len(points) - int(finite.sum())
    if bad and not drop_invalid:
        raise InputError(
            f"{bad} of {len(points)} points have NaN or infinite coordinates (first: row "
            f"{int(np.argmin(finite))}); drop them with --drop-invalid (drop_invalid=True)"
        )
    return finite


@dataclass(frozen=True)
class VoxelGrid:
    """One point per occupied voxel, and the way back.

    Attributes:
        kept: [V] int32, the row picked in each voxel. Voxels are in Morton order.
        voxel_of_point: [N] int32, the voxel of every row.
    """

    kept: np.ndarray
    voxel_of_point: np.ndarray

    def picked(self, number: int) -> np.ndarray:
        """int32 [V]: what ``kept`` is with ``pick=number``, without another search."""
        members = np.argsort(self.voxel_of_point, kind="stable")
        counts = np.bincount(self.voxel_of_point, minlength=len(self.kept))
        return members[np.cumsum(counts) - counts + number % counts].astype(np.int32)


def _cells_from(points: np.ndarray, origin: np.ndarray, size: float) -> np.ndarray:
    """Whole numbers of cells: counting them from the lowest one keeps every border in place."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.floor((points.astype(np.float64) - origin) / size)


def voxel_grid(
    points: np.ndarray,
    size: float,
    pick: int | None = 0,
    seed: int | None = None,
    threads: int | None = None,
    origin: np.ndarray | None = None,
) -> VoxelGrid:
    """Groups points by the cell floor((point - origin) / size) and picks one of each group.

    Memory grows with the number of points alone, whatever the extent.

    Args:
        points: [N, 3] float32 or float64; cells are computed in float64.
        size: edge of a cell, in the unit of the points.
        pick: n takes the n-th point of each cell in row order (n modulo their number);
            None takes a random one.
        seed: of the random pick; None draws one from the system.
        origin: [3], where cells are counted from; None for the lowest corner. With a fixed origin
            a part of a cloud falls into the same cells as the whole.

    Raises:
        InputError: a shape, size or coordinate that cannot be used, or more than 2^42 cells
            along an axis.
    """
    points = np.asarray(points)
    if points.dtype not in (np.float32, np.float64):
        points = points.astype(np.float64)
    points = _check_points(points, "points")
    if not (math.isfinite(size) and size > 0):
        raise InputError(f"voxel size is {size}; it must be above 0")
    seed = pick_seed(pick, seed)
    given, edge = points, float(size)
    if origin is not None:
        points, edge = _cells_from(points, origin, size), 1.0
    kept = np.empty(len(points), dtype=np.int32)
    voxel_of_point = np.empty(len(points), dtype=np.int32)
    count = ctypes.c_int64()
    status = _library().dela_voxel_grid(
        points.ctypes.data,
        int(points.dtype == np.float64),
        len(points),
        edge,
        -1 if pick is None else pick,
        seed & 0xFFFFFFFFFFFFFFFF,
        _threads(threads),
        kept.ctypes.data,
        voxel_of_point.ctypes.data,
        ctypes.byref(count),
    )
    if status == _GRID_TOO_FINE:
        extent = float((given.max(axis=0) - given.min(axis=0)).max())
        raise InputError(
            f"voxels of {size} over an extent of {extent:.6g} are more than 2^42 along an axis; "
            "use larger voxels or remove stray points"
        )
    _check_status(status, given, "voxel_grid")
    return VoxelGrid(kept[: count.value].copy(), voxel_of_point)


def pick_seed(pick: int | None, seed: int | None) -> int:
    """The seed of a voxel grid's pick: as given, else drawn from the system if it is needed.

    Raises:
        InputError: a pick below 0.
    """
    if pick is not None and pick < 0:
        raise InputError(f"pick is {pick}; give 0 or more, or None for a random point")
    if seed is None:
        return int(np.random.SeedSequence().entropy) if pick is None else 0  # type: ignore[arg-type]
    return seed


class SearchTree:
    """A search tree over points [N, 3] float32, N >= 1; build it once, ask it often.

    Raises:
        InputError: no points, NaN or infinite coordinates, or coordinates beyond 1e18.
    """

    def __init__(self, points: np.ndarray, threads: int | None = None) -> None:
        points = _check_points(np.asarray(points, dtype=np.float32), "points")
        if not len(points):
            raise InputError("a neighbor search needs at least one point, there are none")
        self._size = len(points)
        handle = ctypes.c_void_p()
        status = _library().dela_tree_build(
            points.ctypes.data, len(points), _threads(threads), ctypes.byref(handle)
        )
        _check_status(status, points, "neighbor search")
        self._handle = handle
        weakref.finalize(self, _library().dela_tree_free, handle)

    def __len__(self) -> int:
        return self._size

    def knn(
        self,
        k: int,
        queries: SearchTree | None = None,
        threads: int | None = None,
        offset: int = 0,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """The k nearest points of every query, see :func:`knn`.

        Args:
            queries: a tree over the query points; None asks for the tree's own points.
            offset: added to every row of the result.
            out: C-contiguous int32 [M, k] that receives the result.

        Returns:
            int32 [M, k] in the row order of the query points.
        """
        _check_k(k)
        asked = self if queries is None else queries
        if out is None:
            out = np.empty((len(asked), k), dtype=np.int32)
        status = _library().dela_tree_knn(
            self._handle, asked._handle, k, offset, _threads(threads), out.ctypes.data
        )
        native.check(status, "neighbor search")
        return out


def knn(
    points: np.ndarray,
    k: int,
    queries: np.ndarray | None = None,
    lengths: Sequence[int] | None = None,
    query_lengths: Sequence[int] | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """The k nearest points of every query by Euclidean distance, exact, nearest first.

    Distances are compared in float32 and ties go to the lower row, except that a point is always
    its own first neighbor when ``queries`` is None. Where a cloud has fewer than k points, all of
    them come in order and the first one fills the rest.

    Args:
        points: [N, 3] float32.
        k: neighbors per query.
        queries: [M, 3] float32; None asks for the points themselves.
        lengths: points of each cloud when several are packed one after the other; neighbors are
            then searched within the query's cloud.
        query_lengths: queries of each cloud; needed when ``queries`` and ``lengths`` are given.

    Returns:
        int32 [M, k], rows of ``points``.

    Raises:
        InputError: shapes or lengths that do not fit, no points to search, or coordinates that
            are not finite or beyond 1e18.
    """
    points = _check_points(np.asarray(points, dtype=np.float32), "points")
    _check_k(k)
    if not len(points):
        raise InputError("a neighbor search needs at least one point, there are none")
    starts = starts_of_clouds(lengths, len(points), "lengths", "points")
    if queries is not None:
        queries = _check_points(np.asarray(queries, dtype=np.float32), "queries")
    rows = None if queries is None else len(queries)
    query_starts = starts_of_queries(rows, starts, lengths, query_lengths)
    out = np.empty((query_starts[-1], k), dtype=np.int32)
    for cloud in range(len(starts) - 1):
        begin, end = starts[cloud], starts[cloud + 1]
        query_begin, query_end = query_starts[cloud], query_starts[cloud + 1]
        if query_begin == query_end:
            continue
        if begin == end:
            raise InputError(f"cloud {cloud} has queries but no points to search")
        tree = SearchTree(points[begin:end], threads)
        asked = None if queries is None else SearchTree(queries[query_begin:query_end], threads)
        tree.knn(k, asked, threads, offset=int(begin), out=out[query_begin:query_end])
    return out


def nearest(
    points: np.ndarray,
    queries: np.ndarray,
    lengths: Sequence[int] | None = None,
    query_lengths: Sequence[int] | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """The nearest point of every query: :func:`knn` with k = 1, as int32 [M]."""
    return knn(points, 1, queries, lengths, query_lengths, threads)[:, 0]


def farthest_point_sampling(
    points: np.ndarray,
    count: int,
    lengths: Sequence[int] | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Exact farthest point sampling: row 0 first, then always the point farthest from those taken.

    Distances are float32, ties go to the lower row, no row is taken twice before all are taken.
    A cloud of fewer than ``count`` points repeats its order. (The published network's sampler also
    skips points within 0.03 of the origin and breaks ties by its thread layout; this one does not.)

    Args:
        points: [N, 3] float32.
        count: rows to take of each cloud.
        lengths: points of each cloud when several are packed one after the other.

    Returns:
        int32 [count], or [B, count] when ``lengths`` is given; rows of ``points``.

    Raises:
        InputError: an empty cloud, count below 1, or coordinates that cannot be used.
    """
    points = _check_points(np.asarray(points, dtype=np.float32), "points")
    if count < 1:
        raise InputError(f"count is {count}; take at least one point")
    starts = starts_of_clouds(lengths, len(points), "lengths", "points")
    if np.any(np.diff(starts) < 1):
        raise InputError("farthest point sampling needs at least one point in every cloud")
    _check_range(points)
    out = np.empty((len(starts) - 1, count), dtype=np.int32)
    status = _library().dela_farthest_points(
        points.ctypes.data,
        starts.ctypes.data,
        len(out),
        count,
        _threads(threads),
        out.ctypes.data,
    )
    native.check(status, "farthest_point_sampling")
    return out[0] if lengths is None else out


def _check_points(points: np.ndarray, what: str) -> np.ndarray:
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"{what} have shape {list(points.shape)}; expected [N, 3]")
    if len(points) >= 2**31 - 64:
        raise InputError(f"{what} has {len(points)} rows; at most 2^31 - 65 fit int32 indices")
    return np.ascontiguousarray(points)


def _check_k(k: int) -> None:
    if not 1 <= k <= LARGEST_K:
        raise InputError(f"k is {k}; it must be between 1 and {LARGEST_K}")


def _check_range(points: np.ndarray) -> None:
    if np.abs(points).max(initial=0.0) <= LARGEST_COORDINATE:
        return
    check_finite(points)
    raise InputError(
        f"a coordinate is {float(np.abs(points).max()):.6g}; the largest usable one is "
        f"{LARGEST_COORDINATE:.0g}"
    )


def _check_status(status: int, points: np.ndarray, what: str) -> None:
    if status == _NOT_FINITE:
        check_finite(points)
        _check_range(points)
    native.check(status, what)


def starts_of_queries(
    rows: int | None,
    starts: np.ndarray,
    lengths: Sequence[int] | None,
    query_lengths: Sequence[int] | None,
) -> np.ndarray:
    """Where each cloud's queries begin and the last one's end, int64 [clouds + 1].

    Args:
        rows: queries in all; None where the points themselves are asked for.
        starts: of the points, from ``lengths``; see :func:`starts_of_clouds`.

    Raises:
        InputError: lengths of queries that do not fit the queries or the clouds.
    """
    if rows is None:
        if query_lengths is not None:
            raise InputError("query_lengths is given without queries; leave it out")
        return starts
    if (lengths is None) != (query_lengths is None):
        raise InputError("give both lengths and query_lengths, or neither")
    query_starts = starts_of_clouds(query_lengths, rows, "query_lengths", "queries")
    if len(query_starts) != len(starts):
        raise InputError(
            f"query_lengths has {len(query_starts) - 1} clouds, lengths has {len(starts) - 1}"
        )
    return query_starts


def starts_of_clouds(lengths: Sequence[int] | None, rows: int, name: str, what: str) -> np.ndarray:
    """Where each of several packed clouds begins and the last one ends, int64 [clouds + 1].

    Raises:
        InputError: a length below 0, or lengths that do not add up to the rows.
    """
    sizes = np.asarray([rows] if lengths is None else lengths, dtype=np.int64)
    if sizes.ndim != 1 or np.any(sizes < 0) or int(sizes.sum()) != rows:
        raise InputError(f"{name} is {sizes.tolist()}; it must add up to the {rows} {what}")
    return np.concatenate(([0], np.cumsum(sizes)))
