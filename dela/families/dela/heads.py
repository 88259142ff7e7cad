"""What stands on top of the encoder: segmentation, classification and coordinate heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dela.families.dela.config import DelaConfig
from dela.families.layers import BatchNorm, drop_rows, module_list


def pool_clouds(features: Tensor, points_per_cloud: int) -> Tensor:
    """Mean and unbiased standard deviation of each cloud's points: [B n, dim] to [B, 2 dim].

    A cloud of one point has deviation 0.
    """
    clouds = features.view(-1, points_per_cloud, features.shape[1])
    deviation = clouds.std(dim=1, correction=min(1, points_per_cloud - 1))
    return torch.cat([clouds.mean(dim=1), deviation], dim=1)


class StageProjection(nn.Module):
    """Normalization and Linear without bias from a stage's features to the head's."""

    def __init__(self, dim: int, head_dim: int, momentum: float) -> None:
        super().__init__()
        self.norm = BatchNorm(dim, momentum=momentum)
        self.project = nn.Linear(dim, head_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.norm(x))


class CategoryProjection(nn.Module):
    """What the category of a point's object adds to the head's features."""

    def __init__(self, categories: int, head_dim: int, momentum: float, hidden: int = 64) -> None:
        super().__init__()
        self.expand = nn.Linear(categories, hidden, bias=False)
        self.norm = BatchNorm(hidden, momentum=momentum)
        self.project = nn.Linear(hidden, head_dim, bias=False)

    def forward(self, category: Tensor) -> Tensor:
        """One-hot categories [N, categories] to [N, head_dim]."""
        return self.project(self.norm(self.expand(category)))


class SegmentationHead(nn.Module):
    """Brings every stage to stage 0 by nearest point, sums, classifies each point.

    With categories (part segmentation) each point's own adds a learned vector to the sum.
    """

    category: CategoryProjection | None

    def __init__(self, config: DelaConfig) -> None:
        super().__init__()
        momentum = config.bn_momentum
        self.drop_rates = np.linspace(0, config.head_drop, config.stages).tolist()
        self.projections = module_list(
            StageProjection(dim, config.head_dim, momentum) for dim in config.dims
        )
        self.category = (
            CategoryProjection(len(config.categories), config.head_dim, momentum)
            if config.categories
            else None
        )
        self.norm = BatchNorm(config.head_dim, momentum=momentum)
        self.classify = nn.Linear(config.head_dim, config.num_classes)

    def forward(
        self,
        features: Sequence[Tensor],
        nearest: Sequence[Tensor],
        category: Tensor | None = None,
    ) -> Tensor:
        """Features [N_d, dims_d] of every stage and one-hot categories [N_0, categories] (with
        categories only) to logits [N_0, classes]."""
        total = None
        for stage, (project, x) in enumerate(zip(self.projections, features, strict=True)):
            y = project(x)
            if stage:
                y = y.index_select(0, nearest[stage - 1])
            if self.training:
                y = drop_rows(y, self.drop_rates[stage])
            total = y if total is None else total + y
        if self.category is not None:
            total = total + self.category(category)
        return self.classify(F.gelu(self.norm(total)))


class ClassificationHead(nn.Module):
    """Pools the last stage over each cloud and classifies the cloud."""

    def __init__(self, config: DelaConfig) -> None:
        super().__init__()
        self.points_per_cloud = config.points[-1]
        self.norm = BatchNorm(2 * config.dims[-1], momentum=config.bn_momentum)
        self.classify = nn.Linear(2 * config.dims[-1], config.num_classes)

    def forward(
        self,
        features: Sequence[Tensor],
        nearest: Sequence[Tensor],
        category: Tensor | None = None,
    ) -> Tensor:
        """Features of every stage (the last [B points[-1], dims[-1]]) to logits [B, classes]."""
        return self.classify(self.norm(pool_clouds(features[-1], self.points_per_cloud)))


class CoordinateHead(nn.Module):
    """Training only: a stage's features must tell where a neighbor lies."""

    def __init__(self, dim: int, momentum: float, hidden: int = 32) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden, bias=False)
        self.norm = BatchNorm(hidden, momentum=momentum)
        self.project = nn.Linear(hidden, 3, bias=False)

    def forward(self, difference: Tensor) -> Tensor:
        return self.project(F.gelu(self.norm(self.expand(difference))))

    def loss(self, x: Tensor, points: Tensor, neighbors: Tensor) -> Tensor:
        """Mean squared error of the offset to one random neighbor of every point.

        Args:
            x: features [N, dim].
            points: [N, 3] in units of the stage's spread.
            neighbors: [N, k] int32.
        """
        rows, k = neighbors.shape
        column = torch.randint(k, (rows, 1), device=neighbors.device)
        neighbor = neighbors.gather(1, column).squeeze(1)
        offset = points.index_select(0, neighbor) - points
        return F.mse_loss(self(x.index_select(0, neighbor) - x), offset)
