"""Plays TensorRT's part for plugins compiled into the engine, without TensorRT.

The decorators, checks and templates of ``tensorrt.plugin`` are NVIDIA's own Python files, from the
wheel of TensorRT's bindings, whose native half needs a GPU's driver. That half is stood in for by
the bindings of TensorRT for RTX, which share most classes, and by the few classes below.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Sizes = dict[str, int]


class Expression:
    """A size that TensorRT works out when an engine runs, from the sizes that vary."""

    def __init__(self, value: Callable[[Sizes], int], constant: bool = False) -> None:
        self.value, self._constant = value, constant

    def is_constant(self) -> bool:
        return self._constant

    def get_constant_value(self) -> int:
        return self.value({})


class Builder:
    """``IExprBuilder``."""

    def __init__(self, operations: Any) -> None:
        self.functions = {
            operations.SUM: lambda a, b: a + b,
            operations.SUB: lambda a, b: a - b,
            operations.PROD: lambda a, b: a * b,
            operations.FLOOR_DIV: lambda a, b: a // b,
            operations.CEIL_DIV: lambda a, b: -(-a // b),
            operations.MAX: max,
            operations.MIN: min,
        }

    def constant(self, value: int) -> Expression:
        return Expression(lambda _: value, constant=True)

    def operation(self, kind: Any, a: Expression, b: Expression) -> Expression:
        function = self.functions[kind]
        return Expression(
            lambda sizes: function(a.value(sizes), b.value(sizes)),
            a.is_constant() and b.is_constant(),
        )


class Setter:
    """``ISymExprs``: takes the expressions of the kernel's int32 arguments."""

    def __init__(self) -> None:
        self.nbSymExprs = 0
        self.expressions: dict[int, Any] = {}

    def __setitem__(self, index: int, expression: Any) -> None:
        assert index < self.nbSymExprs
        self.expressions[index] = expression


class Registry:
    """``IPluginRegistry``."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        key = creator.name, creator.plugin_version, namespace
        assert key not in self.creators
        self.creators[key] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators.get((name, version, namespace))


@dataclass(frozen=True)
class Compiled:
    """What TensorRT would put into the engine for one layer."""

    name: str
    ptx: str
    grid: Expression
    block: int
    sizes: list[Expression]


def fake_tensorrt(rtx: Any, folder: Path) -> types.ModuleType:
    """A module ``tensorrt`` over the bindings of TensorRT for RTX, with NVIDIA's ``plugin`` files.

    Args:
        rtx: the bindings.
        folder: of the package ``plugin`` in the wheel of TensorRT's bindings.
    """
    trt = types.ModuleType("tensorrt")
    trt.__dict__.update({k: v for k, v in vars(rtx).items() if not k.startswith("__")})
    trt.__version__ = "11.4.0.106"
    trt.__path__ = []
    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    trt.IDimensionExpr = Expression
    trt.DimsExprs = lambda length: [None] * length
    trt.QuickPluginCreationRequest = enum.Enum(
        "QuickPluginCreationRequest", "UNKNOWN PREFER_JIT PREFER_AOT STRICT_JIT STRICT_AOT"
    )
    for name in ("IPluginV3QuickAOTBuild", "ISymExpr", "KernelLaunchParams"):
        setattr(trt, name, type(name, (), {}))
    specification = importlib.util.spec_from_file_location(
        "tensorrt.plugin", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert specification is not None and specification.loader is not None
    plugin = importlib.util.module_from_spec(specification)
    trt.plugin = plugin
    sys.modules["tensorrt"], sys.modules["tensorrt.plugin"] = trt, plugin
    specification.loader.exec_module(plugin)
    return trt


class Layer:
    """One plugin layer while TensorRT builds: created, asked for its shapes, tuned, compiled.

    ``shapes`` are those of its inputs; a size that varies is a name.
    """

    def __init__(
        self, trt: Any, namespace: str, name: str, fields: list[Any], types_: list[Any], shapes: Any
    ) -> None:
        self.trt, self.types = trt, types_
        creator = trt.get_plugin_registry().get_creator(name, "1", namespace)
        request = trt.QuickPluginCreationRequest.UNKNOWN
        phase = trt.TensorRTPhase.BUILD
        self.plugin = creator.create_plugin(name, namespace, fields, phase, request)
        self.output_types = self.plugin.get_output_data_types(types_, [len(s) for s in shapes])
        self.builder = Builder(trt.DimensionOperation)
        self.expressions = [[self._size(size) for size in shape] for shape in shapes]
        (self.output,) = self.plugin.get_output_shapes(self.expressions, [], self.builder)

    def _size(self, size: int | str) -> Expression:
        if isinstance(size, int):
            return self.builder.constant(size)
        return Expression(lambda sizes: sizes[size])

    def tensors(self) -> list[Any]:
        expressions = [*self.expressions, self.output]
        tensors = []
        for kind, shape in zip([*self.types, *self.output_types], expressions, strict=True):
            tensor, description = self.trt.DynamicPluginTensorDesc(), self.trt.PluginTensorDesc()
            known = [e.get_constant_value() if e.is_constant() else -1 for e in shape]
            description.type, description.dims = kind, self.trt.Dims(known)
            description.format = self.trt.TensorFormat.LINEAR
            tensor.desc = description
            tensors.append(tensor)
        return tensors

    def combinations(self) -> list[tuple[Any, ...]]:
        """Combinations of data types that the plugin takes."""
        found = self.plugin.get_supported_format_combinations(self.tensors(), len(self.types))
        count = len(self.types) + 1
        return [
            tuple(tensor.type for tensor in found[i : i + count])
            for i in range(0, len(found), count)
        ]

    def tactics(self) -> list[int]:
        self.combinations()
        tensors = self.tensors()
        self.plugin.configure_plugin(tensors[:-1], tensors[-1:])
        return sorted(self.plugin.get_valid_tactics())

    def compile(self, tactic: int) -> Compiled:
        self.plugin.set_tactic(tactic)
        tensors = self.tensors()
        launched, numbers = types.SimpleNamespace(), Setter()
        self.plugin.get_launch_params(
            self.expressions, tensors, len(self.types), launched, numbers, self.builder
        )
        descriptions = [tensor.desc for tensor in tensors]
        name, ptx = self.plugin.get_kernel(descriptions[:-1], descriptions[-1:])
        for axis in ("grid_y", "grid_z", "block_y", "block_z"):
            assert getattr(launched, axis).expr.get_constant_value() == 1
        assert launched.shared_mem.expr.get_constant_value() == 0
        return Compiled(
            name,
            ptx.decode(),
            launched.grid_x.expr,
            launched.block_x.expr.get_constant_value(),
            [numbers.expressions[i].expr for i in range(numbers.nbSymExprs)],
        )
