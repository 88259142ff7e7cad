"""The C library: labels for whole scans in C and C++ programs, without Python.

Its functions are declared in ``include/dela.h`` and live in the native library; this module only
tells build systems where the pieces of the installed package lie.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def get_include() -> str:
    """Folder of ``dela.h`` and ``dela.hpp``, for a compiler's ``-I``."""
    return str(_HERE / "include")


def get_cmake_dir() -> str:
    """Folder of the CMake package, for ``cmake -Ddela_DIR=`` and ``find_package(dela)``.

    Its target ``dela::dela`` brings the headers and links the native library.
    """
    return str(_HERE / "cmake")
