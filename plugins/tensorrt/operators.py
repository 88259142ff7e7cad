"""What both forms of the plugins share: names, fields, types and sizes of SPSE and SPAMP."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from dela.plugins.cuda import launch

NAMES = ("SPSE", "SPAMP")
VERSION = "1"
# Namespace of the plugins launched from Python; exported nodes ask for it.
NAMESPACE = "dela"
# Engines need no plugin of this namespace: it is looked up while they are built only, and a name
# of its own keeps both forms apart in one process.
AHEAD_OF_TIME_NAMESPACE = "dela_ahead_of_time"

EPSILON, DIRECTIONS = "epsilon", "directions"
_DEFAULT_EPSILON = 1e-8


def fields_of(name: str) -> dict[str, Any]:
    """Fields of a plugin by name: the numpy type of each."""
    return {EPSILON: np.float32, DIRECTIONS: np.int32} if name == "SPSE" else {}


def read_fields(fields: Any) -> tuple[float, int]:
    """Epsilon and directions of a ``PluginFieldCollection``; defaults for what it lacks."""
    values = {field.name: np.asarray(field.data).reshape(-1)[0] for field in fields}
    return float(values.get(EPSILON, _DEFAULT_EPSILON)), int(values.get(DIRECTIONS, 0))


def input_types(trt: ModuleType, name: str, features: Any) -> tuple[Any, ...]:
    """Data types of a plugin's inputs, SPAMP's features being of type ``features``."""
    if name == "SPSE":  # points, neighbors, weight
        return trt.float32, trt.int32, trt.float32
    # features, points, neighbors, centers, weight
    return features, trt.float32, trt.int32, trt.int32, trt.float32


def output_type(trt: ModuleType, name: str, features: Any) -> Any:
    """SPSE gives float32, SPAMP what its features are."""
    return trt.float32 if name == "SPSE" else features


def feature_types(trt: ModuleType) -> dict[Any, str]:
    """Data types SPAMP takes -> their names."""
    return {trt.float32: "float32", trt.float16: "float16", trt.bfloat16: "bfloat16"}


def output_rows_and_columns(name: str, shapes: Sequence[Any]) -> tuple[Any, Any]:
    """Sizes of the output from the input shapes, numbers or symbols alike."""
    if name == "SPSE":
        points, _, weight = shapes
        return points[0], weight[1]
    features, _, neighbors, _, _ = shapes
    return neighbors[0], features[1]


def spse_sizes(
    points: Sequence[int], neighbors: Sequence[int], weight: Sequence[int], directions: int
) -> tuple[int, int, int, int, int]:
    """n, k, c, e, l from the shapes of SPSE's inputs."""
    return points[0], neighbors[1], weight[1], points[1] - 3 - directions, directions


def spamp_sizes(features: Sequence[int], neighbors: Sequence[int]) -> tuple[int, int, int, int]:
    """n, m, k, c from the shapes of SPAMP's inputs."""
    return features[0], neighbors[0], neighbors[1], features[1]


def spse_kernel(attributes: int, directions: int) -> str:
    """Name of SPSE's kernel for so many attributes and directions."""
    return f"dela_spse_{launch.spse_shape(attributes, directions)}"


def spamp_kernel(dtype: str, channels: int) -> tuple[str, int]:
    """Name of SPAMP's kernel for features of ``dtype``, and the channels one thread takes."""
    vector, width = launch.spamp_vector(dtype, channels)
    return f"dela_spamp_{vector}", width
