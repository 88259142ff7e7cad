"""Exact nearest neighbors in device memory: search trees, and the searches in them; on one stream.

Several trees are built by one launch, several searches done by one. No torch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dela.errors import InputError
from dela.geometry.cpu import LARGEST_K
from dela.geometry.gpu_queue import BOUNDS_WORDS, DIGIT_BITS, WORD, GpuQueue, sort_bytes
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.driver import Stream
from dela.plugins.cuda.launch import BLOCK, divide_up

# As in plugins/cuda: geometry.cuh and knn.cu.
AXIS_BITS = 21
LEAF_POINTS = 8
MOST_JOBS = 8
SEARCH_BLOCK = 64
HELD = (1, 32)  # candidates that a search keeps in shared memory

SMALL_CLOUD = 1024  # points that are searched in any order sooner than they are sorted
LIST_BYTES = 64 << 20  # of candidates in device memory at a time, where k is larger

# Structures of knn.cu; those that nothing is to be done for begin past every grid.
_SEARCH, _TREE = struct.Struct("@4P7i4x"), struct.Struct("@5P3i4x")
_NO_SEARCH = _SEARCH.pack(*[0] * 10, 2**31 - 1)
_NO_TREE = _TREE.pack(*[0] * 7, 2**31 - 1)


Job = TypeVar("Job")


@dataclass(frozen=True)
class GpuTree:
    """A search tree over points: addresses in device memory; see :meth:`GpuTrees.queue_trees`.

    Attributes:
        points: of [P, 3] float32.
        rows: of [N] int32: row r of the tree is ``points[rows[r]]``; 0: ``points[r]``.
        order: of [N] uint32: rows in an order in which neighbors are near; 0: as they are.
        placed, nodes: of :func:`tree_bytes` bytes, written.
        size: N, at least 1.
    """

    points: int
    rows: int
    order: int
    placed: int
    nodes: int
    size: int

    def __len__(self) -> int:
        return self.size

    @property
    def leaves(self) -> int:
        """A power of two."""
        return 1 << (divide_up(self.size, LEAF_POINTS) - 1).bit_length()


@dataclass(frozen=True)
class GpuSearch:
    """A search of k nearest rows: see :meth:`GpuTrees.queue_searches`.

    Attributes:
        tree: that is searched.
        queries: the tree of the points whose neighbors are wanted; each is a row of its own list
            where it is the same tree.
        k: rows of a list.
        out: address of [M, k] int32, written: in the row order of the queries.
        offset: added to every row that is listed.
    """

    tree: GpuTree
    queries: GpuTree
    k: int
    out: int
    offset: int = 0

    def packed(self, first_block: int) -> bytes:
        """As kernels take it, for blocks from ``first_block`` on."""
        tree, queries = self.tree, self.queries
        return _SEARCH.pack(
            *(tree.placed, tree.nodes, queries.placed, self.out, tree.size, tree.leaves),
            *(queries.size, self.k, int(queries is tree), self.offset, first_block),
        )


class GpuTrees(GpuQueue):
    """Search trees and searches queued on one stream.

    Raises:
        CudaUnavailable: no driver, no GPU, or one that is too old.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        # Kernels leave it as they find it: zero.
        self._done = DeviceArray.empty((MOST_JOBS,), np.uint32, stream=stream)
        self._done.fill_zero(stream)

    def tree(self, points: DeviceArray, ordered: bool = False, name: str = "points") -> GpuTree:
        """Queues a search tree over points [N, 3] float32, N >= 1, finite and within 1e18.

        Args:
            points: as a :class:`DeviceArray`.
            ordered: rows that are near in number are near in space, as after a voxel grid; else
                they are sorted along a curve first. The answers are the same.
            name: the tree is valid until the next one of this name.
        """
        n = len(points)
        order = 0
        if not ordered and n > SMALL_CLOUD:
            passes = divide_up(3 * AXIS_BITS, DIGIT_BITS)
            words = self.zeroed("curve", WORD * BOUNDS_WORDS + sort_bytes(n, passes))
            self.queue_bounds(points, None, words)
            keys = self.scratch.address("keys", WORD * n)
            self.queue("dela_curve_keys", divide_up(n, BLOCK), points.pointer, words, n, keys)
            order = self.queue_sort(keys, 0, n, passes, words + WORD * BOUNDS_WORDS)
        placed = self.scratch.address(f"tree {name}", sum(tree_bytes(n)))
        tree = GpuTree(points.pointer, 0, order, placed, placed + tree_bytes(n)[0], n)
        self.queue_trees([tree])
        return tree

    def queue_trees(self, trees: Sequence[GpuTree]) -> None:
        """Queues building trees, eight in a launch."""
        for part in _parts(trees):
            blocks, packed = 0, []
            for tree in part:
                leaves = tree.leaves
                packed.append(
                    _TREE.pack(
                        *(tree.points, tree.rows, tree.order, tree.placed, tree.nodes),
                        *(tree.size, leaves, blocks),
                    )
                )
                blocks += divide_up(leaves, BLOCK)
            packed += [_NO_TREE] * (MOST_JOBS - len(part))
            self.queue("dela_build_trees", blocks, b"".join(packed), self._done.pointer)

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
        asked = tree if queries is None else queries
        if out is None:
            out = self.empty((len(asked), k), np.int32)
        self.queue_searches([GpuSearch(tree, asked, k, out.pointer, offset)])
        return out

    def queue_searches(self, searches: Sequence[GpuSearch]) -> None:
        """Queues searches, eight of about the same k in a launch.

        Raises:
            InputError: a k that no search takes.
        """
        for search in searches:
            if not 1 <= search.k <= LARGEST_K:
                raise InputError(f"k is {search.k}; it must be between 1 and {LARGEST_K}")
        least = 0
        for held in HELD:
            fitting = [search for search in searches if least < search.k <= held]
            least = held
            for part in _parts(fitting):
                blocks, packed = 0, []
                for search in part:
                    packed.append(search.packed(blocks))
                    blocks += divide_up(len(search.queries), SEARCH_BLOCK)
                packed += [_NO_SEARCH] * (MOST_JOBS - len(part))
                self.queue(f"dela_knn_{held}", blocks, b"".join(packed), block=SEARCH_BLOCK)
        for search in searches:
            if search.k > least:
                self._queue_long_lists(search)

    def _queue_long_lists(self, search: GpuSearch) -> None:
        """Queues a search whose candidates lie in device memory, some queries at a time."""
        asked, item_bytes = len(search.queries), WORD * min(search.k, len(search.tree))
        chunk = SEARCH_BLOCK * max(1, LIST_BYTES // (SEARCH_BLOCK * item_bytes))
        chunk = min(chunk, SEARCH_BLOCK * divide_up(asked, SEARCH_BLOCK))
        items = self.scratch.address("lists", chunk * item_bytes)
        for begin in range(0, asked, chunk):
            end = min(begin + chunk, asked)
            self.queue(
                "dela_knn_any",
                divide_up(end - begin, SEARCH_BLOCK),
                *(search.packed(0), begin, end, items),
                block=SEARCH_BLOCK,
            )


def tree_bytes(n: int) -> tuple[int, int]:
    """Bytes of the points and of the nodes of a :class:`GpuTree`."""
    leaves = 1 << (divide_up(n, LEAF_POINTS) - 1).bit_length()
    return 16 * n, 64 * leaves


def _parts(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    """As many as one launch takes."""
    for begin in range(0, len(jobs), MOST_JOBS):
        yield jobs[begin : begin + MOST_JOBS]
