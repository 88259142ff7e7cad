"""Plugins that launch the kernels from Python: ``IPluginV3`` for SPSE and SPAMP.

TensorRT calls them while an engine is built and again, from whatever process has registered them,
while it runs. ``enqueue`` queues one kernel on TensorRT's stream and does nothing else, so that it
can be captured into a CUDA graph.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np

from dela.plugins.tensorrt import operators

_lock = threading.Lock()
# The registry keeps no reference to a creator written in Python: (bindings, name) -> creator.
_registered: dict[tuple[str, str], Any] = {}


def register(trt: Any) -> None:
    """Makes both plugins known to TensorRT; once per process and bindings, whoever calls again.

    Args:
        trt: the bindings, from :func:`dela.plugins.tensorrt.bindings.load`.

    Raises:
        RuntimeError: another plugin of the same name, version and namespace is registered.
    """
    registry = trt.get_plugin_registry()
    with _lock:
        for name in operators.NAMES:
            if (trt.__name__, name) in _registered:
                continue
            creator = creator_class(trt)(name)
            if not registry.register_creator(creator, operators.NAMESPACE):
                raise RuntimeError(
                    f"another TensorRT plugin {operators.NAMESPACE}::{name}, version "
                    f"{operators.VERSION}, is registered in this process"
                )
            _registered[trt.__name__, name] = creator


@functools.cache
def creator_class(trt: Any) -> type[Any]:
    """The creator of both plugins over these bindings; its argument is the plugin's name."""
    plugins = {"SPSE": _spse_class(trt), "SPAMP": _spamp_class(trt)}
    field_types = {
        np.float32: trt.PluginFieldType.FLOAT32,
        np.int32: trt.PluginFieldType.INT32,
    }

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            self.plugin_version = operators.VERSION
            self.plugin_namespace = operators.NAMESPACE
            self._fields = [
                trt.PluginField(field, np.array([], kind), field_types[kind])
                for field, kind in operators.fields_of(name).items()
            ]
            self.field_names = trt.PluginFieldCollection(self._fields)

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return plugins[self.name](*operators.read_fields(fields))

    return Creator


def _plugin_base(trt: Any) -> type[Any]:
    """What SPSE and SPAMP have in common over these bindings."""
    features = operators.feature_types(trt)
    interfaces = (
        trt.IPluginV3,
        trt.IPluginV3OneCore,
        trt.IPluginV3OneBuild,
        trt.IPluginV3OneRuntime,
    )

    class Plugin(*interfaces):  # type: ignore[misc]
        operator = ""

        def __init__(self, epsilon: float, directions: int) -> None:
            for interface in interfaces:
                interface.__init__(self)
            self.num_outputs = 1
            self.plugin_name = self.operator
            self.plugin_version = operators.VERSION
            self.plugin_namespace = operators.NAMESPACE
            # Shapes and types are enough to tell timings apart.
            self.timing_cache_id = ""
            self.epsilon, self.directions = epsilon, directions
            self.kernels: Any = None

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return type(self)(self.epsilon, self.directions)

        def get_output_data_types(self, input_types: list[Any]) -> list[Any]:
            return [operators.output_type(trt, self.operator, input_types[0])]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> list[Any]:
            shape = trt.DimsExprs(2)
            shape[0], shape[1] = operators.output_rows_and_columns(self.operator, inputs)
            return [shape]

        def supports_format_combination(self, position: int, tensors: Any, inputs: int) -> bool:
            kind = tensors[0].desc.type
            if position == 0:
                # SPSE's first input has one type, SPAMP's features decide about the output.
                allowed = (trt.float32,) if self.operator == "SPSE" else tuple(features)
            elif position < inputs:
                allowed = (operators.input_types(trt, self.operator, kind)[position],)
            else:
                allowed = (operators.output_type(trt, self.operator, kind),)
            found = tensors[position].desc
            return found.format == trt.TensorFormat.LINEAR and found.type in allowed

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            pass

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            if self.kernels is not None:
                self.kernels.function(self.kernel_name(inputs))

        def set_tactic(self, tactic: int) -> None:
            pass

        def get_fields_to_serialize(self) -> Any:
            values = {
                operators.EPSILON: (self.epsilon, trt.PluginFieldType.FLOAT32),
                operators.DIRECTIONS: (self.directions, trt.PluginFieldType.INT32),
            }
            # A field only points to its value: both stay alive with the plugin.
            self._serialized = [
                trt.PluginField(field, np.array([values[field][0]], kind), values[field][1])
                for field, kind in operators.fields_of(self.operator).items()
            ]
            return trt.PluginFieldCollection(self._serialized)

        def attach_to_context(self, context: Any) -> Any:
            # Kernels are loaded here and looked up in on_shape_change: enqueue may run while a
            # CUDA graph is captured.
            plugin = self.clone()
            plugin.kernels = _kernels_of_current_device()
            return plugin

        def enqueue(
            self,
            input_desc: Any,
            output_desc: Any,
            inputs: list[int],
            outputs: list[int],
            workspace: int,
            stream: int,
        ) -> None:
            self.launch(input_desc, [*inputs, *outputs], stream)

    return Plugin


def _spse_class(trt: Any) -> type[Any]:
    class Spse(_plugin_base(trt)):  # type: ignore[misc]
        operator = "SPSE"

        def sizes(self, tensors: list[Any]) -> tuple[int, int, int, int, int]:
            points, neighbors, weight = (tuple(desc.dims) for desc in tensors)
            return operators.spse_sizes(points, neighbors, weight, self.directions)

        def kernel_name(self, tensors: list[Any]) -> str:
            return operators.spse_kernel(*self.sizes(tensors)[3:])

        def launch(self, tensors: list[Any], addresses: list[int], stream: int) -> None:
            self.kernels.spse(
                *addresses, sizes=self.sizes(tensors), epsilon=self.epsilon, stream=stream
            )

    return Spse


def _spamp_class(trt: Any) -> type[Any]:
    names = operators.feature_types(trt)

    class Spamp(_plugin_base(trt)):  # type: ignore[misc]
        operator = "SPAMP"

        def kernel_name(self, tensors: list[Any]) -> str:
            return operators.spamp_kernel(names[tensors[0].type], tensors[0].dims[1])[0]

        def launch(self, tensors: list[Any], addresses: list[int], stream: int) -> None:
            features, _, neighbors, *_ = tensors
            self.kernels.spamp(
                *addresses,
                sizes=operators.spamp_sizes(tuple(features.dims), tuple(neighbors.dims)),
                dtype=names[features.type],
                stream=stream,
            )

    return Spamp


def _kernels_of_current_device() -> Any:
    """The kernels on the calling thread's device, which is the one TensorRT works on."""
    from dela.plugins.cuda.driver import Device, call
    from dela.plugins.cuda.kernels import Kernels

    current = int(call("cuCtxGetCurrent"))
    return Kernels.of(Device(int(call("cuCtxGetDevice")) if current else 0))
