"""A second name for a shared library that this process has loaded.

``dlopen("libx.so")`` searches paths fixed when the process started, unless a library of that SONAME
is loaded already. So an empty library is loaded that has the wanted SONAME and depends on the real
one: looking up a symbol in it finds the real one's.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import tempfile

_MACHINES = {"x86_64": 62, "aarch64": 183}
_HEADER, _SEGMENT, _ENTRY, _SYMBOL = 64, 56, 16, 24
_READ_WRITE = 6
_PAGE = 0x10000
# ELF's numbers for what is used here
_SHARED_OBJECT, _LOAD, _DYNAMIC = 3, 1, 2
_NEEDED, _HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _SONAME = 1, 4, 5, 6, 10, 11, 14


def add_name(name: str, library: str) -> None:
    """Lets ``dlopen(name)`` find a loaded library, for the rest of the process (Linux).

    Args:
        name: file name without a folder, such as ``libx.so``.
        library: SONAME of the loaded library, such as ``libx.so.1``.

    Raises:
        OSError: no such library, or a machine that is neither x86-64 nor aarch64.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(f"{name}: no second name for a library on {machine}")
    # Not memfd_create: its paths return, and the loader knows a library again by its path.
    with tempfile.NamedTemporaryFile(prefix="dela-", suffix=".so") as file:
        file.write(empty_library(name, library, _MACHINES[machine]))
        file.flush()
        ctypes.CDLL(file.name)


def empty_library(soname: str, needed: str, machine: int) -> bytes:
    """An ELF file (64 bit, little endian) that only has a SONAME and depends on ``needed``."""
    strings = b"\0" + soname.encode() + b"\0" + needed.encode() + b"\0"
    dynamic = _HEADER + 2 * _SEGMENT
    symbols = dynamic + 8 * _ENTRY
    hashes = symbols + _SYMBOL
    names = hashes + 16
    size = names + len(strings)
    parts = [
        struct.pack(
            "<4s4B8xHHIQQQIHHHHHH",
            *(b"\x7fELF", 2, 1, 1, 0, _SHARED_OBJECT, machine, 1, 0, _HEADER, 0, 0),
            *(_HEADER, _SEGMENT, 2, 64, 0, 0),
        ),
        struct.pack("<IIQQQQQQ", _LOAD, _READ_WRITE, 0, 0, 0, size, size, _PAGE),
        struct.pack("<IIQQQQQQ", _DYNAMIC, _READ_WRITE, *(dynamic,) * 3, *(8 * _ENTRY,) * 2, 8),
    ]
    entries = (
        (_NEEDED, 2 + len(soname)),
        (_SONAME, 1),
        (_HASH, hashes),
        (_STRTAB, names),
        (_SYMTAB, symbols),
        (_STRSZ, len(strings)),
        (_SYMENT, _SYMBOL),
        (0, 0),
    )
    parts += [struct.pack("<QQ", *entry) for entry in entries]
    # one symbol, the undefined one every table starts with, in a hash table of one empty bucket
    parts += [bytes(_SYMBOL), struct.pack("<4I", 1, 1, 0, 0), strings]
    return b"".join(parts)
