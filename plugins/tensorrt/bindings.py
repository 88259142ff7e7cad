"""Finds and loads the Python bindings of TensorRT or of TensorRT for RTX.

The wheels of TensorRT for RTX hold ``libtensorrt_rtx.so.1`` only, while their ONNX parser opens
``libtensorrt_rtx.so`` and ends the process when there is none. The parser looks beside itself
first, so it is loaded here through a folder of links that has both names.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

# flavour -> modules that hold its bindings, the first installed one is used
MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
}
# flavour -> oldest version that works, first version that is not known to
VERSIONS = {"tensorrt": ((10, 12), (12,)), "tensorrt-rtx": ((1, 3), (2,))}

_RTX_LIBRARY = "libtensorrt_rtx.so"
_RTX_PARSER = "libtensorrt_onnxparser_rtx.so.1"


class TensorRTUnavailable(RuntimeError):
    """TensorRT is not installed, does not load, or is of a version this package does not know."""


@functools.cache
def load(flavour: str) -> ModuleType:
    """The bindings of ``tensorrt`` or ``tensorrt-rtx``, ready to parse ONNX files.

    Raises:
        TensorRTUnavailable: in words, with what to install.
    """
    names = MODULES[flavour]
    name = next((name for name in names if name in sys.modules), None) or next(
        (name for name in names if importlib.util.find_spec(name) is not None), None
    )
    install = f"pip install 'dela[{flavour}]'"
    if name is None:
        raise TensorRTUnavailable(f"{flavour} is not installed; {install}")
    if flavour == "tensorrt-rtx":
        _link_rtx_library(name)
    try:
        bindings = importlib.import_module(name)
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


def _link_rtx_library(module: str) -> None:
    """Sees to it that the parser finds its library, before the bindings load the parser.

    Raises:
        TensorRTUnavailable: somebody loaded the parser before, from where it will not find it.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or spec.origin is None or not sys.platform.startswith("linux"):
        return  # installed from an archive, which has both names
    libraries = Path(spec.origin).parent
    if (libraries / _RTX_LIBRARY).exists() or _opens(_RTX_LIBRARY):
        return
    if module in sys.modules:
        raise TensorRTUnavailable(
            f"{module} was imported before dela, and its ONNX parser would end the process for "
            f"want of {_RTX_LIBRARY}; call dela.plugins.tensorrt.bindings.load('tensorrt-rtx') "
            f"before importing {module}"
        )
    folder = Path(_link_folder().name)
    for path in libraries.glob("*.so.*"):
        (folder / path.name).symlink_to(path)
    (folder / _RTX_LIBRARY).symlink_to(libraries / f"{_RTX_LIBRARY}.1")
    # A parser that does not load is reported by the import that follows.
    with contextlib.suppress(OSError):
        ctypes.CDLL(str(folder / _RTX_PARSER))


@functools.cache
def _link_folder() -> tempfile.TemporaryDirectory[str]:
    # Kept until the process ends: the parser opens the link when it is first used.
    return tempfile.TemporaryDirectory(prefix="dela-tensorrt-")


def _opens(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
