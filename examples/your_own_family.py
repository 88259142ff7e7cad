"""A family of networks of your own in one file: trained, exported, run by dela as its own are.

The network looks at each point and the mean of its neighbors. A family that stays gets a folder in
``dela/families`` and a line in the table there; nothing else differs.

    python examples/your_own_family.py folder
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

import dela
from dela.export import export_onnx
from dela.families import FAMILIES
from dela.families.base import FamilyDefaults
from dela.geometry.cpu import knn
from dela.model.contract import Contract, numbered_classes
from dela.model.inputs import InputSpec, NamedInputs, RowSize
from dela.runtime import Predictor, load_backend


@dataclass(frozen=True, kw_only=True)
class MeanConfig(Contract):
    family: ClassVar[str] = "mean"
    k: int = 8
    width: int = 32


class MeanNetwork(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Sequential(nn.Linear(6, config.width), nn.ReLU())
        self.head = nn.Linear(config.width, config.num_classes)

    def forward(self, inputs):
        return self.from_tensors(dict(inputs.to_tensors(self.head.weight.device).inputs()))

    def from_tensors(self, tensors):
        points, nearby = tensors["points"], tensors["nearby"]
        around = points.index_select(0, nearby.flatten()).reshape(*nearby.shape, 3)
        away = 10 * (around - points[:, None])
        x = torch.cat([away.mean(dim=1), away.abs().mean(dim=1)], dim=1)
        return self.head(self.embed(x.to(self.head.weight.dtype))).float()


class MeanFamily(FamilyDefaults):
    name, config = "mean", MeanConfig

    def sizes(self, config):
        return (RowSize("n0"),)

    def inputs(self, config):
        return (
            InputSpec("points", "float32", "n0", (3,), padding="repeat"),
            InputSpec("nearby", "int32", "n0", (config.k,), indexes="n0"),
        )

    def prepare(self, points, attributes, config, **options):
        arrays = {"points": np.asarray(points, np.float32), "nearby": knn(points, config.k)}
        return NamedInputs(arrays, ((len(points),),), self.sizes(config), self.inputs(config))

    def example(self, config, size, seed=0):
        points = np.random.default_rng(seed).uniform(0, 1, (size, 3)).astype(np.float32)
        return self.prepare(points, None, config)

    def reach(self, config):
        return config.k * config.grid[0]

    def build(self, config):
        return MeanNetwork(config)

    def create(self, config, measured=None, seed=None):
        torch.manual_seed(seed or 0)
        return self.build(config)

    def freeze(self, network, dtype):
        return copy.deepcopy(network).eval().to(dtype)


FAMILY = MeanFamily()
FAMILIES["mean"] = f"{__name__}:FAMILY"


def main(folder: Path, steps: int = 60) -> float:
    """Trains on a floor and a wall, exports, and labels them; the share of right labels."""
    config = MeanConfig(
        task="segmentation", classes=numbered_classes("floor wall"), grid=(0.02,), vote_axis=""
    )
    scene = np.random.default_rng(0).uniform(0, 1, (2000, 3)).astype(np.float32)
    truth = np.arange(2000) // 1000
    scene[truth == 0, 2] *= 0.01
    scene[truth == 1, 0] *= 0.01
    network = dela.create_model(config, seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(steps):
        logits = network(FAMILY.prepare(scene, None, config))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(truth))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = export_onnx(network, folder / "mean.onnx", overwrite=True)  # compared with PyTorch
    answer = Predictor(load_backend(model)).predict(dela.PointCloud(scene))
    return float((answer.labels == truth).mean())


if __name__ == "__main__":
    share = main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print(f"{100 * share:.1f} % of the points right, by the exported file")
