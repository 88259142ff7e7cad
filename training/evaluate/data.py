"""Which labelled scans a network is scored on: a split of a configuration, or files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from dela.cloud.formats import LABEL_COLUMNS, find_scans, read_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.model.contract import Contract
from dela.training.data.dataset import Dataset
from dela.training.data.kinds import has_labels, open_dataset
from dela.training.data.scans import Scan, label_scan
from dela.training.settings.train import (
    ClassMap,
    DataConfig,
    TrainConfig,
    load_config,
    model_classes,
)


def open_split(
    data: DataConfig, model: Contract, split: str | None, source: str = "the data"
) -> tuple[Dataset, str]:
    """A split of a configuration's data for a network, and its name.

    Args:
        split: ``train``, ``val`` or ``test``; None takes the test split where there is one, else
            the validation split.
        source: how errors name the data.

    Raises:
        InputError: other classes than the network's, or no scans.
    """
    names = [info.name for info in model.classes]
    offered = [info.name for info in model_classes(data)]
    if offered != names:
        raise InputError(
            f"{source} has the classes {', '.join(offered)}; the network tells apart "
            f"{', '.join(names)}; give the configuration it was trained with"
        )
    name = split or ("test" if has_labels(data, "test") else "val")
    return open_dataset(data, model, name), name


def checkpoint_data(path: Path) -> DataConfig:
    """``[data]`` of the training that a checkpoint comes from.

    Raises:
        CheckpointError: no checkpoint.
        InputError: it does not come from a training.
    """
    from dela.artifacts.checkpoint import load_checkpoint

    extra = load_checkpoint(path).extra
    if "training" not in extra:
        raise InputError(f"{path} does not say what data it was trained on; give --config or scans")
    return TrainConfig.from_dict(extra["training"]).data


def config_data(path: Path, root: Path | None) -> DataConfig:
    """``[data]`` of a configuration file."""
    return load_config(path, data_root=root).data


def open_files(
    paths: Sequence[Path],
    model: Contract,
    *,
    label: str | None = None,
    columns: str | None = None,
    aliases: Mapping[int, int] | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Dataset:
    """Labelled scans in files, whose label codes are the codes of the network's classes.

    Codes that no class has are not scored.

    Args:
        paths: files and folders.
        label: the column of true codes; None takes ``classification`` or ``label``.
        columns: names for the files' columns, as :func:`~dela.cloud.formats.read_cloud` takes them.
        aliases: code in the files -> code of a class, for files with finer classes.
        warn: told which codes are not scored.

    Raises:
        InputError: a network for objects, no scans, no such column, an alias to a code that no
            class has, or no point with a class.
    """
    if model.task != "segmentation":
        raise InputError(
            "the network classifies objects; files with a label per point do not score it, give "
            "--config with prepared objects"
        )
    data = _network_classes(model, aliases or {})
    known = {code for info in data.classes for code in info.codes}
    left_out: dict[int, int] = {}
    scans: list[Scan] = []
    for path in find_scans(paths):
        cloud = read_cloud(path, columns)
        column = label or next((n for n in LABEL_COLUMNS if n in cloud.columns), LABEL_COLUMNS[0])
        other = _unknown_codes(cloud, column, known)
        for code, count in other.items():
            left_out[int(code)] = left_out.get(int(code), 0) + count
        own = dataclasses.replace(data, label=column, ignore=tuple(other))
        scans.append(label_scan(cloud, str(path), own, model))
    if not scans:
        raise InputError(f"no scans in {', '.join(map(str, paths))}")
    dataset = Dataset(scans, data, model)
    if not dataset.class_counts().any():
        raise InputError(
            f"no point of the scans has a class of the network; its codes are "
            f"{', '.join(map(str, sorted(known)))}, the scans have "
            f"{', '.join(map(str, sorted(left_out))) or 'none'}"
        )
    if left_out:
        listed = ", ".join(f"{code} ({count:,})" for code, count in sorted(left_out.items()))
        warn(f"codes that no class has are not scored: {listed} points")
    return dataset


def _network_classes(model: Contract, aliases: Mapping[int, int]) -> DataConfig:
    """``[data]`` of files whose codes are those of a network's classes."""
    codes: dict[int, list[int]] = {info.code: [info.code] for info in model.classes}
    for code, meant in aliases.items():
        if meant not in codes:
            raise InputError(
                f"code {code} is to count as {meant}, which no class has; "
                f"codes: {', '.join(map(str, codes))}"
            )
        codes[meant].append(code)
    classes = (
        ClassMap(info.name, tuple(codes[info.code]), info.code, info.color)
        for info in model.classes
    )
    return DataConfig(kind="folder", classes=tuple(classes))


def _unknown_codes(cloud: PointCloud, column: str, known: Collection[int]) -> dict[int, int]:
    """Codes of a scan that no class has, and how many points have each."""
    if column not in cloud.columns:
        return {}
    values, counts = np.unique(cloud.columns[column], return_counts=True)
    found = zip(values.tolist(), counts.tolist(), strict=True)
    return {code: count for code, count in found if code not in known}
