"""Training: generated rooms and labelled scans, augmentation, losses, the loop."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dela.training.config import TrainConfig, load_config
    from dela.training.datasets import open_dataset
    from dela.training.loop import TrainResult, train

# public name -> the module that holds it, imported when first used: the loop needs torch
_HOMES = {
    "TrainConfig": "dela.training.config",
    "TrainResult": "dela.training.loop",
    "load_config": "dela.training.config",
    "open_dataset": "dela.training.datasets",
    "train": "dela.training.loop",
}

__all__ = ["TrainConfig", "TrainResult", "load_config", "open_dataset", "train"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dela.training' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
