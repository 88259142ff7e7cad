"""The layers that encoder and decoder are made of: normalization, MLP, local aggregation.

Rows are points of all clouds of a batch, one after the other; features are [N, dim]. The layers
follow DeLA v2 (Chen et al., "Decoupled Local Aggregation for Point Cloud Learning", 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dela import ops
from dela.families.layers import BatchNorm, drop_rows, module_list
from dela.families.recompute import run


class Mlp(nn.Module):
    """Linear to ``hidden``, GELU, Linear back without bias, normalization."""

    def __init__(self, dim: int, hidden: int, momentum: float) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.reduce = nn.Linear(hidden, dim, bias=False)
        self.norm = BatchNorm(dim, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduce(F.gelu(self.expand(x))))


class LocalAggregation(nn.Module):
    """Linear without bias, SPAMP over the neighbors, normalization.

    ``centers`` (flat [3 dim / 4], x y z of each group of four channels) and ``falloff`` ([dim / 4],
    its square is SPAMP's s) are kept flat because weight decay spares one-dimensional parameters.
    """

    def __init__(self, dim_in: int, dim: int, momentum: float) -> None:
        super().__init__()
        self.project = nn.Linear(dim_in, dim, bias=False)
        self.centers = nn.Parameter(torch.zeros(3 * (dim // 4)))
        self.falloff = nn.Parameter(torch.full((dim // 4,), 0.1))
        self.norm = BatchNorm(dim, momentum=momentum)

    def weight(self) -> Tensor:
        """SPAMP's weight [4, dim / 4]: three rows of centers, one of s."""
        return torch.cat([self.centers.view(-1, 3).t(), self.falloff.square()[None]])

    def forward(
        self, x: Tensor, points: Tensor, neighbors: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Features [N, dim_in] to [M, dim]; row m of ``neighbors`` [M, k] is about ``rows[m]``."""
        return self.norm(ops.spamp(self.project(x), points, neighbors, self.weight(), rows))


class Block(nn.Module):
    """Residual block: an MLP, then ``depth`` aggregations with one more MLP after every second."""

    def __init__(self, dim: int, depth: int, hidden: int, momentum: float) -> None:
        super().__init__()
        self.mlps = module_list(Mlp(dim, hidden, momentum) for _ in range(1 + depth // 2))
        self.aggregations = module_list(LocalAggregation(dim, dim, momentum) for _ in range(depth))

    def forward(
        self,
        x: Tensor,
        points: Tensor,
        neighbors: Tensor,
        drop_rates: Sequence[float],
        lengths: Sequence[int] | Tensor | None,
        recompute: bool = False,
    ) -> Tensor:
        """Features [N, dim] to [N, dim].

        Args:
            points: [N, 3] in units of the stage's spread.
            neighbors: [N, k] int32.
            drop_rates: one stochastic depth rate per aggregation, its MLP has the same; the first
                also holds for the leading MLP. Used only in training.
            lengths: rows of each cloud; None: all rows are one cloud.
            recompute: keep ``x`` alone between the layers and compute each a second time for its
                gradients.
        """
        clouds = (x.shape[0],) if lengths is None else lengths
        rates = drop_rates if self.training else [0.0] * len(drop_rates)
        first, *others = self.mlps
        x = run(recompute, _residual, first, x, rates[0] if rates else 0.0, clouds)
        for i, aggregation in enumerate(self.aggregations):
            x = run(recompute, _residual, aggregation, x, rates[i], clouds, points, neighbors)
            if i % 2:
                x = run(recompute, _residual, others[i // 2], x, rates[i], clouds)
        return x


def _residual(
    layer: nn.Module, x: Tensor, rate: float, clouds: Sequence[int] | Tensor, *arguments: Tensor
) -> Tensor:
    """``x`` plus what a layer makes of it, dropped for some clouds."""
    return x + drop_rows(layer(x, *arguments), rate, clouds)


class Downsample(nn.Module):
    """From stage d - 1 to stage d: a projection of the kept rows plus an aggregation around them.

    The aggregation is evaluated around the kept rows alone, so its normalization sees those rows,
    while the projection's sees every row of stage d - 1 in training. (The reference computes and
    normalizes all rows in both and then picks; evaluation agrees exactly.)
    """

    def __init__(self, dim_in: int, dim: int, momentum: float) -> None:
        super().__init__()
        self.project = nn.Linear(dim_in, dim, bias=False)
        self.norm = BatchNorm(dim, momentum=momentum)
        self.aggregation = LocalAggregation(dim_in, dim, momentum)

    def forward(self, x: Tensor, points: Tensor, neighbors: Tensor, kept: Tensor) -> Tensor:
        """Features [N, dim_in] to [M, dim]; points, neighbors and ``kept`` [M] of stage d - 1."""
        if self.training:
            skip = self.norm(self.project(x)).index_select(0, kept)
        else:
            skip = self.norm(self.project(x.index_select(0, kept)))
        return skip + self.aggregation(x, points, neighbors.index_select(0, kept), kept)
