"""Heights of a scan's points above the ground, on the device. No torch."""

from __future__ import annotations

import itertools

from dela.geometry.bounds import Bounds
from dela.geometry.gpu_queue import WORD, GpuQueue, is_wide
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.launch import BLOCK, divide_up

# As in plugins/cuda/ground.cu.
GROUND_BLOCK = 1024
FINER = 4  # finer cells in each

FIRST_CAPACITY = 1 << 16  # cells of 1 m
# Up to here dela.scan.attributes.height_above_ground has cells of these sizes; they take 290 MB.
MOST_CAPACITY = 1_000_000


class GroundHeights:
    """:func:`dela.scan.attributes.height_above_ground` on a device.

    There is memory for so many cells as the largest scan so far had. Its heights are those of the
    CPU but for the sums that correct them: within 1e-9 m.

    Args:
        geometry: on whose stream it works; its device's context must be current.
    """

    def __init__(self, geometry: GpuQueue) -> None:
        self._geometry = geometry
        self._capacity = FIRST_CAPACITY

    def fits(self, bounds: Bounds) -> bool:
        """Whether what was queued last for a scan of these bounds is right; if not, the next is,
        where that can be."""
        cells = _cells(bounds)
        fitted = cells <= self._capacity
        if not fitted and self.can(bounds):
            self._capacity = min(MOST_CAPACITY, 1 << (cells - 1).bit_length())
        return fitted

    @staticmethod
    def can(bounds: Bounds) -> bool:
        """Whether a scan of these bounds is not too wide, in cells of 1 m."""
        return _cells(bounds) <= MOST_CAPACITY

    def queue(self, scan: DeviceArray, bounds: int) -> int:
        """Queues finding the heights.

        Args:
            scan: [N, 3] float64 or float32, N >= 1.
            bounds: address of the words of its bounds.

        Returns:
            address of [N] float64, valid until the next call.
        """
        geometry, most, n = self._geometry, self._capacity, len(scan)
        fine, blocks = FINER * most, divide_up(n, BLOCK)
        levels = 5 * fine // 2 + 64
        lowest, fine_lowest, sums, counts = self._places(
            geometry.zeroed("ground sums", 8 * most + 20 * fine), (8 * most, 8 * fine, 8 * fine)
        )
        values, work, known, is_ground = self._places(
            geometry.scratch.address("ground", 17 * levels + 8 * fine + most),
            (8 * levels, 8 * fine, levels),
        )
        heights = geometry.scratch.address("heights", WORD * n)
        there, wide = scan.pointer, is_wide(scan)
        queue = geometry.queue
        queue("dela_lowest_points", blocks, there, bounds, wide, n, most, lowest)
        queue(
            *("dela_ground_surface", 1, bounds, lowest, most, values, known, work, is_ground),
            block=GROUND_BLOCK,
        )
        queue(*("dela_heights", blocks, there, bounds, values, wide, n, most, heights, fine_lowest))
        queue(
            *("dela_count_ground", blocks, there, bounds, heights, fine_lowest, wide, n, most),
            *(counts, sums),
        )
        queue(
            *("dela_ground_correction", 1, bounds, counts, sums, most, work, values, known),
            block=GROUND_BLOCK,
        )
        queue("dela_correct_heights", blocks, there, bounds, values, wide, n, most, heights)
        return heights

    @staticmethod
    def _places(start: int, sizes: tuple[int, ...]) -> list[int]:
        """Where arrays that lie one behind the other begin; one more than there are sizes."""
        return list(itertools.accumulate(sizes, initial=start))


def _cells(bounds: Bounds) -> int:
    """Cells of 1 m along x and y."""
    x, y = (bounds.high - bounds.low)[:2].tolist()
    return (int(x) + 1) * (int(y) + 1)
