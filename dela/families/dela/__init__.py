"""DeLA v2 networks (Chen et al., "Decoupled Local Aggregation for Point Cloud Learning", 2023).

Configuration and input need no torch; the networks are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dela.families.dela.config import PRESETS, DelaConfig
    from dela.families.dela.frozen import FrozenNetwork, freeze
    from dela.families.dela.network import Network
    from dela.families.dela.starting_values import (
        default_neighbor_distances,
        initialize,
        measure_neighbor_distances,
    )

# public name -> the module that holds it
_HOMES = {
    "PRESETS": "config",
    "DelaConfig": "config",
    "FrozenNetwork": "frozen",
    "Network": "network",
    "default_neighbor_distances": "starting_values",
    "freeze": "frozen",
    "initialize": "starting_values",
    "measure_neighbor_distances": "starting_values",
}

__all__ = [
    "PRESETS",
    "DelaConfig",
    "FrozenNetwork",
    "Network",
    "default_neighbor_distances",
    "freeze",
    "initialize",
    "measure_neighbor_distances",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
