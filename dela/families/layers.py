"""Layers that networks of any family may be made of. Rows are points of all clouds of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dela.families.recompute import recomputing

M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """``nn.ModuleList`` whose members keep their type for the type checker."""
    return cast("Sequence[M]", nn.ModuleList(modules))


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization over points.

    A single row has no variance: in training it is normalized by the running statistics, which
    stay as they are, so that a tiny cloud at a coarse stage does not stop a run. They also stay
    when a checkpointed block is computed again.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] < 2:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        if self.training and not torch.compiler.is_compiling() and recomputing():
            assert self.running_mean is not None and self.running_var is not None
            statistics = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(x, *statistics, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(x)


def drop_rows(branch: Tensor, rate: float, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
    """Drops whole rows with probability ``rate`` and scales the others by ``1 / (1 - rate)``.

    Args:
        branch: [N, dim].
        lengths: rows of each cloud, which then live or die together (stochastic depth); None: every
            row for itself.
    """
    if rate == 0.0:
        return branch
    keep = 1.0 - rate
    count = branch.shape[0] if lengths is None else len(lengths)
    scale = branch.new_empty(count, 1).bernoulli_(keep).div_(keep)
    if lengths is not None and count > 1:
        repeats = torch.as_tensor(lengths, device=branch.device)
        scale = scale.repeat_interleave(repeats, dim=0, output_size=branch.shape[0])
    return branch * scale
