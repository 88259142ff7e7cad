"""The pyramid of a scene in device memory, whose voxels all count from one corner.

There each stage keeps the first point of every voxel of the stage before, in the order of the
points, so all stages are listed before anybody knows how many points one has: the host reads all
sizes at once, then queues the searches of all stages together. No torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from dela.geometry.gpu import GpuGeometry
from dela.geometry.gpu_queue import TILE, WORD, Workspace
from dela.geometry.gpu_trees import GpuSearch, GpuTree, tree_bytes
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.launch import BLOCK, divide_up
from dela.pyramid.cpu import CORNER, Pyramid, PyramidConfig

# Of a stage's hash table, for each point that it may have.
SLOTS = 2


class SceneStages:
    """Builds pyramids with voxels that count from :data:`dela.pyramid.cpu.CORNER`.

    Args:
        config: stages, neighbors and grid sizes.
        geometry: on whose stream it works; its device's context must be current.
        results: memory of the pyramids, which are valid until the next one.
    """

    def __init__(self, config: PyramidConfig, geometry: GpuGeometry, results: Workspace) -> None:
        self.config = config
        self._geometry = geometry
        self._results = results
        # Of each later stage: rows of the stage before, rows of stage 0; as long as stage 0.
        self._kept: list[DeviceArray] = []
        self._rows: list[int] = []

    def queue(self, points: int, n: int, counts: int, counted: bool) -> None:
        """Queues listing the rows of all later stages.

        Args:
            points: address of stage 0, [N, 3] float32.
            n: its points; where ``counted``, at most so many.
            counts: address of a uint32 for each stage; those of later stages are written.
            counted: stage 0 has as many points as the first of them says.
        """
        geometry, config = self._geometry, self.config
        later, tiles, slots = config.stages - 1, divide_up(n, TILE), min(SLOTS * n, 2**31 - 1)
        table_bytes, states_bytes = 4 * SLOTS * n, WORD * (1 + tiles)
        # Words of 8 bytes first.
        states = geometry.zeroed("stages", later * (states_bytes + table_bytes))
        table = states + later * states_bytes
        slot_of_row = geometry.scratch.address("slots", 4 * n)
        rows_of_stages = geometry.scratch.address("rows of stages", 4 * later * n)
        self._kept, self._rows = [], []
        rows, count = 0, counts if counted else 0
        for stage in range(1, config.stages):
            kept = self._results.array(f"kept_{stage}", (n,), np.int32)
            where = (rows, count, n, slots, *CORNER.tolist(), config.grid[stage])
            geometry.queue(
                "dela_claim_voxels", divide_up(n, BLOCK), points, *where, table, slot_of_row
            )
            kept_rows, counts = rows_of_stages + 4 * (stage - 1) * n, counts + 4
            geometry.queue(
                "dela_list_voxels",
                tiles,
                *(table, slot_of_row, rows, count, n, states, kept.pointer, kept_rows, counts),
            )
            self._kept.append(kept)
            self._rows.append(kept_rows)
            rows, count = kept_rows, counts
            states, table = states + states_bytes, table + table_bytes

    def pyramid(
        self, points: DeviceArray, attributes: DeviceArray, sizes: Sequence[int]
    ) -> Pyramid:
        """The pyramid of the stages queued last; its searches are queued, too.

        Args:
            points: stage 0, as it was given to :meth:`queue`.
            attributes: [N, F] float32.
            sizes: points of every stage.
        """
        geometry, results = self._geometry, self._results
        trees = self._trees(points, sizes)
        geometry.queue_trees(trees)
        neighbors, nearest, searches = [], [], []
        for stage, (tree, k) in enumerate(zip(trees, self.config.neighbors, strict=True)):
            table = results.array(f"neighbors_{stage}", (len(tree), k), np.int32)
            neighbors.append(table)
            searches.append(GpuSearch(tree, tree, k, table.pointer))
            if stage:
                found = results.array(f"nearest_{stage}", (len(points),), np.int32)
                nearest.append(found)
                searches.append(GpuSearch(tree, trees[0], 1, found.pointer))
        geometry.queue_searches(searches)
        kept = (rows.view((size,)) for rows, size in zip(self._kept, sizes[1:], strict=True))
        return Pyramid(
            points,
            attributes,
            tuple(neighbors),
            tuple(kept),
            tuple(nearest),
            tuple((size,) for size in sizes),
        )

    def _trees(self, points: DeviceArray, sizes: Sequence[int]) -> list[GpuTree]:
        """Trees of all stages, to be built."""
        parts = [size for each in sizes for size in tree_bytes(each)]
        start = self._geometry.scratch.address("trees of stages", sum(parts))
        places = iter(itertools.accumulate(parts, initial=start))
        return [
            GpuTree(points.pointer, rows, 0, next(places), next(places), size)
            for rows, size in zip([0, *self._rows], sizes, strict=True)
        ]
