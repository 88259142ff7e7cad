"""What the training asks of the network it trains, whatever its family.

In training mode a network gives its logits and losses of its own beside them, by name
(:func:`training_pass`). Its parts have an order from the input to the head, which layer decay,
freezing, adapters and starting from another network's weights go by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from dela.families import family_of
from dela.families.base import Family
from dela.model.contract import AttributeInfo, Contract
from dela.model.inputs import Inputs
from dela.training.optimize.schedule import coordinate_weight
from dela.training.settings.train import ScheduleConfig


def config_of(model: nn.Module) -> Any:
    """The configuration that a network carries."""
    return model.config


def make_network(config: Contract, seed: int, samples: Sequence[Inputs] | None = None) -> nn.Module:
    """A network with starting values.

    Args:
        samples: of the data, on which the starting values are measured; None where weights replace
            them.
    """
    family = family_of(config)
    measured = None if samples is None else family.measure(samples, config)
    return family.create(config, measured, seed)


def stage_ratios(samples: Sequence[Inputs]) -> list[dict[str, float]]:
    """Rows of each size over rows of the first: ``min``, ``mean``, ``max`` per size.

    Exported files carry them, so that engines can be built for a range of the first alone.
    """
    sizes = np.array([[sum(lengths) for lengths in inputs.lengths] for inputs in samples])
    ratios = sizes / sizes[:, :1]
    return [
        {"min": float(r.min()), "mean": float(r.mean()), "max": float(r.max())} for r in ratios.T
    ]


def prepare_training(model: nn.Module, schedule: ScheduleConfig) -> None:
    """Has a network compute its training pass as ``train.checkpoint`` and ``compile`` ask.

    Copies that are to compute plainly are made before.
    """
    family = _family(model)
    family.recompute(model, schedule.checkpoint)
    if schedule.compile:
        family.compile(model)


def training_pass(
    network: nn.Module, inputs: Inputs, config: Contract
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of a batch and the network's own losses, scalars by name.

    Args:
        network: of :func:`make_network`, or what averages its gradients over processes.
        inputs: a batch.
        config: of the network.
    """
    return family_of(config).losses(network(inputs))


def auxiliary_weights(schedule: ScheduleConfig, step: int, total_steps: int) -> dict[str, float]:
    """How much the network's own losses weigh at a step; one that is not named weighs 1."""
    start, decay = schedule.coordinate_loss, schedule.coordinate_loss_decay
    return {"coordinate_loss": coordinate_weight(step, total_steps, start, decay)}


def adapted_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Names and layers whose weights low-rank adapters stand beside: those of the body."""
    config = config_of(model)
    depths = {name: depth_below_head(name, config) for name, _ in model.named_modules()}
    return [
        (name, module)
        for name, module in model.named_modules()
        if depths[name] and isinstance(module, nn.Linear)
    ]


def depth_below_head(name: str, config: Contract) -> int:
    """How far a parameter or module is from the head: 0 for the head, 1 for the last part of the
    body, more for earlier ones."""
    parts = family_of(config).parts(config)
    for index, part in enumerate(parts):
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in part):
            return len(parts) - index
    return 0


def differences(theirs: Contract, ours: Contract) -> Iterator[str]:
    """What two networks of a family see differently of the same data, one line each."""
    for name in ("grid", "points", *family_of(ours).input_fields):
        before, now = getattr(theirs, name), getattr(ours, name)
        if before != now:
            yield f"model.{name} was {_plain(before)} there, is {_plain(now)} here"
    for kind in ("attributes", "directions"):
        before, now = getattr(theirs, kind), getattr(ours, kind)
        if before != now:
            yield f"model.{kind} were {_columns(before)} there, are {_columns(now)} here"


def _family(model: nn.Module) -> Family:
    return family_of(config_of(model))


def _plain(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _columns(columns: Sequence[AttributeInfo]) -> str:
    return ", ".join(map(_column, columns)) or "none"


def _column(info: AttributeInfo) -> str:
    rest = [f"{key} {getattr(info, key):g}" for key in ("offset", "log") if getattr(info, key)]
    return f"{info.name} / {info.scale:g}" + (f" ({', '.join(rest)})" if rest else "")
