"""SPSE and SPAMP in a network of your own: a block of each, and training steps with gradients.

python examples/operators_in_your_network.py
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dela import ops
from dela.geometry.cpu import knn


class Embedding(nn.Module):
    """Distances to the nearest neighbor in ``channels`` learned metrics, then a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        metrics = torch.randn(12, channels)
        metrics[9:] *= 0.05  # offsets, in meters: about as far as a neighbor
        self.metrics = nn.Parameter(metrics)
        self.mix = nn.Linear(channels, channels)

    def forward(self, points: Tensor, neighbors: Tensor) -> Tensor:
        return self.mix(ops.spse(points, neighbors, self.metrics, epsilon=1e-8))


class Pooling(nn.Module):
    """The largest difference to a neighbor, weighed by where it lies; four channels share that."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.place = nn.Parameter(0.05 * torch.randn(3, channels // 4))
        self.sharpness = nn.Parameter(torch.ones(1, channels // 4))

    def forward(self, features: Tensor, points: Tensor, neighbors: Tensor) -> Tensor:
        weight = torch.cat([self.place, functional.softplus(self.sharpness)])
        return features + ops.spamp(features, points, neighbors, weight)


class Network(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.embed, self.pool = Embedding(channels), Pooling(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, points: Tensor, neighbors: Tensor) -> Tensor:
        return self.head(self.pool(self.embed(points, neighbors), points, neighbors).relu())


def main(steps: int = 40) -> list[float]:
    """Learns to tell a floor from a wall; the loss of every step."""
    torch.manual_seed(0)
    scene = np.random.default_rng(0).uniform(0, 1, (2000, 3)).astype(np.float32)
    scene[:1000, 2] *= 0.01  # a floor
    scene[1000:, 0] *= 0.01  # a wall
    labels = torch.arange(2000) // 1000
    points, neighbors = torch.from_numpy(scene), torch.from_numpy(knn(scene, 12))

    network = Network(channels=32, classes=2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        loss = functional.cross_entropy(network(points, neighbors), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    found = main()
    print(f"loss {found[0]:.3f} before, {found[-1]:.3f} after {len(found)} steps")
