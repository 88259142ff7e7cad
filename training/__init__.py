"""Training: generated rooms and labelled scans, augmentation, losses, the loop."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dela.training.data.kinds import open_dataset
    from dela.training.run.loop import TrainResult, train
    from dela.training.settings.train import TrainConfig, load_config

# public name -> the module that holds it, imported when first used: the loop needs torch
_HOMES = {
    "TrainConfig": "dela.training.settings.train",
    "TrainResult": "dela.training.run.loop",
    "load_config": "dela.training.settings.train",
    "open_dataset": "dela.training.data.kinds",
    "train": "dela.training.run.loop",
}

__all__ = ["TrainConfig", "TrainResult", "load_config", "open_dataset", "train"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dela.training' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
