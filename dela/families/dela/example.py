"""Made-up pyramids of any size: what an export is traced with and checked on."""

from __future__ import annotations

import numpy as np

from dela.families.dela.config import DelaConfig
from dela.geometry import cpu as geometry
from dela.pyramid.cpu import Pyramid, classification_pyramid, pack


def example_pyramid(config: DelaConfig, size: int, seed: int = 0) -> Pyramid:
    """A pyramid that fits ``config``, with points about a grid step apart on a rough surface.

    Every stage has at least two points and a number of its own, so that no two dynamic sizes of
    a traced graph are taken for one.

    Args:
        config: its task, neighbors, grid and input columns are used.
        size: points of stage 0; clouds in classification.
        seed: of coordinates and attributes.
    """
    rng = np.random.default_rng(seed)
    if config.task == "classification":
        clouds = (rng.normal(size=(config.points[0], 3)).astype(np.float32) for _ in range(size))
        return pack([classification_pyramid(cloud, config)[0] for cloud in clouds])

    counts = [max(size, config.stages + 1)]
    while len(counts) < config.stages:
        remaining = config.stages - len(counts)
        counts.append(max(counts[-1] * 2 // 5, remaining + 1))
    side = config.grid[0] * np.sqrt(counts[0])
    points = rng.uniform(0, [side, side, config.grid[0]], (counts[0], 3)).astype(np.float32)
    attributes = rng.uniform(0, 1, (counts[0], len(config.input_columns))).astype(np.float32)
    if config.directions:
        directions = rng.normal(size=(counts[0], len(config.directions)))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        first = len(config.attributes)
        attributes[:, first : first + len(config.directions)] = directions
    if config.categories:
        kinds = rng.integers(len(config.categories), size=counts[0])
        attributes[:, -len(config.categories) :] = np.eye(len(config.categories))[kinds]

    stages = [points]
    kept = []
    for count in counts[1:]:
        rows = np.sort(rng.choice(len(stages[-1]), count, replace=False)).astype(np.int32)
        kept.append(rows)
        stages.append(stages[-1][rows])
    return Pyramid(
        points,
        attributes,
        tuple(geometry.knn(p, k) for p, k in zip(stages, config.neighbors, strict=True)),
        tuple(kept),
        tuple(geometry.nearest(p, points) for p in stages[1:]),
        tuple((len(p),) for p in stages),
    )
