"""Float64 numpy references of the operators, slopes and one-node ONNX models, shared by tests."""

from __future__ import annotations

from typing import Any

import numpy as np


def spse_reference(points, neighbors, weight, epsilon: float, directions: int = 0) -> np.ndarray:
    points, weight = points.astype(np.float64), weight.astype(np.float64)
    first_direction = points.shape[1] - directions
    last_q = len(weight) - directions
    there = points[neighbors]
    step = there[:, :, :3] - points[:, None, :3]
    matrix = weight[:9].reshape(3, 3, -1)
    moved = np.einsum("nkac,abc->nkbc", step[..., None] - weight[9:12], matrix)
    total = epsilon + (moved**2).sum(axis=2)
    total += ((there[:, :, 3:first_direction, None] - weight[12:last_q]) ** 2).sum(axis=2)
    total += there[:, :, first_direction:] @ weight[last_q:]
    return np.sqrt(total.min(axis=1))


def spamp_reference(features, points, neighbors, centers, weight) -> np.ndarray:
    features, points = features.astype(np.float64), points.astype(np.float64)
    weight = weight.astype(np.float64)
    step = points[neighbors] - points[centers][:, None]
    distance = 1e-8 + ((step[..., None] - weight[:3]) ** 2).sum(axis=2)
    closeness = np.repeat(np.exp(-weight[3] * distance), 4, axis=-1)
    return ((features[neighbors] - features[centers][:, None]) * closeness).max(axis=1)


def residual_reference(base, scale, **spamp) -> np.ndarray:
    return base.astype(np.float64) + scale.astype(np.float64) * spamp_reference(**spamp)


def spse_case(seed: int, n: int, k: int, channels: int, attributes: int = 0, directions: int = 0):
    """points, neighbors and weight of a random call; directions are unit vectors."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 3 + attributes + directions)).astype(np.float32)
    weight = rng.normal(size=(12 + attributes + directions, channels)).astype(np.float32)
    if directions:
        points[:, -directions:] /= np.linalg.norm(points[:, -directions:], axis=1, keepdims=True)
        weight[-directions:] /= np.linalg.norm(weight[-directions:], axis=0)
    neighbors = rng.integers(0, max(n, 1), (n, k)).astype(np.int32)
    return {"points": points, "neighbors": neighbors, "weight": weight}


def spamp_case(seed: int, n: int, m: int, k: int, channels: int, dtype: Any = np.float32):
    """features, points, neighbors, centers and weight of a random call."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(4, channels // 4)).astype(np.float32)
    weight[3] **= 2
    return {
        "features": rng.normal(size=(n, channels)).astype(dtype),
        "points": rng.normal(size=(n, 3)).astype(np.float32),
        "neighbors": rng.integers(0, max(n, 1), (m, k)).astype(np.int32),
        "centers": rng.integers(0, max(n, 1), m).astype(np.int32),
        "weight": weight,
    }


def residual_case(seed: int, n: int, m: int, k: int, channels: int, dtype: Any = np.float32):
    """A random call of SPAMP with the base and scale of its residual form behind it."""
    rng = np.random.default_rng([seed, 1])
    return {
        **spamp_case(seed, n, m, k, channels, dtype),
        "base": rng.normal(size=(m, channels)).astype(dtype),
        "scale": rng.normal(size=channels).astype(np.float32),
    }


def epsilon_for(directions: int) -> float:
    """Large enough that no squared distance with directions is negative."""
    return 1.0001 if directions else 1e-8


def central_differences(function, at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Gradient of a scalar function of a float64 array."""
    gradient = np.empty(at.size)
    for i in range(at.size):
        moved = at.copy().reshape(-1)
        moved[i] += step
        above = function(moved.reshape(at.shape))
        moved[i] -= 2 * step
        gradient[i] = (above - function(moved.reshape(at.shape))) / (2 * step)
    return gradient.reshape(at.shape)


def spse_model(epsilon: float, directions: int):
    """A model of one SPSE node, without a body."""
    return _model(
        "(float[N, D] points, int32[N, k] neighbors, float[R, C] weight) => (float[N, C] out)",
        f'SPSE <epsilon = {epsilon:.9e}, directions = {directions}, plugin_namespace = "dela">'
        "(points, neighbors, weight)",
    )


def spamp_model(element: str = "float"):
    """A model of one SPAMP node, without a body; ``element`` is ONNX's name of the features' type.

    bfloat16 is cast inside the model: numpy has no such type for ONNX Runtime to take.
    """
    outer, code = _OUTER.get(element, element), _CODES[element]
    return _model(
        f"({outer}[N, C] features, {_SPAMP_INPUTS}) => ({outer}[M, C] out)",
        'SPAMP <plugin_namespace = "dela">(inner, points, neighbors, centers, weight)',
        before=f"inner = Cast <to = {code}> (features)",
        after=_CODES[outer],
    )


def residual_model(element: str = "float"):
    """A model of one SPAMPResidual node, as :func:`spamp_model`."""
    outer, code = _OUTER.get(element, element), _CODES[element]
    return _model(
        f"({outer}[N, C] features, {_SPAMP_INPUTS}, {outer}[M, C] base, float[C] scale) => "
        f"({outer}[M, C] out)",
        'SPAMPResidual <plugin_namespace = "dela">'
        "(inner, points, neighbors, centers, weight, inner_base, scale)",
        before=f"inner = Cast <to = {code}> (features)\n inner_base = Cast <to = {code}> (base)",
        after=_CODES[outer],
    )


_SPAMP_INPUTS = "float[N, 3] points, int32[M, k] neighbors, int32[M] centers, float[4, G] weight"
_CODES = {"float": 1, "float16": 10, "bfloat16": 16}
_OUTER = {"bfloat16": "float"}


def spelled_out(model: Any) -> Any:
    """An fp32 file as dela 0.2.0 wrote it: SPAMP, a product and a sum for each SPAMPResidual."""
    import onnx

    old = onnx.ModelProto()
    old.CopyFrom(model)
    del old.graph.node[:], old.functions[:]
    old.functions.extend(body for body in model.functions if body.name != "SPAMPResidual")
    for node in model.graph.node:
        if node.op_type != "SPAMPResidual":
            old.graph.node.append(node)
            continue
        *inputs, base, scale = node.input
        (out,) = node.output
        pooled, product = f"{out}_pooled", f"{out}_product"
        spamp = onnx.helper.make_node("SPAMP", inputs, [pooled], domain="dela")
        spamp.attribute.extend(node.attribute)
        old.graph.node.extend(
            [
                spamp,
                onnx.helper.make_node("Mul", [pooled, scale], [product]),
                onnx.helper.make_node("Add", [base, product], [out]),
            ]
        )
    return old


def session(model: Any, library: Any = None, threads: int = 2):
    """ONNX Runtime over a model, with the kernels of ``library`` registered when one is given."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _model(signature: str, call: str, before: str = "", after: int = 1):
    import onnx.parser

    return onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "dela" : 1]>\n'
        f"graph {signature} {{ {before}\n"
        f"result = dela.{call}\n out = Cast <to = {after}> (result) }}"
    )
