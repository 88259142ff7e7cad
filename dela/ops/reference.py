"""The operators in plain PyTorch: the definition, for tests, for other devices and dtypes.

The winning neighbor is found without gradients, one column of the neighbor table at a time, so no
[N, k, C] tensor exists; the winner's value is then computed again by ordinary differentiable
operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

DISTANCE_OFFSET = 1e-8  # added to SPAMP's squared distance, as the published operator does


def _first_best(values, neighbors: Tensor, largest: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Winner's row per output, and whether any neighbor has a value better than infinity.

    ``values(rows)`` gives [M, C] for one neighbor row per output row. The first of equals wins; a
    value that is not a number never wins.
    """
    sign = 1.0 if largest else -1.0
    best = torch.full_like(like, -torch.inf)
    winner = neighbors[:, :1].long().expand_as(like).clone()
    with torch.no_grad():
        for rows in neighbors.long().unbind(1):
            value = sign * values(rows)
            better = value > best
            best = torch.where(better, value, best)
            winner = torch.where(better, rows[:, None], winner)
    return winner, best > -torch.inf


def spse(
    points: Tensor, neighbors: Tensor, weight: Tensor, epsilon: float, directions: int = 0
) -> Tensor:
    """:func:`dela.ops.spse` in plain PyTorch; any float dtype, any device."""
    channels = weight.shape[1]
    attributes = weight.shape[0] - 12 - directions
    matrix, center = weight[:9].view(3, 3, channels), weight[9:12]
    scalar, direction = weight[12 : 12 + attributes], weight[12 + attributes :]

    def value(rows: Tensor) -> Tensor:
        # rows: [N] one neighbor per point, or [N, C] one per output.
        there = points.index_select(0, rows.reshape(-1)).view(*rows.shape, points.shape[1])
        if rows.dim() == 1:
            there = there[:, None]
        offset = (there[..., :3] - points[:, None, :3]).movedim(-1, 0) - center[:, None]
        axes = torch.einsum("rnc,rac->anc", offset.expand(3, len(points), channels), matrix)
        total = epsilon + axes.square().sum(0)
        if attributes:
            total = total + (there[..., 3 : 3 + attributes] - scalar.t()).square().sum(-1)
        if directions:
            total = total + (there[..., 3 + attributes :] * direction.t()).sum(-1)
        return total

    like = points.new_empty(len(points), channels)
    winner, found = _first_best(value, neighbors, largest=False, like=like)
    squared = value(winner)
    # Only rounding makes it negative; the root has no slope there.
    positive = squared > 0
    root = torch.where(positive, squared, 1.0).sqrt()
    root = torch.where(positive, root, 0.0)
    return torch.where(found, root, torch.nan)


def spamp(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    centers: Tensor | None = None,
) -> Tensor:
    """:func:`dela.ops.spamp` in plain PyTorch; any float dtypes, any device."""
    wide = features.to(torch.promote_types(features.dtype, weight.dtype))
    if centers is None:
        own, here = wide, points
    else:
        own, here = wide.index_select(0, centers), points.index_select(0, centers)
    channels = features.shape[1]
    center, scale = weight[:3].repeat_interleave(4, 1), weight[3].repeat_interleave(4)

    def value(rows: Tensor) -> Tensor:
        # rows: [M] one neighbor per center, or [M, C] one per output.
        if rows.dim() == 1:
            there, feature = points.index_select(0, rows)[:, None], wide.index_select(0, rows)
        else:
            there = points.index_select(0, rows.reshape(-1)).view(*rows.shape, 3)
            feature = wide.gather(0, rows)
        offset = there - here[:, None] - center.t()
        distance = DISTANCE_OFFSET + offset.square().sum(-1)
        return (feature - own) * torch.exp(-scale * distance)

    like = wide.new_empty(len(neighbors), channels)
    winner, found = _first_best(value, neighbors, largest=True, like=like)
    return torch.where(found, value(winner), torch.nan).to(features.dtype)


def spamp_residual(
    features: Tensor,
    points: Tensor,
    neighbors: Tensor,
    weight: Tensor,
    base: Tensor,
    scale: Tensor,
    centers: Tensor | None = None,
) -> Tensor:
    """:func:`dela.ops.spamp_residual` in plain PyTorch; any float dtypes, any device."""
    wide = features.to(torch.promote_types(features.dtype, weight.dtype))
    pooled = spamp(wide, points, neighbors, weight, centers)
    return torch.addcmul(base.to(pooled.dtype), pooled, scale).to(features.dtype)
