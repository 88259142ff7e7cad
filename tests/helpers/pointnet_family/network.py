"""The network of :mod:`pointnet_family.family`: MLP per point, maximum of neighbors, head."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dela.model.inputs import NamedInputs


class PointNet(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        columns = 6 + len(config.input_columns)
        self.embed = nn.Sequential(nn.Linear(columns, config.width), nn.ReLU())
        self.mix = nn.Sequential(nn.Linear(2 * config.width, config.width), nn.ReLU())
        self.head = nn.Linear(config.width, config.num_classes)

    def forward(self, inputs: NamedInputs):
        device = self.head.weight.device
        logits, mixed, table = self.answer(dict(inputs.to_tensors(device).inputs()))
        if not self.training:
            return logits
        neighbor = mixed.index_select(0, table[:, -1])
        return logits, (mixed - neighbor).square().mean()

    def answer(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.head.weight.dtype
        names = [name for name in ("points", "position", "attributes") if name in tensors]
        x = self.embed(torch.cat([tensors[name] for name in names], dim=1).to(dtype))
        table = tensors["nearby"]
        around = x.index_select(0, table.reshape(-1)).reshape(table.shape[0], -1, x.shape[1])
        mixed = self.mix(torch.cat([x, around.amax(dim=1)], dim=1))
        return self.head(mixed).float(), mixed, table


class FrozenPointNet(nn.Module):
    def __init__(self, network: PointNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().to(dtype)

    def forward(self, inputs: NamedInputs) -> Tensor:
        return self.network(inputs)

    def from_tensors(self, tensors: dict[str, Tensor]) -> Tensor:
        return self.network.answer(tensors)[0]
