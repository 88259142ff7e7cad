"""DeLA v2 point-cloud networks: training, one portable ONNX file, and prediction on raw scans.

Names are imported when first used, so ``import dela`` needs neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dela.threads import settle as _settle_threads

__version__ = "0.1.0"

# Before anything loads OpenMP, which reads its variables once.
_settle_threads()

if TYPE_CHECKING:
    from dela.checkpoint import load_checkpoint, save_checkpoint
    from dela.cloud import PointCloud
    from dela.config import PRESETS, AttributeInfo, ClassInfo, ModelConfig
    from dela.errors import DelaError
    from dela.formats import read_cloud, write_cloud
    from dela.network import create_model, measure_neighbor_distances
    from dela.pyramid import Pyramid, build_pyramid
    from dela.reference_import import import_reference
    from dela.scene import prepare_scene

# public name -> the module that holds it
_HOMES = {
    "AttributeInfo": "dela.config",
    "ClassInfo": "dela.config",
    "DelaError": "dela.errors",
    "ModelConfig": "dela.config",
    "PRESETS": "dela.config",
    "PointCloud": "dela.cloud",
    "Pyramid": "dela.pyramid",
    "build_pyramid": "dela.pyramid",
    "create_model": "dela.network",
    "import_reference": "dela.reference_import",
    "load_checkpoint": "dela.checkpoint",
    "measure_neighbor_distances": "dela.network",
    "prepare_scene": "dela.scene",
    "read_cloud": "dela.formats",
    "save_checkpoint": "dela.checkpoint",
    "write_cloud": "dela.formats",
}

__all__ = [
    "PRESETS",
    "AttributeInfo",
    "ClassInfo",
    "DelaError",
    "ModelConfig",
    "PointCloud",
    "Pyramid",
    "__version__",
    "build_pyramid",
    "create_model",
    "import_reference",
    "load_checkpoint",
    "measure_neighbor_distances",
    "prepare_scene",
    "read_cloud",
    "save_checkpoint",
    "write_cloud",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dela' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
