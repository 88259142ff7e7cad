"""Values from a file for the fields of a dataclass: of the types that the fields say, or refused.

JSON and TOML know no tuples and write whole numbers for others; anybody may have written anything.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from dela.errors import ConfigError
from dela.text import brief

Table = TypeVar("Table")

# Whole numbers are kept in 64 bits.
_LARGEST = 2**63 - 1
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def read_fields(kind: type, values: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """The values that belong to fields of a dataclass, as its constructor takes them.

    Lists become tuples and tables become dataclasses, whole numbers stand for others. Values of no
    field and fields without a value are left out.

    Args:
        kind: the dataclass; its fields are whole and other numbers, strings, truth values, choices,
            dataclasses, and tuples, dictionaries and optional values of these.
        values: from the file.
        name: of the table, for errors.

    Raises:
        ConfigError: a value of another type, or a whole number beyond 64 bits.
    """
    hints, before = typing.get_type_hints(kind), f"{name}." if name else ""
    known = [
        field.name for field in dataclasses.fields(typing.cast(Any, kind)) if field.name in values
    ]
    return {key: _read(hints[key], values[key], f"{before}{key}") for key in known}


def read_dataclass(kind: type[Table], values: Any, name: str) -> Table:
    """A dataclass of a table whose every key is a field's.

    Raises:
        ConfigError: as :func:`read_fields`; an unknown key, or a field that is missing.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} is {brief(values)}; expected a table")
    refuse_unknown(
        values, {field.name for field in dataclasses.fields(typing.cast(Any, kind))}, f"[{name}]"
    )
    for spec in dataclasses.fields(typing.cast(Any, kind)):
        required = spec.default is spec.default_factory is dataclasses.MISSING
        if required and spec.name not in values:
            raise ConfigError(f"{name}.{spec.name} is missing")
    return kind(**read_fields(kind, values, name))


def refuse_unknown(values: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raises ConfigError for a key that is not known, with the nearest one that is."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(
                f"unknown key {brief(key)} in {where}{hint}; known: {', '.join(sorted(known))}"
            )


def _read(kind: Any, value: Any, name: str) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or origin is typing.Literal:
        return value  # a choice is checked by its dataclass
    if origin in (types.UnionType, typing.Union):
        return _read_union(parts, value, name)
    if origin is tuple:
        return _read_tuple(parts, value, name)
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{name} is {brief(value)}; expected a table")
        return {key: _read(parts[1], each, f"{name}.{brief(key)}") for key, each in value.items()}
    if dataclasses.is_dataclass(kind):
        return read_dataclass(typing.cast(type, kind), value, name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and abs(value) > _LARGEST:
        raise ConfigError(f"{name} is {brief(value)}; expected at most 63 bits")
    if kind is float and whole:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} is {brief(value)}; expected {_WORDS.get(kind, kind.__name__)}")
    return value


def _read_union(parts: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in parts:
        return None
    choices = [part for part in parts if part is not type(None)]
    lists = [part for part in choices if typing.get_origin(part) is tuple]
    if lists and isinstance(value, list | tuple):
        return _read(lists[0], value, name)
    return _read(choices[-1], value, name)


def _read_tuple(parts: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} is {brief(value)}; expected a list")
    if parts[-1] is Ellipsis:
        return tuple(_read(parts[0], each, name) for each in value)
    if len(value) != len(parts):
        raise ConfigError(f"{name} is {brief(list(value))}; expected {len(parts)} values")
    return tuple(_read(part, each, name) for part, each in zip(parts, value, strict=True))
