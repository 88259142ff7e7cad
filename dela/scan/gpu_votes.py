"""Labels of a whole scan in device memory: the scan goes up once, its labels come down once.

Votes, tiles and what a vote weighs are those of :mod:`dela.scan.votes`. Beside the labels only
sizes and bounds come down, and where a scan takes several tiles its voxels' points, to be cut. No
torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dela.geometry.gpu_queue import Workspace, is_wide
from dela.model.contract import Contract
from dela.model.inputs import Inputs
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.launch import BLOCK, divide_up
from dela.pyramid.gpu import GpuVoxels, PyramidBuilder
from dela.scan.tiles import Tile, context_width, cut_tiles, whole_tile
from dela.scan.votes import FAR_WEIGHT, vote_reach


@dataclass(frozen=True)
class GpuScan:
    """A scan's voxels and what builds its pyramids; :class:`dela.scan.voxels.Voxels` on a device.

    Valid until the builder makes the next one in the same way; a pyramid, until the next one.
    """

    builder: PyramidBuilder
    voxels: GpuVoxels

    @classmethod
    def of(cls, builder: PyramidBuilder, points: Any, attributes: Any) -> GpuScan:
        """A scan as it is; arguments and errors as of :meth:`PyramidBuilder.voxels`."""
        return cls(builder, builder.voxels(points, attributes))

    def __len__(self) -> int:
        return len(self.voxels)

    def look(self, pick: int) -> GpuScan:
        """The same voxels with the n-th point standing for each."""
        return GpuScan(self.builder, self.builder.look(self.voxels, pick))

    def turned(self, matrix: np.ndarray, config: Contract) -> GpuScan:
        """The same scan turned or mirrored about its middle by an orthogonal matrix [3, 3]."""
        return GpuScan(self.builder, self.builder.turned(self.voxels, matrix))

    def cut(self, config: Contract, max_points: int, context: float | None = None) -> list[Tile]:
        """As :meth:`dela.scan.voxels.Voxels.cut`; points come down where there are several
        tiles."""
        if len(self) <= max_points:
            return [whole_tile(len(self))]
        points = self.voxels.points.to_host(self.builder.stream)
        width = context_width(config) if context is None else context
        return list(cut_tiles(points, max_points, width))

    def inputs(self, tile: Tile, config: Contract) -> Inputs:
        """The network's input for one tile; its voxels are the whole scan's at every stage."""
        whole = len(tile.rows) == len(self)
        return self.builder.tile(self.voxels, None if whole else tile.rows)


class GpuTally:
    """Answers to a scan, added up on the builder's stream; a :class:`dela.scan.votes.Tally`.

    Args:
        scan: as it is.
        memory: of the builder's stream, for what is added up and the labels.
        points: how many of the scan's points, from the first one on, get labels.
        votes: of each point.
    """

    def __init__(self, scan: GpuScan, memory: Workspace, points: int, votes: int) -> None:
        self._builder = scan.builder
        self._plain = scan.voxels
        self._memory = memory
        self._points = points
        self._classes = scan.builder.config.num_classes
        self._vote = memory.array("vote", (len(scan), self._classes), np.float32)
        self._by_point = votes > 1
        self._votes_in = 0
        if self._by_point:
            self._totals = memory.array("totals", (points, self._classes), np.float32)
            self._weights = memory.array("weights", (points,), np.float32)

    def add_tile(self, logits: DeviceArray, tile: Tile) -> None:
        """Takes the core of a tile's answer, [T, classes] float32."""
        rows = None
        if len(tile.rows) < len(self._vote):
            of_core = np.where(tile.core, tile.rows, -1).astype(np.int32)
            rows = self._memory.array("rows of core", of_core.shape, np.int32)
            rows.copy_from_host(of_core, self._builder.stream)
        self._launch(
            "dela_softmax",
            len(logits),
            *(logits.pointer, rows.pointer if rows is not None else 0, len(logits)),
            *(self._classes, self._vote.pointer),
        )

    def end_vote(self, seen: GpuScan) -> None:
        """Adds the vote to every point, weighted by how near the vote's points stood."""
        if self._by_point:
            self._make_current()
            plain = self._plain
            arrays = (plain.scan, plain.voxel_of_point, seen.voxels.points, self._vote)
            self._launch(
                "dela_add_vote",
                self._points,
                *(array.pointer for array in arrays),
                *(is_wide(plain.scan), int(self._votes_in == 0), self._points, self._classes),
                *(*plain.origin.tolist(), vote_reach(self._builder.config) ** 2, FAR_WEIGHT),
                *(self._totals.pointer, self._weights.pointer),
            )
        self._votes_in += 1

    def labels(
        self, probabilities: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Class [N] int32 and its probability [N] float32 of the points that get labels, and where
        asked for the probabilities of every class [N, classes] float32; waits for them."""
        stream = self._builder.stream
        self._make_current()
        labels = self._memory.array("labels", (2, self._points), np.int32)
        if self._by_point:
            shares = self._totals
            self._label(shares, self._weights, labels)
        else:
            of_voxels = self._memory.array("voxel labels", (2, len(self._vote)), np.int32)
            self._label(self._vote, None, of_voxels)
            for from_row, to_row in zip(_rows(of_voxels), _rows(labels), strict=True):
                self._builder.spread(from_row, self._plain, to_row)
            if probabilities:
                shape = (self._points, self._classes)
                shares = self._memory.array("shares", shape, np.float32)
                self._builder.spread(self._vote, self._plain, shares)
        classes, confidence = labels.to_host(stream)
        all_shares = shares.to_host(stream) if probabilities else None
        return classes, confidence.view(np.float32), all_shares

    def _label(self, values: DeviceArray, weights: DeviceArray | None, out: DeviceArray) -> None:
        labels, confidence = (row.pointer for row in _rows(out))
        self._launch(
            "dela_label_rows",
            len(values),
            *(0 if weights is None else weights.pointer, *values.shape, values.pointer),
            *(labels, confidence),
        )

    def _make_current(self) -> None:
        # Whoever was told of the progress may have changed to another device.
        self._builder.stream.device.make_current()

    def _launch(self, name: str, rows: int, *values: Any) -> None:
        """Queues a kernel of one thread for each row."""
        self._builder.geometry.queue(name, divide_up(rows, BLOCK), *values)


def _rows(pair: DeviceArray) -> tuple[DeviceArray, DeviceArray]:
    """The two rows of [2, N]."""
    size = pair.shape[1:]
    return pair.view(size), pair.view(size, offset=pair.nbytes // 2)
