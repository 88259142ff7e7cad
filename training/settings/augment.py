"""``[augment]`` of the training configuration: which random changes, and how large."""

from __future__ import annotations

from dataclasses import dataclass

from dela.errors import ConfigError
from dela.training.settings.ranges import at_least, between

AXES = ("x", "y", "z")


@dataclass(frozen=True)
class AugmentConfig:
    """``[augment]``: random changes to each training sample; zero switches one off.

    Attributes:
        up: the vertical axis of the data: ``z``, or ``y`` for some object datasets.
        rotate_z: largest turn about the vertical, degrees either way.
        tilt: largest turn about a random horizontal axis, degrees.
        rotate_all: turn evenly over all rotations in space instead.
        flip: mirror the two horizontal axes, each with probability one half.
        scale: least and largest scale factor.
        scale_axes: draw a factor per axis rather than one for all.
        elastic: pairs (granularity, magnitude) in meters: smooth noise on a grid of this cell size
            moves the points by this many meters per unit of noise; one pair after the other.
        elastic_share: probability of a sample that is distorted at all.
        jitter: standard deviation of the noise on coordinates, meters, clipped at three of them.
        drop_points: largest share of points left out.
        cutout: most balls cut out of a sample of ``data.points``; smaller samples lose fewer in
            proportion, at least one.
        cutout_radius: of these balls, meters.
        mix: probability of a sample made of two: scenes laid over each other, so that objects are
            recognized without their usual surroundings, or objects of which a part of the points
            is another's.
        mix_end: what ``mix`` has fallen or risen to, evenly, at the end of the training; None: it
            stays.
        color_drop: probability of a sample without color (all zero).
        color_contrast: probability of stretching the colors to the full range, partly.
        color_jitter: standard deviation of the noise on color, in units of the full range.
        color_shift: largest shift of a whole color channel, in units of the full range.
        intensity_scale: largest relative change of a whole ``intensity`` column.
        height_shift: largest shift of the height columns, meters.
        normal_drop: probability of a sample without normals (all zero).
    """

    up: str = "z"
    rotate_z: float = 180.0
    tilt: float = 0.0
    rotate_all: bool = False
    flip: bool = True
    scale: tuple[float, float] = (0.9, 1.1)
    scale_axes: bool = False
    elastic: tuple[tuple[float, float], ...] = ()
    elastic_share: float = 0.95
    jitter: float = 0.0
    drop_points: float = 0.0
    cutout: int = 0
    cutout_radius: float = 0.5
    mix: float = 0.0
    mix_end: float | None = None
    color_drop: float = 0.0
    color_contrast: float = 0.0
    color_jitter: float = 0.0
    color_shift: float = 0.0
    intensity_scale: float = 0.0
    height_shift: float = 0.0
    normal_drop: float = 0.0

    def __post_init__(self) -> None:
        if self.up not in AXES:
            raise ConfigError(f"augment.up is {self.up!r}; it must be x, y or z")
        between("augment.rotate_z", self.rotate_z, 0, 180)
        between("augment.tilt", self.tilt, 0, 90)
        for name in ("mix", "color_drop", "color_contrast", "normal_drop", "elastic_share"):
            between(f"augment.{name}", getattr(self, name), 0, 1)
        if self.mix_end is not None:
            between("augment.mix_end", self.mix_end, 0, 1)
        between("augment.drop_points", self.drop_points, 0, 0.95)
        between("augment.intensity_scale", self.intensity_scale, 0, 0.95)
        for name in ("jitter", "color_jitter", "color_shift", "height_shift", "cutout"):
            at_least(f"augment.{name}", getattr(self, name), 0)
        if not self.cutout_radius > 0:
            raise ConfigError(
                f"augment.cutout_radius is {self.cutout_radius}; it must be above 0 (metres)"
            )
        for granularity, magnitude in self.elastic:
            if not (granularity > 0 and magnitude >= 0):
                raise ConfigError(
                    f"augment.elastic is {[list(pair) for pair in self.elastic]}; each pair is a "
                    "cell size above 0 and a magnitude, metres"
                )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(
                f"augment.scale is {list(self.scale)}; give the least and largest factor, above 0"
            )

    @property
    def vertical(self) -> int:
        """Index of the vertical axis."""
        return AXES.index(self.up)

    @property
    def turns_about(self) -> str:
        """The vertical where samples are turned about it by any angle, else empty."""
        return self.up if self.rotate_all or self.rotate_z == 180 else ""

    def mix_at(self, progress: float) -> float:
        """Probability of a mixed sample at this share of the training, 0..1."""
        end = self.mix if self.mix_end is None else self.mix_end
        return self.mix + (end - self.mix) * progress


NOTHING = AugmentConfig(rotate_z=0.0, flip=False, scale=(1.0, 1.0))
