"""What the formats share: canonical column names, color scales, lossless casts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import numpy as np

from dela.errors import InputError, ScanWarning

COLORS = ("red", "green", "blue")
NORMALS = ("normal_x", "normal_y", "normal_z")
AXES = ("x", "y", "z")
MAX_COLUMNS = 1 << 16
_TOLD = 12  # columns in a message

_SPELLINGS = {
    "red": ("r", "diffuse_red"),
    "green": ("g", "diffuse_green"),
    "blue": ("b", "diffuse_blue"),
    "intensity": ("i",),
    "return_number": ("returnnumber", "return_num"),
    "number_of_returns": ("numberofreturns", "num_returns"),
    "classification": ("class",),
    "label": ("labels",),
    "normal_x": ("nx", "normalx", "n_x"),
    "normal_y": ("ny", "normaly", "n_y"),
    "normal_z": ("nz", "normalz", "n_z"),
}
_CANONICAL = {spelling: name for name, more in _SPELLINGS.items() for spelling in (name, *more)}
_INTEGERS = (*COLORS, "classification", "label", "return_number", "number_of_returns")

# Classes of LAS, return numbers and the parts of objects stay below; colors of a scan do not.
_CODES = 31


def column_names(names: Iterable[str]) -> dict[str, str]:
    """Name in the file -> name of the column, in the file's order.

    Known spellings become the canonical names (``nx`` -> ``normal_x``, CloudCompare's
    ``scalar_Intensity`` -> ``intensity``); the others, and second claims to a name, stay.
    """
    names = list(names)
    taken = set(names)
    result = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).removeprefix("scalar_")
        known = _CANONICAL.get(plain, name)
        result[name] = name if known in taken else known
        taken.add(result[name])
    return result


def axis_names(names: Sequence[str], path: object, what: str) -> tuple[str, str, str]:
    """The names of x, y and z as the file spells them.

    Raises:
        InputError: one is missing; names those present.
    """
    lower = {name.lower(): name for name in reversed(names)}
    missing = [axis for axis in AXES if axis not in lower]
    if missing:
        present = ", ".join(names) or "none"
        raise InputError(f"{path} has no {what} {', '.join(missing)}; present: {present}")
    return lower["x"], lower["y"], lower["z"]


def check_column_count(count: int, path: object) -> None:
    """Refuses a file that declares more columns than any scan has, before they are named.

    Raises:
        InputError: more than :data:`MAX_COLUMNS`.
    """
    if count > MAX_COLUMNS:
        raise InputError(
            f"{path} declares {count} columns, more than {MAX_COLUMNS}; is it a scan? "
            "Keep the columns you need"
        )


def check_declared_bytes(declared: int, path: Path, what: str) -> None:
    """Refuses sizes that a file of this length does not justify, before memory is asked for.

    The budget is 10 times the file's length plus 300 MB.

    Raises:
        InputError: ``declared`` bytes are over the budget.
    """
    if declared > 10 * path.stat().st_size + 300_000_000:
        raise InputError(
            f"{path}: {what} would take {declared / 1e6:,.0f} MB, out of proportion to the file "
            "(damaged?); if it is right, save it with less compression"
        )


def unique_name(name: str, taken: Container[str]) -> str:
    """``name``, with underscores behind it while it is taken."""
    while name in taken:
        name += "_"
    return name


def unique_names(names: Iterable[str]) -> list[str]:
    """The names, each once: ``a``, ``a_``, ``a_2`` ... where one comes again; in linear time."""
    names = list(names)
    taken = set(names)
    seen: set[str] = set()
    again: dict[str, int] = {}
    result = []
    for name in names:
        own = name
        while own in seen or (own != name and own in taken):
            again[name] = again.get(name, 0) + 1
            own = f"{name}_" if again[name] == 1 else f"{name}_{again[name]}"
        seen.add(own)
        result.append(own)
    return result


def column_list(text: str | Sequence[str]) -> tuple[str, ...]:
    """The names in ``x,y,z,intensity``, as the user gives them for a file's columns.

    Raises:
        InputError: a name that is empty or there twice, or no x, y and z.
    """
    parts = text.split(",") if isinstance(text, str) else text
    names = tuple(part.strip() for part in parts)
    spelled = ",".join(names)
    if not all(names):
        raise InputError(f"columns {spelled}: a name is empty; give x,y,z,intensity or the like")
    missing = [axis for axis in AXES if axis not in {name.lower() for name in names}]
    if missing:
        raise InputError(f"columns {spelled}: {', '.join(missing)} missing; name x, y and z, too")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InputError(f"columns {spelled}: {twice} is there twice")
    return names


def check_colors(columns: dict[str, np.ndarray], path: object) -> None:
    """Refuses columns named as colors whose values can be none.

    Raises:
        InputError: red, green or blue is negative, above 65535, or neither whole nor within 0..1.
    """
    held = {name: columns[name] for name in COLORS if name in columns}
    shares = all(((column >= 0) & (column <= 1)).all() for column in held.values())
    for name, column in held.items():
        possible = (column >= 0) & (column <= 65535) & ((column == np.rint(column)) | shares)
        if not possible.all():
            raise InputError(
                f"{path}: column {name!r} holds {column[~possible][0]:g}, which is no color; "
                "name the columns in the file's order, such as x,y,z,intensity,red,green,blue"
            )


def decoded(raw: bytes) -> tuple[str, str]:
    """Text and its encoding: as a byte order mark says, else UTF-8, else Latin-1."""
    marks = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    marked = next((encoding for mark, encoding in marks if raw.startswith(mark)), "utf-8")
    for encoding in (marked, "utf-8"):
        try:
            return raw.decode(encoding), encoding
        except UnicodeDecodeError:
            pass
    return raw.decode("latin-1"), "latin-1"


def native(array: np.ndarray) -> np.ndarray:
    """A contiguous copy or view in the machine's byte order."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def positional_names(values: np.ndarray, path: object) -> list[str]:
    """Names for the columns of a table [N, C >= 3] that carries none; a warning tells them.

    x y z, then what the values alone can be: three columns of unit vectors are normals, three of
    whole numbers 0..255 that return numbers and classes do not reach are colors, colors and unit
    vectors both. All else is ``column_3`` ...: intensity, a label and a channel of color look
    alike.
    """
    width = values.shape[1]
    names = [*AXES, *(f"column_{index}" for index in range(3, width))]
    if width == 6:
        names[3:] = NORMALS if _are_normals(values[:, 3:]) else names[3:]
        names[3:] = COLORS if _are_colors(values[:, 3:]) else names[3:]
    elif width == 9 and _are_colors(values[:, 3:6]) and _are_normals(values[:, 6:]):
        names[3:] = [*COLORS, *NORMALS]
    if width > 3 and len(values):
        told = ",".join(names[:_TOLD]) + (",..." if width > _TOLD else "")
        warnings.warn(
            f"{path} does not name its columns; taken as {told} (--columns x,y,z,... names them)",
            ScanWarning,
            stacklevel=2,
        )
    return names


def _are_normals(values: np.ndarray) -> bool:
    """Whether rows [N, 3] are unit vectors; a few may be zero, as unknown normals are."""
    length = np.linalg.norm(values.astype(np.float64), axis=1)
    unit = np.abs(length - 1) < 0.02
    return len(unit) > 0 and bool((unit | (length == 0)).all()) and bool(unit.mean() > 0.9)


def _are_colors(values: np.ndarray) -> bool:
    """Whether rows [N, 3] are whole, within 0..255, and above any return number or class."""
    values = np.asarray(values)
    whole = (values >= 0) & (values <= 255) & (values == np.rint(values))
    return len(values) > 0 and bool(whole.all()) and bool((values.max(axis=0) > _CODES).all())


def integers_where_whole(columns: dict[str, np.ndarray]) -> None:
    """Colors, labels and return counts that a table held as whole floats become integers."""
    for name in _INTEGERS:
        column = columns.get(name)
        if column is None or column.dtype.kind != "f" or len(column) == 0:
            continue
        if not np.isfinite(column).all() or np.abs(column).max() > 2**31 - 1:
            continue
        whole = column.astype(np.int32)
        if (whole == column).all():
            columns[name] = whole


def colors_to_255(columns: dict[str, np.ndarray]) -> float:
    """Brings ``red``, ``green``, ``blue`` to 0-255, in place.

    Integers up to 255 are 8-bit values (whatever the type that holds them). Larger ones are 16-bit:
    multiples of 257 or of 256 were widened from 8 bits and become those, the rest is divided by
    257. Floats within 0..1 are multiplied by 255. A 16-bit scan darker than 256/65535 throughout
    cannot be told from an 8-bit one.

    Returns:
        The factor that leads back: ``raw = column * factor``.
    """
    if any(name not in columns for name in COLORS):
        return 1.0
    raw = [columns[name] for name in COLORS]
    kinds = {channel.dtype.kind for channel in raw}
    low = min(channel.min(initial=0) for channel in raw)
    high = max(channel.max(initial=0) for channel in raw)
    if kinds == {"f"} and low >= 0 and 0 < high <= 1:
        for name, channel in zip(COLORS, raw, strict=True):
            columns[name] = channel.astype(np.float64) * 255.0
        return 1.0 / 255.0
    if not kinds <= {"u", "i"} or low < 0 or high > 65535:
        return 1.0
    raw = [channel.astype(np.uint16) for channel in raw]
    steps = (1,) if high <= 255 else (257, 256)
    for step in steps:
        if all(not (channel % step).any() for channel in raw):
            for name, channel in zip(COLORS, raw, strict=True):
                columns[name] = (channel // step).astype(np.uint8)
            return float(step)
    for name, channel in zip(COLORS, raw, strict=True):
        columns[name] = channel.astype(np.float32) / np.float32(257.0)
    return 257.0


def colors_from_255(column: np.ndarray, factor: float, dtype: np.dtype) -> np.ndarray:
    """A color column back on the file's scale, rounded and cut where ``dtype`` is integer."""
    if factor == 1.0 and column.dtype == dtype:
        return column
    raw = column.astype(np.float64) * factor
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        raw = np.clip(np.rint(np.nan_to_num(raw)), limits.min, limits.max)
    return raw.astype(dtype)


def lossless(column: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """``column`` as ``dtype``, or None where a value would change; floats keep NaN."""
    if column.dtype == dtype:
        return column
    if column.dtype.kind == "f" and dtype.kind in "uib":
        if not np.isfinite(column).all():
            return None
        limits = np.iinfo(dtype) if dtype.kind != "b" else None
        low, high = (limits.min, limits.max) if limits is not None else (0, 1)
        if len(column) and (column.min() < low or column.max() > high):
            return None
    with np.errstate(over="ignore", invalid="ignore"):
        cast = column.astype(dtype)
        back = cast.astype(column.dtype)
    if column.dtype.kind == "f":
        return cast if np.array_equal(back, column, equal_nan=True) else None
    same_sign = dtype.kind == "f" or not ((column < 0) != (cast < 0)).any()
    return cast if same_sign and np.array_equal(back, column) else None


def color_property(column: np.ndarray) -> np.ndarray:
    """Colors as the 8-bit values that viewers expect."""
    return colors_from_255(column, 1.0, np.dtype(np.uint8))
