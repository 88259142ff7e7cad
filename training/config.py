"""The training configuration: one TOML file, read into frozen dataclasses.

Sections: ``[model]`` (a preset or explicit sizes), ``[data]`` with ``[[data.classes]]``,
``[augment]`` and ``[train]``. Unknown keys are refused at every level, with the line, the known
keys and the nearest one.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dela.config import PALETTE, PRESETS, AttributeInfo, ClassInfo, ModelConfig
from dela.errors import ConfigError, InputError
from dela.training.sections import read_section, refuse_unknown

# Presets see 1.6 units per coarse voxel: at stage 0 one voxel, later 1.19 of them (3.8 / 3.2 ...).
FIRST_SPREAD = 1.6
LATER_SPREAD = 1.1875

# What brings a column to about 0..1; a table {name, scale, offset} in the file overrides.
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
class ClassMap:
    """One class of a labelled dataset.

    Attributes:
        name: shown in tables.
        codes: label values in the files that belong to it.
        code: value written by predictions; the first of ``codes`` when None.
        color: RGB 0-255; a colour of the palette when None.
    """

    name: str
    codes: tuple[int, ...]
    code: int | None = None
    color: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not self.codes:
            raise ConfigError(
                f"class {self.name!r} has no codes; list the label values it stands for"
            )
        if self.color is not None and not all(0 <= c <= 255 for c in self.color):
            raise ConfigError(f"class {self.name!r}: color {list(self.color)} is not RGB in 0..255")


@dataclass(frozen=True)
class DataConfig:
    """``[data]``: where samples come from and how large they are.

    Attributes:
        kind: ``rooms`` (generated indoor scans) or ``folder`` (labelled LAS, LAZ, PLY, NPZ files).
        root: folder that relative paths start from; the TOML file's own folder when empty.
        train, val, test: files, folders or globs of each split (``folder``).
        join: the files of a split are parts of one scene, as the tiles of a survey (``folder``).
        context: files, folders or globs whose points surround the validation and test scans, as far
            as a tile's margin; their labels are never read (``folder``).
        label: column holding the class (``folder``).
        classes: the class map (``folder``); rooms bring their own 13 classes.
        ignore: label values that take part as points but are neither trained on nor scored.
        train_rooms, val_rooms, test_rooms: how many rooms each split has (``rooms``).
        room_points: about how many points a generated room has.
        first_seed: seed of the first training room; validation and test rooms follow 10,000 and
            20,000 later.
        points: most points (voxels) in a training sample: the ones nearest a random centre.
        eval_points: most points (voxels) in one run when scoring; larger scans are cut into tiles.
        margin: metres of surroundings a tile carries beyond the part it answers for; 4 voxels of
            the coarsest stage when None.
        balance: share of training samples centred on a class drawn evenly instead of on any point.
    """

    kind: str = "folder"
    root: str = ""
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    join: bool = False
    context: tuple[str, ...] = ()
    label: str = "classification"
    classes: tuple[ClassMap, ...] = ()
    ignore: tuple[int, ...] = ()
    train_rooms: int = 24
    val_rooms: int = 3
    test_rooms: int = 3
    room_points: int = 200_000
    first_seed: int = 0
    points: int = 16_000
    eval_points: int = 60_000
    margin: float | None = None
    balance: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("rooms", "folder"):
            raise ConfigError(f"data.kind is {self.kind!r}; it must be rooms or folder")
        for name in ("points", "eval_points", "train_rooms"):
            _at_least(f"data.{name}", getattr(self, name), 1)
        _at_least("data.room_points", self.room_points, 1000)
        for name in ("val_rooms", "test_rooms", "first_seed"):
            _at_least(f"data.{name}", getattr(self, name), 0)
        _between("data.balance", self.balance, 0, 1)
        if self.margin is not None:
            _at_least("data.margin", self.margin, 0)
        if self.kind == "rooms":
            if self.classes or self.ignore:
                raise ConfigError(
                    'data.classes and data.ignore are for kind = "folder"; remove them'
                )
            return
        if not self.classes:
            raise ConfigError(
                "data.classes is empty; name the classes as [[data.classes]] with name and codes"
            )
        owner: dict[int, str] = dict.fromkeys(self.ignore, "data.ignore")
        for info in self.classes:
            for code in info.codes:
                if code in owner:
                    raise ConfigError(
                        f"label {code} belongs to {owner[code]} and to {info.name}; keep one"
                    )
                owner[code] = info.name


@dataclass(frozen=True)
class AugmentConfig:
    """``[augment]``: random changes to each training sample; zero switches one off.

    Attributes:
        rotate_z: largest turn about the vertical, degrees either way.
        tilt: largest turn about a random horizontal axis, degrees.
        flip: mirror x and y, each with probability one half.
        scale: least and largest scale factor.
        scale_axes: draw a factor per axis rather than one for all.
        jitter: standard deviation of the noise on coordinates, metres, clipped at three of them.
        drop_points: largest share of points left out.
        mix: probability of a sample made of two crops of half the size laid over each other, so
            that objects are recognised without their usual surroundings.
        color_drop: probability of a sample without colour (all zero).
        color_contrast: probability of stretching the colours to the full range, partly.
        color_jitter: standard deviation of the noise on colour, in units of the full range.
        color_shift: largest shift of a whole colour channel, in units of the full range.
        intensity_scale: largest relative change of a whole ``intensity`` column.
        height_shift: largest shift of the height columns, metres.
    """

    rotate_z: float = 180.0
    tilt: float = 0.0
    flip: bool = True
    scale: tuple[float, float] = (0.9, 1.1)
    scale_axes: bool = False
    jitter: float = 0.0
    drop_points: float = 0.0
    mix: float = 0.0
    color_drop: float = 0.0
    color_contrast: float = 0.0
    color_jitter: float = 0.0
    color_shift: float = 0.0
    intensity_scale: float = 0.0
    height_shift: float = 0.0

    def __post_init__(self) -> None:
        _between("augment.rotate_z", self.rotate_z, 0, 180)
        _between("augment.tilt", self.tilt, 0, 90)
        for name in ("mix", "color_drop", "color_contrast"):
            _between(f"augment.{name}", getattr(self, name), 0, 1)
        _between("augment.drop_points", self.drop_points, 0, 0.95)
        _between("augment.intensity_scale", self.intensity_scale, 0, 0.95)
        for name in ("jitter", "color_jitter", "color_shift", "height_shift"):
            _at_least(f"augment.{name}", getattr(self, name), 0)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(
                f"augment.scale is {list(self.scale)}; give the least and largest factor, above 0"
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """``[train]``: length, optimiser and loss.

    Attributes:
        epochs: how many; the cosine schedule ends with the last.
        steps_per_epoch: optimiser steps; 0 means once through the training data.
        batch_size: samples packed into one step.
        learning_rate: at the top of the schedule (AdamW).
        weight_decay: on matrices; 1-D parameters have none.
        warmup: epochs of linear warm-up.
        label_smoothing: share of the target spread over all classes.
        coordinate_loss, coordinate_loss_decay: weight of the coordinate loss,
            ``coordinate_loss * coordinate_loss_decay ** progress``.
        class_weight_power: class weights ``count ** -power`` (mean 1); 0 weighs all alike.
        lovasz: weight of the Lovász loss, which optimises intersection over union; 0 is off.
        clip_gradient: largest gradient norm; 0 leaves it alone.
        weight_average: decay per step of the running average of the weights that is validated and
            saved; 0 saves the weights themselves.
        norm_batches: training batches over which batch-norm statistics are measured anew before
            each validation; 0 keeps the running ones.
        dtype: ``fp32``, ``bf16`` for the dense layers, or ``auto``: bf16 where the device computes
            in it, fp32 elsewhere (other processors emulate it slowly).
        seed: of weights, order and augmentation.
        validate_every: epochs between validations; the last epoch is always validated.
        workers: samples are prepared ahead by this many workers; 0 prepares them in line.
    """

    epochs: int = 100
    steps_per_epoch: int = 0
    batch_size: int = 4
    learning_rate: float = 6e-3
    weight_decay: float = 5e-2
    warmup: float = 5.0
    label_smoothing: float = 0.2
    coordinate_loss: float = 0.25
    coordinate_loss_decay: float = 0.003
    class_weight_power: float = 0.0
    lovasz: float = 0.0
    clip_gradient: float = 0.0
    weight_average: float = 0.0
    norm_batches: int = 16
    dtype: str = "fp32"
    seed: int = 0
    validate_every: int = 1
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every"):
            _at_least(f"train.{name}", getattr(self, name), 1)
        for name in (
            "steps_per_epoch",
            "weight_decay",
            "warmup",
            "coordinate_loss",
            "class_weight_power",
            "lovasz",
            "clip_gradient",
            "norm_batches",
            "seed",
            "workers",
        ):
            _at_least(f"train.{name}", getattr(self, name), 0)
        for name in ("learning_rate", "coordinate_loss_decay"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it must be above 0")
        _between("train.label_smoothing", self.label_smoothing, 0, 0.99)
        _between("train.weight_average", self.weight_average, 0, 0.99999)
        if self.dtype not in ("fp32", "bf16", "auto"):
            raise ConfigError(f"train.dtype is {self.dtype!r}; it must be fp32, bf16 or auto")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on, as read from one TOML file."""

    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: ScheduleConfig = field(default_factory=ScheduleConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for checkpoints."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigError: an unknown key or a value out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        refuse_unknown(values, known, "the configuration")
        return cls(
            model=ModelConfig.from_dict(values["model"]),
            data=read_section(DataConfig, values["data"], "data"),
            augment=read_section(AugmentConfig, values.get("augment", {}), "augment"),
            train=read_section(ScheduleConfig, values.get("train", {}), "train"),
        )


def load_config(
    path: str | Path, overrides: Sequence[str] = (), data_root: str | Path | None = None
) -> TrainConfig:
    """Read a TOML configuration.

    Args:
        path: the file.
        overrides: ``section.key=value`` strings, values written as in TOML; a bare word is a
            string (``data.val=["a.laz"]``, ``train.epochs=3``, ``data.kind=rooms``).
        data_root: folder the data paths start from, instead of ``data.root``.

    Raises:
        InputError: the file is missing or unreadable.
        ConfigError: it is not TOML, has an unknown key, or a value that cannot be used.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: it is not UTF-8 text") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(values, override)
    try:
        return _build(values, path.parent.absolute(), data_root)
    except ConfigError as error:
        line = _line_of(text, str(error))
        where = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{where}: {error}") from error


def attribute_info(value: str | dict[str, Any]) -> AttributeInfo:
    """An attribute from its name (usual scale) or a table ``{name, scale, offset}``."""
    if isinstance(value, str):
        return AttributeInfo(value, ATTRIBUTE_SCALES.get(value, 1.0))
    info = read_section(AttributeInfo, value, "model.attributes")
    if "scale" in value:
        return info
    return dataclasses.replace(info, scale=ATTRIBUTE_SCALES.get(info.name, 1.0))


@dataclass(frozen=True)
class _ModelSection:
    """``[model]`` as written; None means: from the preset, or derived."""

    preset: str | None = None
    dims: tuple[int, ...] | None = None
    depths: tuple[int, ...] | None = None
    neighbors: tuple[int, ...] | int | None = None
    grid: tuple[float, ...] | None = None
    spread: tuple[float, ...] | None = None
    coordinate_scale: float | None = None
    head_dim: int | None = None
    attributes: tuple[Any, ...] | None = None
    directions: tuple[Any, ...] | None = None
    epsilon: float | None = None
    mlp_ratio: float | None = None
    drop_path: float | None = None
    head_drop: float | None = None
    bn_momentum: float | None = None
    coordinate_loss: bool | None = None


def _build(values: dict[str, Any], folder: Path, data_root: str | Path | None) -> TrainConfig:
    refuse_unknown(values, {f.name for f in dataclasses.fields(TrainConfig)}, "the file")
    for name in ("model", "data"):
        if name not in values:
            raise ConfigError(f"the section [{name}] is missing")
    data = read_section(DataConfig, values["data"], "data")
    root = Path(data_root).absolute() if data_root is not None else folder / data.root
    return TrainConfig(
        model=_model_config(read_section(_ModelSection, values["model"], "model"), data),
        data=dataclasses.replace(data, root=str(root)),
        augment=read_section(AugmentConfig, values.get("augment", {}), "augment"),
        train=read_section(ScheduleConfig, values.get("train", {}), "train"),
    )


def _model_config(section: _ModelSection, data: DataConfig) -> ModelConfig:
    given = {
        f.name: getattr(section, f.name)
        for f in dataclasses.fields(section)
        if f.name != "preset" and getattr(section, f.name) is not None
    }
    for name in ("attributes", "directions"):
        if name in given:
            given[name] = tuple(attribute_info(value) for value in given[name])
    if section.preset is not None:
        choices = [name for name, preset in PRESETS.items() if preset.task == "segmentation"]
        if section.preset not in choices:
            raise ConfigError(
                f"model.preset is {section.preset!r}; labelled scans train one of: "
                f"{', '.join(choices)}"
            )
        preset = PRESETS[section.preset]
        base = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
        if "grid" in given:
            for name in ("spread", "coordinate_scale"):
                del base[name]
    else:
        for name in ("dims", "depths", "neighbors", "grid"):
            if name not in given:
                raise ConfigError(f"model.{name} is missing; give it, or a preset")
        base = {}
    merged = base | given | {"task": "segmentation", "classes": model_classes(data)}
    stages = len(merged["dims"])
    if isinstance(merged["neighbors"], int):
        merged["neighbors"] = (merged["neighbors"],) * stages
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
    return ModelConfig(**merged)


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


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, written = override.partition("=")
    path = key.strip().split(".")
    if not equals or len(path) != 2 or not all(path):
        raise ConfigError(f"override {override!r} is not section.key=value")
    try:
        value = tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        value = written.strip()
    section = values.setdefault(path[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"override {override!r}: {path[0]} is not a section")
    section[path[1]] = value


def _line_of(text: str, message: str) -> int | None:
    """The line a message is about: the first that sets the key it names in its section."""
    unknown = re.search(r"unknown key '([^']+)' in (?:\[([\w.]+)\]|the file)", message)
    dotted = re.match(r"(\w+)\.(\w+) is ", message)
    if unknown:
        section, key = unknown.group(2) or "", unknown.group(1)
    elif dotted:
        section, key = dotted.groups()
    else:
        return None
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([\w.\-]+)\s*\]+", line)
        if header:
            current = header.group(1)
            if not section and current.split(".")[0] == key:
                return number
        elif current == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return None


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")


def _between(name: str, value: float, least: float, largest: float) -> None:
    if not least <= value <= largest:
        raise ConfigError(f"{name} is {value}; it must lie in {least}..{largest}")
