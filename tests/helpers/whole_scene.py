"""A whole scan as one input of a DeLA network, with the rows behind it: what tests compare with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.families.dela.config import DelaConfig
from dela.pyramid.cpu import CORNER, Pyramid, build_pyramid, classification_pyramid
from dela.scan.attributes import compute_attributes
from dela.scan.voxels import scan_grid, valid_points


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


def prepare_scene(
    cloud: PointCloud,
    config: DelaConfig,
    pick: int | None = 0,
    drop_invalid: bool = False,
    max_points: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
) -> Scene:
    """Checks the scan, shifts it in float64, computes attributes, picks a point per voxel.

    Attributes are computed on the whole scan at full resolution, then picked.

    Args:
        cloud: a scan in meters, any origin.
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
        pyramid, kept = classification_pyramid(points.astype(np.float32), config, seed, pick)
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
            points[kept].astype(np.float32), attributes[kept], config, seed, pick, CORNER
        )
    return Scene(pyramid, voxel_of_point, rows[kept].astype(np.int32), origin)
