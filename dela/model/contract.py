"""The contract every network shares: its task, classes, input columns and sampling. No torch.

Each family of networks extends :class:`Contract` by fields of its own. The same dictionary form
(:meth:`Contract.to_dict`) stands in checkpoints and in the metadata of exported ONNX files, so a
deployment knows how to prepare its input without the training code.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np

from dela.errors import ConfigError
from dela.model.fields import read_fields
from dela.text import brief

Task = Literal["segmentation", "classification"]

# Column of a scan that tells each point's category, and what the input columns made of it start by.
CATEGORY = "category"

# Of a cloud that is named as a whole.
_MOST_POINTS = 1_000_000


@dataclass(frozen=True)
class ClassInfo:
    """One class: its name, the label code written to files, its color (RGB, 0-255)."""

    name: str
    code: int
    color: tuple[int, int, int] = (128, 128, 128)


@dataclass(frozen=True)
class AttributeInfo:
    """One input column of the network: ``(raw - offset) / scale``, about 0..1.

    ``name`` is a column of the point cloud (``red``, ``intensity``, ``return_number``,
    ``normal_x`` ...) or one computed from the coordinates: ``height`` (above the lowest point) or
    ``height_above_ground`` (above the local ground).

    With ``log`` above 0, in the column's own unit, raw is first ``sign(raw) ln(1 + |raw| / log)``:
    nearly linear up to ``log``, so that centimeters near the ground and meters in a tree's crown
    both show.
    """

    name: str
    scale: float = 1.0
    offset: float = 0.0
    log: float = 0.0

    def scaled(self, raw: np.ndarray) -> np.ndarray:
        """What the network sees of the column's own values, before it is cut to a range."""
        if self.log:
            raw = np.sign(raw) * np.log1p(np.abs(raw) / self.log)
        return (raw - self.offset) / self.scale

    def raw(self, scaled: np.ndarray) -> np.ndarray:
        """The column's own values; inverse of :meth:`scaled`."""
        raw = scaled * self.scale + self.offset
        return np.sign(raw) * np.expm1(np.abs(raw)) * self.log if self.log else raw


@dataclass(frozen=True)
class CategoryInfo:
    """A kind of object whose parts are told apart: its name and the classes its parts have."""

    name: str
    classes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What the rest of the package knows of a network; families add fields of their own.

    ``grid`` holds voxel sizes in meters, finest first, where points are labelled; ``points`` the
    points kept of a cloud, most first, where clouds are.

    ``categories`` are for part segmentation: the category of an object, known beforehand as the
    scan's column ``category`` (0, 1 ..), then conditions the head.

    ``vote_axis`` is what votes turn scans about, the vertical of the training data: ``x``, ``y`` or
    ``z``; empty where the network was trained on scans that all face the same way.

    Attributes:
        family: name of the family, one of :data:`dela.families.FAMILIES`.
    """

    family: ClassVar[str] = ""

    task: Task
    classes: tuple[ClassInfo, ...]
    grid: tuple[float, ...] = ()
    points: tuple[int, ...] = ()
    attributes: tuple[AttributeInfo, ...] = ()
    directions: tuple[AttributeInfo, ...] = ()
    categories: tuple[CategoryInfo, ...] = ()
    vote_axis: str = "z"

    def __post_init__(self) -> None:
        if self.task not in ("segmentation", "classification"):
            raise ConfigError(
                f"task is {brief(self.task)}; it must be segmentation or classification"
            )
        self._check_sampling()
        self._check_classes()
        self._check_columns()
        if self.vote_axis not in ("", "x", "y", "z"):
            raise ConfigError(f"vote_axis is {self.vote_axis!r}; it must be x, y, z or empty")

    def _check_sampling(self) -> None:
        name, sizes = (
            ("grid", self.grid) if self.task == "segmentation" else ("points", self.points)
        )
        if not sizes:
            raise ConfigError(f"{name} is empty; {self.task} needs at least one size")
        if any(not size > 0 for size in sizes):
            raise ConfigError(f"{name} is {list(sizes)}; every entry must be above 0")
        if any(a >= b for a, b in itertools.pairwise(self.grid)):
            raise ConfigError(
                f"grid is {list(self.grid)}; each stage must be coarser than the last"
            )
        if max(self.points, default=0) > _MOST_POINTS:
            raise ConfigError(f"points is {list(self.points)}; at most {_MOST_POINTS} are possible")
        if any(a < b for a, b in itertools.pairwise(self.points)):
            raise ConfigError(
                f"points is {list(self.points)}; a stage keeps at most the last one's"
            )

    def _check_classes(self) -> None:
        if not self.classes:
            raise ConfigError("classes is empty; name at least one")
        if self.categories and self.task != "segmentation":
            raise ConfigError("categories are for part segmentation; remove them")
        for category in self.categories:
            for index in category.classes:
                if not 0 <= index < len(self.classes):
                    raise ConfigError(
                        f"category {category.name} has the class {index}; "
                        f"classes are numbered 0..{len(self.classes) - 1}"
                    )
        for info in self.classes:
            if not -(2**31) <= info.code < 2**31:
                raise ConfigError(
                    f"class {info.name!r} has the code {brief(info.code)}; codes have 32 bits"
                )
            if any(not 0 <= level <= 255 for level in info.color):
                raise ConfigError(
                    f"class {info.name!r} has the color {list(info.color)}; give red, green and "
                    "blue from 0 to 255"
                )
        if len({info.code for info in self.classes}) != len(self.classes):
            raise ConfigError("two classes share a label code; give each its own")
        if len({info.name for info in self.classes}) != len(self.classes):
            raise ConfigError("two classes share a name; give each its own")

    def _check_columns(self) -> None:
        if self.task == "classification" and (self.attributes or self.directions):
            raise ConfigError(
                "classification takes coordinates alone; remove attributes/directions"
            )
        for info in (*self.attributes, *self.directions):
            if not math.isfinite(info.scale) or info.scale == 0:
                raise ConfigError(f"attribute {info.name}: scale {info.scale} is not usable")
            if not (math.isfinite(info.log) and info.log >= 0):
                raise ConfigError(
                    f"attribute {info.name}: log is {info.log}; give a size in the column's unit, "
                    "or 0 for none"
                )
        for info in self.directions:
            if info.log:
                raise ConfigError(
                    f"direction {info.name}: log is {info.log}; directions turn with the scene, so "
                    "they stay linear"
                )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def least_tensors(self) -> int:
        """As many tensors a network of this configuration has at least: a file that holds fewer is
        refused before the network is built."""
        return 1

    @property
    def input_columns(self) -> tuple[AttributeInfo, ...]:
        """Columns of the network's ``attributes`` array: scalars, directions, then for each
        category whether the point's object belongs to it."""
        return self.attributes + self.directions + self.category_columns

    @property
    def category_columns(self) -> tuple[AttributeInfo, ...]:
        """The last columns of ``attributes``: ``category_0``, ``category_1`` .., 0 or 1."""
        return tuple(AttributeInfo(f"{CATEGORY}_{i}") for i in range(len(self.categories)))

    @property
    def vector_columns(self) -> tuple[int, ...]:
        """Columns of ``attributes`` that turn with the scene: three directions, x, y and z of one
        vector (normals); empty for any other number of directions."""
        first = len(self.attributes)
        return (first, first + 1, first + 2) if len(self.directions) == 3 else ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigError: an unknown or missing key, or a value out of range.
        """
        cls.refuse_unknown(values)
        try:
            return cls(**read_fields(cls, values))
        except TypeError as error:  # a field without a value
            raise ConfigError(f"model configuration is not usable: {error}") from error

    @classmethod
    def refuse_unknown(cls, keys: Iterable[str]) -> None:
        """Raises ConfigError when one of the keys is no field."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(keys) - known)
        if unknown:
            raise ConfigError(
                f"unknown model key {brief(unknown[0])}; known: {', '.join(sorted(known))}"
            )


def numbered_classes(names: str) -> tuple[ClassInfo, ...]:
    """Classes of blank-separated names, with codes 0, 1 .. and the palette's colors."""
    return tuple(
        ClassInfo(name, code, PALETTE[code % len(PALETTE)])
        for code, name in enumerate(names.split())
    )


def generic_classes(count: int) -> tuple[ClassInfo, ...]:
    """Classes ``class_0`` .. with codes 0 .. and the palette's colors."""
    return numbered_classes(" ".join(f"class_{code}" for code in range(count)))


PALETTE = (
    (152, 223, 138),
    (174, 199, 232),
    (255, 187, 120),
    (188, 189, 34),
    (140, 86, 75),
    (23, 190, 207),
    (214, 39, 40),
    (255, 152, 150),
    (44, 160, 44),
    (148, 103, 189),
    (31, 119, 180),
    (255, 127, 14),
    (127, 127, 127),
    (247, 182, 210),
    (227, 119, 194),
    (197, 176, 213),
    (196, 156, 148),
    (158, 218, 229),
    (219, 219, 141),
    (82, 84, 163),
)
