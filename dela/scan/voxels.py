"""From a scan to the network's input, and the way back to every point of the scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.families import family_of
from dela.geometry.cpu import VoxelGrid, check_finite, voxel_grid
from dela.model.contract import AttributeInfo, Contract
from dela.model.inputs import Inputs
from dela.pyramid.cpu import CORNER
from dela.scan.attributes import has_attributes
from dela.scan.tiles import Tile, context_width, cut_tiles, whole_tile


@dataclass(frozen=True)
class SceneTile:
    """A part of a scene, ready for a backend."""

    tile: Tile
    inputs: Inputs


@dataclass(frozen=True)
class Voxels:
    """A scan at the resolution of stage 0.

    Attributes:
        points: [V, 3] float32 meters, counted from the scan's lowest corner.
        attributes: [V, F] float32.
        voxel_of_point: [N] int32: the voxel of each point of the scan.
    """

    points: np.ndarray
    attributes: np.ndarray
    voxel_of_point: np.ndarray

    @classmethod
    def of(
        cls, cloud: PointCloud, attributes: np.ndarray, config: Contract, pick: int = 0
    ) -> Voxels:
        """Voxels of a finite cloud; ``pick`` chooses which point stands for each.

        Raises:
            InputError: several points that all fall into one voxel.
        """
        points = cloud.points - cloud.points.min(axis=0)
        if config.task == "classification":
            one = np.zeros(len(points), dtype=np.int32)
            return cls(points.astype(np.float32), attributes, one)
        grid = scan_grid(points, config, pick)
        return cls(points[grid.kept].astype(np.float32), attributes[grid.kept], grid.voxel_of_point)

    def __len__(self) -> int:
        return len(self.points)

    def cut(self, config: Contract, max_points: int, context: float | None = None) -> list[Tile]:
        """Tiles of at most ``max_points`` voxels; classification never splits.

        Args:
            context: meters around a core; None for :func:`dela.scan.tiles.context_width`.
        """
        if config.task == "classification":
            return [whole_tile(len(self))]
        width = context_width(config) if context is None else context
        return list(cut_tiles(self.points, max_points, width))

    def inputs(self, tile: Tile, config: Contract) -> Inputs:
        """The network's input for one tile; its voxels are the whole scan's at every stage."""
        rows = tile.rows
        return family_of(config).prepare(
            self.points[rows], self.attributes[rows], config, origin=CORNER
        )

    def tiles(self, config: Contract, max_points: int) -> Iterator[SceneTile]:
        """The scene in tiles, each with its input."""
        for tile in self.cut(config, max_points):
            yield SceneTile(tile, self.inputs(tile, config))

    def turned(self, matrix: np.ndarray, config: Contract) -> Voxels:
        """The same scene turned or mirrored about its middle by an orthogonal matrix [3, 3]."""
        middle = self.points.mean(axis=0, dtype=np.float64)
        points = ((self.points - middle) @ matrix.T + middle).astype(np.float32)
        attributes = self.attributes
        if config.vector_columns:
            columns = list(config.vector_columns)
            attributes = attributes.copy()
            attributes[:, columns] = attributes[:, columns] @ matrix.T.astype(np.float32)
        return Voxels(points, attributes, self.voxel_of_point)


def valid_points(
    cloud: PointCloud, drop_invalid: bool, infos: Sequence[AttributeInfo] = ()
) -> np.ndarray:
    """Boolean mask [N] of the points with finite coordinates and, to drop, without NaN.

    Args:
        infos: with ``drop_invalid``, points that lack one of these columns are left out, too.

    Raises:
        InputError: no point at all, or some are not finite and ``drop_invalid`` is off.
    """
    if len(cloud) == 0:
        raise InputError("the scan is empty; it needs at least one point")
    valid = check_finite(cloud.points, drop_invalid)
    if not valid.any():
        raise InputError(f"all {len(cloud):,} points have NaN or infinite coordinates")
    if drop_invalid:
        valid &= has_attributes(cloud, infos)
        if not valid.any():
            names = ", ".join(info.name for info in infos)
            raise InputError(f"all {len(cloud):,} points have NaN in x, y, z or one of {names}")
    return valid


def scan_grid(
    points: np.ndarray,
    config: Contract,
    pick: int | None = 0,
    seed: int | None = None,
    threads: int | None = None,
) -> VoxelGrid:
    """The finest voxel grid of a whole scan.

    Args:
        points: [N, 3] float64 meters, counted from the scan's lowest corner. Float32 would move
            points that lie on a border between voxels, as those of scanners that round do.

    Raises:
        InputError: several points that all fall into one voxel.
    """
    grid = voxel_grid(points, config.grid[0], pick, seed, threads)
    if len(grid.kept) == 1 and len(points) > 1:
        raise InputError(
            f"all {len(points):,} points fall into one voxel of {config.grid[0]} m (extent "
            f"{float(points.max()):.3g}); the model wants coordinates in metres"
        )
    return grid
