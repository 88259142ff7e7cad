"""Kernels that TensorRT for RTX compiles for a GPU, kept in a file beside the engine.

It finishes an engine on the machine that runs it: it compiles kernels for the GPU and for sizes
that it meets, which takes time at every start. The file holds what it compiled; it is of use to the
same GPU, TensorRT and engine only, and nothing is lost without it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dela.errors import InputError
from dela.files import atomic_path

_FORMAT = "dela-kernel-cache 1"
_SUFFIX = ".cache"


class KernelCache:
    """A runtime cache of TensorRT for RTX and its file.

    Args:
        cache: TensorRT's, empty; all contexts of the engine use it.
        engine: the engine file.
        key: what the kernels are of use to: the GPU's name, its compute capability, TensorRT's
            version and the engine's digest. The first three make the file's name, so that machines
            that share a folder keep a file each.

    Attributes:
        path: the file.
    """

    def __init__(self, cache: Any, engine: Path, key: Mapping[str, str]) -> None:
        self._cache = cache
        self._key = {"format": _FORMAT, **key}
        words = (key["gpu"], key["compute_capability"], key["tensorrt_version"])
        name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word) for word in words)
        self.path = engine.with_name(f"{engine.name}.{name}{_SUFFIX}")
        self._written = ""
        self._writable = True

    def load(self) -> None:
        """Gives TensorRT what the file holds; a file that is of no use is told and ignored."""
        if self.path.is_file():
            self._load()
        self._written = _digest(self._kernels())

    def _load(self) -> None:
        try:
            head, _, kernels = self.path.read_bytes().partition(b"\n")
        except OSError as error:
            self._ignored(f"it cannot be read ({error.strerror or error})")
            return
        found = _header(head)
        other = [name for name, value in self._key.items() if found.get(name) != value]
        if found.get("sha256") != _digest(kernels):
            self._ignored("it is damaged")
        elif other:
            self._ignored(f"it is of another {' and '.join(other).replace('_', ' ')}")
        elif not self._cache.deserialize(kernels):
            self._ignored("TensorRT does not take it here")

    def save(self) -> None:
        """Writes the kernels so far, where there are new ones and the folder takes a file."""
        if not self._writable:
            return
        kernels = self._kernels()
        digest = _digest(kernels)
        if digest == self._written:
            return
        header = json.dumps({**self._key, "sha256": digest})
        try:
            with atomic_path(self.path, overwrite=True) as temporary:
                temporary.write_bytes(header.encode() + b"\n" + kernels)
        except InputError:
            # An engine may lie where nothing can be written; the next start compiles again.
            self._writable = False
        self._written = digest

    def _kernels(self) -> bytes:
        serialized = self._cache.serialize()
        return b"" if serialized is None else bytes(memoryview(serialized))

    def _ignored(self, why: str) -> None:
        print(
            f"warning: {self.path} is not used: {why}; kernels are compiled again and it is "
            "written anew",
            file=sys.stderr,
        )


def cache_files(engine: Path) -> list[Path]:
    """Files of kernels beside an engine, one for each GPU and version it has run with."""
    start = f"{engine.name}."
    return sorted(
        path
        for path in engine.parent.iterdir()
        if path.name.startswith(start) and path.name.endswith(_SUFFIX)
    )


def _digest(kernels: bytes) -> str:
    return hashlib.sha256(kernels).hexdigest()


def _header(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
