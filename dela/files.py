"""Writing files whole or not at all: a temporary neighbor, then one rename."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dela.errors import InputError, write_error


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed onto it when the block ends well.

    The temporary name keeps the suffix, so writers that choose a format by suffix work; the file
    exists (empty) from the start, so an unwritable folder is noticed before any work is done. When
    the block raises anything (Ctrl-C included) the temporary file is removed and ``path`` is as it
    was. A symbolic link is followed: its target is replaced.

    Args:
        path: the file to write; its folder must exist.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: ``path`` exists (without ``overwrite``), is a folder or a device, its folder is
            missing or cannot be written, the disk is full, or any other OSError inside the block.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    check_writable(path, overwrite)
    temporary = target.with_name(f".{target.stem[:64]}.{os.urandom(4).hex()}{target.suffix}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield temporary
        if not overwrite and target.exists():
            raise _exists(path)
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_writable(
    path: str | os.PathLike[str],
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Says early, before long work, that ``path`` cannot be written.

    Args:
        path: the file to write.
        overwrite: whether an existing file may be replaced.
        inputs: files the work reads; none of them is ever replaced.

    Raises:
        InputError: ``path`` exists (without ``overwrite``), is one of ``inputs``, a folder or a
            device, or its folder is missing, is a file or may not be written.
    """
    path = Path(path)
    try:
        for source in map(Path, inputs):
            if path.exists() and source.exists() and path.samefile(source):
                raise InputError(f"{path} is the input itself; choose another name to write")
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file to write")
        if path.exists():
            if not path.is_file():
                raise InputError(f"{path} is not an ordinary file; give another name to write")
            if not overwrite:
                raise _exists(path)
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist; create it first"
            raise InputError(f"cannot write {path}: the folder {folder} {what}")
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise write_error(path, error) from error


def _exists(path: Path) -> InputError:
    return InputError(f"{path} exists; remove it, choose another name or pass --overwrite")
