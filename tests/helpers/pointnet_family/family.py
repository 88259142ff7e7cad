"""A PointNet-like network over the neighbors of each point, with an input DeLA does not have:
``position``, where a point lies in its cloud's box. Segmentation only, standard operators alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dela.errors import ConfigError
from dela.families.base import FamilyDefaults, refuse_missing
from dela.geometry.cpu import knn
from dela.model.contract import Contract, numbered_classes
from dela.model.inputs import InputSpec, NamedInputs, RowSize


@dataclass(frozen=True, kw_only=True)
class PointNetConfig(Contract):
    """``k`` neighbors, the point among them, and the network's ``width``."""

    family: ClassVar[str] = "pointnet"

    k: int = 8
    width: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1 or self.width < 1:
            raise ConfigError(f"k is {self.k} and width {self.width}; both must be at least 1")
        if self.task != "segmentation":
            raise ConfigError(f"task is {self.task!r}; this family labels points")


class PointNetFamily(FamilyDefaults):
    name = "pointnet"
    config = PointNetConfig
    presets: ClassVar = {
        "tiny-pointnet": PointNetConfig(
            task="segmentation", classes=numbered_classes("floor wall"), grid=(0.1,), k=6, width=16
        )
    }

    def sizes(self, config: PointNetConfig) -> tuple[RowSize, ...]:
        return (RowSize("n0"),)

    def inputs(self, config: PointNetConfig) -> tuple[InputSpec, ...]:
        columns = len(config.input_columns)
        attributes = (InputSpec("attributes", "float32", "n0", (columns,)),) if columns else ()
        return (
            InputSpec("points", "float32", "n0", (3,), padding="repeat"),
            InputSpec("position", "float32", "n0", (3,), padding="repeat"),
            *attributes,
            InputSpec("nearby", "int32", "n0", (config.k,), indexes="n0"),
        )

    def complete(self, given: dict[str, Any]) -> dict[str, Any]:
        refuse_missing(given, ("grid",))
        return given

    def prepare(self, points, attributes, config, *, seed=None, pick=0, origin=None) -> NamedInputs:
        points = np.ascontiguousarray(points, np.float32)
        low, high = points.min(axis=0), points.max(axis=0)
        arrays = {
            "points": points,
            "position": ((points - low) / np.maximum(high - low, 1e-6)).astype(np.float32),
            "nearby": knn(points, config.k),
        }
        if config.input_columns:
            arrays["attributes"] = np.ascontiguousarray(attributes, np.float32)
        return NamedInputs(arrays, ((len(points),),), self.sizes(config), self.inputs(config))

    def example(self, config: PointNetConfig, size: int, seed: int = 0) -> NamedInputs:
        rng = np.random.default_rng(seed)
        points = rng.uniform(0, config.grid[0] * np.sqrt(size), (size, 3)).astype(np.float32)
        attributes = rng.uniform(0, 1, (size, len(config.input_columns))).astype(np.float32)
        return self.prepare(points, attributes, config)

    def reach(self, config: PointNetConfig) -> float:
        return config.k * config.grid[0]

    def build(self, config: PointNetConfig):
        from pointnet_family.network import PointNet

        return PointNet(config)

    def create(self, config: PointNetConfig, measured: Any = None, seed: int | None = None):
        import torch

        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            return self.build(config)

    def losses(self, output):
        logits, smoothness = output
        return logits, {"smoothness": smoothness}

    def freeze(self, network, dtype):
        from pointnet_family.network import FrozenPointNet

        return FrozenPointNet(network, dtype).eval()

    def parts(self, config: PointNetConfig) -> tuple[tuple[str, ...], ...]:
        return (("embed",), ("mix",))


FAMILY = PointNetFamily()
