"""From a network to one portable ONNX file, checked against PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dela.export.check import CheckResult, check_export
    from dela.export.onnx_export import export_onnx

# public name -> the module that holds it; torch and onnx are imported with it
_HOMES = {
    "CheckResult": "dela.export.check",
    "check_export": "dela.export.check",
    "export_onnx": "dela.export.onnx_export",
}

__all__ = ["CheckResult", "check_export", "export_onnx"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dela.export' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
