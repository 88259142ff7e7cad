"""The training configuration: one TOML file, read into frozen dataclasses.

Sections: ``[model]`` (a preset or explicit sizes), ``[data]`` with ``[[data.classes]]``,
``[augment]`` and ``[train]``. Unknown keys are refused at every level, with the line, the known
keys and the nearest one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dela.errors import ConfigError, InputError
from dela.families import config_from_dict, config_to_dict
from dela.model.contract import Contract
from dela.model.fields import read_dataclass, refuse_unknown
from dela.text import brief, parse_toml
from dela.training.settings.augment import AugmentConfig
from dela.training.settings.data import ClassMap, DataConfig, named_classes
from dela.training.settings.model import model_classes, model_config, model_section
from dela.training.settings.ranges import at_least, between

__all__ = [
    "AugmentConfig",
    "ClassMap",
    "DataConfig",
    "ScheduleConfig",
    "TrainConfig",
    "load_config",
    "model_classes",
]


@dataclass(frozen=True)
class ScheduleConfig:
    """``[train]``: length, optimizer and loss.

    Attributes:
        epochs: how many; the cosine schedule ends with the last.
        steps_per_epoch: optimizer steps; 0 means once through the training data.
        batch_size: samples that are packed and computed together, in each process.
        batch_points: most points (voxels) computed together in each process: samples are packed
            until so many are there, the last one is cut to what is left; 0 sets no limit.
        accumulate: such batches per optimizer step, one after the other: a step of more samples
            than fit into memory.
        learning_rate: at the top of the schedule (AdamW).
        weight_decay: on matrices; 1-D parameters have none.
        warmup: epochs of linear warm-up.
        warmup_start: share of ``learning_rate`` from which the warm-up starts.
        warmup_inside: the cosine spans the warm-up too, as published, rather than begin after it.
        final_rate: share of ``learning_rate`` at the end.
        label_smoothing: share of the target spread over all classes.
        coordinate_loss, coordinate_loss_decay: weight of the coordinate loss,
            ``coordinate_loss * coordinate_loss_decay ** progress``.
        class_weight_power: class weights ``count ** -power`` (mean 1); 0 weighs all alike.
        lovasz: weight of the Lovász loss, which optimizes intersection over union; 0 is off.
        clip_gradient: largest gradient norm; 0 leaves it alone.
        weight_average: decay per step of the running average of the weights that is validated and
            saved; 0 saves the weights themselves.
        norm_batches: training batches over which batch-norm statistics are measured anew before
            each validation; 0 keeps the running ones.
        dtype: ``fp32``, ``bf16`` for the dense layers, or ``auto``: bf16 where the device computes
            in it, fp32 elsewhere (other processors emulate it slowly).
        checkpoint: compute the layers of the blocks again in the backward pass rather than keep
            what is inside them: less memory, more time, the same numbers.
        compile: ``torch.compile`` the training pass; minutes at the start, fewer launches later.
        sync_norm: batch norms over the samples of all processes rather than each its own.
        seed: of weights, order and augmentation.
        validate_every: epochs between validations; the last epoch is always validated.
        save_minutes: minutes between the checkpoints within an epoch, which a killed run goes on
            from; 0 saves at the end of each epoch alone.
        save_steps: steps between such checkpoints, beside those by the clock; 0 is off.
        workers: samples are prepared ahead by this many workers; 0 prepares them in line.
        worker_processes: workers are processes rather than threads: more of them stay busy, and
            each reads prepared data for itself (other kinds are copied to each).
        gpu_pyramid: build pyramids of scenes on the GPU that trains, the same ones: workers then
            draw, cut out and augment samples alone.
        tensorboard: also write event files for TensorBoard.
        init: checkpoint whose weights the run starts from (``--init``).
        freeze: parts of the network that stay as they are: ``["ellipsoids", "stages.0"]``.
        layer_decay: learning rate of each stage in parts of the next one's, from the head down; 1
            trains all alike.
        low_rank: rank of the adapters (LoRA) that are trained instead of the stages' Linear
            weights, which stay as ``init`` brings them; everything else trains on. 0 is off.
        low_rank_alpha: an adapter's product is scaled by ``low_rank_alpha / low_rank``.
    """

    epochs: int = 100
    steps_per_epoch: int = 0
    batch_size: int = 4
    batch_points: int = 0
    accumulate: int = 1
    learning_rate: float = 6e-3
    weight_decay: float = 5e-2
    warmup: float = 5.0
    warmup_start: float = 0.0
    warmup_inside: bool = False
    final_rate: float = 0.0
    label_smoothing: float = 0.2
    coordinate_loss: float = 0.25
    coordinate_loss_decay: float = 0.003
    class_weight_power: float = 0.0
    lovasz: float = 0.0
    clip_gradient: float = 0.0
    weight_average: float = 0.0
    norm_batches: int = 16
    dtype: str = "fp32"
    checkpoint: bool = False
    compile: bool = False
    sync_norm: bool = False
    seed: int = 0
    validate_every: int = 1
    save_minutes: float = 10.0
    save_steps: int = 0
    workers: int = 1
    worker_processes: bool = False
    gpu_pyramid: bool = False
    tensorboard: bool = False
    init: str = ""
    freeze: tuple[str, ...] = ()
    layer_decay: float = 1.0
    low_rank: int = 0
    low_rank_alpha: float = 8.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "validate_every"):
            at_least(f"train.{name}", getattr(self, name), 1)
        for name in (
            "steps_per_epoch",
            "batch_points",
            "weight_decay",
            "warmup",
            "coordinate_loss",
            "class_weight_power",
            "lovasz",
            "clip_gradient",
            "norm_batches",
            "seed",
            "save_minutes",
            "save_steps",
            "workers",
            "low_rank",
        ):
            at_least(f"train.{name}", getattr(self, name), 0)
        for name in ("learning_rate", "coordinate_loss_decay", "layer_decay", "low_rank_alpha"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it must be above 0")
        between("train.warmup_start", self.warmup_start, 0, 1)
        between("train.final_rate", self.final_rate, 0, 1)
        between("train.label_smoothing", self.label_smoothing, 0, 0.99)
        between("train.layer_decay", self.layer_decay, 0, 1)
        between("train.weight_average", self.weight_average, 0, 0.99999)
        if self.dtype not in ("fp32", "bf16", "auto"):
            raise ConfigError(f"train.dtype is {self.dtype!r}; it must be fp32, bf16 or auto")
        if self.low_rank and not self.init:
            raise ConfigError(
                f"train.low_rank is {self.low_rank} without train.init; adapters go beside trained "
                "weights: give a checkpoint with --init"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run depends on, as read from one TOML file."""

    model: Contract
    data: DataConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: ScheduleConfig = field(default_factory=ScheduleConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for checkpoints."""
        return dataclasses.asdict(self) | {"model": config_to_dict(self.model)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigError: an unknown key or a value out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, dict):
            raise ConfigError(f"the configuration is {brief(values)}; expected a table")
        refuse_unknown(values, known, "the configuration")
        for name in ("model", "data"):
            if name not in values:
                raise ConfigError(f"{name} is missing in the configuration")
        return cls(
            model=config_from_dict(values["model"]),
            data=read_dataclass(DataConfig, values["data"], "data"),
            augment=read_dataclass(AugmentConfig, values.get("augment", {}), "augment"),
            train=read_dataclass(ScheduleConfig, values.get("train", {}), "train"),
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
        values = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(values, override)
    try:
        return _build(values, path.parent.absolute(), data_root)
    except ConfigError as error:
        line = _line_of(text, str(error))
        where = f"{path}, line {line}" if line else str(path)
        raise ConfigError(f"{where}: {error}") from error


def _build(values: dict[str, Any], folder: Path, data_root: str | Path | None) -> TrainConfig:
    refuse_unknown(values, {f.name for f in dataclasses.fields(TrainConfig)}, "the file")
    for name in ("model", "data"):
        if name not in values:
            raise ConfigError(f"the section [{name}] is missing")
    section = values["data"]
    if isinstance(section, dict) and isinstance(section.get("classes"), str):
        section = section | {"classes": named_classes(section["classes"])}
    data = read_dataclass(DataConfig, section, "data")
    root = Path(data_root).absolute() if data_root is not None else folder / data.root
    section_of_model = model_section(values["model"])
    model = model_config(section_of_model, data)
    augment = read_dataclass(AugmentConfig, values.get("augment", {}), "augment")
    if "vote_axis" not in section_of_model:
        model = dataclasses.replace(model, vote_axis=augment.turns_about)
    return TrainConfig(
        model=model,
        data=dataclasses.replace(data, root=str(root)),
        augment=augment,
        train=read_dataclass(ScheduleConfig, values.get("train", {}), "train"),
    )


def override_parts(override: str) -> tuple[str, str, str]:
    """Section, key and value, as written, of ``section.key=value``.

    Raises:
        ConfigError: it is written otherwise.
    """
    key, equals, written = override.partition("=")
    path = key.strip().split(".")
    if not equals or len(path) != 2 or not all(path):
        raise ConfigError(f"override {override!r} is not section.key=value")
    return path[0], path[1], written


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, key, written = override_parts(override)
    try:
        value = parse_toml(f"value = {written}")["value"]
    except ValueError:
        value = written.strip()
    section = values.setdefault(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"override {override!r}: {name} is not a section")
    section[key] = value


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
