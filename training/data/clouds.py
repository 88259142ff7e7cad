"""Clouds of a training batch whose pyramid is not built yet: what workers prepare for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dela.geometry.bounds import Bounds
from dela.geometry.cpu import check_finite
from dela.pyramid.cpu import checked_cloud


@dataclass(frozen=True)
class Clouds:
    """Clouds packed one after the other; numpy arrays or tensors alike.

    :meth:`dela.pyramid.gpu_stages.StageBuilder.packed` makes of them the pyramid that
    :func:`dela.pyramid.cpu.build_pyramid` makes of each, packed.

    Attributes:
        points: [N, 3] float32, meters, finite; each cloud in the order of a voxel grid.
        attributes: [N, F] float32, finite; F may be 0.
        lengths: points of each cloud.
        bounds: of each cloud's points.
        seeds: of each cloud's random picks.
    """

    points: Any
    attributes: Any
    lengths: tuple[int, ...]
    bounds: tuple[Bounds, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(
        cls, points: np.ndarray, attributes: np.ndarray | None, config: Any, seed: int
    ) -> Clouds:
        """One cloud, checked.

        Raises:
            InputError: as :func:`dela.pyramid.cpu.build_pyramid`.
        """
        points, attributes = checked_cloud(points, attributes, config)
        check_finite(points)
        low, high = (edge.astype(np.float64) for edge in (points.min(axis=0), points.max(axis=0)))
        bounds = Bounds(low, high)
        bounds.check_range()
        return cls(points, attributes, (len(points),), (bounds,), (seed,))

    @property
    def rows(self) -> int:
        return len(self.points)

    def each(self, change: Callable[[Any], Any]) -> Clouds:
        """The same clouds with ``change`` applied to their arrays."""
        return replace(self, points=change(self.points), attributes=change(self.attributes))

    def to_tensors(self) -> Clouds:
        """The same clouds as torch tensors on the CPU; their memory is shared."""
        import torch

        return self.each(torch.as_tensor)


def pack_clouds(clouds: Sequence[Clouds]) -> Clouds:
    """Clouds one after the other, as arrays."""
    return Clouds(
        np.concatenate([one.points for one in clouds]),
        np.concatenate([one.attributes for one in clouds]),
        *(
            tuple(value for one in clouds for value in getattr(one, name))
            for name in ("lengths", "bounds", "seeds")
        ),
    )
