"""One training step of a published configuration at its full size, in a process of its own.

Run as ``python published_step.py NAME [CLOUDS]``; prints what happened as one line of JSON. Its own
process, because the peak memory of a process never falls.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dela.families import create_model
from dela.families.dela.config import DelaConfig
from dela.geometry.cpu import voxel_grid
from dela.pyramid.cpu import Pyramid, build_pyramid, pack
from dela.training.optimize.finetune import make_optimizer
from dela.training.optimize.losses import cross_entropy
from dela.training.settings.train import TrainConfig, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROOM = (6.0, 5.0, 3.0)  # meters
# 126 m2 of walls, floor and ceiling: more voxels than any published sample takes.
DENSITY = 4.0  # points per voxel


def surface(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points [count, 3] float32 on the six sides of a room, meters, and their normals."""
    size = np.array(ROOM)
    axes = np.repeat([0, 1, 2], 2)
    area = np.prod(size) / size[axes]
    side = rng.choice(6, count, p=area / area.sum())
    points = rng.uniform(0, size, (count, 3))
    rows = np.arange(count)
    points[rows, axes[side]] = (side % 2) * size[axes[side]]
    normals = np.zeros((count, 3))
    normals[rows, axes[side]] = 1 - 2 * (side % 2)
    return points.astype(np.float32), normals.astype(np.float32)


def sample(config: DelaConfig, points: int, seed: int) -> Pyramid:
    """A cloud as large as a full sample of the recipe."""
    rng = np.random.default_rng(seed)
    if config.task == "classification":
        found, _ = surface(2048, rng)
        return build_pyramid(found / max(ROOM), None, config, seed, None)
    count = int(DENSITY * 126 / config.grid[0] ** 2)
    found, normals = surface(min(count, 40 * points), rng)
    kept = voxel_grid(found, config.grid[0], None, seed).kept
    corner = np.square(found[kept]).sum(axis=1)
    kept = kept[np.sort(np.argpartition(corner, points - 1)[:points])]
    columns = [rng.uniform(0, 1, (points, 3)), found[kept, 2:] / 3]
    if config.directions:
        columns.append(normals[kept])
    attributes = np.concatenate(columns, axis=1).astype(np.float32)
    return build_pyramid(found[kept], attributes, config, seed, None)


def labels_of(config: DelaConfig, pyramid: Pyramid) -> torch.Tensor:
    rows = pyramid.clouds if config.task == "classification" else len(pyramid.points)
    return torch.arange(rows) % config.num_classes


def step(name: str, clouds: int) -> dict[str, Any]:
    """Forward, backward and an optimizer step of a fresh network."""
    recipe: TrainConfig = load_config(CONFIGS / f"{name}.toml")
    config = recipe.model
    pyramid = pack([sample(config, recipe.data.points, seed) for seed in range(clouds)])
    model = create_model(config, seed=0)
    optimizer = make_optimizer(model, recipe.train)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    start = time.perf_counter()
    logits, coordinate = model(pyramid)
    loss = cross_entropy(logits, labels_of(config, pyramid), recipe.train.label_smoothing)
    (loss + recipe.train.coordinate_loss * coordinate).backward()
    optimizer.step()
    gradients = [parameter.grad for parameter in model.parameters()]
    return {
        "points": [sum(lengths) for lengths in pyramid.lengths],
        "clouds": clouds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": float(loss.detach()),
        "seconds": time.perf_counter() - start,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "finite": all(g is not None and bool(g.isfinite().all()) for g in gradients),
        "moved": sum(
            not torch.equal(parameter, old)
            for parameter, old in zip(model.parameters(), before, strict=True)
        )
        / len(before),
    }


if __name__ == "__main__":
    print(json.dumps(step(sys.argv[1], int(sys.argv[2]))))
