"""The model's configuration: one frozen dataclass, three published presets, no torch.

The same dictionary form (:meth:`ModelConfig.to_dict`) stands in checkpoints and in the metadata of
exported ONNX files, so a deployment knows how to prepare its input without the training code.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dela.errors import ConfigError

Task = Literal["segmentation", "classification"]

# SPSE adds this under its square root; with directions, whose term can reach -1, more.
EPSILON = 1e-8
EPSILON_WITH_DIRECTIONS = 1.0 + 1e-4

# Column of a scan that tells each point's category, and what the input columns made of it start by.
CATEGORY = "category"


@dataclass(frozen=True)
class ClassInfo:
    """One class: its name, the label code written to files, its colour (RGB, 0-255)."""

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
    nearly linear up to ``log``, so that centimetres near the ground and metres in a tree's crown
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


@dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes a DeLA v2 network and the input it expects.

    Per-stage tuples have one entry per stage. ``grid`` (metres) is for segmentation, ``points``
    (points kept per cloud) for classification; the other is empty.

    ``categories`` are for part segmentation: the category of an object, known beforehand as the
    scan's column ``category`` (0, 1 ..), then conditions the head.

    ``vote_axis`` is what votes turn scans about, the vertical of the training data: ``x``, ``y`` or
    ``z``; empty where the network was trained on scans that all face the same way.
    """

    task: Task
    classes: tuple[ClassInfo, ...]
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    neighbors: tuple[int, ...]
    spread: tuple[float, ...]
    coordinate_scale: float
    grid: tuple[float, ...] = ()
    points: tuple[int, ...] = ()
    head_dim: int = 0
    attributes: tuple[AttributeInfo, ...] = ()
    directions: tuple[AttributeInfo, ...] = ()
    categories: tuple[CategoryInfo, ...] = ()
    epsilon: float | None = None
    mlp_ratio: float = 2.0
    drop_path: float = 0.1
    head_drop: float = 0.0
    bn_momentum: float = 0.02
    coordinate_loss: bool = True
    vote_axis: str = "z"

    def __post_init__(self) -> None:
        stages = len(self.dims)
        if self.task not in ("segmentation", "classification"):
            raise ConfigError(f"task is {self.task!r}; it must be segmentation or classification")
        if stages < 1:
            raise ConfigError("dims is empty; a network has at least one stage")
        lists: dict[str, tuple[Any, ...]] = {
            "depths": self.depths,
            "neighbors": self.neighbors,
            "spread": self.spread,
        }
        lists["grid" if self.task == "segmentation" else "points"] = (
            self.grid if self.task == "segmentation" else self.points
        )
        for name, values in lists.items():
            if len(values) != stages:
                raise ConfigError(
                    f"{name} has {len(values)} entries, dims has {stages}; give one per stage"
                )
            if name != "depths" and any(not value > 0 for value in values):
                raise ConfigError(f"{name} is {list(values)}; every entry must be above 0")
        if any(depth < 0 for depth in self.depths):
            raise ConfigError(f"depths is {list(self.depths)}; no entry may be negative")
        for dim in self.dims:
            if dim < 4 or dim % 4:
                raise ConfigError(f"dims holds {dim}; every dimension must be a multiple of 4")
        if any(a >= b for a, b in zip(self.grid, self.grid[1:], strict=False)):
            raise ConfigError(
                f"grid is {list(self.grid)}; each stage must be coarser than the last"
            )
        if any(a < b for a, b in zip(self.points, self.points[1:], strict=False)):
            raise ConfigError(
                f"points is {list(self.points)}; a stage keeps at most the last one's"
            )
        if self.task == "segmentation" and self.head_dim < 1:
            raise ConfigError(f"head_dim is {self.head_dim}; segmentation needs at least 1")
        if self.task == "classification" and (self.attributes or self.directions):
            raise ConfigError(
                "classification takes coordinates alone; remove attributes/directions"
            )
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
        if len({info.code for info in self.classes}) != len(self.classes):
            raise ConfigError("two classes share a label code; give each its own")
        if len({info.name for info in self.classes}) != len(self.classes):
            raise ConfigError("two classes share a name; give each its own")
        if self.vote_axis not in ("", "x", "y", "z"):
            raise ConfigError(f"vote_axis is {self.vote_axis!r}; it must be x, y, z or empty")
        if not self.coordinate_scale > 0:
            raise ConfigError(f"coordinate_scale is {self.coordinate_scale}; it must be above 0")
        for name in ("drop_path", "head_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        if not 0 < self.bn_momentum <= 1:
            raise ConfigError(f"bn_momentum is {self.bn_momentum}; it must be in (0, 1]")
        if not self.mlp_ratio > 0:
            raise ConfigError(f"mlp_ratio is {self.mlp_ratio}; it must be above 0")
        if self.epsilon is not None and not self.epsilon >= 0:
            raise ConfigError(f"epsilon is {self.epsilon}; it must not be negative")
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
    def stages(self) -> int:
        return len(self.dims)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def input_columns(self) -> tuple[AttributeInfo, ...]:
        """Columns of the pyramid's ``attributes`` array: scalars, directions, then for each
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

    def spse_epsilon(self, stage: int) -> float:
        """Epsilon under SPSE's root at a stage; only stage 0 sees directions."""
        if self.epsilon is not None:
            return self.epsilon
        return EPSILON_WITH_DIRECTIONS if stage == 0 and self.directions else EPSILON

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigError: an unknown or missing key, or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"unknown model key {unknown[0]!r}; known: {', '.join(sorted(known))}"
            )
        converted = dict(values)
        try:
            converted["classes"] = tuple(
                ClassInfo(str(c["name"]), int(c["code"]), tuple(c["color"]))
                for c in values.get("classes", ())
            )
            for key in ("attributes", "directions"):
                converted[key] = tuple(AttributeInfo(**a) for a in values.get(key, ()))
            converted["categories"] = tuple(
                CategoryInfo(str(c["name"]), tuple(c["classes"]))
                for c in values.get("categories", ())
            )
            for key in ("dims", "depths", "neighbors", "spread", "grid", "points"):
                if key in values:
                    converted[key] = tuple(values[key])
            return cls(**converted)
        except ConfigError:
            raise
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"model configuration is not usable: {error}") from error


def _classes(names: str, colors: tuple[tuple[int, int, int], ...]) -> tuple[ClassInfo, ...]:
    return tuple(
        ClassInfo(name, code, colors[code % len(colors)]) for code, name in enumerate(names.split())
    )


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

S3DIS_CLASSES = "ceiling floor wall beam column window door table chair sofa bookcase board clutter"
SCANNET_CLASSES = (
    "wall floor cabinet bed chair sofa table door window bookshelf picture counter desk curtain "
    "refrigerator shower_curtain toilet sink bathtub otherfurniture"
)
SCANOBJECTNN_CLASSES = (
    "bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet"
)
_COLOUR = tuple(AttributeInfo(name, 250.0) for name in ("red", "green", "blue"))

# The published recipes (DeLA v2).
PRESETS: dict[str, ModelConfig] = {
    "s3dis": ModelConfig(
        task="segmentation",
        classes=_classes(S3DIS_CLASSES, PALETTE),
        dims=(64, 128, 256, 512),
        depths=(4, 4, 8, 8),
        neighbors=(24, 32, 32, 32),
        spread=(1.6, 3.8, 7.6, 15.2),
        coordinate_scale=40.0,
        grid=(0.04, 0.08, 0.16, 0.32),
        head_dim=256,
        attributes=(*_COLOUR, AttributeInfo("height", 3.3)),
        drop_path=0.1,
        head_drop=0.15,
        bn_momentum=0.02,
    ),
    "scannet": ModelConfig(
        task="segmentation",
        classes=_classes(SCANNET_CLASSES, PALETTE),
        dims=(80, 128, 192, 352, 640),
        depths=(4, 4, 4, 8, 8),
        neighbors=(24, 32, 32, 32, 32),
        spread=(1.6, 3.0, 5.7, 11.2, 21.5),
        coordinate_scale=60.0,
        grid=(0.02, 0.04, 0.08, 0.16, 0.32),
        head_dim=352,
        attributes=(*_COLOUR, AttributeInfo("height", 2.6)),
        directions=tuple(AttributeInfo(f"normal_{axis}") for axis in "xyz"),
        drop_path=0.1,
        head_drop=0.2,
        bn_momentum=0.02,
    ),
    "scanobjectnn": ModelConfig(
        task="classification",
        classes=_classes(SCANOBJECTNN_CLASSES, PALETTE),
        dims=(96, 192, 384),
        depths=(4, 4, 4),
        neighbors=(24, 24, 24),
        spread=(2.2, 4.4, 8.8),
        coordinate_scale=40.0,
        points=(1024, 256, 64),
        drop_path=0.15,
        bn_momentum=0.1,
        vote_axis="y",
    ),
}


def generic_classes(count: int) -> tuple[ClassInfo, ...]:
    """Classes ``class_0`` .. with codes 0 .. and the palette's colours."""
    return tuple(
        ClassInfo(f"class_{code}", code, PALETTE[code % len(PALETTE)]) for code in range(count)
    )


def resolve_config(preset: str | ModelConfig, **overrides: Any) -> ModelConfig:
    """A preset or configuration with some fields replaced.

    Args:
        preset: a name in :data:`PRESETS` or a configuration.
        overrides: fields of :class:`ModelConfig` (lists are fine for tuples), or ``num_classes``,
            which replaces the classes by generic ones unless their number already fits.

    Raises:
        ConfigError: an unknown preset or field, or a value out of range.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ConfigError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
        preset = PRESETS[preset]
    if not isinstance(preset, ModelConfig):
        raise ConfigError(
            f"preset is {preset!r}; give one of {', '.join(PRESETS)}, or a ModelConfig"
        )
    values = dict(overrides)
    count = values.pop("num_classes", None)
    if count is not None:
        if "classes" in values:
            raise ConfigError("give classes or num_classes, not both")
        if count != preset.num_classes:
            values["classes"] = generic_classes(count)
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"unknown model key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return dataclasses.replace(preset, **values)
