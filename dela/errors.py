"""The exceptions a user meets. Each message is one or two lines: what is wrong, how to mend it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class DelaError(Exception):
    """Base of every error this package raises on purpose; the command line prints it as is."""


class InputError(DelaError, ValueError):
    """A scan, a table or an argument that cannot be used as it is."""


class ScanWarning(UserWarning):
    """What a reader guessed or passed over; the command line prints it as one line on stderr."""


class ConfigError(DelaError, ValueError):
    """A configuration with an unknown key or a value out of range."""


class CheckpointError(DelaError, ValueError):
    """A checkpoint or an ONNX file that is not ours, or of another version."""


class EngineError(DelaError, ValueError):
    """An engine that cannot be built, or that does not fit the machine or the input at hand."""


class MissingDependencyError(DelaError, ImportError):
    """An optional package is needed; the message names the pip command."""


class ParityError(DelaError):
    """A backend does not give PyTorch's answer within the tolerance."""


def write_error(path: str | os.PathLike[str], error: OSError) -> InputError:
    """The error to raise where the system did not let a file be written."""
    if error.errno in _DISK_FULL:
        return InputError(
            f"cannot write {path}: the disk is full ({error.strerror}); nothing was left behind"
        )
    if error.errno in _REFUSED:
        return InputError(
            f"cannot write {path}: {error.strerror}; choose a folder that you may write to"
        )
    return InputError(f"cannot write {path}: {error.strerror or error}")


@contextlib.contextmanager
def name_file_in_errors(
    path: str | os.PathLike[str], *named: str | os.PathLike[str] | None
) -> Iterator[None]:
    """Puts a file's name before an error inside the block that names none of these files."""
    try:
        yield
    except DelaError as error:
        if any(file is not None and os.fspath(file) in str(error) for file in (path, *named)):
            raise
        raise type(error)(f"{path}: {error}") from error
