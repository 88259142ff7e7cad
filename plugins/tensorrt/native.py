"""The native plugins: ``libdela_trt.so``, which TensorRT loads and calls without Python.

The same file serves trtexec, C++ and Triton Inference Server. Its sources are
``plugins/tensorrt_native/``; it holds its kernels, so that it needs nothing beside it.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path
from typing import Any

from dela.plugins.tensorrt import messages, operators

_FILE_NAME = "libdela_trt.so"

_lock = threading.Lock()
_registered: set[str] = set()
_listener_type = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
# The library keeps no reference to it.
_listener: Any = None


def library_path() -> Path:
    """Path of the library, for ``load_library``, ``trtexec --dynamicPlugins`` and their like.

    Raises:
        RuntimeError: no such file beside this package.
    """
    path = Path(__file__).parents[1] / _FILE_NAME
    if not path.is_file():
        raise RuntimeError(
            f"there is no plugin library at {path}; install dela (pip install dela), or in a "
            "checkout: pip install -e ."
        )
    return path


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(f"{path} does not load: {error}; reinstall dela") from error
    library.dela_trt_kernels.restype = ctypes.c_char_p
    library.dela_trt_set_listener.argtypes = [_listener_type]
    library.dela_trt_set_listener.restype = None
    return library


def digest() -> str:
    """SHA-256 over the kernels' images in the library: which kernels its plugins launch.

    Raises:
        RuntimeError: there is no library, or it does not load.
    """
    return str(_library(library_path()).dela_trt_kernels().decode())


def _keep_errors(trt: Any) -> None:
    """Errors of the plugins stand among those of TensorRT."""
    global _listener
    log = messages.logger(trt)
    listener = _listener_type(lambda line: log.log(trt.ILogger.Severity.ERROR, line.decode()))
    _library(library_path()).dela_trt_set_listener(listener)
    _listener = listener


def register(trt: Any) -> None:
    """Makes every plugin known to TensorRT; once per process and bindings, whoever calls again.

    Args:
        trt: the bindings, from :func:`dela.plugins.tensorrt.bindings.load`.

    Raises:
        RuntimeError: there is no library, or TensorRT does not take its plugins.
    """
    with _lock:
        if trt.__name__ in _registered:
            return
        path = library_path()
        registry = trt.get_plugin_registry()
        # None also where a program has loaded the library already: the plugins then decide.
        registry.load_library(str(path))
        for name in operators.OPERATORS:
            if registry.get_creator(name, operators.VERSION, operators.NATIVE_NAMESPACE) is None:
                raise RuntimeError(
                    f"{trt.__name__} {trt.__version__} finds no plugin {name} in {path}; reinstall "
                    "dela, or build with --plugins python"
                )
        _keep_errors(trt)
        _registered.add(trt.__name__)
