"""Starting values of a network (DeLA v2) and the neighbor distances they are drawn from.

Centers of ellipsoids and aggregations start where neighbors really lie: directions on a Fibonacci
sphere under one random rotation, radii at even quantiles of the distances between neighbors,
shuffled. Distances are in units of the stage's spread (``coordinate_scale / spread_d`` per metre).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dela.errors import InputError
from dela.families.dela.config import DelaConfig
from dela.families.dela.embedding import Ellipsoids
from dela.families.dela.heads import SegmentationHead
from dela.families.dela.layers import LocalAggregation
from dela.families.dela.network import Network
from dela.pyramid.cpu import Pyramid

TABLE_SIZE = 1024
_ROWS_PER_CLOUD = 20_000
_LINEAR_STD = 0.02


def measure_neighbor_distances(
    pyramids: Iterable[Pyramid], config: DelaConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Distances between neighbors in the training data, as two quantile tables.

    Args:
        pyramids: some packed samples; 20,000 rows of each stage are looked at, evenly spaced.
        config: gives coordinate scale and spread.

    Returns:
        Two float32 arrays [1024] in units of the spread: quantiles (i + 0.5) / 1024 for stage 0
        and for stage 1 (stage 0's again in a network of one stage). The point itself is left out.

    Raises:
        InputError: no pyramid, or none in which a point has another point for a neighbor.
    """
    measured: list[list[np.ndarray]] = [[] for _ in range(min(2, config.stages))]
    for pyramid in pyramids:
        points = np.asarray(pyramid.points, dtype=np.float64)
        for stage, found in enumerate(measured):
            if stage:
                points = points[np.asarray(pyramid.kept[stage - 1])]
            neighbors = np.asarray(pyramid.neighbors[stage])
            rows = np.arange(0, len(points), max(1, len(points) // _ROWS_PER_CLOUD))
            table = neighbors[rows]
            offsets = points[table] - points[rows, None]
            distances = np.sqrt((offsets**2).sum(-1))[table != rows[:, None]]
            found.append(distances * (config.coordinate_scale / config.spread[stage]))
    levels = (np.arange(TABLE_SIZE) + 0.5) / TABLE_SIZE
    tables = []
    for stage, found in enumerate(measured):
        distances = np.concatenate(found) if found else np.empty(0)
        if not len(distances):
            size = f" of {config.grid[stage]} m" if config.grid else ""
            raise InputError(
                f"no neighbour distance to measure at stage {stage}: every cloud is a single "
                f"point there; give clouds that spread over several voxels{size} (coordinates in "
                "meters?)"
            )
        tables.append(np.quantile(distances, levels).astype(np.float32))
    return tables[0], tables[-1]


def default_neighbor_distances(config: DelaConfig) -> tuple[np.ndarray, np.ndarray]:
    """The two quantile tables for data nobody has measured.

    A voxel grid of size g leaves about one point per g^2 of surface, so the k nearest fill a disc
    of radius ``g sqrt(k / pi)``, with quantile u of the distances at ``radius sqrt(u)``. For
    classification, where no grid tells the density, the spread does: it is the standard deviation
    of neighbor offsets per axis, which for a disc is ``radius / sqrt(6)``.
    """
    levels = np.sqrt((np.arange(TABLE_SIZE) + 0.5) / TABLE_SIZE)
    tables = []
    for stage in (0, min(1, config.stages - 1)):
        radius = math.sqrt(6.0)
        if config.task == "segmentation":
            meters = config.grid[stage] * math.sqrt(config.neighbors[stage] / math.pi)
            radius = meters * config.coordinate_scale / config.spread[stage]
        tables.append((radius * levels).astype(np.float32))
    return tables[0], tables[1]


def fibonacci_sphere(count: int) -> Tensor:
    """``count`` evenly spread unit vectors, float64 [count, 3]."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * index / count
    angle = index * (math.pi * (1 + math.sqrt(5)))
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)


def _random_rotation(generator: torch.Generator | None) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    q = q * r.diagonal().sign()
    return q * q.det()


def _centers(count: int, distances: np.ndarray, generator: torch.Generator | None) -> Tensor:
    """[count, 3] starting centers drawn from a table of distances."""
    levels = (np.arange(count) + 0.5) / count
    radii = torch.from_numpy(np.quantile(np.asarray(distances, dtype=np.float64), levels))
    shuffled = radii[torch.randperm(count, generator=generator)]
    return fibonacci_sphere(count) @ _random_rotation(generator).t() * shuffled[:, None]


@torch.no_grad()
def initialize(
    model: Network,
    neighbor_distances: Sequence[Any] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Sets every parameter of ``model`` to its starting value, in place.

    Args:
        neighbor_distances: two arrays of distances in units of the spread, for stage 0 and for all
            later stages (:func:`measure_neighbor_distances`); None:
            :func:`default_neighbor_distances`.
        generator: None uses torch's global one.

    Raises:
        InputError: distances that are empty, negative or not finite.
    """
    config = model.config
    tables = neighbor_distances or default_neighbor_distances(config)
    if len(tables) != 2:
        raise InputError(f"neighbor_distances holds {len(tables)} tables; give two, stage 0 and 1")
    for which, table in enumerate(tables):
        values = np.asarray(table)
        if values.size == 0 or not np.isfinite(values).all() or (values < 0).any():
            raise InputError(f"neighbor_distances[{which}] is empty, negative or not finite")

    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_LINEAR_STD, generator=generator)
            if module.bias is not None:
                module.bias.zero_()

    for index, ellipsoids in enumerate(model.ellipsoids):
        _start_ellipsoids(ellipsoids, config, tables[index], generator)
    for index, stage in enumerate(model.stages):
        stage.encoding.norm.weight.fill_(0.2 if index else 0.8)
        for i, mlp in enumerate(stage.block.mlps):
            mlp.norm.weight.fill_(0.0 if i else 0.2)
        for aggregation in stage.block.aggregations:
            aggregation.norm.weight.zero_()
            _start_aggregation(aggregation, tables[min(index, 1)], generator)
        if stage.downsample is not None:
            stage.downsample.norm.weight.fill_(0.3)
            stage.downsample.aggregation.norm.weight.fill_(0.3)
            # It looks around points of the previous stage.
            _start_aggregation(stage.downsample.aggregation, tables[min(index - 1, 1)], generator)
    if isinstance(model.head, SegmentationHead):
        for dim, projection in zip(config.dims, model.head.projections, strict=True):
            projection.norm.weight.fill_(math.sqrt(config.dims[0] / dim))


def _start_aggregation(
    aggregation: LocalAggregation, distances: np.ndarray, generator: torch.Generator | None
) -> None:
    count = aggregation.falloff.numel()
    aggregation.centers.copy_(_centers(count, distances, generator).flatten())
    aggregation.falloff.fill_(0.1)


def _start_ellipsoids(
    ellipsoids: Ellipsoids,
    config: DelaConfig,
    distances: np.ndarray,
    generator: torch.Generator | None,
) -> None:
    channels = ellipsoids.channels
    shapes = ellipsoids.shapes.view(channels, 10)
    shapes[:, :3] = _centers(channels, distances, generator).to(shapes.dtype)
    shapes[:, 3:6] = torch.rand(channels, 3, generator=generator)
    shapes[:, 6:9] = torch.randn(channels, 3, generator=generator)
    shapes[:, 9] = math.pi * torch.rand(channels, generator=generator)
    if ellipsoids.attributes is not None:
        rows = ellipsoids.attributes.view(-1, channels)
        for row, info in zip(rows, config.attributes, strict=True):
            if info.name.startswith("height"):
                even = torch.linspace(0, 1, channels)
                row.copy_(even[torch.randperm(channels, generator=generator)])
            else:
                row.copy_(torch.rand(channels, generator=generator))
    if ellipsoids.directions is not None:
        shape = ellipsoids.directions.shape
        ellipsoids.directions.copy_(torch.randn(shape, generator=generator))
