"""Families of networks: one folder and one entry of :data:`FAMILIES` each.

A file that names no family is of DeLA, the first one. Torch is imported only when a network is
made.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from dela.errors import ConfigError
from dela.families.base import Family
from dela.model.contract import Contract, generic_classes
from dela.text import brief

if TYPE_CHECKING:
    from torch import nn

# name -> where the family's object lives, imported when it is asked for
FAMILIES = {
    "dela": "dela.families.dela.family:FAMILY",
}
FIRST = "dela"


def find_family(name: str) -> Family:
    """The family of a name.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in FAMILIES:
        raise ConfigError(
            f"unknown family {brief(name)}; this dela has {', '.join(FAMILIES)}; a newer one may "
            "have it"
        )
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def family_of(config: Contract) -> Family:
    """The family that a configuration belongs to."""
    return find_family(config.family)


def presets() -> dict[str, Contract]:
    """The presets of every family by name."""
    return {
        name: config for family in FAMILIES for name, config in find_family(family).presets.items()
    }


def config_to_dict(config: Contract) -> dict[str, Any]:
    """Plain JSON types, with the family's name unless it is the first."""
    family = {} if config.family == FIRST else {"family": config.family}
    return family | config.to_dict()


def config_from_dict(values: dict[str, Any]) -> Any:
    """Inverse of :func:`config_to_dict`.

    Raises:
        ConfigError: an unknown family, an unknown or missing key, or a value out of range.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"the network's configuration is {brief(values)}; expected a table")
    values = dict(values)
    return find_family(str(values.pop("family", FIRST))).config.from_dict(values)


def resolve_config(preset: str | Contract, **overrides: Any) -> Any:
    """A preset or configuration with some fields replaced.

    Args:
        preset: a name in :func:`presets` or a configuration.
        overrides: fields of the configuration (lists are fine for tuples), or ``num_classes``,
            which replaces the classes by generic ones unless their number already fits.

    Raises:
        ConfigError: an unknown preset or field, or a value out of range.
    """
    known = presets()
    if isinstance(preset, str):
        if preset not in known:
            raise ConfigError(f"unknown preset {preset!r}; known: {', '.join(known)}")
        preset = known[preset]
    if not isinstance(preset, Contract):
        raise ConfigError(f"preset is {preset!r}; give one of {', '.join(known)}, or a ModelConfig")
    values = dict(overrides)
    count = values.pop("num_classes", None)
    if count is not None:
        if "classes" in values:
            raise ConfigError("give classes or num_classes, not both")
        if count != preset.num_classes:
            values["classes"] = generic_classes(count)
    preset.refuse_unknown(values)
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return dataclasses.replace(preset, **values)


def empty_network(config: Contract) -> nn.Module:
    """A network whose tensors have shapes and no memory, for weights to be put into."""
    import torch

    with torch.device("meta"):
        return family_of(config).build(config)


def create_model(
    preset: str | Contract,
    neighbor_distances: Any = None,
    seed: int | None = None,
    **overrides: Any,
) -> nn.Module:
    """A network with starting values, in training mode; ``model.config`` tells its configuration.

    Args:
        preset: ``"s3dis"``, ``"scannet"``, ``"scanobjectnn"`` or a configuration of any family.
        neighbor_distances: what the family measured on training data; for DeLA the two tables of
            :func:`dela.measure_neighbor_distances`. None: estimated from the configuration.
        seed: of the starting values, leaving torch's global generator alone; None draws from it.
        overrides: fields of the configuration to replace, or ``num_classes``.

    Raises:
        ConfigError: an unknown preset or field, or a value out of range.
        InputError: unusable measurements.
    """
    config = resolve_config(preset, **overrides)
    return family_of(config).create(config, neighbor_distances, seed)
