"""A point cloud in memory: coordinates in float64 and named columns beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dela.errors import InputError


@dataclass
class PointCloud:
    """Points with named columns, as read from a file or made by hand.

    Attributes:
        points: [N, 3] float64, meters, any origin (UTM coordinates lose nothing).
        columns: name -> [N] array of any numeric dtype: ``red``, ``green``, ``blue`` (0-255),
            ``intensity``, ``return_number``, ``number_of_returns``, ``classification``,
            ``normal_x`` ... File formats map their own names to these.
        source: what the reading format needs to write the same file again (header, coordinate
            reference, comments); opaque to everything else.

    Raises:
        InputError: a shape that does not fit.
    """

    points: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    source: Any = None

    def __post_init__(self) -> None:
        self.points = np.ascontiguousarray(self.points, dtype=np.float64)
        if self.points.ndim != 2 or self.points.shape[1] != 3:
            raise InputError(f"points have shape {self.points.shape}; expected [N, 3]")
        for name, column in self.columns.items():
            column = np.asarray(column)
            if column.shape != (len(self.points),):
                raise InputError(
                    f"column {name!r} has shape {column.shape}; expected [{len(self.points)}]"
                )
            self.columns[name] = column

    def __len__(self) -> int:
        return len(self.points)

    def select(self, rows: np.ndarray) -> PointCloud:
        """The cloud of these rows (indices or a boolean mask), columns included."""
        return PointCloud(
            self.points[rows],
            {name: column[rows] for name, column in self.columns.items()},
            self.source,
        )
