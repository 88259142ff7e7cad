"""LZF, the compression of PCD: sizes are checked first, the native library decompresses."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from dela.plugins import native

# A reference of three bytes stands for at most this many.
_LONGEST_REFERENCE = 264


@functools.cache
def _decompressor() -> Any:
    function = native.library().dela_lzf_decompress
    function.restype = ctypes.c_int32
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]
    return function


def lzf_decompress(data: np.ndarray, size: int) -> np.ndarray:
    """[size] uint8 of LZF data [n] uint8 (Lehmann's liblzf).

    Raises:
        ValueError: the data cannot give, or do not give, exactly ``size`` bytes.
    """
    if size > (len(data) // 3 + 1) * _LONGEST_REFERENCE:
        raise ValueError(f"{len(data)} compressed bytes cannot hold {size}")
    data = np.ascontiguousarray(data, np.uint8)
    result = np.empty(size, np.uint8)
    if _decompressor()(data.ctypes.data, len(data), result.ctypes.data, size) != 0:
        raise ValueError(f"its compressed body does not give the {size} bytes promised")
    return result
