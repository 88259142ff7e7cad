"""Reading and writing point clouds by file name: LAS, LAZ, PLY, PCD, NPY, NPZ, KITTI and text.

:data:`FORMATS` holds all that depends on a suffix. A format is a module with a reader and a writer
and its entry there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from dela.cloud.formats.columns import column_list
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.files import atomic_path


@dataclass(frozen=True)
class Format:
    """A file format of point clouds.

    Attributes:
        name: how messages call it.
        read: the cloud in a file; what it raises is reported as damage, an InputError as it is.
        write: puts a cloud into a file, which exists and is empty.
        extent: lowest and highest x, y, z [2, 3] from a header alone, None where it cannot be read;
            None for a format whose files do not say.
        label_column: the column that holds a class.
        label_dtype: its type there.
        unlabelled: what it holds for a point without a class.
        often_notes: files in a folder are as likely something else.
        any_columns: it holds columns of any name; False for one that holds what it is meant for.
        answers: suffix of the files that hold the labels of this format's scans, under the scans'
            own names; empty where a scan holds them itself.
        labels_only: it holds labels without points, and is written and never read.
        nameless: files need not name their columns; ``read`` takes names as a second argument.
    """

    name: str
    read: Callable[..., PointCloud]
    write: Callable[[Path, PointCloud], None]
    extent: Callable[[Path], np.ndarray | None] | None = None
    label_column: str = "label"
    label_dtype: type[np.integer] = np.int32
    unlabelled: int = -1
    often_notes: bool = False
    any_columns: bool = True
    answers: str = ""
    labels_only: bool = False
    nameless: bool = False


def _imported(module: str, function: str) -> Callable[..., Any]:
    """A function of a module of this folder, which is imported at the first call."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"{__name__}.{module}"), function)(*arguments)

    return call


def _las(name: str, write: str) -> Format:
    return Format(
        name,
        _imported("las", "read_las"),
        _imported("las", write),
        extent=_imported("las", "read_las_extent"),
        label_column="classification",
        label_dtype=np.uint8,
        unlabelled=0,  # the specification's "never classified"
    )


def _text(name: str) -> Format:
    read, write = _imported("text", "read_text"), _imported("text", "write_text")
    return Format(name, read, write, often_notes=True, nameless=True)


# Beside coord.npy these hold the other columns of its points (scenes of Pointcept), and no scans.
_BESIDE_COORD = ("color", "normal", "strength", "segment", "segment20", "segment200", "instance")

# suffix -> format; what is entered here is known to every function and command
FORMATS: dict[str, Format] = {
    ".las": _las("LAS", "write_las"),
    ".laz": _las("LAZ", "write_laz"),
    ".ply": Format("PLY", _imported("ply", "read_ply"), _imported("ply", "write_ply")),
    ".pcd": Format("PCD", _imported("pcd", "read_pcd"), _imported("pcd", "write_pcd")),
    ".npy": Format(
        "NPY", _imported("arrays", "read_npy"), _imported("arrays", "write_npy"), nameless=True
    ),
    ".npz": Format(
        "NPZ", _imported("arrays", "read_npz"), _imported("arrays", "write_npz"), nameless=True
    ),
    ".txt": _text("TXT"),
    ".csv": _text("CSV"),
    ".xyz": _text("XYZ"),
    ".asc": _text("ASC"),
    ".pts": _text("PTS"),
    ".bin": Format(
        "KITTI",
        _imported("kitti", "read_kitti"),
        _imported("kitti", "write_kitti"),
        often_notes=True,
        any_columns=False,
        answers=".label",
        nameless=True,
    ),
    ".label": Format(
        "KITTI labels",
        _imported("kitti", "read_labels"),
        _imported("kitti", "write_labels"),
        label_dtype=np.uint32,
        unlabelled=0,
        any_columns=False,
        labels_only=True,
    ),
}
# Columns that hold classes in one format or another.
LABEL_COLUMNS = tuple(dict.fromkeys(each.label_column for each in FORMATS.values()))


def read_cloud(
    path: str | os.PathLike[str], columns: str | Sequence[str] | None = None
) -> PointCloud:
    """Reads a scan; the suffix tells the format.

    Column names are brought to the canonical ones (``red``, ``intensity``, ``normal_x`` ...),
    colors to 0-255; every other column keeps its name. The points come in the file's order. A
    file without points gives a cloud of length 0, and non-finite coordinates come as they are:
    both are for the caller to judge. What had to be guessed is told as a ScanWarning.

    Args:
        columns: names for the columns of a text table or an NPY array, in the file's order, such
            as ``x,y,z,intensity,red,green,blue``; instead of those in a line of names, if any.

    Raises:
        InputError: a missing file, a folder, an unknown suffix, a damaged or truncated file, one
            without x, y and z; columns that do not fit the file, or for a format that names them.
    """
    path = Path(path)
    names = None if columns is None else column_list(columns)
    _check_readable(path)
    chosen = format_of(path)
    if names is not None and not chosen.nameless:
        raise InputError(f"{path}: {chosen.name} names its columns itself; leave columns out")
    try:
        return chosen.read(path) if names is None else chosen.read(path, names)
    except InputError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # lazrs reports some damage as a Rust panic, no Exception
        raise InputError(
            f"{path} cannot be read as {chosen.name} (damaged or cut short?): {_reason(error)}"
        ) from error


def read_extent(path: str | os.PathLike[str]) -> np.ndarray | None:
    """Lowest and highest x, y, z [2, 3] of a LAS or LAZ file, from its header alone.

    None for formats that do not say, and for a header that cannot be read.
    """
    path = Path(path)
    chosen = FORMATS.get(path.suffix.lower())
    return None if chosen is None or chosen.extent is None else chosen.extent(path)


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
    chosen = format_of(path)
    with atomic_path(path, overwrite) as temporary:
        try:
            chosen.write(temporary, cloud)
        except OSError:
            raise
        except Exception as error:
            raise InputError(f"cannot write {path}: {_reason(error)}") from error
    return path


def find_scans(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The scan files among files and folders, each once, folders searched through and sorted.

    A folder's text files count only where it holds no scan of another format (they are too often
    notes); hidden files never do.

    Raises:
        InputError: a path that does not exist, a file of an unknown suffix, a folder without scans.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found.update(dict.fromkeys(_scans_in(path)))
        else:
            _check_readable(path)
            format_of(path)
            found[path] = None
    if not found:
        raise InputError("no scan given; name files or folders")
    return list(found)


def _scans_in(folder: Path) -> list[Path]:
    scans = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in FORMATS
        and not FORMATS[file.suffix.lower()].labels_only
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
        and not _belongs_to_coord(file)
    )
    surely = [file for file in scans if not FORMATS[file.suffix.lower()].often_notes]
    if not scans:
        raise InputError(f"{folder} holds no scan; looked for {', '.join(FORMATS)}")
    return surely or scans


def _belongs_to_coord(file: Path) -> bool:
    return (
        file.suffix.lower() == ".npy"
        and file.stem in _BESIDE_COORD
        and file.with_name("coord.npy").is_file()
    )


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format of a file, by its suffix.

    Raises:
        InputError: a folder, an unknown suffix, or none.
    """
    path = Path(path)
    chosen = FORMATS.get(path.suffix.lower())
    if chosen is None:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a scan file in it")
        what = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise InputError(f"{path} has {what}; known formats: {', '.join(FORMATS)}")
    return chosen


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Says early, before long work, that no format has this suffix.

    Raises:
        InputError: an unknown suffix, or none.
    """
    format_of(path)


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a scan file in it")
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_file():  # opening a pipe would wait for somebody to write
        raise InputError(f"{path} is a pipe or a device; write what it gives into a file first")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
