"""Labelled scans to samples: random crops for training, a partition into crops for evaluation.

Scans are read once; attributes are computed at full resolution and kept in memory. A training
sample is a fresh random choice (centre, augmentation, one random point per voxel); evaluation
crops are the same every time and together answer for every point of every scan exactly once.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dela.attributes import compute_attributes
from dela.cloud import PointCloud
from dela.config import ModelConfig
from dela.errors import ConfigError, InputError
from dela.formats import find_scans, read_cloud
from dela.geometry import shift_to_origin, voxel_grid
from dela.metrics import IGNORED
from dela.pyramid import Pyramid, build_pyramid, pack
from dela.training.augment import (
    Columns,
    augment_attributes,
    augment_points,
    jitter,
    keep_rows,
    transform,
    transform_directions,
    vote_transform,
)
from dela.training.config import AugmentConfig, DataConfig

SPLITS = ("train", "val", "test")
# Apart enough that no split's rooms run into the next one's.
SEED_STEP = 10_000

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Scan:
    """One labelled scan in memory, N points in V voxels of the finest grid.

    Attributes:
        name: file name, or ``room <seed>``.
        points: [N, 3] float32, metres, shifted near the origin.
        attributes: [N, F] float32, scaled.
        labels: [N] int16 class index, -1 ignored.
        origin: [3] float64: ``points + origin`` are the file's coordinates.
        kept: [V] int32: the point that stands for each voxel in evaluation.
        voxel_of_point: [N] int32.
    """

    name: str
    points: np.ndarray
    attributes: np.ndarray
    labels: np.ndarray
    origin: np.ndarray
    kept: np.ndarray
    voxel_of_point: np.ndarray


@dataclass(frozen=True)
class Sample:
    """One cloud for the network.

    Attributes:
        pyramid: the input; N0 points at stage 0.
        labels: [N0] int64, -1 where ignored.
        scan: index of the scan it comes from.
        rows: [P] int64: points of the scan at full resolution that the sample answers for; empty
            in training.
        truth: [P] int64: their labels, -1 where ignored.
        voxel_of_point: [P] int32: their row of stage 0, so ``prediction[voxel_of_point]`` is
            compared with ``truth``.
    """

    pyramid: Pyramid
    labels: np.ndarray
    scan: int
    rows: np.ndarray
    truth: np.ndarray
    voxel_of_point: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Samples packed into one pyramid; the arrays of :class:`Sample`, one after the other."""

    pyramid: Pyramid
    labels: np.ndarray
    truth: np.ndarray
    voxel_of_point: np.ndarray


class Dataset:
    """The scans of one split. Picklable; keeps no generator and no state between samples.

    ``len(dataset)`` is the number of evaluation crops; training samples can be drawn for ever.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        data: DataConfig,
        model: ModelConfig,
        augmentation: AugmentConfig | None = None,
    ) -> None:
        self.scans = list(scans)
        self.data = data
        self.model = model
        self.augmentation = augmentation or AugmentConfig(rotate_z=0, flip=False, scale=(1, 1))
        self.columns = Columns.of(model)
        margin = 4 * model.grid[-1] if data.margin is None else data.margin
        self._crops = [
            (index, core, rows)
            for index, scan in enumerate(self.scans)
            for core, rows in _partition(scan.points[scan.kept], data.eval_points, margin)
        ]
        self._voxels = np.array([len(scan.kept) for scan in self.scans])
        self._members = [
            [np.flatnonzero(scan.labels[scan.kept] == c) for c in range(model.num_classes)]
            for scan in self.scans
        ]

    def __len__(self) -> int:
        return len(self._crops)

    @property
    def samples_per_pass(self) -> int:
        """Training samples that together have as many points as the data has voxels."""
        return max(1, int(np.ceil(self._voxels.sum() / self.data.points)))

    def class_counts(self) -> np.ndarray:
        """[classes] int64: voxels of each class in the split; ignored ones count nowhere."""
        return np.array(
            [sum(len(rows[c]) for rows in self._members) for c in range(self.model.num_classes)]
        )

    def sample(
        self,
        index: int,
        generator: np.random.Generator,
        train: bool,
        threads: int | None = None,
    ) -> Sample:
        """A training sample, or an evaluation crop.

        Args:
            index: the evaluation crop, 0 .. ``len(self) - 1``; training draws its own scan and
                centre from the generator alone.
            generator: all randomness of a training sample; evaluation uses none.
            train: random crop with augmentation, or crop ``index``.
            threads: native threads of a training sample; None for all. Changes only the speed.
        """
        if not train:
            return self.evaluation_sample(index)
        return self._training_sample(generator, threads)

    def _training_sample(self, generator: np.random.Generator, threads: int | None) -> Sample:
        index, centre_row = self._centre(generator)
        scan = self.scans[index]
        voxels = scan.points[scan.kept]
        centre = voxels[centre_row]
        # Enlarging spreads the crop over more voxels; the surplus is cut after augmentation.
        wanted = int(self.data.points * 1.2 / min(1.0, self.augmentation.scale[0]) ** 2)
        rows = _members_of(scan, _nearest_rows(voxels, centre, wanted))
        if self.augmentation.drop_points:
            rows = rows[keep_rows(len(rows), self.augmentation.drop_points, generator)]
        points, linear, growth = augment_points(
            scan.points[rows] - centre, self.augmentation, generator
        )
        grid = voxel_grid(points, self.model.grid[0], None, _seed(generator), threads)
        kept = grid.kept
        if len(kept) > self.data.points:
            kept = kept[_nearest_rows(points[kept], np.zeros(3, np.float32), self.data.points)]
        points = points[kept]
        if self.augmentation.jitter:
            points = jitter(points, self.augmentation.jitter, generator)
        attributes = augment_attributes(
            scan.attributes[rows[kept]], self.columns, self.augmentation, generator, linear, growth
        )
        pyramid = build_pyramid(points, attributes, self.model, seed=_seed(generator), pick=None)
        labels = scan.labels[rows[kept]].astype(np.int64)
        nothing = np.zeros(0, np.int64)
        return Sample(pyramid, labels, index, nothing, nothing, nothing.astype(np.int32))

    def _centre(self, generator: np.random.Generator) -> tuple[int, int]:
        """Scan and voxel row of a random centre."""
        if generator.random() < self.data.balance:
            counts = np.array([[len(rows) for rows in scan] for scan in self._members])
            label = generator.choice(np.flatnonzero(counts.sum(0)))
            index = int(generator.choice(len(counts), p=counts[:, label] / counts[:, label].sum()))
            return index, int(generator.choice(self._members[index][label]))
        index = int(generator.choice(len(self.scans), p=self._voxels / self._voxels.sum()))
        return index, int(generator.integers(self._voxels[index]))

    def evaluation_sample(self, index: int, vote: int = 0, votes: int = 1) -> Sample:
        """Evaluation crop ``index`` as one of several votes sees it.

        Votes after the first take the next point of every voxel, turn the crop about the vertical
        by equal steps and mirror every second one; ``labels`` and ``voxel_of_point`` stay in the
        same voxel order.
        """
        number, core, crop = self._crops[index]
        scan = self.scans[number]
        kept = scan.kept if vote == 0 else voxel_grid(scan.points, self.model.grid[0], vote).kept
        kept = kept[crop]
        points, attributes = scan.points[kept], scan.attributes[kept]
        if vote:
            turn = vote_transform(vote, votes)
            points = transform(points, turn)
            if self.columns.directions:
                directions = list(self.columns.directions)
                attributes[:, directions] = transform_directions(attributes[:, directions], turn)
        pyramid = build_pyramid(points, attributes, self.model)
        rows = _members_of(scan, core)
        position = np.full(len(scan.kept), -1, np.int32)
        position[crop] = np.arange(len(crop), dtype=np.int32)
        return Sample(
            pyramid,
            scan.labels[kept].astype(np.int64),
            number,
            rows,
            scan.labels[rows].astype(np.int64),
            position[scan.voxel_of_point[rows]],
        )


def open_dataset(
    data: DataConfig,
    model: ModelConfig,
    split: str,
    augmentation: AugmentConfig | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read or generate the scans of a split.

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
    sources: list[tuple[str, Callable[[], PointCloud]]]
    if data.kind == "rooms":
        sources = [
            (f"room {seed}", _room(seed, data.room_points)) for seed in room_seeds(data, split)
        ]
    else:
        sources = [(str(path), _file(path)) for path in split_files(data, split)]
    if not sources:
        raise InputError(f"data.{split} names no scans; give files, folders or globs")
    scans = []
    for number, (name, load) in enumerate(sources):
        if progress:
            progress(number, len(sources), name)
        scans.append(label_scan(load(), name, data, model))
    if progress:
        progress(len(sources), len(sources), "")
    dataset = Dataset(scans, data, model, augmentation)
    if not dataset.class_counts().any():
        raise InputError(f"data.{split} has no labelled point; every label is ignored")
    return dataset


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


def label_scan(cloud: PointCloud, name: str, data: DataConfig, model: ModelConfig) -> Scan:
    """A cloud with its label column mapped to class indices and its attributes computed.

    Raises:
        InputError: an empty cloud, non-finite coordinates, a missing column, or label values
            outside the class map (with their counts).
    """
    if not len(cloud):
        raise InputError(f"{name} has no points")
    broken = int((~np.isfinite(cloud.points)).any(1).sum())
    if broken:
        raise InputError(f"{name}: {broken} of {len(cloud)} points are not finite; remove them")
    try:
        labels = map_labels(_label_column(cloud, data), data)
        attributes = compute_attributes(cloud, model.input_columns)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    points, origin = shift_to_origin(cloud.points)
    grid = voxel_grid(points, model.grid[0])
    return Scan(name, points, attributes, labels, origin, grid.kept, grid.voxel_of_point)


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


def pack_samples(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch; rows of ``voxel_of_point`` are counted through the whole batch."""
    starts = np.cumsum([0] + [len(sample.labels) for sample in samples[:-1]])
    return Batch(
        pack([sample.pyramid for sample in samples]),
        np.concatenate([sample.labels for sample in samples]),
        np.concatenate([sample.truth for sample in samples]),
        np.concatenate(
            [s.voxel_of_point + np.int32(start) for s, start in zip(samples, starts, strict=True)]
        ),
    )


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
    from dela.training.rooms import generate_room

    return lambda: generate_room(seed, points=points)


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**31))


def _nearest_rows(points: np.ndarray, centre: np.ndarray, count: int) -> np.ndarray:
    """Ascending rows of the ``count`` points nearest a place."""
    if count >= len(points):
        return np.arange(len(points))
    distance = np.square(points - centre).sum(1)
    return np.sort(np.argpartition(distance, count - 1)[:count])


def _members_of(scan: Scan, voxels: np.ndarray) -> np.ndarray:
    """Ascending rows of the points in these voxels."""
    chosen = np.zeros(len(scan.kept), bool)
    chosen[voxels] = True
    return np.flatnonzero(chosen[scan.voxel_of_point])


def _partition(voxels: np.ndarray, most: int, margin: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut a scan at the median of its longer horizontal side until each crop fits.

    Returns:
        (core, crop) row pairs: the cores are a partition, each crop is its core's bounding box
        widened by ``margin`` metres, less where that would exceed ``most``.
    """
    crops = []
    pending = [np.arange(len(voxels))]
    while pending:
        core = pending.pop()
        low, high = voxels[core, :2].min(0), voxels[core, :2].max(0)
        inside = ((voxels[:, :2] >= low - margin) & (voxels[:, :2] <= high + margin)).all(1)
        crop = np.flatnonzero(inside)
        if len(core) == len(voxels) <= most or len(crop) <= most or len(core) <= max(most // 4, 1):
            if len(crop) > most:
                around = np.setdiff1d(crop, core)
                near = _nearest_rows(voxels[around], voxels[core].mean(0), most - len(core))
                crop = np.union1d(core, around[near])
            crops.append((core, crop))
            continue
        axis = int(np.argmax(high - low))
        order = np.argsort(voxels[core, axis], kind="stable")
        half = len(core) // 2
        pending += [np.sort(core[order[half:]]), np.sort(core[order[:half]])]
    return crops
