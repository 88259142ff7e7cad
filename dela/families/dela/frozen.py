"""A network for inference only: operator weights computed, normalization folded into the Linears.

Exported graphs are traced from it and the torch backend runs it; it gives the same logits as the
network it was made from, within float rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dela import ops
from dela.errors import InputError
from dela.families.dela.embedding import SpatialEncoding
from dela.families.dela.encoder import PyramidTensors, encode
from dela.families.dela.heads import ClassificationHead, SegmentationHead, pool_clouds
from dela.families.dela.layers import Block, Downsample, LocalAggregation, Mlp
from dela.families.dela.network import Network, PyramidModule, split_category
from dela.families.layers import BatchNorm, module_list


def freeze(model: Network, dtype: torch.dtype = torch.float32) -> FrozenNetwork:
    """The inference form of ``model``, with weights of its own, in evaluation mode.

    Args:
        model: left as it is; its running statistics are used whatever its mode.
        dtype: of features and Linears: float32, float16 or bfloat16. Points, both operators'
            weights, SPSE, inputs and logits stay float32; features are cast after SPSE, logits
            back before they are returned.

    Raises:
        InputError: another module stands where the network has a Linear.
    """
    with torch.device("meta"):
        plain = Network(model.config)
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear):
            found = model.get_submodule(name)
            # Weights alone are read, so a forward of its own would be lost.
            if getattr(type(found), "forward", None) is not nn.Linear.forward:
                raise InputError(
                    f"{name} is a {type(found).__name__}, of which no weights can be read; put an "
                    "nn.Linear with the merged weight in its place first"
                )
    with torch.no_grad():
        return FrozenNetwork(model, dtype).to(next(model.parameters()).device).eval()


class FrozenNetwork(PyramidModule):
    """See :func:`freeze`. Buffers ``spse_weight_0`` (and ``_1``) hold SPSE's weights."""

    spse_weight_0: Tensor
    spse_weight_1: Tensor

    def __init__(self, model: Network, dtype: torch.dtype) -> None:
        super().__init__(model.config)
        self.dtype = dtype
        for i, ellipsoids in enumerate(model.ellipsoids):
            self.register_buffer(f"spse_weight_{i}", ellipsoids.weight().float().contiguous())
        self.own_weights = len(model.ellipsoids)
        self.stages = module_list(
            FrozenStage(stage.encoding, stage.downsample, stage.block, dtype)
            for stage in model.stages
        )
        self.head: nn.Module
        if isinstance(model.head, ClassificationHead):
            self.head = FrozenClassificationHead(model.head)
        else:
            self.head = FrozenSegmentationHead(model.head, dtype)

    def answer(self, inputs: PyramidTensors) -> Tensor:
        """Logits, float32."""
        attributes, category = split_category(inputs.attributes, self.config)
        neighbors, kept = inputs.neighbors, inputs.kept

        def stage_forward(
            index: int, distances: Tensor, position: Tensor, before: tuple[Tensor, Tensor] | None
        ) -> Tensor:
            stage = self.stages[index]
            x = stage.encoding(distances.to(self.dtype))
            if stage.downsample is not None and before is not None:
                x = stage.downsample(x, *before, neighbors[index - 1], kept[index - 1])
            for step in stage.steps:
                x = step(x, position, neighbors[index])
            return x

        weights = [getattr(self, f"spse_weight_{i}") for i in range(self.own_weights)]
        features, _ = encode(
            self.config, weights, inputs._replace(attributes=attributes), stage_forward
        )
        return self.head(features, inputs.nearest, category)


class FrozenStage(nn.Module):
    """One stage; ``steps`` are the block's MLPs and aggregations in order, with their residuals."""

    def __init__(
        self,
        encoding: SpatialEncoding,
        downsample: Downsample | None,
        block: Block,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.encoding = FoldedMlp(
            *_after(encoding.distance_norm, encoding.expand),
            *_before(encoding.reduce, encoding.norm),
            dtype,
        )
        self.downsample = None if downsample is None else FrozenDownsample(downsample, dtype)

        # An aggregation sees differences alone, so a constant added to its input changes nothing:
        # the shift of each aggregation's normalization moves into the MLP that runs before it.
        order: list[Mlp | LocalAggregation] = [block.mlps[0]]
        for i, aggregation in enumerate(block.aggregations):
            order.append(aggregation)
            if i % 2:
                order.append(block.mlps[1 + i // 2])
        steps: list[ResidualMlp | ResidualAggregation] = []
        later_shift: Tensor | float = 0.0
        for layer in reversed(order):
            if isinstance(layer, Mlp):
                weight, bias = _before(layer.reduce, layer.norm)
                expand = layer.expand.weight.double(), layer.expand.bias.double()
                steps.append(ResidualMlp(*expand, weight, bias + later_shift, dtype))
                later_shift = 0.0
            else:
                steps.append(ResidualAggregation(layer, dtype))
                later_shift = later_shift + _affine(layer.norm)[1]
        self.steps = module_list(reversed(steps))


class FoldedMlp(nn.Module):
    """Linear, GELU, Linear, with the normalizations around them folded in."""

    def __init__(
        self,
        expand_weight: Tensor,
        expand_bias: Tensor,
        reduce_weight: Tensor,
        reduce_bias: Tensor,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.expand = _linear(expand_weight, expand_bias, dtype)
        self.reduce = _linear(reduce_weight, reduce_bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(F.gelu(self.expand(x)))


class ResidualMlp(FoldedMlp):
    """``x + mlp(x)``."""

    def forward(self, x: Tensor, points: Tensor, neighbors: Tensor) -> Tensor:  # type: ignore[override]
        return x + super().forward(x)


class FrozenAggregation(nn.Module):
    """``base + scale * spamp(project(x))``; ``scale`` [dim] is that of the normalization."""

    weight: Tensor
    scale: Tensor

    def __init__(self, aggregation: LocalAggregation, dtype: torch.dtype) -> None:
        super().__init__()
        self.project = _linear(aggregation.project.weight, None, dtype)
        self.register_buffer("weight", aggregation.weight().float().contiguous())
        self.register_buffer("scale", _affine(aggregation.norm)[0].float())

    def add_to(
        self,
        base: Tensor,
        x: Tensor,
        points: Tensor,
        neighbors: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        features = self.project(x)
        return ops.spamp_residual(features, points, neighbors, self.weight, base, self.scale, rows)


class ResidualAggregation(FrozenAggregation):
    """``x + scale * spamp(project(x))``."""

    def forward(self, x: Tensor, points: Tensor, neighbors: Tensor) -> Tensor:
        return self.add_to(x, x, points, neighbors)


class FrozenDownsample(FrozenAggregation):
    """Adds to ``encoded`` [M, dim] what stage d - 1 hands down to its kept rows."""

    def __init__(self, downsample: Downsample, dtype: torch.dtype) -> None:
        super().__init__(downsample.aggregation, dtype)
        weight, bias = _before(downsample.project, downsample.norm)
        self.skip = _linear(weight, bias + _affine(downsample.aggregation.norm)[1], dtype)

    def forward(
        self, encoded: Tensor, x: Tensor, points: Tensor, neighbors: Tensor, kept: Tensor
    ) -> Tensor:
        encoded = encoded + self.skip(x.index_select(0, kept))
        return self.add_to(encoded, x, points, neighbors.index_select(0, kept), kept)


class FrozenSegmentationHead(nn.Module):
    """One Linear per stage (the first has the bias of all) and for categories, GELU, Linear."""

    category: nn.Linear | None

    def __init__(self, head: SegmentationHead, dtype: torch.dtype) -> None:
        super().__init__()
        scale, bias = _affine(head.norm)
        weights = []
        for projection in head.projections:
            stage_scale, stage_shift = _affine(projection.norm)
            weight = scale[:, None] * projection.project.weight.double()
            bias = bias + weight @ stage_shift
            weights.append(weight * stage_scale)
        self.category = None
        if head.category is not None:
            inner, shift = _before(head.category.expand, head.category.norm)
            outer = scale[:, None] * head.category.project.weight.double()
            self.category = _linear(outer @ inner, None, dtype)
            bias = bias + outer @ shift
        self.projections = module_list(
            _linear(weight, None if stage else bias, dtype) for stage, weight in enumerate(weights)
        )
        self.classify = _linear(head.classify.weight, head.classify.bias, dtype)

    def forward(
        self,
        features: Sequence[Tensor],
        nearest: Sequence[Tensor],
        category: Tensor | None = None,
    ) -> Tensor:
        total = self.projections[0](features[0])
        for stage in range(1, len(features)):
            y = self.projections[stage](features[stage])
            total = total + y.index_select(0, nearest[stage - 1])
        if self.category is not None and category is not None:
            total = total + self.category(category.to(total.dtype))
        return self.classify(F.gelu(total)).float()


class FrozenClassificationHead(nn.Module):
    """Pools each cloud in float32, then one Linear."""

    def __init__(self, head: ClassificationHead) -> None:
        super().__init__()
        self.points_per_cloud = head.points_per_cloud
        self.classify = _linear(*_after(head.norm, head.classify), torch.float32)

    def forward(
        self,
        features: Sequence[Tensor],
        nearest: Sequence[Tensor],
        category: Tensor | None = None,
    ) -> Tensor:
        return self.classify(pool_clouds(features[-1].float(), self.points_per_cloud))


def _affine(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift [dim] of a normalization in evaluation, float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _after(norm: BatchNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``linear(norm(x))``, float64."""
    scale, shift = _affine(norm)
    weight = linear.weight.double()
    return weight * scale, linear.bias.double() + weight @ shift


def _before(linear: nn.Linear, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``norm(linear(x))`` for a Linear without bias, float64."""
    scale, shift = _affine(norm)
    return linear.weight.double() * scale[:, None], shift


def _linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)
    return linear
