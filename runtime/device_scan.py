"""Scans whose voxels and neighbours are found on the GPU that runs the network.

A scan's points go up once; of what the CPU would prepare and copy, neighbour tables above all,
nothing leaves the device. The pyramids are those of the CPU, value for value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dela.cloud import PointCloud
from dela.config import ModelConfig
from dela.device_pyramid import DeviceVoxels, PyramidBuilder
from dela.errors import InputError
from dela.pyramid import Pyramid
from dela.runtime.device_buffers import cuda_in_words
from dela.scene import CORNER, Voxels
from dela.tiles import Tile

if TYPE_CHECKING:
    from dela.runtime.backends import Backend
    from dela.runtime.engine_backend import EngineBackend


def pyramid_builder(backend: Backend | EngineBackend) -> PyramidBuilder:
    """What builds pyramids on the GPU of a backend that takes them there.

    It has a stream of its own: the backend's belongs to whichever thread is running the network,
    and what another one queued there would become part of a graph that is being captured. The
    backend waits for the pyramids it is given.

    Raises:
        InputError: a backend that takes arrays on the host, or a classification network.
    """
    device = getattr(backend, "device", None)
    if device is None:
        raise InputError(
            f"{backend.name} takes its input from the host; pyramids on the GPU are for engines "
            "(--backend tensorrt or tensorrt-rtx)"
        )
    with cuda_in_words():
        from dela.plugins.cuda.driver import Stream

        return PyramidBuilder(backend.config, Stream(device))


@dataclass(frozen=True)
class ScanOnDevice(Voxels):
    """:class:`dela.scene.Voxels` whose pyramids are built, and stay, on the device.

    A pyramid is valid until the next one is built.

    Attributes:
        builder: of the pyramids.
        there: the voxels on the device; None once turned, when tiles go up from the host.
    """

    builder: PyramidBuilder
    there: DeviceVoxels | None

    @classmethod
    def of_scan(
        cls, builder: PyramidBuilder, cloud: PointCloud, attributes: np.ndarray, pick: int = 0
    ) -> ScanOnDevice:
        """Voxels of a finite cloud; ``pick`` chooses which point stands for each.

        Raises:
            InputError: several points that all fall into one voxel.
        """
        with cuda_in_words():
            there = builder.voxels(cloud.points, attributes, pick=pick)
            stream = builder.stream
            return cls(
                there.points.to_host(stream),
                attributes[there.kept.to_host(stream)],
                there.voxel_of_point.to_host(stream),
                builder,
                there,
            )

    def pyramid(self, tile: Tile, config: ModelConfig) -> Pyramid:
        """The network's input for one tile, of arrays on the device."""
        with cuda_in_words():
            if self.there is not None:
                whole = len(tile.rows) == len(self.points)
                return self.builder.tile(self.there, None if whole else tile.rows)
            return self.builder.pyramid(
                self._up(self.points[tile.rows]),
                self._up(self.attributes[tile.rows]),
                origin=CORNER,
                ordered=True,
            )

    def turned(self, matrix: np.ndarray, config: ModelConfig) -> ScanOnDevice:
        """The same scene turned or mirrored about its middle by an orthogonal matrix [3, 3]."""
        plain = super().turned(matrix, config)
        return ScanOnDevice(
            plain.points, plain.attributes, plain.voxel_of_point, self.builder, None
        )

    def _up(self, array: np.ndarray) -> Any:
        from dela.plugins.cuda.arrays import DeviceArray

        return DeviceArray.from_host(array, self.builder.stream)
