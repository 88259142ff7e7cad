"""What the training knows of the network it trains; everything else sees a module and its losses.

In training mode a network gives its logits and losses of its own beside them, by name
(:func:`training_pass`). Its parts have an order from the input to the head, which layer decay,
freezing, adapters and starting from another network's weights go by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dela.families.dela import Network, create_model, measure_neighbor_distances
from dela.families.dela.layers import BatchNorm
from dela.families.dela.recompute import recomputing
from dela.model.contract import AttributeInfo, ModelConfig
from dela.pyramid.cpu import Pyramid
from dela.training.optimize.schedule import coordinate_weight
from dela.training.settings.train import ScheduleConfig

__all__ = [
    "BatchNorm",
    "Network",
    "adapted_layers",
    "auxiliary_weights",
    "carried_over",
    "depth_below_head",
    "differences",
    "empty_network",
    "holds_a_stage",
    "make_network",
    "prepare_training",
    "recomputing",
    "stage_ratios",
    "training_pass",
]


def make_network(
    config: ModelConfig, seed: int, pyramids: Sequence[Pyramid] | None = None
) -> Network:
    """A network with starting values.

    Args:
        pyramids: samples of the data, on which the starting values are measured; None where
            weights replace them.
    """
    if pyramids is None:
        return create_model(config, seed=seed)
    distances = measure_neighbor_distances(pyramids, config)
    return create_model(config, neighbor_distances=distances, seed=seed)


def empty_network(config: ModelConfig) -> Network:
    """A network whose tensors have shapes and no memory."""
    with torch.device("meta"):
        return Network(config)


def stage_ratios(pyramids: Sequence[Pyramid]) -> list[dict[str, float]]:
    """Points of each stage over points of stage 0: ``min``, ``mean``, ``max`` per stage.

    Exported files carry them, so that engines can be built for a range of stage 0 alone.
    """
    sizes = np.array([[sum(lengths) for lengths in pyramid.lengths] for pyramid in pyramids])
    ratios = sizes / sizes[:, :1]
    return [
        {"min": float(r.min()), "mean": float(r.mean()), "max": float(r.max())} for r in ratios.T
    ]


def prepare_training(model: Network, schedule: ScheduleConfig) -> None:
    """Has a network compute its training pass as ``train.checkpoint`` and ``compile`` ask.

    Copies that are to compute plainly are made before.
    """
    model.checkpoint_blocks = schedule.checkpoint
    if schedule.compile:
        model.compile_training()


def training_pass(network: nn.Module, inputs: Pyramid) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of a batch and the network's own losses, scalars by name.

    Args:
        network: of :func:`make_network`, or what averages its gradients over processes.
    """
    logits, coordinate = network(inputs)
    return logits, {"coordinate_loss": coordinate}


def auxiliary_weights(schedule: ScheduleConfig, step: int, total_steps: int) -> dict[str, float]:
    """How much each of the network's own losses weighs at a step."""
    start, decay = schedule.coordinate_loss, schedule.coordinate_loss_decay
    return {"coordinate_loss": coordinate_weight(step, total_steps, start, decay)}


def adapted_layers(model: Network) -> list[tuple[str, nn.Linear]]:
    """Names and layers whose weights low-rank adapters stand beside: those of the stages."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.startswith("stages.") and isinstance(module, nn.Linear)
    ]


def depth_below_head(name: str, config: ModelConfig) -> int:
    """How far a parameter is from the head: 0 for heads, 1 for the last stage, more for earlier
    ones; ellipsoids count as the first."""
    part, _, rest = name.partition(".")
    if part == "stages":
        return config.stages - int(rest.partition(".")[0])
    return config.stages if part == "ellipsoids" else 0


def carried_over(
    name: str, own: Tensor, offered: dict[str, Tensor], theirs: ModelConfig, ours: ModelConfig
) -> Tensor | None:
    """What a tensor of ours becomes of another network's; None: it stays as it is.

    Tensors go by name and shape. The classifier stays unless both networks tell the same classes
    apart; ellipsoids are taken column by column of the input, by the columns' names.
    """
    if name not in offered:
        return None
    same_classes = [c.name for c in theirs.classes] == [c.name for c in ours.classes]
    if name.startswith("head.classify.") and not same_classes:
        return None
    found = offered[name]
    if name == "ellipsoids.0.attributes":
        return _by_column(own, found, ours.attributes, theirs.attributes)
    if name == "ellipsoids.0.directions":
        return _by_column(own, found, ours.directions, theirs.directions)
    return found if found.shape == own.shape else None


def holds_a_stage(names: Sequence[str]) -> bool:
    """Whether tensors of these names are more than heads: a weight of a stage is among them."""
    return any(".block." in name and name.endswith(".weight") for name in names)


def differences(theirs: ModelConfig, ours: ModelConfig) -> Iterator[str]:
    """What two networks see differently of the same data, one line each."""
    for name in ("grid", "points", "neighbors", "coordinate_scale", "spread"):
        before, now = getattr(theirs, name), getattr(ours, name)
        if before != now:
            yield f"model.{name} was {_plain(before)} there, is {_plain(now)} here"
    for kind in ("attributes", "directions"):
        before, now = getattr(theirs, kind), getattr(ours, kind)
        if before != now:
            yield f"model.{kind} were {_columns(before)} there, are {_columns(now)} here"


def _by_column(
    own: Tensor,
    found: Tensor,
    ours: Sequence[AttributeInfo],
    theirs: Sequence[AttributeInfo],
) -> Tensor | None:
    """Reference values [E C] with the rows of columns that both networks have taken over."""
    rows, others = own.view(len(ours), -1).clone(), found.view(len(theirs), -1)
    position = {info.name: row for row, info in enumerate(theirs)}
    shared = [row for row, info in enumerate(ours) if info.name in position]
    if not shared or rows.shape[1] != others.shape[1]:
        return None
    for row in shared:
        rows[row] = others[position[ours[row].name]]
    return rows.flatten()


def _plain(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _columns(columns: Sequence[AttributeInfo]) -> str:
    return ", ".join(map(_column, columns)) or "none"


def _column(info: AttributeInfo) -> str:
    rest = [f"{key} {getattr(info, key):g}" for key in ("offset", "log") if getattr(info, key)]
    return f"{info.name} / {info.scale:g}" + (f" ({', '.join(rest)})" if rest else "")
