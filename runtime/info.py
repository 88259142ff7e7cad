"""What a file is: a checkpoint, an exported network, an engine or a scan, in plain types."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from dela.artifacts.sidecar import SUFFIX, read_sidecar
from dela.cloud.formats import FORMATS, read_cloud
from dela.errors import InputError
from dela.families import family_of
from dela.model.contract import Contract
from dela.runtime.backends.base import BACKENDS
from dela.runtime.backends.kernel_cache import cache_files
from dela.runtime.backends.onnx_runtime import OnnxRuntimeBackend


def describe(path: str | os.PathLike[str], columns: str | None = None) -> dict[str, Any]:
    """What ``dela info`` shows; ``kind`` is ``checkpoint``, ``onnx``, ``engine`` or ``scan``.

    Args:
        columns: names for a scan's columns, as :func:`~dela.cloud.formats.read_cloud` takes them.

    Raises:
        DelaError: a missing file, an unknown suffix, or a file that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder; name a file in it" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}")
    suffix = path.suffix.lower()
    common = {"file": str(path), "bytes": path.stat().st_size}
    if suffix in BACKENDS["onnxruntime"].suffixes:
        return {"kind": "onnx", **common, **_exported(path)}
    if suffix == SUFFIX:
        return {"kind": "engine", **common, **_engine(path)}
    if suffix in BACKENDS["torch"].suffixes:
        return {"kind": "checkpoint", **common, **_checkpoint(path)}
    if suffix in FORMATS:
        return {"kind": "scan", **common, **_scan(path, columns)}
    known = sorted({*FORMATS, *(s for kind in BACKENDS.values() for s in kind.suffixes)})
    raise InputError(f"{path}: unknown suffix {suffix!r}; dela info reads {', '.join(known)}")


# What every network has, told under these names; fields of its family stand between.
_SHARED = ("task", "classes", "attributes", "directions", "categories", "grid", "points")


def _network(config: Contract) -> dict[str, Any]:
    own = {
        name: value
        for name, value in config.to_dict().items()
        if name not in (*_SHARED, "vote_axis")
    }
    return {
        "task": config.task,
        "family": config.family,
        "stages": len(family_of(config).sizes(config)),
        **({"grid": list(config.grid)} if config.grid else {"points": list(config.points)}),
        **{name: list(v) if isinstance(v, tuple) else v for name, v in own.items()},
        "vote_axis": config.vote_axis,
        "attributes": [
            {"name": info.name, "scale": info.scale, "offset": info.offset, "log": info.log}
            for info in config.input_columns
        ],
        "classes": [
            {"name": info.name, "code": info.code, "color": list(info.color)}
            for info in config.classes
        ],
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    from dela.artifacts.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    extra = checkpoint.extra or {}
    return {
        "sha256": checkpoint.sha256,
        "parameters": sum(weight.numel() for weight in checkpoint.model.parameters()),
        **_network(checkpoint.config),
        "training": {key: value for key, value in extra.items() if _is_plain(value)},
    }


def _exported(path: Path) -> dict[str, Any]:
    backend = OnnxRuntimeBackend(path)
    metadata = backend.metadata
    assert metadata is not None
    return {
        "dtype": metadata.dtype,
        "format_version": metadata.format_version,
        "dela_version": metadata.dela_version,
        "checkpoint_sha256": metadata.checkpoint_sha256,
        "inputs": [
            {"name": name, "type": kind, "shape": [str(size) for size in shape]}
            for name, (kind, shape) in backend.inputs.items()
        ],
        "stage_ratios": list(metadata.stage_ratios),
        **_network(backend.config),
    }


def _engine(path: Path) -> dict[str, Any]:
    """From the sidecar alone: neither TensorRT nor a GPU is needed."""
    sidecar = read_sidecar(path)
    metadata = sidecar.metadata(str(path))
    return {
        "flavour": sidecar.flavour,
        "tensorrt_version": sidecar.tensorrt_version,
        "compute_capabilities": list(sidecar.compute_capabilities),
        "compatibility": sidecar.compatibility,
        "dtype": sidecar.dtype,
        "tf32": sidecar.tf32,
        "plugins": sidecar.plugins,
        "plugin_layers": sidecar.plugin_layers,
        "profiles": [str(profile) for profile in sidecar.profiles],
        "dela_version": sidecar.dela_version,
        "kernel_caches": [
            {"name": file.name, "bytes": file.stat().st_size} for file in cache_files(path)
        ],
        "checkpoint_sha256": metadata.checkpoint_sha256,
        **_network(metadata.config),
    }


def _scan(path: Path, names: str | None) -> dict[str, Any]:
    cloud = read_cloud(path, names)
    finite = np.isfinite(cloud.points).all(axis=1)
    inside = cloud.points[finite]
    result: dict[str, Any] = {"points": len(cloud), "not_finite": int((~finite).sum())}
    if len(inside):
        low, high = inside.min(axis=0), inside.max(axis=0)
        result["lowest"] = [round(float(value), 3) for value in low]
        result["highest"] = [round(float(value), 3) for value in high]
        area = float(np.prod((high - low)[:2]))
        if area > 0:
            result["points_per_square_metre"] = float(f"{len(inside) / area:.3g}")
    result["columns"] = {
        name: {
            "dtype": str(column.dtype),
            "least": _number(column, np.min),
            "most": _number(column, np.max),
        }
        for name, column in cloud.columns.items()
    }
    return result


def _number(column: np.ndarray, pick: Any) -> float | int | None:
    values = column[np.isfinite(column)] if column.dtype.kind == "f" else column
    return pick(values).item() if len(values) else None


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | type(None))
