"""The operators as TensorRT plugins: one table for every form of the plugins.

An operator is an entry of :data:`OPERATORS`: its fields, the types and sizes of its inputs and
output, its kernel, and how it is launched. Adding one is its kernel, an entry here and, for plugins
ahead of time, its tactics in :mod:`dela.plugins.tensorrt.ahead_of_time`; the native plugins have
the same table in C++, in ``plugins/tensorrt_native/operators.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from dela.plugins.cuda import launch

VERSION = "1"
# Namespace of the plugins launched from Python; exported nodes ask for it.
NAMESPACE = "dela"
# Engines need no plugin of this namespace: it is looked up while they are built only, and a name
# of its own keeps both forms apart in one process.
AHEAD_OF_TIME_NAMESPACE = "dela_ahead_of_time"
# Of the plugins in libdela_trt.so.
NATIVE_NAMESPACE = "dela_native"

EPSILON, DIRECTIONS = "epsilon", "directions"

# A tensor's type in the table: that of the first input where it may vary, else its name.
FEATURES = "features"
Shape = Sequence[Any]
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Operator:
    """What every form of a plugin needs to know of an operator.

    Attributes:
        name: of the plugin and of the node in exported files.
        inputs: type of each input: ``float32``, ``int32`` or :data:`FEATURES`, which the first
            input decides.
        output: type of the output, likewise.
        fields: name -> (numpy type, default) of the plugin's fields.
        output_shape: rows and columns of the output from the inputs' shapes, numbers or symbols.
        launch: (kernels, shapes, features' type, fields, addresses, stream) queues the kernel.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    output_shape: Callable[[Sequence[Shape]], tuple[Any, Any]]
    launch: Callable[[Any, Sequence[Shape], str, Fields, Sequence[int], int], None]
    fields: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def read_fields(self, collection: Any) -> dict[str, Any]:
        """Values of a ``PluginFieldCollection`` by name; defaults for what it lacks."""
        values = {entry.name: np.asarray(entry.data).reshape(-1)[0] for entry in collection}
        return {
            name: kind(values.get(name, default)).item()
            for name, (kind, default) in self.fields.items()
        }


def feature_types(trt: ModuleType) -> dict[Any, str]:
    """Data types that features may have -> their names."""
    return {trt.float32: "float32", trt.float16: "float16", trt.bfloat16: "bfloat16"}


def tensor_type(trt: ModuleType, kind: str, features: Any) -> Any:
    """The data type of an input or output; ``features`` is that of the first input."""
    return features if kind == FEATURES else getattr(trt, kind)


def spse_sizes(
    points: Shape, neighbors: Shape, weight: Shape, directions: int
) -> tuple[int, int, int, int, int]:
    """n, k, c, e, l from the shapes of SPSE's inputs."""
    return points[0], neighbors[1], weight[1], points[1] - 3 - directions, directions


def spamp_sizes(features: Shape, neighbors: Shape) -> tuple[int, int, int, int]:
    """n, m, k, c from the shapes of SPAMP's inputs."""
    return features[0], neighbors[0], neighbors[1], features[1]


def spse_kernel(attributes: int, directions: int) -> str:
    """Name of SPSE's kernel for so many attributes and directions."""
    return f"dela_spse_{launch.spse_shape(attributes, directions)}"


def spamp_kernel(dtype: str, channels: int, residual: bool = False) -> tuple[str, int]:
    """Name of SPAMP's kernel for features of ``dtype``, and the channels one thread takes."""
    vector, width = launch.spamp_vector(dtype, channels)
    return f"dela_spamp_residual_{vector}" if residual else f"dela_spamp_{vector}", width


def _spse_sizes(shapes: Sequence[Shape], fields: Fields) -> tuple[int, int, int, int, int]:
    points, neighbors, weight = shapes
    return spse_sizes(points, neighbors, weight, fields[DIRECTIONS])


def _launch_spse(
    kernels: Any,
    shapes: Sequence[Shape],
    features: str,
    fields: Fields,
    addresses: Sequence[int],
    stream: int,
) -> None:
    sizes = _spse_sizes(shapes, fields)
    kernels.spse(*addresses, sizes=sizes, epsilon=fields[EPSILON], stream=stream)


def _launch_spamp(
    kernels: Any,
    shapes: Sequence[Shape],
    features: str,
    fields: Fields,
    addresses: Sequence[int],
    stream: int,
) -> None:
    sizes = spamp_sizes(shapes[0], shapes[2])
    kernels.spamp(*addresses, sizes=sizes, dtype=features, stream=stream)


def _launch_spamp_residual(
    kernels: Any,
    shapes: Sequence[Shape],
    features: str,
    fields: Fields,
    addresses: Sequence[int],
    stream: int,
) -> None:
    sizes = spamp_sizes(shapes[0], shapes[2])
    kernels.spamp_residual(*addresses, sizes=sizes, dtype=features, stream=stream)


SPSE = Operator(
    name="SPSE",
    inputs=("float32", "int32", "float32"),  # points, neighbors, weight
    output="float32",
    output_shape=lambda shapes: (shapes[0][0], shapes[2][1]),
    launch=_launch_spse,
    fields={EPSILON: (np.float32, 1e-8), DIRECTIONS: (np.int32, 0)},
)
SPAMP = Operator(
    name="SPAMP",
    # features, points, neighbors, centers, weight
    inputs=(FEATURES, "float32", "int32", "int32", "float32"),
    output=FEATURES,
    output_shape=lambda shapes: (shapes[2][0], shapes[0][1]),
    launch=_launch_spamp,
)
SPAMP_RESIDUAL = Operator(
    name="SPAMPResidual",
    # features, points, neighbors, centers, weight, base, scale
    inputs=(*SPAMP.inputs, FEATURES, "float32"),
    output=FEATURES,
    output_shape=SPAMP.output_shape,
    launch=_launch_spamp_residual,
)
OPERATORS = {operator.name: operator for operator in (SPSE, SPAMP, SPAMP_RESIDUAL)}
