"""From a scan to the network's input, and the way back to every point of the scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.geometry.cpu import VoxelGrid, check_finite, voxel_grid
from dela.model.contract import ModelConfig
from dela.pyramid.cpu import Pyramid, build_pyramid, classification_pyramid
from dela.scan.attributes import compute_attributes
from dela.scan.tiles import Tile, context_width, cut_tiles, whole_tile

# The scene's lowest corner, where every stage's voxels are counted from.
CORNER = np.zeros(3)


@dataclass(frozen=True)
class Scene:
    """A prepared scan.

    Attributes:
        pyramid: the network's input, one cloud.
        voxel_of_point: [N] int32: for every point of the scan its row of the network's answer
            (stage 0; all 0 for classification), -1 for points dropped as invalid.
        kept: [N_0] int32: the scan's row behind every row of stage 0. For classification a row
            may stand more than once.
        origin: [3] float64: what was taken off the coordinates.
    """

    pyramid: Pyramid
    voxel_of_point: np.ndarray
    kept: np.ndarray
    origin: np.ndarray


@dataclass(frozen=True)
class SceneTile:
    """A part of a scene, ready for a backend."""

    tile: Tile
    pyramid: Pyramid


@dataclass(frozen=True)
class Voxels:
    """A scan at the resolution of stage 0.

    Attributes:
        points: [V, 3] float32 metres, counted from the scan's lowest corner.
        attributes: [V, F] float32.
        voxel_of_point: [N] int32: the voxel of each point of the scan.
    """

    points: np.ndarray
    attributes: np.ndarray
    voxel_of_point: np.ndarray

    @classmethod
    def of(
        cls, cloud: PointCloud, attributes: np.ndarray, config: ModelConfig, pick: int = 0
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

    def cut(self, config: ModelConfig, max_points: int, context: float | None = None) -> list[Tile]:
        """Tiles of at most ``max_points`` voxels; classification never splits.

        Args:
            context: metres around a core; None for :func:`dela.scan.tiles.context_width`.
        """
        if config.task == "classification":
            return [whole_tile(len(self))]
        width = context_width(config) if context is None else context
        return list(cut_tiles(self.points, max_points, width))

    def pyramid(self, tile: Tile, config: ModelConfig) -> Pyramid:
        """The network's input for one tile; its voxels are the whole scene's at every stage."""
        rows = tile.rows
        return build_pyramid(self.points[rows], self.attributes[rows], config, origin=CORNER)

    def tiles(self, config: ModelConfig, max_points: int) -> Iterator[SceneTile]:
        """The scene in tiles, each with its pyramid."""
        for tile in self.cut(config, max_points):
            yield SceneTile(tile, self.pyramid(tile, config))

    def turned(self, matrix: np.ndarray, config: ModelConfig) -> Voxels:
        """The same scene turned or mirrored about its middle by an orthogonal matrix [3, 3]."""
        middle = self.points.mean(axis=0, dtype=np.float64)
        points = ((self.points - middle) @ matrix.T + middle).astype(np.float32)
        attributes = self.attributes
        if config.vector_columns:
            columns = list(config.vector_columns)
            attributes = attributes.copy()
            attributes[:, columns] = attributes[:, columns] @ matrix.T.astype(np.float32)
        return Voxels(points, attributes, self.voxel_of_point)


def prepare_scene(
    cloud: PointCloud,
    config: ModelConfig,
    pick: int | None = 0,
    drop_invalid: bool = False,
    max_points: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
) -> Scene:
    """Checks the scan, shifts it in float64, computes attributes, picks a point per voxel.

    Attributes are computed on the whole scan at full resolution, then picked.

    Args:
        cloud: a scan in metres, any origin.
        config: the network's configuration.
        pick: n takes the n-th point of every voxel (voting), None a random one.
        drop_invalid: leave out points with NaN or infinite coordinates instead of refusing them.
        max_points: refuse scenes with more voxels than this.
        seed: of the random pick.
        threads: native threads; None for all.

    Raises:
        InputError: an empty scan, non-finite coordinates, a missing column, a scan that falls into
            one voxel, or more than ``max_points`` voxels.
    """
    rows = np.flatnonzero(valid_points(cloud, drop_invalid))
    valid = cloud if len(rows) == len(cloud) else cloud.select(rows)
    attributes = compute_attributes(valid, config.input_columns)
    origin = valid.points.min(axis=0)
    points = valid.points - origin
    voxel_of_point = np.full(len(cloud), -1, dtype=np.int32)

    if config.task == "classification":
        pyramid, kept = classification_pyramid(
            points.astype(np.float32), config, seed, pick, threads
        )
        voxel_of_point[rows] = 0
    else:
        grid = scan_grid(points, config, pick, seed, threads)
        kept = grid.kept
        if max_points is not None and len(kept) > max_points:
            raise InputError(
                f"the scan has {len(kept)} voxels of {config.grid[0]} m, more than {max_points}; "
                "predict it in tiles"
            )
        voxel_of_point[rows] = grid.voxel_of_point
        pyramid = build_pyramid(
            points[kept].astype(np.float32), attributes[kept], config, seed, pick, threads, CORNER
        )
    return Scene(pyramid, voxel_of_point, rows[kept].astype(np.int32), origin)


def valid_points(cloud: PointCloud, drop_invalid: bool) -> np.ndarray:
    """Boolean mask [N] of the points with finite coordinates.

    Raises:
        InputError: no point at all, or some are not finite and ``drop_invalid`` is off.
    """
    if len(cloud) == 0:
        raise InputError("the scan is empty; it needs at least one point")
    valid = check_finite(cloud.points, drop_invalid)
    if not valid.any():
        raise InputError(f"all {len(cloud):,} points have NaN or infinite coordinates")
    return valid


def scan_grid(
    points: np.ndarray,
    config: ModelConfig,
    pick: int | None = 0,
    seed: int | None = None,
    threads: int | None = None,
) -> VoxelGrid:
    """The finest voxel grid of a whole scan.

    Args:
        points: [N, 3] float64 metres, counted from the scan's lowest corner. Float32 would move
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
