"""Ranges of numbers in TOML tables."""

from __future__ import annotations

from dela.errors import ConfigError


def at_least(name: str, value: float, least: float) -> None:
    """Raises ConfigError for a value below ``least``."""
    if not value >= least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")


def between(name: str, value: float, least: float, largest: float) -> None:
    """Raises ConfigError for a value outside ``least`` .. ``largest``."""
    if not least <= value <= largest:
        raise ConfigError(f"{name} is {value}; it must lie in {least}..{largest}")
