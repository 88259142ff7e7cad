"""Random changes to a training sample: small pure functions of arrays and a generator.

Coordinates are metres about the sample's centre; attributes are already scaled
(``(raw - offset) / scale``), so each function is told which columns are colour, height,
intensity or directions (:class:`Columns`).

Heights stay what they are under rotation, flips and the small tilt, and are scaled with z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dela.config import AttributeInfo, ModelConfig
from dela.training.config import AugmentConfig

COLOR_NAMES = ("red", "green", "blue")
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
    def of(cls, config: ModelConfig) -> Columns:
        infos = config.input_columns
        names = [info.name for info in infos]
        return cls(
            infos,
            tuple(names.index(name) for name in COLOR_NAMES if name in names),
            tuple(names.index(name) for name in HEIGHT_NAMES if name in names),
            tuple(names.index(name) for name in ("intensity",) if name in names),
            config.vector_columns,
        )


def random_rotation(degrees_z: float, tilt: float, generator: np.random.Generator) -> np.ndarray:
    """[3, 3] rotation: a turn about the vertical, then a tilt about a random horizontal axis."""
    turn = np.radians(generator.uniform(-degrees_z, degrees_z))
    about_z = _rotation(np.array([0.0, 0.0, 1.0]), turn)
    heading = generator.uniform(0, 2 * np.pi)
    lean = np.radians(generator.uniform(-tilt, tilt))
    return _rotation(np.array([np.cos(heading), np.sin(heading), 0.0]), lean) @ about_z


def random_flip(generator: np.random.Generator) -> np.ndarray:
    """[3, 3] diagonal: x and y each mirrored with probability one half."""
    signs = generator.integers(0, 2, 2) * 2.0 - 1.0
    return np.diag([signs[0], signs[1], 1.0])


def random_scale(
    limits: tuple[float, float], per_axis: bool, generator: np.random.Generator
) -> np.ndarray:
    """[3] factors, one for all axes or one each."""
    factors = generator.uniform(limits[0], limits[1], 3)
    return factors if per_axis else np.full(3, factors[0])


def transform(points: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """float32 [N, 3] ``linear @ p`` of every point."""
    return points @ linear.T.astype(np.float32)


def mix_scenes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float32 [N + M, 3]: both scenes in one place, the second moved up or down to the first's
    ground (the 2nd percentile of z). After Nekrasov et al., "Mix3D", 2021."""
    lift = np.percentile(first[:, 2], 2) - np.percentile(second[:, 2], 2)
    return np.concatenate([first, second + np.array([0, 0, lift], np.float32)])


def transform_directions(directions: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Unit normals [N, 3] after their surface went through ``linear``; zero rows stay zero."""
    turned = directions @ np.linalg.inv(linear).astype(np.float32)
    length = np.linalg.norm(turned, axis=1, keepdims=True)
    return turned / np.maximum(length, 1e-12)


def jitter(points: np.ndarray, sigma: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise on coordinates (metres), clipped at three standard deviations."""
    noise = generator.standard_normal(points.shape, np.float32).clip(-3, 3)
    return points + np.float32(sigma) * noise


def keep_rows(count: int, drop: float, generator: np.random.Generator) -> np.ndarray:
    """Ascending rows left after leaving out a random share of at most ``drop``; at least one."""
    share = generator.uniform(0, drop)
    rows = np.flatnonzero(generator.random(count, np.float32) >= share)
    return rows if len(rows) else np.array([generator.integers(count)])


def change_color(
    attributes: np.ndarray,
    columns: Columns,
    config: AugmentConfig,
    generator: np.random.Generator,
) -> np.ndarray:
    """Contrast, shift, noise and drop of the colour columns, in that order."""
    rows = list(columns.color)
    if not rows:
        return attributes
    scale = np.array([columns.infos[i].scale for i in rows], np.float32)
    offset = np.array([columns.infos[i].offset for i in rows], np.float32)
    color = (attributes[:, rows] * scale + offset) / 255
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
    changed[:, rows] = (color * 255 - offset) / scale
    return changed


def scale_height(attributes: np.ndarray, columns: Columns, factor: float) -> np.ndarray:
    """Height columns as if z had been multiplied by ``factor``."""
    changed = attributes.copy()
    for column in columns.height:
        info = columns.infos[column]
        raw = attributes[:, column] * np.float32(info.scale) + np.float32(info.offset)
        changed[:, column] = (raw * np.float32(factor) - np.float32(info.offset)) / info.scale
    return changed


def shift_height(attributes: np.ndarray, columns: Columns, metres: float) -> np.ndarray:
    """Height columns with the same number of metres added everywhere."""
    changed = attributes.copy()
    for column in columns.height:
        changed[:, column] += np.float32(metres / columns.infos[column].scale)
    return changed


def scale_intensity(attributes: np.ndarray, columns: Columns, factor: float) -> np.ndarray:
    """The intensity column as if the sensor answered ``factor`` times as strongly."""
    changed = attributes.copy()
    for column in columns.intensity:
        info = columns.infos[column]
        raw = attributes[:, column] * np.float32(info.scale) + np.float32(info.offset)
        changed[:, column] = (raw * np.float32(factor) - np.float32(info.offset)) / info.scale
    return changed


def augment_points(
    points: np.ndarray, config: AugmentConfig, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Turn, mirror and scale; :func:`jitter` is left for the points that are kept.

    Args:
        points: [N, 3] float32, metres about the sample's centre.

    Returns:
        The changed points (the given ones are untouched), the linear map [3, 3] they went through,
        and by how much heights grew.
    """
    factors = random_scale(config.scale, config.scale_axes, generator)
    linear = np.diag(factors) @ random_rotation(config.rotate_z, config.tilt, generator)
    if config.flip:
        linear = linear @ random_flip(generator)
    return transform(points, linear), linear, float(factors[2])


def augment_attributes(
    attributes: np.ndarray,
    columns: Columns,
    config: AugmentConfig,
    generator: np.random.Generator,
    linear: np.ndarray,
    growth: float,
) -> np.ndarray:
    """Colour, height, intensity and direction columns after :func:`augment_points`.

    Args:
        attributes: [N, F] float32, scaled; untouched.
        linear, growth: what the points went through.
    """
    attributes = change_color(attributes, columns, config, generator)
    if columns.height:
        attributes = scale_height(attributes, columns, growth)
        if config.height_shift:
            metres = generator.uniform(-config.height_shift, config.height_shift)
            attributes = shift_height(attributes, columns, metres)
    if columns.intensity and config.intensity_scale:
        factor = 1 + generator.uniform(-config.intensity_scale, config.intensity_scale)
        attributes = scale_intensity(attributes, columns, factor)
    if columns.directions:
        rows = list(columns.directions)
        attributes = attributes.copy()
        attributes[:, rows] = transform_directions(attributes[:, rows], linear)
    return attributes


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula: [3, 3] rotation about a unit axis."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
