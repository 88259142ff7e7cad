"""Finds and loads the native library; the ctypes signatures live beside their callers."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

ABI_VERSION = 3
WAITING_POLICIES = ("watched", "set", "other", "unmeasured")
ISA_NAMES = ("portable", "v2", "v3", "v4", "neon")
_FILE_NAME = "libdela.dylib" if sys.platform == "darwin" else "libdela.so"


class NativeLibraryError(RuntimeError):
    """The native library is missing, of another version, or refused a call."""


def library_path() -> Path:
    """Path of the shared library, for ctypes and for ONNX Runtime's custom-op loader.

    ``DELA_LIBRARY`` names another build (a sanitizer build, for example).

    Raises:
        NativeLibraryError: no such file beside this package.
    """
    path = Path(os.environ.get("DELA_LIBRARY") or Path(__file__).with_name(_FILE_NAME))
    if not path.is_file():
        raise NativeLibraryError(
            f"there is no native library at {path}; install dela (pip install dela), or in a "
            "checkout: pip install -e ."
        )
    return path


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library; every call returns the same object.

    When torch is already imported its OpenMP runtime is reused, so both share one thread pool.
    """
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeLibraryError(f"{path} does not load: {error}") from error
    loaded.dela_abi_version.restype = ctypes.c_int32
    version = loaded.dela_abi_version()
    if version != ABI_VERSION:
        raise NativeLibraryError(
            f"{path} has ABI version {version}, this dela needs {ABI_VERSION}; reinstall dela"
        )
    loaded.dela_isa.restype = ctypes.c_char_p
    loaded.dela_set_isa.restype = ctypes.c_int32
    loaded.dela_set_isa.argtypes = [ctypes.c_char_p]
    # Threads spin for each other only while the cores are free, see plugins/cpu/waiting.cpp.
    loaded.dela_watch_waiting.restype = ctypes.c_int32
    loaded.dela_watch_waiting()
    loaded.dela_waits_shortly.restype = ctypes.c_int32
    loaded.dela_force_waiting.restype = None
    loaded.dela_force_waiting.argtypes = [ctypes.c_int32]
    return loaded


def active_isa() -> str:
    """Instruction set in use, one of ``ISA_NAMES``: v2 to v4 are x86-64's levels, neon is ARM's."""
    return library().dela_isa().decode()


def set_isa(name: str) -> None:
    """Forces an instruction set, or the best one with ``auto``; for tests and benchmarks."""
    if library().dela_set_isa(name.encode()) != 0:
        raise NativeLibraryError(
            f"instruction set {name!r} is not available here; choose 'auto' or one of "
            f"{', '.join(ISA_NAMES)} that this processor has"
        )


def waiting_policy() -> str:
    """Who decides how OpenMP's threads wait for each other.

    ``watched``: this library, by the load; ``set``: the user, in OMP_WAIT_POLICY or
    GOMP_SPINCOUNT; ``other``: the OpenMP runtime, which is not libgomp; ``unmeasured``: libgomp,
    for the system does not say how long threads wait for a core.
    """
    return WAITING_POLICIES[library().dela_watch_waiting()]


def waits_shortly() -> bool:
    """Whether threads sleep soon after they begin to wait; they spin otherwise."""
    return bool(library().dela_waits_shortly())


def force_waiting(shortly: bool | None) -> None:
    """Short waits or spinning whatever the load, for tests and benchmarks; None: by the load."""
    library().dela_force_waiting(-1 if shortly is None else int(shortly))


def check(status: int, what: str) -> None:
    """Turns a status code of the C ABI into an exception that names the call."""
    if status == 0:
        return
    if status == 1:
        raise MemoryError(f"{what}: out of memory")
    raise NativeLibraryError(f"{what}: the native library refused its arguments (code {status})")
