"""The random changes of a training sample, in their order.

A piece of a scan is moved (turned, mirrored, scaled, distorted) with the columns that depend on
place; once the sample is whole (:mod:`dela.training.data.samples`), its other columns are changed.
The changes themselves are in :mod:`~dela.training.augment.geometry` and
:mod:`~dela.training.augment.columns`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dela.training.augment.columns import (
    Columns,
    change_color,
    drop_normals,
    scale_height,
    scale_intensity,
    shift_height,
)
from dela.training.augment.geometry import (
    any_rotation,
    elastic_offsets,
    random_flip,
    random_rotation,
    random_scale,
    transform,
    transform_directions,
)
from dela.training.settings.augment import AugmentConfig


@dataclass(frozen=True)
class Motion:
    """What the points of a piece went through.

    Attributes:
        linear: [3, 3] map of coordinates.
        growth: by how much heights grew with it.
        lift: [N] float32 meters that elastic distortion raised each point; None without any.
    """

    linear: np.ndarray
    growth: float
    lift: np.ndarray | None = None

    def select(self, rows: np.ndarray) -> Motion:
        """The same for some of the points."""
        return Motion(self.linear, self.growth, None if self.lift is None else self.lift[rows])


def move_points(
    points: np.ndarray, config: AugmentConfig, generator: np.random.Generator
) -> tuple[np.ndarray, Motion]:
    """Mirror, scale, turn, distort; jitter is left for the points that are kept.

    Args:
        points: [N, 3] float32, meters about the sample's center; untouched.
    """
    factors = random_scale(config.scale, config.scale_axes, generator)
    if config.rotate_all:
        turn = any_rotation(generator)
    else:
        turn = random_rotation(config.rotate_z, config.tilt, generator, config.vertical)
    linear = turn @ np.diag(factors)
    if config.flip:
        linear = linear @ random_flip(generator, config.vertical)
    moved = transform(points, linear)
    lift = None
    if config.elastic and generator.random() < config.elastic_share:
        before = moved[:, config.vertical]
        for granularity, magnitude in config.elastic:
            moved = moved + elastic_offsets(moved, granularity, magnitude, generator)
        lift = moved[:, config.vertical] - before
    return moved, Motion(linear, float(factors[config.vertical]), lift)


def move_attributes(attributes: np.ndarray, columns: Columns, motion: Motion) -> np.ndarray:
    """Heights and directions after their points were moved; [N, F], the given ones untouched.

    Heights stay what they are under rotations and flips, grow with the vertical scale and follow
    elastic distortion.
    """
    if columns.height:
        attributes = scale_height(attributes, columns, motion.growth)
        if motion.lift is not None:
            attributes = shift_height(attributes, columns, motion.lift)
    if columns.directions:
        rows = list(columns.directions)
        attributes = attributes.copy()
        attributes[:, rows] = transform_directions(attributes[:, rows], motion.linear)
    return attributes


def change_attributes(
    attributes: np.ndarray,
    columns: Columns,
    config: AugmentConfig,
    generator: np.random.Generator,
) -> np.ndarray:
    """Color, normals, heights and intensity of a whole sample; [N, F], untouched as given."""
    attributes = change_color(attributes, columns, config, generator)
    if columns.directions and generator.random() < config.normal_drop:
        attributes = drop_normals(attributes, columns)
    if columns.height and config.height_shift:
        meters = generator.uniform(-config.height_shift, config.height_shift)
        attributes = shift_height(attributes, columns, meters)
    if columns.intensity and config.intensity_scale:
        factor = 1 + generator.uniform(-config.intensity_scale, config.intensity_scale)
        attributes = scale_intensity(attributes, columns, factor)
    return attributes
