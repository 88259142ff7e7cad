"""Reading and writing point clouds by file name: LAS, LAZ, PLY, PCD, NPY, NPZ and text."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.files import atomic_path


class _Format(NamedTuple):
    read: Callable[[Path], PointCloud]
    write: Callable[[Path, PointCloud], None]


def _las() -> _Format:
    from dela.cloud.formats import las

    return _Format(las.read_las, lambda path, cloud: las.write_las(path, cloud, compress=False))


def _laz() -> _Format:
    from dela.cloud.formats import las

    return _Format(las.read_las, lambda path, cloud: las.write_las(path, cloud, compress=True))


def _ply() -> _Format:
    from dela.cloud.formats import ply

    return _Format(ply.read_ply, ply.write_ply)


def _pcd() -> _Format:
    from dela.cloud.formats import pcd

    return _Format(pcd.read_pcd, pcd.write_pcd)


def _npy() -> _Format:
    from dela.cloud.formats import arrays

    return _Format(arrays.read_npy, arrays.write_npy)


def _npz() -> _Format:
    from dela.cloud.formats import arrays

    return _Format(arrays.read_npz, arrays.write_npz)


def _text() -> _Format:
    from dela.cloud.formats import text

    return _Format(text.read_text, text.write_text)


_FORMATS: dict[str, Callable[[], _Format]] = {
    ".las": _las,
    ".laz": _laz,
    ".ply": _ply,
    ".pcd": _pcd,
    ".npy": _npy,
    ".npz": _npz,
    ".txt": _text,
    ".csv": _text,
    ".xyz": _text,
    ".asc": _text,
}
SUFFIXES = tuple(_FORMATS)
_TEXT_SUFFIXES = (".txt", ".csv", ".xyz", ".asc")


def read_cloud(path: str | os.PathLike[str]) -> PointCloud:
    """Reads a scan; the suffix tells the format.

    Column names are brought to the canonical ones (``red``, ``intensity``, ``normal_x`` ...),
    colours to 0-255; every other column keeps its name. The points come in the file's order. A
    file without points gives a cloud of length 0, and non-finite coordinates come as they are:
    both are for the caller to judge.

    Raises:
        InputError: a missing file, a folder, an unknown suffix, a damaged or truncated file, one
            without x, y and z.
    """
    path = Path(path)
    _check_readable(path)
    chosen = _format_of(path)
    try:
        return chosen.read(path)
    except InputError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # lazrs reports some damage as a Rust panic, no Exception
        raise InputError(
            f"{path} cannot be read as {path.suffix[1:].upper()} (damaged or cut short?): "
            f"{_reason(error)}"
        ) from error


def read_extent(path: str | os.PathLike[str]) -> np.ndarray | None:
    """Lowest and highest x, y, z [2, 3] of a LAS or LAZ file, from its header alone.

    None for the other formats, which do not say, and for a header that cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() not in (".las", ".laz"):
        return None
    from dela.cloud.formats.las import read_las_extent

    return read_las_extent(path)


def write_cloud(path: str | os.PathLike[str], cloud: PointCloud, overwrite: bool = False) -> Path:
    """Writes a scan whole or not at all; the suffix tells the format.

    A cloud that was read from the same format keeps what the file had beside the points (header,
    coordinate reference, scales, types, comments, faces while the number of points is the same);
    new columns are added as the format's extra dimensions or properties. Points stay in order.

    Returns:
        The path written.

    Raises:
        InputError: the file exists (without ``overwrite``), cannot be written, or the format
            cannot hold the cloud.
    """
    path = Path(path)
    chosen = _format_of(path)
    with atomic_path(path, overwrite) as temporary:
        try:
            chosen.write(temporary, cloud)
        except OSError:
            raise
        except Exception as error:
            raise InputError(f"cannot write {path}: {_reason(error)}") from error
    return path


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Says early, before long work, that no format has this suffix.

    Raises:
        InputError: an unknown suffix, or none.
    """
    _format_of(Path(path))


def find_scans(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The scan files among files and folders, each once, folders searched through and sorted.

    A folder's text files count only where it holds no scan of another format (they are too often
    notes); hidden files never do.

    Raises:
        InputError: a path that does not exist, a file of an unknown suffix, a folder without scans.
    """
    found: dict[Path, None] = {}
    for each in paths:
        path = Path(each)
        if not path.is_dir():
            _check_readable(path)
            _format_of(path)
            found[path] = None
            continue
        scans = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in _FORMATS
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        )
        chosen = [file for file in scans if file.suffix.lower() not in _TEXT_SUFFIXES] or scans
        if not chosen:
            raise InputError(f"{path} holds no scan; looked for {', '.join(SUFFIXES)}")
        found.update(dict.fromkeys(chosen))
    if not found:
        raise InputError("no scan given; name files or folders")
    return list(found)


def _format_of(path: Path) -> _Format:
    opener = _FORMATS.get(path.suffix.lower())
    if opener is None:
        what = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a scan file in it")
        raise InputError(f"{path} has {what}; known formats: {', '.join(SUFFIXES)}")
    return opener()


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a scan file in it")
    if not path.exists():
        raise InputError(f"{path} does not exist")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
