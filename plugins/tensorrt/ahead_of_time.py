"""Plugins compiled into the engine: ``tensorrt.plugin`` with our kernels' PTX.

TensorRT puts the PTX of each layer, its grid and its sizes as expressions into the engine, which
then runs wherever TensorRT does (trtexec, C++, Triton Inference Server) with nothing of ours. While
building, TensorRT times every tactic named here and keeps the fastest. Needs ``tensorrt``;
TensorRT for RTX has no such plugins.
"""

# tensorrt.plugin reads annotations as objects, so those of its functions are set by hand.
from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dela.plugins.cuda import launch
from dela.plugins.cuda.kernels import IMAGES, float_bits
from dela.plugins.tensorrt import operators

# Rows per thread: a thread that takes more of them factors its metrics less often.
SPSE_TACTICS = {1: 1, 2: 2, 3: 3, 4: 4}
# (most channels per thread, threads per block)
SPAMP_TACTICS = {1: (8, 128), 2: (8, 64), 3: (4, 128), 4: (4, 64)}

_TYPE_TEXTS = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
_ENTRY = re.compile(r"^\.visible \.entry (\w+)\(.*?^\}\n", re.MULTILINE | re.DOTALL)

_lock = threading.Lock()
_registered: set[str] = set()


def register(trt: Any) -> None:
    """Makes every plugin known to TensorRT; once per process, whoever calls again.

    Args:
        trt: the bindings of ``tensorrt``.

    Raises:
        RuntimeError: a TensorRT without plugins ahead of time.
    """
    if not hasattr(trt, "QuickPluginCreationRequest"):
        raise RuntimeError(
            f"{trt.__name__} {trt.__version__} has no plugins ahead of time, which came with "
            "TensorRT 10.9"
        )
    import importlib

    plugin = importlib.import_module(f"{trt.__name__}.plugin")
    with _lock:
        if trt.__name__ not in _registered:
            _register_spse(trt, plugin)
            _register_spamp(trt, plugin)
            _register_spamp_residual(trt, plugin)
            _registered.add(trt.__name__)


def _register_spse(trt: Any, plugin: Any) -> None:
    def describe(points, neighbors, weight, epsilon, directions):
        return plugin.from_shape_expr((points.shape_expr[0], weight.shape_expr[1]), trt.float32)

    def tactics(points, neighbors, weight, outputs):
        return [plugin.AutoTuneCombination("FP32, INT32, FP32, FP32", "LINEAR", list(SPSE_TACTICS))]

    def compile_(points, neighbors, weight, epsilon, directions, outputs, tactic):
        rows, block = SPSE_TACTICS[tactic], launch.BLOCK
        _, k, c, e, l = operators.spse_sizes(  # noqa: E741
            *(tuple(tensor.shape) for tensor in (points, neighbors, weight)), int(directions[0])
        )
        n = points.shape_expr[0]
        threads = plugin.cdiv(n, rows) * launch.divide_up(c, 4)
        sizes = (n, k, c, e, l, rows, int(float_bits(epsilon[0])))
        return _kernel(plugin, operators.spse_kernel(e, l), threads, block, sizes)

    floats, ints = npt.NDArray[np.float32], npt.NDArray[np.int32]
    _define(
        plugin,
        "SPSE",
        {operators.EPSILON: floats, operators.DIRECTIONS: ints},
        (describe, tactics, compile_),
    )


def _register_spamp(trt: Any, plugin: Any) -> None:
    def describe(features, points, neighbors, centers, weight):
        return _pooled(plugin, features, neighbors)

    def tactics(features, points, neighbors, centers, weight, outputs):
        return _spamp_combinations(plugin, features, "{0}, FP32, INT32, INT32, FP32, {0}")

    def compile_(features, points, neighbors, centers, weight, outputs, tactic):
        return _spamp_kernel(trt, plugin, features, neighbors, tactic)

    _define(plugin, "SPAMP", {}, (describe, tactics, compile_))


def _register_spamp_residual(trt: Any, plugin: Any) -> None:
    def describe(features, points, neighbors, centers, weight, base, scale):
        return _pooled(plugin, features, neighbors)

    def tactics(features, points, neighbors, centers, weight, base, scale, outputs):
        types = "{0}, FP32, INT32, INT32, FP32, {0}, FP32, {0}"
        return _spamp_combinations(plugin, features, types)

    def compile_(features, points, neighbors, centers, weight, base, scale, outputs, tactic):
        return _spamp_kernel(trt, plugin, features, neighbors, tactic, residual=True)

    _define(plugin, "SPAMPResidual", {}, (describe, tactics, compile_))


def _pooled(plugin: Any, features: Any, neighbors: Any) -> Any:
    return plugin.from_shape_expr((neighbors.shape_expr[0], features.shape_expr[1]), features.dtype)


def _spamp_combinations(plugin: Any, features: Any, types: str) -> list[Any]:
    """Types of all tensors, the features' in the gaps, with the tactics that may run them."""
    combinations = []
    for dtype, text in _TYPE_TEXTS.items():
        _, width = operators.spamp_kernel(dtype, features.shape[1])
        usable = [tactic for tactic, (most, _) in SPAMP_TACTICS.items() if most <= width]
        combinations.append(plugin.AutoTuneCombination(types.format(text), "LINEAR", usable))
    return combinations


def _spamp_kernel(
    trt: Any, plugin: Any, features: Any, neighbors: Any, tactic: int, residual: bool = False
) -> tuple[str, str, Any, Any]:
    most, block = SPAMP_TACTICS[tactic]
    _, _, k, c = operators.spamp_sizes(tuple(features.shape), tuple(neighbors.shape))
    name, width = operators.spamp_kernel(operators.feature_types(trt)[features.dtype], c, residual)
    if most < width:
        # Four channels a thread, in the kernel without the width in its name.
        name, width = name.removesuffix("_8"), most
    n, m = features.shape_expr[0], neighbors.shape_expr[0]
    return _kernel(plugin, name, m * (c // width), block, (n, m, k, c))


def _define(
    plugin: Any,
    name: str,
    attributes: dict[str, Any],
    functions: tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]],
) -> None:
    """Annotates and registers the functions that describe, tune and compile a plugin."""
    describe, tactics, compile_ = functions
    tensor = plugin.TensorDesc
    identity = f"{operators.AHEAD_OF_TIME_NAMESPACE}::{name}"
    inputs = describe.__code__.co_varnames[: describe.__code__.co_argcount]
    described = {argument: attributes.get(argument, tensor) for argument in inputs}
    describe.__annotations__ = {**described, "return": tensor}
    tactics.__annotations__ = {"return": list[plugin.AutoTuneCombination]}
    compile_.__annotations__ = {
        "return": tuple[str | bytes, str | bytes, plugin.KernelLaunchParams, plugin.SymIntExprs]
    }
    plugin.register(identity)(describe)
    plugin.autotune(identity)(tactics)
    plugin.aot_impl(identity)(compile_)


def _kernel(
    plugin: Any, name: str, threads: Any, block: int, sizes: tuple[Any, ...]
) -> tuple[str, str, Any, Any]:
    """What ``aot_impl`` returns: the kernel's name, its PTX, its grid and its int32 sizes."""
    launched = plugin.KernelLaunchParams()
    launched.grid_x = plugin.cdiv(threads, block)
    launched.block_x = block
    numbers = plugin.SymIntExprs.from_tuple([plugin.SymInt32(size) for size in sizes])
    return name, ptx_of(name), launched, numbers


@functools.cache
def ptx_of(name: str) -> str:
    """The PTX of one kernel: the shipped module without its other kernels.

    Raises:
        RuntimeError: the shipped module has no such kernel.
    """
    (path,) = IMAGES.glob("operators.compute_*.ptx")
    module = path.read_text(encoding="ascii")
    if not any(entry[1] == name for entry in _ENTRY.finditer(module)):
        raise RuntimeError(f"{path.name} has no kernel {name!r}; reinstall dela")
    return _ENTRY.sub(lambda entry: entry[0] if entry[1] == name else "", module)
