"""A scan's columns on their way to the device, where they become the network's attributes.

No torch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dela.geometry.gpu import GpuGeometry
from dela.geometry.gpu_queue import is_wide
from dela.geometry.gpu_trees import MOST_JOBS
from dela.model.contract import AttributeInfo
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.launch import BLOCK, divide_up

# As in plugins/cuda/attributes.cu.
_KINDS = ("", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
_COLUMN = struct.Struct("@P3d3i4x")
_NO_COLUMN = _COLUMN.pack(0, 0.0, 0.0, 0.0, 0, 0, 2**31 - 1)


@dataclass(frozen=True)
class Column:
    """A column of a scan.

    Attributes:
        info: how the network sees it.
        values: [N] of any numeric dtype, on the host; None: a height, which the device finds.
        above_ground: of heights: above the ground, not above the lowest point.
    """

    info: AttributeInfo
    values: np.ndarray | None
    above_ground: bool = False

    @property
    def on_device(self) -> bool:
        """Whether it is a height above ground, to be found on the device."""
        return self.above_ground and self.values is None

    @property
    def kind(self) -> int:
        """The number of its dtype, as the kernel takes it."""
        if self.on_device:
            return _KINDS.index("f8")
        return 0 if self.values is None else _KINDS.index(self._sent.str[1:])

    @property
    def _sent(self) -> np.dtype:
        """The dtype that goes up: its own, where the kernel knows it."""
        assert self.values is not None
        dtype = self.values.dtype
        if dtype == np.bool_:
            return np.dtype(np.uint8)
        known = dtype.kind in "iuf" and dtype.str[1:] in _KINDS
        return dtype.newbyteorder("=") if known else np.dtype(np.float64)

    def sent(self) -> np.ndarray | None:
        """The values as they go up; its own memory where nothing is to be done to them."""
        if self.values is None:
            return None
        return np.ascontiguousarray(self.values, dtype=self._sent)


@dataclass(frozen=True)
class ScanColumns:
    """The columns of a scan, in the order of the network's attributes.

    Attributes:
        columns: one for each attribute.
        heights: gives the heights above ground [N] where the device cannot.
        refused: the error for a column's name, of which so many values are not a number, and the
            number of points.
    """

    columns: Sequence[Column]
    heights: Callable[[], np.ndarray]
    refused: Callable[[str, int, int], Exception]

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def need_ground(self) -> bool:
        """Whether the device is to find heights above ground."""
        return any(column.on_device for column in self.columns)

    def with_heights(self) -> ScanColumns:
        """The same columns with heights above ground from the host."""
        found = self.heights()
        return replace(
            self,
            columns=[
                replace(column, values=found) if column.on_device else column
                for column in self.columns
            ],
        )

    def check(self, unknown: np.ndarray, rows: int) -> None:
        """Raises the error of the first column with values that are not a number.

        Args:
            unknown: how many of each column, as :meth:`queue` counts them.
            rows: points of the scan.
        """
        for column, count in zip(self.columns, unknown.tolist(), strict=True):
            if count:
                raise self.refused(column.info.name, count, rows)

    def queue(
        self,
        geometry: GpuGeometry,
        scan: DeviceArray,
        upload: Callable[[np.ndarray, str], DeviceArray],
        words: tuple[int, int, int],
        attributes: DeviceArray,
    ) -> None:
        """Queues making the attributes.

        Args:
            geometry: on whose stream.
            scan: [N, 3] float64 (or float32).
            upload: copies a host array up, into memory of this name.
            words: addresses of the scan's bounds; of a uint64 for each column, zero before; and of
                the heights above ground where they are needed, [N] float64.
            attributes: [N, F] float32, written.
        """
        n, (bounds, unknown, heights) = len(scan), words
        # Several attributes may be made of one column; it goes up once.
        there: dict[int, int] = {}
        blocks = divide_up(n, BLOCK)
        packed = []
        for at, column in enumerate(self.columns):
            info, address = column.info, heights if column.on_device else 0
            values = column.sent()
            if values is not None:
                key = id(column.values)
                if key not in there:
                    there[key] = upload(values, f"column {at}").pointer
                address = there[key]
            first_block = at % MOST_JOBS * blocks
            numbers = (info.offset, info.scale, info.log, column.kind, at, first_block)
            packed.append(_COLUMN.pack(address, *numbers))
        for begin in range(0, len(packed), MOST_JOBS):
            part = packed[begin : begin + MOST_JOBS]
            geometry.queue(
                "dela_attributes",
                blocks * len(part),
                b"".join(part + [_NO_COLUMN] * (MOST_JOBS - len(part))),
                *(scan.pointer, bounds, is_wide(scan), n, len(packed)),
                *(attributes.pointer, unknown),
            )
