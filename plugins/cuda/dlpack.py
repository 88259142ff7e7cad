"""DLPack: device arrays to and from other libraries by PyCapsule, through ctypes.

The structures are those of DLPack 0.8 (https://dmlc.github.io/dlpack/latest/c_api.html), which
every library exchanges by default.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from dela.plugins.cuda.driver import LEGACY_STREAM, Device, Stream

# numpy has no such type; on the host its values are the upper 16 bits of float32.
BFLOAT16 = "bfloat16"
DType = np.dtype | str

CUDA, CUDA_HOST, CUDA_MANAGED = 2, 3, 13

# DLPack's type codes of the kinds of numpy dtypes.
_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_BFLOAT_CODE = 4


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("dimensions", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = [
    ("tensor", _Tensor),
    ("context", ctypes.c_void_p),
    ("deleter", _Deleter),
]

_NAME, _USED_NAME = b"dltensor", b"used_dltensor"
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
# By address, because a capsule that is being destroyed must not be referred to again.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_SetName", ctypes.pythonapi)
)

# What other libraries hold at present: the array and the structures that describe it.
_exported: dict[int, tuple[Any, ...]] = {}
_numbers = itertools.count(1)


@_Deleter
def _forget(managed: Any) -> None:
    _exported.pop(managed.contents.context, None)


@_Destructor
def _destroy(capsule: int) -> None:
    # A capsule that nobody took still owns the array.
    if _is_valid(capsule, _NAME):
        managed = ctypes.cast(_pointer(capsule, _NAME), ctypes.POINTER(_Managed))
        _exported.pop(managed.contents.context, None)


def check_strides(shape: Sequence[int], strides: Sequence[int] | None, step: int) -> None:
    """Raises TypeError unless the rows lie one after the other; strides are in units of ``step``
    divided by the size of a value."""
    if strides is None or 0 in shape:
        return
    for size, stride in zip(reversed(shape), reversed(tuple(strides)), strict=True):
        if size > 1 and stride != step:
            raise TypeError(
                f"the array of shape {list(shape)} has gaps or another order (strides "
                f"{list(strides)}); pass a contiguous copy"
            )
        step *= size


def export(array: Any) -> Any:
    """A capsule over a ``DeviceArray``, whose memory then lives until its taker lets go."""
    dimensions = len(array.shape)
    shape = (ctypes.c_int64 * max(dimensions, 1))(*array.shape)
    if array.dtype == BFLOAT16:
        kind = _Type(_BFLOAT_CODE, 16, 1)
    else:
        dtype = np.dtype(array.dtype)
        if dtype.kind not in _CODES:
            raise BufferError(f"DLPack has no dtype {dtype}")
        kind = _Type(_CODES[dtype.kind], 8 * dtype.itemsize, 1)
    number = next(_numbers)
    managed = _Managed(
        _Tensor(
            array.pointer or None,
            _Device(CUDA, array.device.ordinal),
            dimensions,
            kind,
            ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
            None,  # C-contiguous
            0,
        ),
        number,
        _forget,
    )
    _exported[number] = (array, shape, managed)
    return _new_capsule(ctypes.addressof(managed), _NAME, _destroy)


def adopt(source: Any, stream: Stream | None) -> tuple[int, tuple[int, ...], DType, Any, Device]:
    """Pointer, shape, dtype, owner and device of the array behind ``source.__dlpack__()``.

    Raises:
        TypeError: not on a CUDA device, not lent (a tensor that needs a gradient), gaps between
            rows, or a dtype without a name here.
    """
    kind, ordinal = source.__dlpack_device__()
    kind = int(kind)
    if kind not in (CUDA, CUDA_HOST, CUDA_MANAGED):
        raise TypeError(
            f"{type(source).__name__} does not lie on a CUDA device (DLPack device {kind}); copy "
            "it there first"
        )
    device = Device(int(ordinal) if kind == CUDA else 0)
    try:
        capsule = source.__dlpack__(stream=stream.handle if stream else LEGACY_STREAM)
    except BufferError as error:
        raise TypeError(f"{type(source).__name__} is not lent: {error}") from error
    managed = ctypes.cast(_pointer(id(capsule), _NAME), ctypes.POINTER(_Managed))
    tensor = managed.contents.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.dimensions))
    strides = (
        tuple(tensor.strides[axis] for axis in range(tensor.dimensions)) if tensor.strides else None
    )
    # Errors below leave the capsule unused, so it still frees itself.
    check_strides(shape, strides, 1)
    dtype = _dtype(tensor.dtype)
    owner = _Borrowed(managed)
    _set_name(capsule, _USED_NAME)
    if stream is None:
        Stream.borrowed(LEGACY_STREAM, device).synchronize()
    pointer = (tensor.data or 0) + tensor.byte_offset
    return pointer, shape, dtype, owner, device


class _Borrowed:
    """Keeps another library's array alive until ours is gone."""

    def __init__(self, managed: Any) -> None:
        weakref.finalize(self, _return, managed)


def _return(managed: Any) -> None:
    if managed.contents.deleter:
        managed.contents.deleter(managed)


def _dtype(kind: _Type) -> DType:
    if kind.lanes == 1:
        if kind.code == _BFLOAT_CODE and kind.bits == 16:
            return BFLOAT16
        for letter, code in _CODES.items():
            if kind.code == code and kind.bits % 8 == 0:
                try:
                    return np.dtype(f"{letter}{kind.bits // 8}")
                except TypeError:
                    break
    raise TypeError(
        f"the array's dtype (DLPack code {kind.code}, {kind.bits} bits, {kind.lanes} lanes) has no "
        "name in numpy"
    )
