"""The pyramid: the network's input, built outside the graph because its sizes depend on the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pyramid:
    """Clouds packed one after the other, at every stage; numpy arrays or tensors alike.

    For S stages with N_d points in all at stage d and B clouds:

    Attributes:
        points: [N_0, 3] float32, metres, shifted near the origin.
        attributes: [N_0, F] float32, scaled to about 0..1; F may be 0.
        neighbors: S tables [N_d, k_d] int32, rows of stage d (the point itself included).
        kept: S - 1 lists [N_d] int32 for d = 1..S-1: the rows of stage d - 1 that stage d keeps.
        nearest: S - 1 lists [N_0] int32: for every row of stage 0 the nearest row of stage d.
            Empty for classification.
        lengths: S lists of B ints: points of each cloud at each stage.
    """

    points: Any
    attributes: Any
    neighbors: tuple[Any, ...]
    kept: tuple[Any, ...]
    nearest: tuple[Any, ...]
    lengths: tuple[tuple[int, ...], ...]

    @property
    def stages(self) -> int:
        return len(self.neighbors)

    @property
    def clouds(self) -> int:
        return len(self.lengths[0])

    def inputs(self) -> Iterator[tuple[str, Any]]:
        """Name and array of every graph input, in the order of the exported file.

        ``points``, ``attributes`` (when F > 0), ``neighbors_0`` .., ``kept_1`` .., ``nearest_1`` ..
        """
        yield "points", self.points
        if self.attributes.shape[1]:
            yield "attributes", self.attributes
        for stage, table in enumerate(self.neighbors):
            yield f"neighbors_{stage}", table
        for stage, rows in enumerate(self.kept, start=1):
            yield f"kept_{stage}", rows
        for stage, rows in enumerate(self.nearest, start=1):
            yield f"nearest_{stage}", rows
