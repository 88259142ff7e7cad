"""Small networks with random weights, and random scans to run them on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.families.dela.config import DelaConfig
from dela.model.contract import AttributeInfo, ClassInfo
from dela.pyramid.cpu import Pyramid, build_pyramid, pack
from dela.scan.attributes import compute_attributes
from dela.scan.voxels import Voxels

CONFIG = DelaConfig(
    task="segmentation",
    classes=(
        ClassInfo("low", 2, (200, 160, 120)),
        ClassInfo("middle", 5, (60, 140, 70)),
        ClassInfo("high", 6, (210, 90, 80)),
    ),
    dims=(16, 32),
    depths=(1, 1),
    neighbors=(8, 8),
    spread=(1.6, 3.8),
    coordinate_scale=20.0,
    grid=(0.1, 0.2),
    head_dim=16,
    attributes=(
        *(AttributeInfo(name, 250.0) for name in ("red", "green", "blue")),
        AttributeInfo("height", 3.0),
    ),
)
CLASSIFICATION = DelaConfig(
    task="classification",
    classes=(ClassInfo("bag", 0), ClassInfo("chair", 1), ClassInfo("sofa", 2)),
    dims=(16, 32),
    depths=(1, 1),
    neighbors=(8, 8),
    spread=(2.2, 4.4),
    coordinate_scale=40.0,
    points=(128, 32),
)


@dataclass(frozen=True)
class Trained:
    """Files of one network."""

    config: DelaConfig
    checkpoint: Path
    onnx: Path


def write_network(folder: Path, config: DelaConfig, seed: int = 0) -> Trained:
    """A network whose every weight matters: none of its branches starts at zero."""
    import torch

    import dela
    from dela.export.onnx_export import export_onnx

    model = dela.create_model(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                size = module.in_features**-0.5
                module.weight.copy_(size * torch.randn(module.weight.shape, generator=generator))
            elif isinstance(module, torch.nn.BatchNorm1d):
                module.weight.copy_(1 + 0.2 * torch.randn(module.weight.shape, generator=generator))
    files = Trained(config, folder / "model.pt", folder / "model.onnx")
    dela.save_checkpoint(files.checkpoint, model)
    export_onnx(files.checkpoint, files.onnx, check=False)
    return files


def make_cloud(
    count: int = 4000, size: tuple[float, float, float] = (4.0, 4.0, 2.0), seed: int = 0
) -> PointCloud:
    """Random points at UTM coordinates, with colors, intensity and a classification."""
    generator = np.random.default_rng(seed)
    origin = np.array([651_000.0, 6_860_000.0, 120.0])
    points = origin + generator.uniform(0, size, (count, 3))
    columns = {
        name: generator.integers(0, 256, count).astype(np.uint8)
        for name in ("red", "green", "blue")
    }
    columns["intensity"] = generator.integers(0, 4000, count).astype(np.uint16)
    columns["classification"] = generator.choice([2, 5, 6], count).astype(np.uint8)
    return PointCloud(points, columns)


def scene_pyramid(
    config: DelaConfig, count: int = 2000, seed: int = 0, side: float = 2.0
) -> Pyramid:
    """The input for a random scan, a square of ``side`` meters, in one tile."""
    cloud = make_cloud(count, (side, side, 1.0), seed)
    voxels = Voxels.of(cloud, compute_attributes(cloud, config.input_columns), config)
    (part,) = voxels.tiles(config, 100_000)
    return part.inputs


def cloud_pyramid(config: DelaConfig, clouds: int) -> Pyramid:
    """The input for a batch of random clouds."""
    generator = np.random.default_rng(clouds)
    shapes = generator.normal(size=(clouds, 300, 3)).astype(np.float32)
    return pack([build_pyramid(points, None, config) for points in shapes])
