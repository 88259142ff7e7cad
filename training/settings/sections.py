"""TOML tables to dataclasses: every key and type checked, unknown keys refused."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

from dela.errors import ConfigError

Section = TypeVar("Section")


def read_section(cls: type[Section], values: Any, name: str) -> Section:
    """A dataclass from a TOML table, every key and type checked."""
    if not isinstance(values, dict):
        raise ConfigError(f"{name} is {values!r}; expected a table")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    refuse_unknown(values, set(fields), f"[{name}]")
    kinds = typing.get_type_hints(cls)
    for key, spec in fields.items():
        missing = spec.default is dataclasses.MISSING
        if missing and spec.default_factory is dataclasses.MISSING and key not in values:
            raise ConfigError(f"{name}.{key} is missing")
    return cls(**{key: _convert(v, kinds[key], f"{name}.{key}") for key, v in values.items()})


def _convert(value: Any, kind: Any, name: str) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        choices = [part for part in parts if part is not type(None)]
        lists = [part for part in choices if typing.get_origin(part) is tuple]
        chosen = lists if lists and isinstance(value, list | tuple) else choices
        return _convert(value, chosen[-1] if chosen is choices else chosen[0], name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} is {value!r}; expected a list")
        if parts[-1] is Ellipsis:
            return tuple(_convert(v, parts[0], name) for v in value)
        if len(value) != len(parts):
            raise ConfigError(f"{name} is {list(value)}; expected {len(parts)} values")
        return tuple(_convert(v, part, name) for v, part in zip(value, parts, strict=True))
    if dataclasses.is_dataclass(kind):
        return read_section(typing.cast(type, kind), value, name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
        raise ConfigError(f"{name} is {value!r}; expected {words.get(kind, kind.__name__)}")
    return value


def refuse_unknown(values: dict[str, Any], known: set[str], where: str) -> None:
    """Raises ConfigError for a key that is not known, with the nearest one that is."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(
                f"unknown key {key!r} in {where}{hint}; known: {', '.join(sorted(known))}"
            )


def at_least(name: str, value: float, least: float) -> None:
    """Raises ConfigError for a value below ``least``."""
    if not value >= least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")


def between(name: str, value: float, least: float, largest: float) -> None:
    """Raises ConfigError for a value outside ``least`` .. ``largest``."""
    if not least <= value <= largest:
        raise ConfigError(f"{name} is {value}; it must lie in {least}..{largest}")
