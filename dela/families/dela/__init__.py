"""DeLA v2 networks in PyTorch: build one, initialise it, freeze it for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dela.families.dela.frozen import FrozenNetwork, freeze
from dela.families.dela.initialize import (
    default_neighbor_distances,
    initialise,
    measure_neighbor_distances,
)
from dela.families.dela.network import Network
from dela.model.contract import ModelConfig, resolve_config

__all__ = [
    "FrozenNetwork",
    "Network",
    "create_model",
    "default_neighbor_distances",
    "freeze",
    "initialise",
    "measure_neighbor_distances",
]


def create_model(
    preset: str | ModelConfig,
    neighbor_distances: Sequence[Any] | None = None,
    seed: int | None = None,
    **overrides: Any,
) -> Network:
    """A network with starting values, in training mode; ``model.config`` tells its configuration.

    Args:
        preset: ``"s3dis"``, ``"scannet"``, ``"scanobjectnn"`` or a configuration.
        neighbor_distances: the two tables of :func:`measure_neighbor_distances`; None: estimated
            from grid and neighbour counts.
        seed: of the starting values, leaving torch's global generator alone; None draws from it.
        overrides: fields of :class:`~dela.model.contract.ModelConfig` to replace, or
        ``num_classes``.

    Raises:
        ConfigError: an unknown preset or field, or a value out of range.
        InputError: unusable neighbour distances.
    """
    config = resolve_config(preset, **overrides)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # layers draw values that are replaced below
        model = Network(config)
    initialise(model, neighbor_distances, generator)
    return model
