"""Inputs of the operators, float64 references, and both on a device, for every form of plugins."""

from __future__ import annotations

import ml_dtypes
import numpy as np

import onnx_operators

NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Arithmetic is float32; the output is rounded to the features' type.
ROUNDING = {"float32": 1e-5, "float16": 2.0**-11 + 1e-5, "bfloat16": 2.0**-8 + 1e-5}
# attributes, directions, epsilon
SPSE_SHAPES = [(0, 0, 1e-8), (4, 0, 1e-8), (4, 3, 1.0 + 1e-4), (2, 1, 1.0 + 1e-4)]


def spse_case(attributes: int, directions: int, epsilon: float, n=50, k=6, channels=20):
    case = onnx_operators.spse_case(attributes, n, k, channels, attributes, directions)
    expected = onnx_operators.spse_reference(**case, epsilon=epsilon, directions=directions)
    return list(case.values()), expected


def spamp_case(dtype: str, channels: int, n=50, m=30, k=6):
    case = onnx_operators.spamp_case(1, n, m, k, channels, NUMPY[dtype])
    expected = onnx_operators.spamp_reference(**case)
    return list(case.values()), expected


def residual_case(dtype: str, channels: int, n=50, m=30, k=6):
    case = onnx_operators.residual_case(1, n, m, k, channels, NUMPY[dtype])
    return list(case.values()), onnx_operators.residual_reference(**case)


# operator: its random call and the answer to it
SPAMP_FORMS = {"SPAMP": spamp_case, "SPAMPResidual": residual_case}


def on_device(arrays, stream):
    from dela.plugins.cuda.arrays import DeviceArray

    def copied(array):
        if array.dtype == ml_dtypes.bfloat16:
            return DeviceArray.from_host(array.view(np.uint16), stream, "bfloat16")
        return DeviceArray.from_host(array, stream)

    return [copied(array) for array in arrays]


def to_float64(array, stream):
    host = array.to_host(stream)
    return (host.view(ml_dtypes.bfloat16) if array.dtype == "bfloat16" else host).astype(np.float64)


def assert_close(found, expected, tolerance):
    scale = np.maximum(np.abs(expected), np.abs(expected).max() * 1e-2)
    assert np.abs(found - expected).max(initial=0) <= (tolerance * scale).max(initial=0)
    np.testing.assert_array_less(np.abs(found - expected), tolerance * scale + 1e-30)
