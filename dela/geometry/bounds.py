"""The box around a cloud."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dela.errors import InputError
from dela.geometry.cpu import LARGEST_COORDINATE


@dataclass(frozen=True)
class Bounds:
    """Lowest and highest coordinates of a cloud, float64 [3] each; infinite for no points."""

    low: np.ndarray
    high: np.ndarray

    @property
    def extent(self) -> float:
        return float((self.high - self.low).max())

    def check_range(self) -> None:
        """Raises InputError where squared distances would not stay finite in float32."""
        largest = float(np.maximum(np.abs(self.low), np.abs(self.high)).max())
        if LARGEST_COORDINATE < largest < math.inf:
            raise InputError(
                f"a coordinate is {largest:.6g}; the largest usable one is {LARGEST_COORDINATE:.0g}"
            )
