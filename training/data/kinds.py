"""Opening the scans of a split: one entry of a table for each ``data.kind``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dela.cloud.formats import read_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import ConfigError, InputError
from dela.model.contract import Contract
from dela.training.data.dataset import Dataset
from dela.training.data.prepared import open_scans, prepared_has_labels, prepared_names
from dela.training.data.scans import AnyScan, Scan, join_scans, label_scan
from dela.training.prepare.plan import ScanProgress
from dela.training.settings.augment import AugmentConfig
from dela.training.settings.data import SPLITS, ClassMap, DataConfig
from dela.training.settings.model import model_classes
from dela.training.settings.splits import named_files, room_seeds, split_files

# A scan's name, and what reads or generates it.
_Source = tuple[str, Callable[[], PointCloud]]


@dataclass(frozen=True)
class DataKind:
    """What one ``data.kind`` means, as functions of ``[data]`` and the name of a split.

    Attributes:
        open: the scans of a split, for a network.
        names: whether the configuration names any scan for a split.
        scored: whether they can be scored, that is, have labels.
    """

    open: Callable[[DataConfig, Contract, str, ScanProgress | None], Sequence[AnyScan]]
    names: Callable[[DataConfig, str], bool]
    scored: Callable[[DataConfig, str], bool]


def open_dataset(
    data: DataConfig,
    model: Contract,
    split: str,
    augmentation: AugmentConfig | None = None,
    progress: ScanProgress | None = None,
) -> Dataset:
    """Read or generate the scans of a split; prepared ones stay on disk.

    Args:
        data: ``[data]`` of the configuration.
        model: grid sizes, attributes and classes.
        split: ``train``, ``val`` or ``test``.
        augmentation: applied to training samples; none when None.
        progress: called before each scan and after the last.

    Raises:
        InputError: no files, a file that cannot be read, a missing column, or label values that
            are neither in the class map nor ignored.
        ConfigError: an unknown split, or a file in the training split and in another.
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    scans = DATA_KINDS[data.kind].open(data, model, split, progress)
    return Dataset(scans, data, model, augmentation)


def names_scans(data: DataConfig, split: str) -> bool:
    """Whether the configuration names any scan for a split.

    Raises:
        InputError, ConfigError: entries for prepared data that do not fit it.
    """
    return DATA_KINDS[data.kind].names(data, split)


def has_labels(data: DataConfig, split: str) -> bool:
    """Whether a split has scans with labels to score."""
    return DATA_KINDS[data.kind].scored(data, split)


def _open_prepared(
    data: DataConfig, model: Contract, split: str, progress: ScanProgress | None
) -> Sequence[AnyScan]:
    return open_scans(data, model, split)


def _open_files(
    data: DataConfig, model: Contract, split: str, progress: ScanProgress | None
) -> Sequence[AnyScan]:
    sources = [(str(path), _file(path, data.columns)) for path in split_files(data, split)]
    return _read(sources, data, model, split, progress)


def _open_rooms(
    data: DataConfig, model: Contract, split: str, progress: ScanProgress | None
) -> Sequence[AnyScan]:
    sources = [(f"room {seed}", _room(seed, data.room_points)) for seed in room_seeds(data, split)]
    # Labeled as files are that hold the codes of the rooms' classes.
    classes = tuple(ClassMap(info.name, (info.code,)) for info in model_classes(data))
    files = replace(data, kind="folder", label="classification", classes=classes)
    return _read(sources, files, model, split, progress)


def _names_files(data: DataConfig, split: str) -> bool:
    return bool(getattr(data, split))


def _names_rooms(data: DataConfig, split: str) -> bool:
    return bool(getattr(data, f"{split}_rooms"))


def _names_prepared(data: DataConfig, split: str) -> bool:
    return bool(prepared_names(data, split))


DATA_KINDS = {
    "prepared": DataKind(_open_prepared, _names_prepared, prepared_has_labels),
    "folder": DataKind(_open_files, _names_files, _names_files),
    "rooms": DataKind(_open_rooms, _names_rooms, _names_rooms),
}


def _read(
    sources: Sequence[_Source],
    data: DataConfig,
    model: Contract,
    split: str,
    progress: ScanProgress | None,
) -> list[Scan]:
    """Scans in memory, one of each source, or one of them all with ``data.join``."""
    if not sources:
        raise InputError(f"data.{split} names no scans; give files, folders or globs")
    beside = _context(data, split)
    scans: list[Scan] = []
    parts: list[tuple[str, PointCloud]] = []
    for number, (name, load) in enumerate(sources):
        if progress:
            progress(number, len(sources), name)
        cloud = load()
        if data.join:
            parts.append((name, cloud))
        else:
            context = [scan for path, scan in beside.items() if path != name]
            scans.append(label_scan(cloud, name, data, model, context))
    if parts:
        names = {name for name, _ in parts}
        context = [scan for path, scan in beside.items() if path not in names]
        scans.append(join_scans(parts, data, model, context))
    if progress:
        progress(len(sources), len(sources), "")
    if not any(scan.class_voxels(model.num_classes).any() for scan in scans):
        raise InputError(f"data.{split} has no labelled point; every label is ignored")
    return scans


def _context(data: DataConfig, split: str) -> dict[str, PointCloud]:
    """The files that may surround the scans of a split, by name."""
    if split == "train" or not data.context:
        return {}
    return {
        str(path): read_cloud(path, data.columns or None) for path in named_files(data, "context")
    }


def _file(path: Path, columns: Sequence[str]) -> Callable[[], PointCloud]:
    return lambda: read_cloud(path, columns or None)


def _room(seed: int, points: int) -> Callable[[], PointCloud]:
    from dela.training.rooms.scan import generate_room

    return lambda: generate_room(seed, points=points)
