"""Prepared data on disk: one folder a scene with NumPy columns, one manifest for all of them.

::

    OUT/manifest.json
    OUT/scenes/<scene>/scene.json      what it was made of, sizes, counts, checksums
    OUT/scenes/<scene>/points.npy ...  columns, one row a point

docs/datasets.md describes the columns and the fields. A scene folder appears under its name only
when it is whole. The manifest is marked incomplete while a preparation runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dela.errors import InputError
from dela.files import atomic_path
from dela.text import parse_json

FORMAT = "dela-prepared"
# Raised when the layout changes, or what a reader makes of the raw files.
VERSION = 1
MANIFEST = "manifest.json"
SCENES = "scenes"
SCENE = "scene.json"
# A folder that is being written, or one that is on its way out.
PARTIAL = ".partial-"

_CHUNK = 1 << 20
_AGAIN = "prepare the data again (`dela data prepare ... --overwrite`)"


@dataclass
class Record:
    """One scene as a dataset's reader gives it.

    Attributes:
        columns: name -> array. ``points`` [N, 3] float64 or float32 is required; ``labels`` [N]
            int16 (class index, -1 ignored), ``color`` [N, 3] uint8, ``normals`` [N, 3], and any
            other [N] column under the name of the point cloud's. Sets of small clouds have their
            points one after the other, ``offsets`` [M + 1] int64 and ``cloud_labels`` [M] int16.
        notes: what was repaired, with path and line.
        malformed: files of a set of clouds that had to be left out, a line each.
    """

    columns: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)


def scene_name(text: str) -> str:
    """A scene's name made fit for a folder: letters, digits, ``.``, ``_``, ``-`` and ``+``."""
    name = re.sub(r"[^\w.+-]+", "_", text.replace("/", "__"))
    return name.lstrip(".") or "_"


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def raw_digest(root: Path, files: Iterable[Path], recipe: Mapping[str, Any]) -> str:
    """sha256 of everything a scene depends on: its raw files, their names, and the settings.

    A missing file counts as such.
    """
    digest = hashlib.sha256(json.dumps([VERSION, recipe], sort_keys=True).encode())
    for path in files:
        name = os.fsencode(os.path.relpath(path, root))
        content = file_digest(path) if path.is_file() else "missing"
        digest.update(b"\0" + name + b"\0" + content.encode())
    return digest.hexdigest()


def write_scene(
    folder: Path, columns: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a scene's columns and ``scene.json``, whole or not at all; replaces an older one.

    Returns:
        What ``scene.json`` says.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{PARTIAL}{folder.name}-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        arrays = {}
        for name, column in columns.items():
            path = temporary / f"{name}.npy"
            np.save(path, np.ascontiguousarray(column), allow_pickle=False)
            arrays[name] = {
                "dtype": column.dtype.str,
                "shape": list(column.shape),
                "sha256": file_digest(path),
            }
        described = {"format": FORMAT, "version": VERSION} | dict(facts) | {"columns": arrays}
        (temporary / SCENE).write_text(_json(described), encoding="utf-8")
        if folder.exists():
            old = folder.with_name(f"{PARTIAL}old-{folder.name}-{secrets.token_hex(4)}")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(folder)
        return described
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_scene(folder: Path) -> dict[str, Any]:
    """A scene's ``scene.json``.

    Raises:
        InputError: it is missing, damaged, or of another version.
    """
    return _read_json(folder / SCENE)


def damage(folder: Path) -> str | None:
    """What keeps a scene's columns from being what was written, or None; reads all of them."""
    try:
        described = read_scene(folder)
    except InputError as error:
        return str(error)
    for name, column in described["columns"].items():
        path = folder / f"{name}.npy"
        try:
            stands = file_digest(path) == column["sha256"]
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        if not stands:
            return f"{path} is not the file that was written: its checksum differs"
    return None


def remove_partial(out: Path) -> int:
    """Removes what a killed preparation left half-written; how many folders that were."""
    count = 0
    for folder in (out / SCENES).glob(f"{PARTIAL}*"):
        shutil.rmtree(folder, ignore_errors=True)
        count += 1
    return count


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json``, replacing an older one."""
    described = {"format": FORMAT, "version": VERSION} | dict(manifest)
    with atomic_path(out / MANIFEST, overwrite=True) as temporary:
        temporary.write_text(_json(described), encoding="utf-8")


def read_manifest(out: Path, complete: bool = True) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Args:
        complete: refuse one whose preparation has not ended.

    Raises:
        InputError: no manifest, a damaged one, another version, an unfinished preparation.
    """
    if not (out / MANIFEST).is_file():
        raise InputError(
            f"{out} holds no prepared data (no {MANIFEST}); give the folder that "
            "`dela data prepare NAME RAW -o FOLDER` made (--data of dela train and eval)"
        )
    manifest = _read_json(out / MANIFEST)
    if complete and not manifest.get("complete"):
        raise InputError(
            f"the preparation of {out} did not finish; repeat its command "
            f"(`dela data prepare {manifest.get('dataset')} {manifest.get('source')} -o {out}`)"
        )
    return manifest


def load_column(folder: Path, name: str) -> np.ndarray:
    """A column of a scene, mapped read-only.

    Raises:
        InputError: it is missing, damaged or cut short.
    """
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; repeat `dela data prepare`") from error
    except (OSError, ValueError, EOFError) as error:
        # An array without rows cannot be mapped.
        with contextlib.suppress(OSError, ValueError, EOFError):
            array = np.load(path, allow_pickle=False)
            if not array.size:
                return array
        raise InputError(
            f"{path} is damaged ({' '.join(str(error).split())}); repeat `dela data prepare`"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        described = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); {_AGAIN}") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise InputError(f"{path} is not of prepared data: it does not say {FORMAT!r}")
    if described.get("version") != VERSION:
        raise InputError(
            f"{path} is of format version {described.get('version')!r}, this dela reads "
            f"{VERSION}; {_AGAIN}"
        )
    return described


def _json(values: Mapping[str, Any]) -> str:
    """JSON with a line for each key, and for each key of a table of tables (scenes, columns)."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
            rows = [f"  {json.dumps(name)}: {json.dumps(each)}" for name, each in value.items()]
            text = "{\n" + ",\n".join(rows) + "\n }"
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
