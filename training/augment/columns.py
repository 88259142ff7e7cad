"""Random changes to the network's input columns: color, heights, intensity.

Attributes [N, F] float32 are already scaled (:meth:`~dela.model.contract.AttributeInfo.scaled`), so
each function is told which columns are what (:class:`Columns`); nothing is changed in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dela.cloud.formats.columns import COLORS
from dela.model.contract import AttributeInfo, Contract
from dela.training.settings.augment import AugmentConfig

HEIGHT_NAMES = ("height", "height_above_ground")


@dataclass(frozen=True)
class Columns:
    """Where the attributes that augmentation touches stand in the [N, F] array."""

    infos: tuple[AttributeInfo, ...]
    color: tuple[int, ...]
    height: tuple[int, ...]
    intensity: tuple[int, ...]
    directions: tuple[int, ...]

    @classmethod
    def of(cls, config: Contract) -> Columns:
        infos = config.input_columns
        names = [info.name for info in infos]
        return cls(
            infos,
            tuple(names.index(name) for name in COLORS if name in names),
            tuple(names.index(name) for name in HEIGHT_NAMES if name in names),
            tuple(names.index(name) for name in ("intensity",) if name in names),
            config.vector_columns,
        )


def change_color(
    attributes: np.ndarray,
    columns: Columns,
    config: AugmentConfig,
    generator: np.random.Generator,
) -> np.ndarray:
    """Contrast, shift, noise and drop of the color columns, in that order."""
    rows = list(columns.color)
    if not rows:
        return attributes
    color = np.stack([columns.infos[i].raw(attributes[:, i]) for i in rows], axis=1) / 255
    if generator.random() < config.color_contrast:
        low, high = color.min(0), color.max(0)
        stretched = (color - low) / np.maximum(high - low, 1e-3)
        blend = np.float32(generator.random())
        color = blend * stretched + (1 - blend) * color
    if config.color_shift:
        shift = generator.uniform(-config.color_shift, config.color_shift, len(rows))
        color = color + shift.astype(np.float32)
    if config.color_jitter:
        noise = generator.standard_normal(color.shape, np.float32)
        color = color + np.float32(config.color_jitter) * noise
    color = color.clip(0, 1)
    if generator.random() < config.color_drop:
        color = np.zeros_like(color)
    changed = attributes.copy()
    for i, values in zip(rows, color.T, strict=True):
        changed[:, i] = columns.infos[i].scaled(values * 255)
    return changed


def scale_height(attributes: np.ndarray, columns: Columns, factor: float) -> np.ndarray:
    """Height columns as if z had been multiplied by ``factor``."""
    return _scale_raw(attributes, columns, columns.height, factor)


def shift_height(
    attributes: np.ndarray, columns: Columns, meters: float | np.ndarray
) -> np.ndarray:
    """Height columns with some meters added, everywhere the same or [N] a point's own."""
    changed = attributes.copy()
    for column in columns.height:
        info = columns.infos[column]
        changed[:, column] = info.scaled(info.raw(attributes[:, column]) + meters)
    return changed


def scale_intensity(attributes: np.ndarray, columns: Columns, factor: float) -> np.ndarray:
    """The intensity column as if the sensor answered ``factor`` times as strongly."""
    return _scale_raw(attributes, columns, columns.intensity, factor)


def _scale_raw(
    attributes: np.ndarray, columns: Columns, which: tuple[int, ...], factor: float
) -> np.ndarray:
    """Some columns as if the file's own values had been multiplied by ``factor``."""
    changed = attributes.copy()
    for column in which:
        info = columns.infos[column]
        changed[:, column] = info.scaled(info.raw(attributes[:, column]) * np.float32(factor))
    return changed


def drop_normals(attributes: np.ndarray, columns: Columns) -> np.ndarray:
    """The direction columns all zero, as of a scan without normals."""
    changed = attributes.copy()
    changed[:, list(columns.directions)] = 0
    return changed
