"""Plugins that launch the kernels from Python: ``IPluginV3`` for every operator of the table.

TensorRT calls them while an engine is built and again, from whatever process has registered them,
while it runs. All is worked out when shapes change; ``enqueue`` queues one kernel on TensorRT's
stream and does nothing else, so that it is quick and can be captured into a CUDA graph.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np

from dela.plugins.tensorrt import operators
from dela.plugins.tensorrt.operators import OPERATORS, Operator

_lock = threading.Lock()
# The registry keeps no reference to a creator written in Python: (bindings, name) -> creator.
_registered: dict[tuple[str, str], Any] = {}


def register(trt: Any) -> None:
    """Makes every plugin known to TensorRT; once per process and bindings, whoever calls again.

    Args:
        trt: the bindings, from :func:`dela.plugins.tensorrt.bindings.load`.

    Raises:
        RuntimeError: another plugin of the same name, version and namespace is registered.
    """
    registry = trt.get_plugin_registry()
    with _lock:
        for name in OPERATORS:
            if (trt.__name__, name) in _registered:
                continue
            creator = creator_class(trt)(name)
            if not registry.register_creator(creator, operators.NAMESPACE):
                raise RuntimeError(
                    f"another TensorRT plugin {operators.NAMESPACE}::{name}, version "
                    f"{operators.VERSION}, is registered in this process"
                )
            _registered[trt.__name__, name] = creator


def _field_types(trt: Any) -> dict[Any, Any]:
    return {np.float32: trt.PluginFieldType.FLOAT32, np.int32: trt.PluginFieldType.INT32}


@functools.cache
def creator_class(trt: Any) -> type[Any]:
    """The creator of every plugin over these bindings; its argument is the plugin's name."""
    plugin, types = _plugin_class(trt), _field_types(trt)

    class Creator(trt.IPluginCreatorV3One):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            self.plugin_version = operators.VERSION
            self.plugin_namespace = operators.NAMESPACE
            self._fields = [
                trt.PluginField(field, np.array([], kind), types[kind])
                for field, (kind, _) in OPERATORS[name].fields.items()
            ]
            self.field_names = trt.PluginFieldCollection(self._fields)

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            operator = OPERATORS[self.name]
            return plugin(operator, operator.read_fields(fields))

    return Creator


def _plugin_class(trt: Any) -> type[Any]:
    """The plugin of any operator over these bindings."""
    interfaces = (
        trt.IPluginV3,
        trt.IPluginV3OneCore,
        trt.IPluginV3OneBuild,
        trt.IPluginV3OneRuntime,
    )

    class Plugin(_Build, _Runtime, *interfaces):  # type: ignore[misc]
        bindings = trt
        features = operators.feature_types(trt)

        def __init__(self, operator: Operator, fields: dict[str, Any]) -> None:
            for interface in interfaces:
                interface.__init__(self)
            self.num_outputs = 1
            self.plugin_name = operator.name
            self.plugin_version = operators.VERSION
            self.plugin_namespace = operators.NAMESPACE
            # Shapes and types are enough to tell timings apart.
            self.timing_cache_id = ""
            self.operator, self.fields = operator, fields
            self.kernels: Any = None
            self.plan: Any = None

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return type(self)(self.operator, self.fields)

    return Plugin


class _Build:
    """What TensorRT asks of a plugin while an engine is built."""

    bindings: Any
    features: dict[Any, str]
    operator: Operator

    def get_output_data_types(self, input_types: list[Any]) -> list[Any]:
        return [operators.tensor_type(self.bindings, self.operator.output, input_types[0])]

    def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> list[Any]:
        shape = self.bindings.DimsExprs(2)
        shape[0], shape[1] = self.operator.output_shape(inputs)
        return [shape]

    def supports_format_combination(self, position: int, tensors: Any, inputs: int) -> bool:
        operator, found = self.operator, tensors[position].desc
        kind = operator.inputs[position] if position < inputs else operator.output
        if position == 0 and kind == operators.FEATURES:
            allowed = tuple(self.features)
        else:
            allowed = (operators.tensor_type(self.bindings, kind, tensors[0].desc.type),)
        return found.format == self.bindings.TensorFormat.LINEAR and found.type in allowed

    def configure_plugin(self, inputs: Any, outputs: Any) -> None:
        pass


class _Runtime:
    """What TensorRT asks of a plugin while an engine runs."""

    bindings: Any
    features: dict[Any, str]
    operator: Operator
    fields: dict[str, Any]
    kernels: Any
    plan: Any

    def on_shape_change(self, inputs: Any, outputs: Any) -> None:
        # While an engine is built there may be no GPU, and nothing is launched without one.
        self.plan = None if self.kernels is None else self._planned(inputs)

    def _planned(self, tensors: list[Any]) -> Any:
        """The launches for tensors of these shapes and types."""
        from dela.plugins.tensorrt.launch_plan import LaunchPlan

        if self.kernels is None:
            self.kernels = _kernels_of_current_device()
        shapes = [tuple(desc.dims) for desc in tensors]
        features = self.features[tensors[0].type]
        return LaunchPlan(self.kernels, self.operator, shapes, features, self.fields)

    def set_tactic(self, tactic: int) -> None:
        pass

    def get_fields_to_serialize(self) -> Any:
        types = _field_types(self.bindings)
        # A field only points to its value: both stay alive with the plugin.
        self._serialized = [
            self.bindings.PluginField(name, np.array([self.fields[name]], kind), types[kind])
            for name, (kind, _) in self.operator.fields.items()
        ]
        return self.bindings.PluginFieldCollection(self._serialized)

    def attach_to_context(self, context: Any) -> Any:
        # Kernels are loaded here and looked up in on_shape_change, which TensorRT calls before it
        # runs other shapes: enqueue may run while a CUDA graph is captured.
        plugin: Any = self.clone()  # type: ignore[attr-defined]
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
        if self.plan is None:
            self.plan = self._planned(input_desc)
        self.plan.queue((*inputs, *outputs), stream)


def _kernels_of_current_device() -> Any:
    """The kernels on the calling thread's device, which is the one TensorRT works on."""
    from dela.plugins.cuda.driver import Device, call
    from dela.plugins.cuda.kernels import Kernels

    current = int(call("cuCtxGetCurrent"))
    return Kernels.of(Device(int(call("cuCtxGetDevice")) if current else 0))
