"""``[model]`` of the training configuration: a preset or explicit sizes, completed by the data."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dela.errors import ConfigError
from dela.families import FAMILIES, FIRST, find_family, presets
from dela.families.base import Family
from dela.model.class_names import S3DIS_CLASSES, SHAPENETPART_CATEGORIES
from dela.model.contract import PALETTE, AttributeInfo, CategoryInfo, ClassInfo, numbered_classes
from dela.model.fields import read_dataclass
from dela.training.settings.data import DataConfig

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


# Fields that every family writes in its own way, whatever their type in the configuration.
_WRITTEN: dict[str, Any] = {
    "task": str,
    "attributes": tuple[Any, ...],
    "directions": tuple[Any, ...],
    "categories": tuple[Any, ...] | str,
}


def model_section(values: Any) -> dict[str, Any]:
    """``[model]`` as written: ``family``, ``preset`` and fields of the family's configuration.

    Raises:
        ConfigError: an unknown family, key or type.
    """
    name = FIRST
    if isinstance(values, dict):
        for key in ("family", "preset"):
            if key in values and not isinstance(values[key], str):
                raise ConfigError(f"model.{key} is {values[key]!r}; expected a string")
        preset = presets().get(values.get("preset", ""))
        name = values.get("family", FIRST if preset is None else preset.family)
    if name not in FAMILIES:
        raise ConfigError(f"model.family is {name!r}; it must be one of: {', '.join(FAMILIES)}")
    section = read_dataclass(section_class(find_family(name)), values, "model")
    given = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {key: value for key, value in given.items() if value is not None} | {"family": name}


def section_class(family: Family) -> Any:
    """A dataclass of what may be written: None means from the preset, or derived. The classes are
    those of ``[data]``."""
    kinds = typing.get_type_hints(family.config) | _WRITTEN | dict(family.written)
    names = [field.name for field in dataclasses.fields(family.config) if field.name != "classes"]
    fields = [("family", str | None, None), ("preset", str | None, None)]
    fields += [(name, kinds[name] | None, None) for name in names]
    return dataclasses.make_dataclass("ModelSection", fields, frozen=True)


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
    info = read_dataclass(AttributeInfo, value, "model.attributes")
    if "scale" in value:
        return info
    scale = ATTRIBUTE_SCALES.get(info.name, 1.0)
    if info.log > 0 and info.name in ATTRIBUTE_SCALES:
        scale = math.log1p(scale / info.log)
    return dataclasses.replace(info, scale=scale)


def model_config(section: dict[str, Any], data: DataConfig) -> Any:
    """The network's configuration from what the file gives, the preset and the data's classes.

    Args:
        section: of :func:`model_section`. A ``vote_axis`` left out is ``[augment]``'s vertical.

    Raises:
        ConfigError: a size is missing, or the parts do not fit each other.
    """
    given = dict(section)
    family = find_family(given.pop("family"))
    preset = given.pop("preset", None)
    classes = model_classes(data)
    for name in ("attributes", "directions"):
        if name in given:
            given[name] = tuple(attribute_info(value) for value in given[name])
    if "categories" in given:
        given["categories"] = model_categories(given["categories"], classes)
    base = {} if preset is None else _of_preset(preset, family, "grid" in given)
    merged = {"task": "segmentation"} | base | given | {"classes": classes}
    if merged["task"] == "classification" and data.kind != "prepared":
        raise ConfigError(
            f"model.task is classification; data of kind {data.kind} labels points, objects come "
            "from a folder of `dela data prepare`"
        )
    return family.config(**family.complete(merged))


def _of_preset(name: str, family: Family, other_grid: bool) -> dict[str, Any]:
    if name not in family.presets:
        raise ConfigError(
            f"model.preset is {name!r}; it must be one of: {', '.join(family.presets)}"
        )
    preset = family.presets[name]
    base = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset)}
    if other_grid:
        for key in family.derived_fields:
            del base[key]
    return base


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
        written = read_dataclass(_CategorySection, table, "model.categories")
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
        return numbered_classes(S3DIS_CLASSES)
    return tuple(
        ClassInfo(
            info.name,
            info.codes[0] if info.code is None else info.code,
            info.color or PALETTE[index % len(PALETTE)],
        )
        for index, info in enumerate(data.classes)
    )
