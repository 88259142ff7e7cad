"""The C library of ``dela.h`` through ctypes: the structures as the header lays them out."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dela.cloud.point_cloud import PointCloud
from dela.model.contract import AttributeInfo
from dela.plugins import native
from small_networks import CONFIG

# For airborne lidar; with weights of seed 10 it gives all three labels on the tiles.
LIDAR = replace(
    CONFIG,
    grid=(0.5, 1.0),
    attributes=(
        AttributeInfo("height_above_ground", 2.0, 0.1, 0.5),
        AttributeInfo("intensity", 500.0, 0.0, 100.0),
        AttributeInfo("return_number", 3.0),
    ),
)

OK, OUT_OF_MEMORY, BAD_ARGUMENT, BAD_INPUT, BAD_MODEL, NO_RUNTIME, FAILED = range(7)
TYPES = {
    np.dtype(name): code
    for code, name in enumerate(("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"))
}


class LoadOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("onnxruntime", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
    )


class Column(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("stride", ctypes.c_int64),
    )


class Cloud(ctypes.Structure):
    _fields_ = (
        ("points", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("stride", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("columns", ctypes.POINTER(Column)),
        ("column_count", ctypes.c_int32),
    )


class LabelOptions(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("max_points", ctypes.c_int64),
        ("votes", ctypes.c_int32),
        ("drop_invalid", ctypes.c_int32),
    )


class CError(Exception):
    """A status that is not 0, with the library's words."""

    def __init__(self, status: int) -> None:
        super().__init__(library().dela_last_error().decode())
        self.status = status


def onnxruntime_library() -> Path:
    """The shared library inside ONNX Runtime's wheel; skips the test where there is none."""
    import onnxruntime

    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        pytest.skip("this onnxruntime has no shared library of its own")
    return found[0]


@functools.cache
def library() -> ctypes.CDLL:
    """The native library with the types of ``dela.h``'s functions."""
    loaded = native.library()
    pointer, text, i32 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
    for name, result, arguments in (
        ("dela_model_load", ctypes.c_int, [text, pointer, ctypes.POINTER(pointer)]),
        ("dela_model_free", None, [pointer]),
        ("dela_model_label", ctypes.c_int, [pointer] * 5),
        ("dela_model_class_count", i32, [pointer]),
        ("dela_model_class_name", text, [pointer, i32]),
        ("dela_model_class_code", i32, [pointer, i32]),
        ("dela_model_column_count", i32, [pointer]),
        ("dela_model_column_name", text, [pointer, i32]),
        ("dela_last_error", text, []),
    ):
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def check(status: int) -> None:
    if status != OK:
        raise CError(status)


class Model:
    """A loaded network; freed with the object."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        self.handle = ctypes.c_void_p()
        runtime = str(onnxruntime_library()).encode()
        options = LoadOptions(ctypes.sizeof(LoadOptions), runtime, threads)
        check(
            library().dela_model_load(
                str(path).encode(), ctypes.byref(options), ctypes.byref(self.handle)
            )
        )

    def __del__(self) -> None:
        library().dela_model_free(self.handle)

    def label(self, cloud: PointCloud, **options: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels int32 [N] and confidences float32 [N] of a cloud."""
        return self.label_raw(raw_cloud(cloud.points, cloud.columns), len(cloud), **options)

    def label_raw(self, cloud: Cloud, count: int, **options: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of the structure itself; every byte of the result starts as something else."""
        chosen = LabelOptions(ctypes.sizeof(LabelOptions), **options)
        labels, confidences = np.full(count, -77, np.int32), np.full(count, -7, np.float32)
        try:
            check(
                library().dela_model_label(
                    self.handle,
                    ctypes.byref(cloud),
                    ctypes.byref(chosen),
                    labels.ctypes.data,
                    confidences.ctypes.data,
                )
            )
        except CError:
            assert (labels == -77).all() and (confidences == -7).all(), "written to, and failed"
            raise
        return labels, confidences


def raw_cloud(points: np.ndarray, columns: dict[str, np.ndarray]) -> Cloud:
    """The structure of arrays that may have gaps between their rows; it keeps them alive."""
    count = len(points)
    listed: Any = (Column * max(1, len(columns)))(
        *(
            Column(name.encode(), values.ctypes.data, TYPES[values.dtype], values.strides[0])
            for name, values in columns.items()
        )
    )
    cloud = Cloud(
        points.ctypes.data, TYPES[points.dtype], points.strides[0], count, listed, len(columns)
    )
    cloud.alive = (points, columns)
    return cloud
