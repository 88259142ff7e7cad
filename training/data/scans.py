"""Labelled scans in memory, and random crops of them as training samples.

Scans are read once; attributes are computed at full resolution and kept. Prepared data is mapped
from disk instead (:mod:`dela.training.data.prepared`). A training sample is a
fresh random choice (centre, augmentation, one random point per voxel); evaluation takes whole scans
(:mod:`dela.training.evaluate.split`).
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np

from dela.cloud.formats import find_scans, read_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import ConfigError, InputError
from dela.geometry.cpu import VoxelGrid
from dela.model.contract import Contract
from dela.scan.attributes import compute_attributes
from dela.scan.context import join_clouds, surroundings
from dela.scan.tiles import context_width
from dela.scan.voxels import Voxels, scan_grid
from dela.scores.confusion import IGNORED
from dela.training.augment.columns import Columns
from dela.training.augment.config import NOTHING, AugmentConfig
from dela.training.data.prepared import ObjectScan, PreparedScan, open_scans
from dela.training.data.samples import Batch, Sample, Sampler, pack_samples
from dela.training.prepare.plan import SPLITS
from dela.training.settings.data import DataConfig

__all__ = [
    "Batch",
    "Dataset",
    "Sample",
    "Scan",
    "label_scan",
    "map_labels",
    "open_dataset",
    "pack_samples",
]

# Apart enough that no split's rooms run into the next one's.
SEED_STEP = 10_000

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Scan:
    """One labelled scan in memory, N points in V voxels.

    :mod:`~dela.training.data.prepared` has scans on disk with the same attributes.

    Attributes:
        name: file name, or ``room <seed>``.
        points: [N, 3] float32, metres, shifted near the origin.
        attributes: [N, F] float32, scaled.
        labels: [N] int16 class index, -1 ignored.
        origin: [3] float64: ``points + origin`` are the file's coordinates.
        grid: the finest voxels, and the point that stands for each in evaluation.
    """

    name: str
    points: np.ndarray
    attributes: np.ndarray
    labels: np.ndarray
    origin: np.ndarray
    grid: VoxelGrid

    @property
    def size(self) -> int:
        """How many voxels."""
        return len(self.grid.kept)

    def class_voxels(self, classes: int) -> np.ndarray:
        """[classes] int64: voxels of each class, told by the point that stands for each."""
        labels = self.labels[self.grid.kept]
        return np.bincount(labels[labels >= 0], minlength=classes)

    def voxels(self, pick: int = 0) -> Voxels:
        """The scan at stage 0's resolution, the ``pick``-th point of each voxel standing for it."""
        kept = self.grid.picked(pick) if pick else self.grid.kept
        return Voxels(self.points[kept], self.attributes[kept], self.grid.voxel_of_point)


AnyScan: TypeAlias = Scan | PreparedScan | ObjectScan


class Dataset:
    """The scans of one split. Picklable; keeps no generator and no state between samples."""

    def __init__(
        self,
        scans: Sequence[AnyScan],
        data: DataConfig,
        model: Contract,
        augmentation: AugmentConfig | None = None,
    ) -> None:
        self.scans = list(scans)
        self.data = data
        self.model = model
        self.augmentation = augmentation or NOTHING
        self.columns = Columns.of(model)
        self._sizes = np.array([scan.size for scan in self.scans])

    @cached_property
    def _counts(self) -> np.ndarray:
        """[scans, classes] voxels of each class."""
        return np.stack([scan.class_voxels(self.model.num_classes) for scan in self.scans])

    def steps_per_epoch(self, batch_size: int) -> int:
        """Steps of an epoch: ``data.passes`` over every scan, the last unfull batch left out, or
        samples that together have as many points as the data has voxels (one of every object)."""
        if self.data.passes:
            return max(1, len(self.scans) * self.data.passes // batch_size)
        whole = isinstance(self.scans[0], ObjectScan)
        samples = len(self.scans) if whole else math.ceil(self._sizes.sum() / self.data.points)
        return math.ceil(samples / batch_size)

    def order(self, generator: np.random.Generator) -> np.ndarray | None:
        """The scan of each sample of an epoch, ``data.passes`` of every scan in random order; None
        where samples are drawn by place."""
        if not self.data.passes:
            return None
        return generator.permutation(np.repeat(np.arange(len(self.scans)), self.data.passes))

    @property
    def largest_scan(self) -> int:
        """Index of the scan with the most voxels, of the object with the most points."""
        objects = [len(scan) for scan in self.scans if isinstance(scan, ObjectScan)]
        return int(np.argmax(objects or self._sizes))

    def class_counts(self) -> np.ndarray:
        """[classes] int64: voxels of each class in the split; ignored ones count nowhere."""
        return self._counts.sum(axis=0)

    def sample(
        self,
        generator: np.random.Generator,
        threads: int | None = None,
        scan: int | None = None,
        progress: float = 0.0,
        most: int | None = None,
        build: bool = True,
    ) -> Sample:
        """A training sample: a random crop of a scan or an object, augmented.

        Args:
            generator: all of its randomness.
            threads: native threads; None for all. Changes only the speed.
            scan: index of the scan; None draws one.
            progress: share of the training that is over, for changes that grow or fade with it.
            most: points of the sample, where ``data.points`` is more.
            build: build the pyramid; else a crop of a scan comes as the cloud it is built from.
        """
        sampler = Sampler(self.model, self.columns, self.augmentation, threads, build)
        mixed = generator.random() < self.augmentation.mix_at(progress)
        if self.model.task == "classification":
            index = int(generator.integers(len(self.scans))) if scan is None else scan
            other = self.scans[generator.integers(len(self.scans))] if mixed else None
            return sampler.object_sample(self.scans[index], other, index, generator)
        count = self.data.points if most is None else min(most, self.data.points)
        index, row = self._centre(generator, scan)
        piece = sampler.piece(self.scans[index], row, count, generator)
        if mixed:
            second = None if scan is None else int(generator.integers(len(self.scans)))
            second, row = self._centre(generator, second)
            other_piece = sampler.piece(self.scans[second], row, count, generator)
            piece = sampler.mixed(piece, other_piece, count, generator)
        return sampler.scene_sample(piece, self.data.points, index, generator)

    def _centre(self, generator: np.random.Generator, scan: int | None) -> tuple[int, int]:
        """Scan and voxel row of a random centre, of one scan when it is given."""
        if scan is None and generator.random() < self.data.balance:
            label = generator.choice(np.flatnonzero(self._counts.sum(0)))
            counts = self._counts[:, label]
            index = int(generator.choice(len(counts), p=counts / counts.sum()))
            chosen = self.scans[index]
            members = np.flatnonzero(chosen.labels[chosen.grid.kept] == label)
            return index, int(generator.choice(members))
        if scan is None:
            scan = int(generator.choice(len(self.scans), p=self._sizes / self._sizes.sum()))
        return scan, int(generator.integers(len(self.scans[scan].grid.kept)))


def open_dataset(
    data: DataConfig,
    model: Contract,
    split: str,
    augmentation: AugmentConfig | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read or generate the scans of a split; prepared ones stay on disk.

    Args:
        data: ``[data]`` of the configuration.
        model: grid sizes, attributes and classes.
        split: ``train``, ``val`` or ``test``.
        augmentation: applied to training samples; none when None.
        progress: called as ``progress(done, total, name)`` before each scan and after the last.

    Raises:
        InputError: no files, a file that cannot be read, a missing column, or label values that
            are neither in the class map nor ignored.
        ConfigError: an unknown split, or a file in the training split and in another.
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    if data.kind == "prepared":
        return Dataset(open_scans(data, model, split), data, model, augmentation)
    sources: list[tuple[str, Callable[[], PointCloud]]]
    if data.kind == "rooms":
        sources = [
            (f"room {seed}", _room(seed, data.room_points)) for seed in room_seeds(data, split)
        ]
    else:
        sources = [(str(path), _file(path)) for path in split_files(data, split)]
    if not sources:
        raise InputError(f"data.{split} names no scans; give files, folders or globs")
    around = _context(data, split)
    scans: list[Scan] = []
    parts: list[tuple[str, PointCloud]] = []
    for number, (name, load) in enumerate(sources):
        if progress:
            progress(number, len(sources), name)
        cloud = load()
        if data.join:
            parts.append((name, cloud))
        else:
            others = [other for path, other in around.items() if path != name]
            scans.append(label_scan(cloud, name, data, model, others))
    if parts:
        names = {name for name, _ in parts}
        others = [other for path, other in around.items() if path not in names]
        scans.append(_joined_scan(parts, data, model, others))
    if progress:
        progress(len(sources), len(sources), "")
    dataset = Dataset(scans, data, model, augmentation)
    if not dataset.class_counts().any():
        raise InputError(f"data.{split} has no labelled point; every label is ignored")
    return dataset


def _context(data: DataConfig, split: str) -> dict[str, PointCloud]:
    """The files that may surround the scans of a split, by name."""
    if split == "train" or not data.context:
        return {}
    return {str(path): read_cloud(path) for path in _expand(data, "context")}


def room_seeds(data: DataConfig, split: str) -> range:
    """Seeds of the generated rooms of a split."""
    start = data.first_seed + SEED_STEP * SPLITS.index(split)
    return range(
        start,
        start + {"train": data.train_rooms, "val": data.val_rooms}.get(split, data.test_rooms),
    )


def split_files(data: DataConfig, split: str) -> list[Path]:
    """Files of a split, sorted, each once.

    Raises:
        InputError: an entry that matches no file.
        ConfigError: a file that is also in the training split.
    """
    files = _expand(data, split)
    if split != "train":
        shared = set(files) & set(_expand(data, "train"))
        if shared:
            raise ConfigError(
                f"{sorted(shared)[0]} is in data.train and in data.{split}; keep it in one"
            )
    return files


def label_scan(
    cloud: PointCloud,
    name: str,
    data: DataConfig,
    model: Contract,
    others: Sequence[PointCloud] = (),
) -> Scan:
    """A cloud with its label column mapped to class indices and its attributes computed.

    Args:
        others: scans around it; their nearest points become part of the scan, labelled as ignored.

    Raises:
        InputError: an empty cloud, non-finite coordinates, a missing column, or label values
            outside the class map (with their counts).
    """
    return _scan(name, cloud, _labels(cloud, name, data), data, model, others)


def _joined_scan(
    parts: Sequence[tuple[str, PointCloud]],
    data: DataConfig,
    model: Contract,
    others: Sequence[PointCloud],
) -> Scan:
    """One scan of several files, each checked under its own name."""
    labels = np.concatenate([_labels(cloud, name, data) for name, cloud in parts])
    name = parts[0][0] if len(parts) == 1 else f"{len(parts)} joined scans"
    return _scan(name, join_clouds([cloud for _, cloud in parts]), labels, data, model, others)


def _labels(cloud: PointCloud, name: str, data: DataConfig) -> np.ndarray:
    """[N] int16 class indices of a file that can be trained on."""
    if not len(cloud):
        raise InputError(f"{name} has no points")
    broken = int((~np.isfinite(cloud.points)).any(1).sum())
    if broken:
        raise InputError(f"{name}: {broken} of {len(cloud)} points are not finite; remove them")
    try:
        return map_labels(_label_column(cloud, data), data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _scan(
    name: str,
    cloud: PointCloud,
    labels: np.ndarray,
    data: DataConfig,
    model: Contract,
    others: Sequence[PointCloud],
) -> Scan:
    try:
        if others:
            width = context_width(model) if data.margin is None else data.margin
            near = surroundings(cloud, others, width)
            if len(near):
                cloud = join_clouds([cloud, near])
                labels = np.concatenate([labels, np.full(len(near), IGNORED, np.int16)])
        attributes = compute_attributes(cloud, model.input_columns)
        origin = cloud.points.min(axis=0)
        points = cloud.points - origin
        grid = scan_grid(points, model)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return Scan(name, points.astype(np.float32), attributes, labels, origin, grid)


def map_labels(values: np.ndarray, data: DataConfig) -> np.ndarray:
    """[N] int16 class indices of label values, -1 where ignored.

    Raises:
        InputError: values that are in no class and not ignored, with how often each occurs.
    """
    codes, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    if data.kind == "rooms":
        index_of = {code: code for code in range(13)}
    else:
        index_of = dict.fromkeys(data.ignore, IGNORED)
        index_of |= {code: i for i, info in enumerate(data.classes) for code in info.codes}
    unknown = [
        (c, n) for c, n in zip(codes.tolist(), counts.tolist(), strict=True) if c not in index_of
    ]
    if unknown:
        listed = ", ".join(f"{code:g} ({count:,} points)" for code, count in unknown[:10])
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise InputError(
            f"label values outside the class map: {listed}{more}; "
            "add them to a class's codes or to data.ignore"
        )
    return np.array([index_of[code] for code in codes.tolist()], np.int16)[inverse.reshape(-1)]


def _label_column(cloud: PointCloud, data: DataConfig) -> np.ndarray:
    name = "classification" if data.kind == "rooms" else data.label
    if name not in cloud.columns:
        present = ", ".join(sorted(cloud.columns)) or "none"
        raise InputError(f"no label column {name!r}; columns present: {present}")
    return cloud.columns[name]


def _expand(data: DataConfig, split: str) -> list[Path]:
    found: set[Path] = set()
    for entry in getattr(data, split):
        path = Path(data.root) / entry
        if path.is_dir():
            matches = find_scans([path])
        elif path.exists():
            matches = [path]
        else:
            matches = [Path(p) for p in glob.glob(str(path), recursive=True)]
        if not matches:
            raise InputError(f"data.{split}: {entry!r} matches no scan in {data.root}")
        found.update(match.resolve() for match in matches)
    return sorted(found)


def _file(path: Path) -> Callable[[], PointCloud]:
    return lambda: read_cloud(path)


def _room(seed: int, points: int) -> Callable[[], PointCloud]:
    from dela.training.rooms.scan import generate_room

    return lambda: generate_room(seed, points=points)
