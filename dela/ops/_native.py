"""Calls into the native library with tensors, and the checks both operators share."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dela.errors import InputError
from dela.plugins import native

MAX_NEIGHBORS = 65535

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float

# Argument types of the C ABI in plugins/cpu/operators.cpp; every call ends with the threads.
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "dela_first_bad_row": (_LONG, [_POINTER, _LONG, _LONG, _LONG]),
    "dela_spse_forward": (
        _INT,
        [_POINTER, _LONG, _POINTER, _POINTER, _LONG, *[_INT] * 4, _FLOAT, _POINTER, _POINTER],
    ),
    "dela_spse_backward": (
        _INT,
        [_POINTER, _LONG, _POINTER, _POINTER, _LONG, *[_INT] * 4, *[_POINTER] * 4],
    ),
    "dela_spamp_forward": (
        _INT,
        [_POINTER, _INT, _POINTER, _LONG, *[_POINTER] * 3, _LONG, _LONG, _INT, _INT]
        + [_POINTER] * 2,
    ),
    "dela_spamp_residual": (
        _INT,
        [_POINTER, _INT, _POINTER, _LONG, *[_POINTER] * 5, _LONG, _LONG, _INT, _INT, _POINTER],
    ),
    "dela_spamp_backward": (
        _INT,
        [_INT, _POINTER, _LONG, *[_POINTER] * 3, _LONG, _LONG, _INT, _INT] + [_POINTER] * 5,
    ),
}


@functools.cache
def _function(name: str) -> Callable[..., int]:
    function = getattr(native.library(), name)
    function.restype, arguments = _SIGNATURES[name]
    function.argtypes = [*arguments, _INT]
    return function


def call(name: str, *arguments: Any) -> None:
    """Runs one function of the C ABI on torch's number of threads; a failure raises."""
    native.check(_function(name)(*arguments, torch.get_num_threads()), name)


def exporting() -> bool:
    """Whether torch is writing an ONNX graph: never where its exporter has not been imported."""
    exporter = sys.modules.get("torch.onnx")
    return exporter is not None and exporter.is_in_onnx_export()


def winner_dtype(neighbors: Tensor) -> torch.dtype:
    """Smallest dtype for a slot of the neighbor lists."""
    return torch.uint8 if neighbors.shape[1] <= 256 else torch.uint16


def shape(tensor: Tensor) -> str:
    return f"[{', '.join(str(size) for size in tensor.shape)}]"


def check_matrix(name: str, tensor: Tensor, dtype: torch.dtype, expected: str) -> None:
    """Raises InputError unless ``tensor`` is a matrix of ``dtype``."""
    if tensor.dim() != 2:
        raise InputError(f"{name} has shape {shape(tensor)}; expected {expected}")
    if tensor.dtype != dtype:
        raise InputError(f"{name} is {tensor.dtype}; expected {dtype}: {name}.to({dtype})")


def check_neighbors(neighbors: Tensor) -> None:
    check_matrix("neighbors", neighbors, torch.int32, "[rows, k]")
    if not 1 <= neighbors.shape[1] <= MAX_NEIGHBORS:
        raise InputError(
            f"neighbors has shape {shape(neighbors)}; k must lie between 1 and {MAX_NEIGHBORS}"
        )


def check_indices(name: str, table: Tensor, limit: int) -> None:
    """Raises InputError naming the first row, and the value, outside [0, limit).

    ``table`` is int32, [rows] or [rows, k]. On other devices the values are not looked at.
    """
    if table.device.type != "cpu" or torch.compiler.is_compiling():
        return
    table = table.contiguous()
    columns = table.shape[1] if table.dim() == 2 else 1
    row = _function("dela_first_bad_row")(
        table.data_ptr(), table.shape[0], columns, limit, torch.get_num_threads()
    )
    if row < 0:
        return
    values = table[row].reshape(-1)
    value = int(values[(values < 0) | (values >= limit)][0])
    raise InputError(
        f"{name}: row {row} holds {value}, outside the {limit} points (0 to {limit - 1})"
        if limit
        else f"{name}: row {row} holds {value}, but there are no points"
    )


def check_device(operator: str, tensor: Tensor) -> None:
    """Raises InputError unless there is a kernel for tensors like this one."""
    if not isinstance(tensor, Tensor):
        raise InputError(
            f"{operator} was given a {type(tensor).__name__}; it takes torch tensors: "
            "torch.from_numpy(array)"
        )
    if tensor.device.type not in ("cpu", "cuda") and not torch.compiler.is_compiling():
        raise InputError(
            f"{operator} has no kernel for {tensor.device.type} tensors; move them to the CPU or a "
            'CUDA device, or use the slower PyTorch one: dela.ops.implementation("reference")'
        )


def as_rows(points: Tensor) -> Tensor:
    """``points`` itself when its rows are contiguous, at any distance; a copy otherwise."""
    if points.stride(1) == 1 and points.stride(0) >= points.shape[1]:
        return points
    return points.contiguous()
