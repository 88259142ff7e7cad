"""``[model]`` of the training configuration: a preset or explicit sizes, completed by the data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dela.errors import ConfigError
from dela.families.dela.config import PRESETS
from dela.model.class_names import SHAPENETPART_CATEGORIES
from dela.model.contract import PALETTE, AttributeInfo, CategoryInfo, ClassInfo, Contract
from dela.training.settings.data import DataConfig
from dela.training.settings.sections import read_section

# Presets see 1.6 units per coarse voxel: at stage 0 one voxel, later 1.19 of them (3.8 / 3.2 ...).
FIRST_SPREAD = 1.6
LATER_SPREAD = 1.1875
# Units per metre of published object networks; their objects are about 1 m large.
OBJECT_SCALE = 40.0

# What brings a column to about 0..1; a table {name, scale, offset, log} in the file overrides.
ATTRIBUTE_SCALES = {
    "red": 250.0,
    "green": 250.0,
    "blue": 250.0,
    "height": 3.3,
    "height_above_ground": 10.0,
    "intensity": 1000.0,
    "return_number": 5.0,
    "number_of_returns": 5.0,
}


@dataclass(frozen=True)
class ModelSection:
    """``[model]`` as written; None means: from the preset, or derived.

    ``vote_axis`` comes from ``[augment]``: the vertical that samples are turned about.
    """

    preset: str | None = None
    task: str | None = None
    dims: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    neighbors: tuple[int, ...] | int | None = None
    grid: tuple[float, ...] | None = None
    points: tuple[int, ...] | None = None
    spread: tuple[float, ...] | None = None
    coordinate_scale: float | None = None
    head_dim: int | None = None
    attributes: tuple[Any, ...] | None = None
    directions: tuple[Any, ...] | None = None
    categories: tuple[Any, ...] | str | None = None
    epsilon: float | None = None
    mlp_ratio: float | None = None
    drop_path: float | None = None
    head_drop: float | None = None
    bn_momentum: float | None = None
    coordinate_loss: bool | None = None
    vote_axis: str | None = None


@dataclass(frozen=True)
class _CategorySection:
    """One of ``[[model.categories]]``; classes by name or by number."""

    name: str
    classes: tuple[Any, ...]


def attribute_info(value: str | dict[str, Any]) -> AttributeInfo:
    """An attribute from its name (usual scale) or a table ``{name, scale, offset, log}``.

    A logarithmic column without a scale gets the usual one's logarithm.
    """
    if isinstance(value, str):
        return AttributeInfo(value, ATTRIBUTE_SCALES.get(value, 1.0))
    info = read_section(AttributeInfo, value, "model.attributes")
    if "scale" in value:
        return info
    scale = ATTRIBUTE_SCALES.get(info.name, 1.0)
    if info.log > 0 and info.name in ATTRIBUTE_SCALES:
        scale = math.log1p(scale / info.log)
    return dataclasses.replace(info, scale=scale)


def model_config(section: ModelSection, data: DataConfig) -> Contract:
    """The network's configuration from what the file gives, the preset and the data's classes.

    Raises:
        ConfigError: a size is missing, or the parts do not fit each other.
    """
    given = {
        f.name: getattr(section, f.name)
        for f in dataclasses.fields(section)
        if f.name != "preset" and getattr(section, f.name) is not None
    }
    classes = model_classes(data)
    for name in ("attributes", "directions"):
        if name in given:
            given[name] = tuple(attribute_info(value) for value in given[name])
    if "categories" in given:
        given["categories"] = model_categories(given["categories"], classes)
    base: dict[str, Any] = {}
    if section.preset is not None:
        base = _of_preset(section.preset, "grid" in given)
    merged = {"task": "segmentation"} | base | given | {"classes": classes}
    classification = merged["task"] == "classification"
    if classification and data.kind != "prepared":
        raise ConfigError(
            f"model.task is classification; data of kind {data.kind} labels points, objects come "
            "from a folder of `dela data prepare`"
        )
    needed = ("points", "spread") if classification else ("grid",)
    for name in ("dims", "depths", "neighbors", *needed):
        if name not in merged:
            raise ConfigError(f"model.{name} is missing; give it, or a preset")
    stages = len(merged["dims"])
    if isinstance(merged["neighbors"], int):
        merged["neighbors"] = (merged["neighbors"],) * stages
    if not classification:
        _derive_from_grid(merged, stages)
    merged.setdefault("coordinate_scale", OBJECT_SCALE)
    return Contract(**merged)


def _of_preset(name: str, other_grid: bool) -> dict[str, Any]:
    if name not in PRESETS:
        raise ConfigError(f"model.preset is {name!r}; it must be one of: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    base = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    if other_grid:
        for key in ("spread", "coordinate_scale"):
            del base[key]
    return base


def _derive_from_grid(merged: dict[str, Any], stages: int) -> None:
    """Fills in what follows from the voxel sizes."""
    grid = merged["grid"]
    if not grid or not all(size > 0 for size in grid):
        raise ConfigError(f"model.grid is {list(grid)}; every voxel size must be above 0 (metres)")
    scale = merged.setdefault("coordinate_scale", round(FIRST_SPREAD / grid[0], 6))
    merged.setdefault(
        "spread",
        tuple(
            round(scale * size * (LATER_SPREAD if stage else 1.0), 6)
            for stage, size in enumerate(grid)
        ),
    )
    merged.setdefault("head_dim", max(merged["dims"][-1] // 2, 32) if stages else 0)


def model_categories(
    value: str | tuple[Any, ...], classes: Sequence[ClassInfo]
) -> tuple[CategoryInfo, ...]:
    """Categories from tables ``{name, classes}``, or ``"shapenetpart"``.

    Raises:
        ConfigError: an unknown class name, or another word.
    """
    index_of: dict[Any, int] = {info.name: index for index, info in enumerate(classes)}
    index_of |= {index: index for index in range(len(classes))}
    if isinstance(value, str):
        if value != "shapenetpart":
            raise ConfigError(
                f"model.categories is {value!r}; give [[model.categories]] with name and classes, "
                'or "shapenetpart"'
            )
        value = tuple(
            {"name": name, "classes": [f"{name} {part}" for part in range(1, parts + 1)]}
            for name, parts in SHAPENETPART_CATEGORIES.items()
        )
    categories = []
    for table in value:
        written = read_section(_CategorySection, table, "model.categories")
        unknown = [name for name in written.classes if name not in index_of]
        if unknown:
            raise ConfigError(
                f"category {written.name!r} has the class {unknown[0]!r}, which data.classes lacks"
            )
        categories.append(
            CategoryInfo(written.name, tuple(index_of[name] for name in written.classes))
        )
    return tuple(categories)


def model_classes(data: DataConfig) -> tuple[ClassInfo, ...]:
    """The classes a network on this data tells apart, in label order."""
    if data.kind == "rooms":
        return PRESETS["s3dis"].classes
    return tuple(
        ClassInfo(
            info.name,
            info.codes[0] if info.code is None else info.code,
            info.color or PALETTE[index % len(PALETTE)],
        )
        for index, info in enumerate(data.classes)
    )
