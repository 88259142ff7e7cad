"""Batch normalization over the rows of every process of a run.

PyTorch's own ``SyncBatchNorm`` works on GPUs alone; this one computes the same on any device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dela.errors import ConfigError
from dela.families.layers import BatchNorm
from dela.families.recompute import recomputing


def synchronize_norms(model: nn.Module) -> None:
    """Has every batch norm of ``model`` look at all processes' rows in training, in place.

    Raises:
        ConfigError: a batch norm of another kind: only those over rows are known.
    """
    for name, module in model.named_modules():
        other = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if other and not isinstance(module, BatchNorm):
            raise ConfigError(
                f"train.sync_norm is on, but {name} is a {type(module).__name__}; it knows "
                "dela.families.layers.BatchNorm alone"
            )
        if type(module) is BatchNorm:
            # Parameters, statistics and names stay: only the computation differs.
            module.__class__ = SyncedBatchNorm


class SyncedBatchNorm(BatchNorm):
    """In training, normalizes by mean and variance over the rows of all processes.

    Each process may have another number of rows, at least one; two processes always have the two
    rows that a variance needs.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, variance, count = _moments(x)
        if not recomputing():
            self._follow(mean, variance * (count / (count - 1)))
        scale = (variance + self.eps).rsqrt()
        result: Tensor = _Normalize.apply(x, self.weight, self.bias, mean, scale, count)
        return result

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # None: the plain mean over all batches so far.
        momentum = self.momentum or 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


@torch.no_grad()
def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance [C] of all processes' rows, and their number [1]."""
    rank, size, channels = dist.get_rank(), dist.get_world_size(), x.shape[1]
    variance, mean = torch.var_mean(_wide(x), 0, correction=0)
    parts = mean.new_zeros(size, 2 * channels + 1)
    parts[rank] = torch.cat([mean, variance, mean.new_full((1,), x.shape[0])])
    dist.all_reduce(parts)
    means, variances, counts = parts.split([channels, channels, 1], dim=1)
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    # Of the parts' variances and the distances of their means: no difference of large squares.
    variance = ((variances + (means - mean).square()) * counts).sum(0) / count
    return mean, variance, count


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _Normalize(torch.autograd.Function):
    """``(x - mean) * scale * weight + bias`` where mean and scale stem from all processes' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        scale: Tensor,
        count: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale, count)
        return torch.addcmul(bias, _wide(x) - mean, scale * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        gradient = _wide(gradients[0])
        normalized = (_wide(x) - mean) * scale
        own = torch.stack([gradient.sum(0), (gradient * normalized).sum(0)])
        everywhere = own.clone()
        dist.all_reduce(everywhere)
        centered = gradient - (everywhere[0] + normalized * everywhere[1]) / count
        return (centered * (scale * weight)).to(x.dtype), own[1], own[0], None, None, None
