"""The way through the stages, one for networks in training and for their inference form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dela import ops
from dela.families.dela.config import DelaConfig

# Stage number, SPSE's distances [N_d, dims_0], points of the stage in units of its spread [N_d, 3],
# features and points of the stage before (None at stage 0) to the stage's features [N_d, dims_d].
StageForward = Callable[[int, Tensor, Tensor, "tuple[Tensor, Tensor] | None"], Tensor]


class PyramidTensors(NamedTuple):
    """A pyramid's arrays as tensors.

    Attributes:
        points: [N_0, 3], meters.
        attributes: [N_0, F], None where the network takes none.
        neighbors: [N_d, k_d] int32 per stage.
        kept: [N_d] int32 per stage from the second on.
        nearest: [N_0] int32 per stage from the second on; empty for classification.
    """

    points: Tensor
    attributes: Tensor | None
    neighbors: Sequence[Tensor]
    kept: Sequence[Tensor]
    nearest: Sequence[Tensor]


def encode(
    config: DelaConfig,
    weights: Sequence[Tensor],
    inputs: PyramidTensors,
    stage_forward: StageForward,
) -> tuple[list[Tensor], list[Tensor]]:
    """Features [N_d, dims_d] and points in units of the spread [N_d, 3] of every stage.

    Args:
        config: of the network.
        weights: SPSE's, for stage 0 and the later ones; one where all stages share it.
        inputs: attributes without categories.
        stage_forward: what a stage makes of its distances.
    """
    points, attributes, neighbors, kept, _ = inputs
    features: list[Tensor] = []
    positions: list[Tensor] = []
    for stage, table in enumerate(neighbors[: config.stages]):
        if stage:
            points = points.index_select(0, kept[stage - 1])
        position = points * (config.coordinate_scale / config.spread[stage])
        columns = position
        if stage == 0 and attributes is not None:
            columns = torch.cat([position, attributes], dim=1)
        distances = ops.spse(
            columns,
            table,
            weights[min(stage, len(weights) - 1)],
            config.spse_epsilon(stage),
            len(config.directions) if stage == 0 else 0,
        )
        before = (features[-1], positions[-1]) if stage else None
        features.append(stage_forward(stage, distances, position, before))
        positions.append(position)
    return features, positions
