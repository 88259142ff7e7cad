"""Point-cloud networks: training, one portable ONNX file, and prediction on raw scans.

Names are imported when first used, so ``import dela`` needs neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dela.threads import settle as _settle_threads

__version__ = "0.2.0"

# Before anything loads OpenMP, which reads its variables once.
_settle_threads()

if TYPE_CHECKING:
    from dela.artifacts.checkpoint import load_checkpoint, save_checkpoint
    from dela.cloud.formats import read_cloud, write_cloud
    from dela.cloud.point_cloud import PointCloud
    from dela.errors import DelaError
    from dela.families import create_model
    from dela.families.dela import measure_neighbor_distances
    from dela.families.dela.config import PRESETS
    from dela.families.dela.published import import_reference
    from dela.model.contract import AttributeInfo, ClassInfo, Contract
    from dela.plugins.capi import get_cmake_dir, get_include
    from dela.pyramid.cpu import Pyramid, build_pyramid

# public name -> the module that holds it
_HOMES = {
    "AttributeInfo": "dela.model.contract",
    "ClassInfo": "dela.model.contract",
    "DelaError": "dela.errors",
    "ModelConfig": "dela.families.dela.config",
    "DelaConfig": "dela.families.dela.config",
    "Contract": "dela.model.contract",
    "PRESETS": "dela.families.dela.config",
    "PointCloud": "dela.cloud.point_cloud",
    "Pyramid": "dela.pyramid.cpu",
    "build_pyramid": "dela.pyramid.cpu",
    "create_model": "dela.families",
    "get_cmake_dir": "dela.plugins.capi",
    "get_include": "dela.plugins.capi",
    "import_reference": "dela.families.dela.published",
    "load_checkpoint": "dela.artifacts.checkpoint",
    "measure_neighbor_distances": "dela.families.dela",
    "read_cloud": "dela.cloud.formats",
    "save_checkpoint": "dela.artifacts.checkpoint",
    "write_cloud": "dela.cloud.formats",
}

__all__ = [
    "PRESETS",
    "AttributeInfo",
    "ClassInfo",
    "Contract",
    "DelaConfig",
    "DelaError",
    "ModelConfig",
    "PointCloud",
    "Pyramid",
    "__version__",
    "build_pyramid",
    "create_model",
    "get_cmake_dir",
    "get_include",
    "import_reference",
    "load_checkpoint",
    "measure_neighbor_distances",
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
