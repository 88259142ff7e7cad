"""Prepared data as training reads it: columns mapped from disk, only the rows asked for.

:mod:`dela.training.prepare` writes it. A :class:`PreparedScan` stands for one scene, an
:class:`ObjectScan` for one small cloud of a set; both have the attributes of
:class:`~dela.training.data.scans.Scan`. They hold paths, not arrays, so they are quick to pickle
and any number of them needs no memory.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dela.cloud.formats.columns import COLORS, NORMALS
from dela.errors import ConfigError, InputError
from dela.geometry.cpu import VoxelGrid, voxel_grid
from dela.model.contract import CATEGORY, AttributeInfo, Contract
from dela.scan.attributes import category_number, height_above_ground, scale_column
from dela.scan.voxels import Voxels
from dela.scores.confusion import IGNORED
from dela.training.prepare.encode import GRID_KEPT, GRID_VOXEL
from dela.training.prepare.store import SCENES, load_column, read_manifest
from dela.training.settings.data import DataConfig

_ABOVE_GROUND = "height_above_ground"


class LabelMap:
    """Stored labels (class index of the prepared data, -1 ignored) to those of a configuration."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table  # [classes + 1] int16; the first entry is for -1
        self.identity = np.array_equal(table, np.arange(len(table)) - 1)

    @classmethod
    def of(cls, data: DataConfig, names: Sequence[str]) -> LabelMap:
        """The map of ``data.classes``: by name where it names just the prepared data's classes
        (in any order), else by its codes and ``data.ignore``, which are then stored labels.

        Args:
            names: the prepared data's classes.

        Raises:
            ConfigError: a code that is no stored label, or a class that is neither mapped nor
                ignored.
        """
        table = np.full(len(names) + 1, IGNORED - 1, np.int16)
        table[0] = IGNORED
        wanted = [info.name for info in data.classes]
        if sorted(wanted) == sorted(names):
            table[1:] = [wanted.index(name) for name in names]
            return cls(table)
        for code in data.ignore:
            if code != IGNORED:
                table[cls._row(code, "data.ignore", names)] = IGNORED
        for index, info in enumerate(data.classes):
            for code in info.codes:
                table[cls._row(code, f"class {info.name!r}", names)] = index
        missing = [name for name, to in zip(names, table[1:], strict=True) if to < IGNORED]
        if missing:
            code = list(names).index(missing[0])
            raise ConfigError(
                f"the prepared class {missing[0]!r} (label {code}) is in no class of data.classes; "
                "add its label to a class's codes or to data.ignore"
            )
        return cls(table)

    @staticmethod
    def _row(code: int, where: str, names: Sequence[str]) -> int:
        if not 0 <= code < len(names):
            raise ConfigError(
                f"{where} has the code {code}; the prepared labels are 0 .. {len(names) - 1}"
            )
        return code + 1

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """int16, as many as given; the array itself where nothing changes."""
        return labels if self.identity else self.table[labels + 1]

    def counts(self, counts: Sequence[int], classes: int) -> np.ndarray:
        """[classes] int64 from counts per stored class."""
        result = np.zeros(classes + 1, np.int64)
        np.add.at(result, self.table[1:], counts)
        return result[:classes]


class MappedAttributes:
    """[N, F] float32 network inputs, computed for the rows that are asked for.

    Indexing with rows or a slice gives an array, as indexing an array does.
    """

    def __init__(self, scan: _ColumnSource, infos: Sequence[AttributeInfo]) -> None:
        self._scan = scan
        self._infos = tuple(infos)

    def __len__(self) -> int:
        return len(self._scan)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), len(self._infos)

    def __getitem__(self, rows: Any) -> np.ndarray:
        tables: dict[str, np.ndarray] = {}
        chosen = []
        for info in self._infos:
            name, part = stored_column(info.name)
            if name not in tables:
                tables[name] = np.asarray(self._scan.column(name)[rows])
            raw = tables[name] if part is None else tables[name][:, part]
            category = category_number(info.name)
            if category is not None:
                raw = raw == category
            chosen.append(scale_column(raw, info))
        if not chosen:
            return np.zeros((len(np.arange(len(self))[rows]), 0), np.float32)
        return np.stack(chosen, axis=1)


def stored_column(name: str) -> tuple[str, int | None]:
    """Where an input column of a network stands: the stored column, and its part of three."""
    if name == "height":
        return "points", 2
    if name in COLORS:
        return "color", COLORS.index(name)
    if name in NORMALS:
        return "normals", NORMALS.index(name)
    if category_number(name) is not None:
        return CATEGORY, None
    return name, None


class _ColumnSource:
    """What both kinds of scans share: inputs, voxels and counts from ``column(name)``."""

    name: str
    origin: np.ndarray
    _model: Contract
    _labels: LabelMap

    def __len__(self) -> int:
        raise NotImplementedError

    def column(self, name: str) -> np.ndarray:
        """A stored column."""
        raise NotImplementedError

    @property
    def points(self) -> np.ndarray:
        """[N, 3] float32, meters from the lowest corner."""
        return self.column("points")

    @property
    def attributes(self) -> Any:
        """[N, F] float32, scaled; indexed by rows like an array."""
        return MappedAttributes(self, self._model.input_columns)

    @property
    def labels(self) -> np.ndarray:
        """[N] int16 class index, -1 ignored."""
        return self._labels(self.column("labels"))

    @property
    def grid(self) -> VoxelGrid:
        """The finest voxels."""
        return voxel_grid(self.points, self._model.grid[0])

    def voxels(self, pick: int = 0) -> Voxels:
        """The scan at stage 0's resolution, the ``pick``-th point of each voxel standing for it."""
        grid = self.grid
        kept = grid.picked(pick) if pick else grid.kept
        return Voxels(self.points[kept], self.attributes[kept], grid.voxel_of_point)

    def class_voxels(self, classes: int) -> np.ndarray:
        """[classes] int64: voxels of each class, told by the point that stands for each."""
        labels = self.labels[self.grid.kept]
        return np.bincount(labels[labels >= 0], minlength=classes)


class PreparedScan(_ColumnSource):
    """One prepared scene.

    Attributes:
        name: of the scene.
        origin: [3] float64: ``points + origin`` are the raw data's coordinates.
    """

    def __init__(
        self, folder: Path, facts: dict[str, Any], model: Contract, labels: LabelMap
    ) -> None:
        self.name = folder.name
        self.origin = np.array(facts["origin"])
        self._folder = folder
        self._facts = facts
        self._model = model
        self._labels = labels
        self._indexed = facts.get("grid") == model.grid[0]

    def __len__(self) -> int:
        return int(self._facts["points"])

    def column(self, name: str) -> np.ndarray:
        """A stored column, mapped; heights above ground are computed where they are not stored."""
        if name == _ABOVE_GROUND and name not in self._facts["columns"]:
            return self._above_ground
        return load_column(self._folder, name)

    @cached_property
    def _above_ground(self) -> np.ndarray:
        return height_above_ground(self.points)

    @property
    def grid(self) -> VoxelGrid:
        """The finest voxels: mapped where they are stored at the network's voxel size, else
        computed once."""
        if not self._indexed:
            return self._computed_grid
        return VoxelGrid(
            load_column(self._folder, GRID_KEPT), load_column(self._folder, GRID_VOXEL)
        )

    @cached_property
    def _computed_grid(self) -> VoxelGrid:
        return voxel_grid(self.points, self._model.grid[0])

    @property
    def size(self) -> int:
        """How many voxels."""
        return int(self._facts["voxels"]) if self._indexed else len(self.grid.kept)

    def class_voxels(self, classes: int) -> np.ndarray:
        """[classes] int64: voxels of each class, told by the point that stands for each."""
        if not self._indexed:
            return super().class_voxels(classes)
        return self._labels.counts(self._facts["voxel_counts"], classes)


class ObjectSet:
    """A stored set of small clouds; its columns stay mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._columns: dict[str, np.ndarray] = {}

    def __reduce__(self) -> Any:
        return ObjectSet, (self.folder,)

    def column(self, name: str) -> np.ndarray:
        """A stored column of the whole set."""
        if name not in self._columns:
            self._columns[name] = load_column(self.folder, name)
        return self._columns[name]


class ObjectScan(_ColumnSource):
    """One small cloud of a set, always sampled whole.

    For classification ``labels`` is [1], the object's class, and every point is a row of ``grid``
    by itself; for part segmentation there is a label per point, and the column ``category``.
    """

    size = 1

    def __init__(self, objects: ObjectSet, number: int, model: Contract, labels: LabelMap) -> None:
        self.name = f"{objects.folder.name} {number}"
        self.origin = np.zeros(3)
        self._objects = objects
        self._number = number
        self._model = model
        self._labels = labels

    def _span(self) -> slice:
        offsets = self._objects.column("offsets")
        return slice(int(offsets[self._number]), int(offsets[self._number + 1]))

    def __len__(self) -> int:
        span = self._span()
        return span.stop - span.start

    def column(self, name: str) -> np.ndarray:
        """A column of this cloud. Points of parts are counted from their lowest corner, as
        voxels are; for classification they stay in the set's own frame, centered."""
        if name == CATEGORY:
            return np.full(len(self), self._objects.column("cloud_labels")[self._number])
        values = self._objects.column(name)[self._span()]
        if name == "points" and self._model.task == "segmentation":
            return values - values.min(axis=0)
        return values

    @property
    def labels(self) -> np.ndarray:
        """int16: [1] the object's class, or [N] the points' parts."""
        if self._model.task == "classification":
            number = self._number
            return self._labels(self._objects.column("cloud_labels")[number : number + 1])
        return super().labels

    @property
    def grid(self) -> VoxelGrid:
        """The finest voxels, or every point by itself for classification."""
        if self._model.task == "classification":
            rows = np.arange(len(self), dtype=np.int32)
            return VoxelGrid(rows, rows)
        return super().grid

    def voxels(self, pick: int = 0) -> Voxels:
        """The cloud for the network; for classification one answer stands for the object."""
        if self._model.task == "classification":
            none = np.zeros((len(self), 0), np.float32)
            return Voxels(self.points, none, np.zeros(1, np.int32))
        return super().voxels(pick)

    def class_voxels(self, classes: int) -> np.ndarray:
        """[classes] int64: the object's own class, or voxels of each part."""
        if self._model.task == "classification":
            return np.bincount(self.labels, minlength=classes)
        return super().class_voxels(classes)


def prepared_names(data: DataConfig, split: str) -> list[str]:
    """Scenes of a split: the configuration's names and globs, or the split the data names itself.

    Raises:
        InputError: no prepared data, or an entry that matches no scene.
        ConfigError: a scene that is in the training split and in another.
    """
    manifest = read_manifest(Path(data.root))
    names = _selected(manifest, data, split)
    if split != "train":
        shared = set(names) & set(_selected(manifest, data, "train"))
        if shared:
            raise ConfigError(f"{min(shared)} is in data.train and in data.{split}; keep it in one")
    return names


def prepared_has_labels(data: DataConfig, split: str) -> bool:
    """Whether the scenes of a split have labels to score; those that the configuration names do.

    Raises:
        InputError: no prepared data.
    """
    if getattr(data, split):
        return True
    manifest = read_manifest(Path(data.root))
    scenes = [manifest["scenes"][name]["columns"] for name in manifest["splits"][split]]
    return bool(scenes) and all("labels" in found or "cloud_labels" in found for found in scenes)


def open_scans(
    data: DataConfig, model: Contract, split: str
) -> list[PreparedScan] | list[ObjectScan]:
    """The scans of a split of prepared data, in order.

    Raises:
        InputError: no prepared data of this version, or scans without labels or columns that the
            network wants.
        ConfigError: classes or a task that do not fit the data.
    """
    if data.join or data.context:
        raise ConfigError('data.join and data.context are for kind = "folder"; remove them')
    root = Path(data.root)
    manifest = read_manifest(root)
    names = prepared_names(data, split)
    task = "classification" if manifest["task"] == "classification" else "segmentation"
    if model.task != task:
        raise ConfigError(f"{root} is for {manifest['task']}, the network for {model.task}")
    if not names:
        filled = [split for split, held in manifest["splits"].items() if held]
        raise InputError(
            f"{root} has no scenes in its {split} split (it has {', '.join(filled) or 'none'}); "
            f"choose another split or name scenes in data.{split}"
        )
    mapping = LabelMap.of(data, [info["name"] for info in manifest["classes"]])
    for name in names:
        _check_columns(root / SCENES / name, manifest, name, model)
    counts = [
        mapping.counts(manifest["scenes"][name]["counts"], model.num_classes) for name in names
    ]
    if not np.any(counts):
        raise InputError(f"data.{split} has no labelled point in {root}; every label is ignored")
    if manifest["task"] == "segmentation":
        return [
            PreparedScan(root / SCENES / name, manifest["scenes"][name], model, mapping)
            for name in names
        ]
    scans = []
    for name in names:
        objects = ObjectSet(root / SCENES / name)
        numbers = np.arange(manifest["scenes"][name]["clouds"])
        if task == "classification":  # objects of a class that is ignored teach nothing
            numbers = np.flatnonzero(mapping(objects.column("cloud_labels")) != IGNORED)
        scans += [ObjectScan(objects, int(number), model, mapping) for number in numbers]
    return scans


def _selected(manifest: dict[str, Any], data: DataConfig, split: str) -> list[str]:
    entries = getattr(data, split)
    if not entries:
        return list(manifest["splits"][split])
    chosen: dict[str, None] = {}
    for entry in entries:
        matches = fnmatch.filter(manifest["scenes"], entry)
        if not matches:
            some = ", ".join(list(manifest["scenes"])[:3])
            raise InputError(
                f"data.{split}: {entry!r} matches no scene in {data.root}, which has "
                f"{len(manifest['scenes'])} ({some} ...)"
            )
        chosen.update(dict.fromkeys(sorted(matches)))
    return list(chosen)


def _check_columns(folder: Path, manifest: dict[str, Any], name: str, model: Contract) -> None:
    present = {*manifest["scenes"][name]["columns"], _ABOVE_GROUND}
    if manifest["task"] == "parts":
        present.add(CATEGORY)
    if manifest["task"] != "classification" and "labels" not in present:
        raise InputError(f"{folder} has no labels; leave it out of this split")
    for info in model.input_columns:
        if stored_column(info.name)[0] not in present:
            had = ", ".join(sorted(manifest["scenes"][name]["columns"]))
            raise InputError(
                f"{folder} has no column for {info.name!r}, which the network wants; it has {had}"
            )
