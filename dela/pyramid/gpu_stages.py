"""The stages of a pyramid in device memory, for one cloud or for a batch of them at once.

A batch's pyramid is packed as by :func:`dela.pyramid.cpu.pack`; the tables of every cloud are
written to their place in it. The host waits once per stage, for the sizes of all clouds; neighbors
are searched meanwhile. No torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dela.errors import InputError
from dela.geometry.bounds import Bounds
from dela.geometry.gpu import Cells, GpuGeometry, row_range
from dela.geometry.gpu_queue import BOUNDS_WORDS, WORD, Workspace
from dela.geometry.gpu_trees import GpuTree
from dela.plugins.cuda.arrays import DeviceArray, GrowingBuffer, as_device_array
from dela.plugins.cuda.driver import Event, Stream
from dela.pyramid.cpu import Pyramid, PyramidConfig, stage_seeds


@dataclass(frozen=True)
class StagePlan:
    """How clouds become pyramids.

    Attributes:
        bounds: of each cloud: they hold its points.
        pick: n takes the n-th point of every voxel; None a random one.
        seeds: uint64 [clouds, S]: of random picks.
        origin: [3] where the voxels of later stages are counted from, as for
            :func:`dela.pyramid.cpu.build_pyramid`.
        ordered: points lie in the order of a voxel grid (or a part of it); saves a sort.
    """

    bounds: Sequence[Bounds]
    pick: int | None = 0
    seeds: np.ndarray | None = None
    origin: Sequence[float] | np.ndarray | None = None
    ordered: bool = False


class StageBuilder:
    """Builds the stages of pyramids on one stream, in memory that is used again for the next ones.

    Results are valid until the next call.

    Args:
        config: stages, neighbors and grid sizes.
        stream: that does the work; results are there for whatever follows on it.

    Raises:
        CudaUnavailable: no driver, no GPU, or one that is too old.
        InputError: a classification network.
    """

    def __init__(self, config: PyramidConfig, stream: Stream) -> None:
        if config.task == "classification":
            raise InputError(
                "pyramids for classification are built on the CPU; the GPU builds those for "
                "segmentation"
            )
        self.config = config
        self.stream = stream
        self.geometry = GpuGeometry(stream)
        self._results = Workspace(stream)
        self._sizes = GrowingBuffer(stream.device, pinned=True)
        self._counting: DeviceArray | None = None

    def packed(
        self,
        points: Any,
        attributes: Any,
        lengths: Sequence[int],
        bounds: Sequence[Bounds],
        seeds: Sequence[int],
    ) -> Pyramid:
        """The pyramid of a training batch: :func:`dela.pyramid.cpu.pack` of what
        :func:`dela.pyramid.cpu.build_pyramid` makes of each cloud with ``pick=None``.

        Args:
            points: [N, 3] float32 meters on the device, the clouds one after the other, each in the
                order of a voxel grid or nearly so.
            attributes: [N, F] float32 likewise; passed on as they are.
            lengths: points of each cloud, 1 or more.
            bounds: of each cloud's points, which are finite.
            seeds: of each cloud's random choices.

        Raises:
            InputError: shapes or lengths that do not fit, or coordinates beyond 1e18.
        """
        points = self.geometry.points(points)
        sizes = [int(length) for length in lengths]
        if min(sizes, default=0) < 1 or sum(sizes) != len(points):
            raise InputError(
                f"lengths is {sizes}; every cloud needs a point, and all of them {len(points)}"
            )
        if not len(sizes) == len(bounds) == len(seeds):
            raise InputError(
                f"{len(sizes)} clouds have {len(bounds)} bounds and {len(seeds)} seeds; give one "
                "of each per cloud"
            )
        each = np.stack([stage_seeds(seed, self.config) for seed in seeds])
        plan = StagePlan(bounds, pick=None, seeds=each, ordered=True)
        return self.build(points, as_device_array(attributes, self.stream), sizes, plan)

    def build(
        self, points: DeviceArray, attributes: DeviceArray, lengths: Sequence[int], plan: StagePlan
    ) -> Pyramid:
        """The pyramid of clouds that lie one after the other, ``lengths`` points of each.

        Raises:
            InputError: coordinates beyond 1e18, or voxels too small for the extent.
        """
        geometry, config, results = self.geometry, self.config, self._results
        for box in plan.bounds:
            box.check_range()
        self.stream.device.make_current()
        whole = _spans(lengths)
        first: list[GpuTree] = []
        neighbors, kept, nearest, sizes = [], [], [], [tuple(lengths)]
        below, ordered = points, plan.ordered
        for stage in range(config.stages):
            spans, k = _spans(sizes[-1]), config.neighbors[stage]
            last = stage + 1 == config.stages
            grids = None if last else self._queue_grids(stage + 1, below, spans, plan)
            # Runs while the host waits for the next stage's sizes.
            table = results.array(f"neighbors_{stage}", (len(below), k), np.int32)
            found = results.array(f"nearest_{stage}", (len(points), 1), np.int32) if stage else None
            for cloud, (begin, end) in enumerate(spans):
                name = f"stage {stage}" if stage else f"cloud {cloud}"
                tree = geometry.tree(row_range(below, begin, end), ordered, name)
                geometry.search(tree, k, None, begin, row_range(table, begin, end))
                if found is None:
                    first.append(tree)
                else:
                    answers = row_range(found, *whole[cloud])
                    geometry.search(tree, 1, first[cloud], begin, answers)
            neighbors.append(table)
            if found is not None:
                nearest.append(found.view((len(points),)))
            if grids is None:
                break
            rows, counts, counted = grids
            counted.synchronize()
            sizes.append(tuple(counts.tolist()))
            kept.append(self._joined(rows, spans, sizes[-1], f"kept_{stage + 1}"))
            taken = results.array(f"points_{stage + 1}", (len(kept[-1]), 3), np.float32)
            below = geometry.gather(below, kept[-1], out=taken)
            # Kept rows are in the order of their stage or in Morton order.
            ordered = ordered or plan.origin is None
        return Pyramid(
            points, attributes, tuple(neighbors), tuple(kept), tuple(nearest), tuple(sizes)
        )

    def _queue_grids(
        self, stage: int, points: DeviceArray, spans: list[tuple[int, int]], plan: StagePlan
    ) -> tuple[DeviceArray, np.ndarray, Event]:
        """Queues the voxels of a stage.

        Returns:
            The rows of each cloud that are kept, counted within it, from the cloud's place on; how
            many of them, on the host; the event after which that is so.
        """
        rows = self._results.array(f"rows of stage {stage}", (len(points),), np.int32)
        counts = self._results.array("counts", (len(spans),), np.uint32)
        for cloud, span in enumerate(spans):
            part, count = row_range(points, *span), counts.pointer + 4 * cloud
            self._queue_grid(stage, part, cloud, (row_range(rows, *span), count), plan)
        found: np.ndarray = self._sizes.array((len(spans),), np.uint32)
        counts.copy_to_host(found, self.stream)
        return rows, found, Event(self.stream.device).record(self.stream)

    def _queue_grid(
        self,
        stage: int,
        points: DeviceArray,
        cloud: int,
        out: tuple[DeviceArray, int],
        plan: StagePlan,
    ) -> None:
        """Queues one cloud's voxels of a stage: their rows, and at an address their number."""
        geometry, n = self.geometry, len(points)
        rows, count = out
        # Bounds of stage 0 hold for every stage.
        cells = Cells.of(plan.bounds[cloud], self.config.grid[stage], plan.origin)
        seed = 0 if plan.seeds is None else int(plan.seeds[cloud, stage])
        unused = geometry.scratch.address("voxel of stage", 4 * n)
        words = 0
        if plan.origin is None:
            words = geometry.zeroed("stage bounds", WORD * BOUNDS_WORDS)
            geometry.queue_bounds(points, None, words)
        members = geometry.queue_voxels(points, cells, words, voxel_of_point=unused, count=count)
        if plan.origin is None:
            geometry.queue_pick(members, plan.pick, seed, kept=rows.pointer)
            return
        flags = geometry.zeroed("is kept", n)
        geometry.queue_pick(members, plan.pick, seed, is_kept=flags)
        geometry.queue_list(flags, n, rows, count)

    def _joined(
        self,
        rows: DeviceArray,
        spans: list[tuple[int, int]],
        sizes: Sequence[int],
        name: str,
    ) -> DeviceArray:
        """The kept rows of all clouds without gaps, counted over all clouds."""
        if len(sizes) == 1:
            return rows.view((sizes[0],))
        out = self._results.array(name, (sum(sizes),), np.int32)
        numbers = self._numbers(len(rows))
        for (begin, end), size, place in zip(spans, sizes, _spans(sizes), strict=True):
            self.geometry.gather(
                row_range(numbers, begin, end),
                row_range(rows, begin, begin + size),
                out=row_range(out, *place),
            )
        return out

    def _numbers(self, count: int) -> DeviceArray:
        """0, 1, 2 ... on the device: ``count`` of them or more."""
        if self._counting is None or len(self._counting) < count:
            numbers = np.arange(count + count // 2, dtype=np.int32)
            self._counting = DeviceArray.from_host(numbers, self.stream)
        return self._counting


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """First row of each cloud, and the row after its last."""
    return list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))
