"""Finds and loads the Python bindings of TensorRT or of TensorRT for RTX.

The wheels of TensorRT for RTX hold ``libtensorrt_rtx.so.1`` only, while their ONNX parser opens
``libtensorrt_rtx.so`` and ends the process when there is none. So the library gets its second name
here, whoever imported the bindings first.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import sys
from types import ModuleType

from dela.plugins.tensorrt.library_alias import add_name

# flavour -> modules that hold its bindings, the first installed one is used
MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
}
# flavour -> oldest version that works, first version that is not known to
VERSIONS = {"tensorrt": ((10, 3), (12,)), "tensorrt-rtx": ((1, 7), (2,))}

_RTX_LIBRARY = "libtensorrt_rtx.so"


class TensorRTUnavailable(RuntimeError):
    """TensorRT is not installed, does not load, or is of a version this package does not know."""


@functools.cache
def load(flavour: str) -> ModuleType:
    """The bindings of ``tensorrt`` or ``tensorrt-rtx``, ready to parse ONNX files.

    Raises:
        TensorRTUnavailable: in words, with what to install.
    """
    names = MODULES[flavour]
    name = next((name for name in names if sys.modules.get(name) is not None), None) or next(
        (name for name in names if importlib.util.find_spec(name) is not None), None
    )
    install = f"pip install 'dela[{flavour}]'"
    if name is None:
        raise TensorRTUnavailable(f"{flavour} is not installed; {install}")
    try:
        bindings = importlib.import_module(name)
        if flavour == "tensorrt-rtx" and sys.platform == "linux" and not _opens(_RTX_LIBRARY):
            add_name(_RTX_LIBRARY, f"{_RTX_LIBRARY}.1")
    except (ImportError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TensorRTUnavailable(f"{flavour} does not load: {reason}; {install}") from error
    version = version_of(bindings)
    oldest, limit = VERSIONS[flavour]
    if not oldest <= version < limit:
        raise TensorRTUnavailable(
            f"{flavour} {bindings.__version__} is not supported; dela works with "
            f"{_text(oldest)} up to, not including, {_text(limit)}: {install}"
        )
    return bindings


def version_of(bindings: ModuleType) -> tuple[int, ...]:
    """``10.13.3.9`` as ``(10, 13, 3, 9)``; what follows a part that is no number is left out."""
    numbers: list[int] = []
    for part in str(bindings.__version__).split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _opens(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
