"""Training samples of scans and of objects: cut out, augmented, mixed, one point per voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dela.families import family_of
from dela.geometry.cpu import native_threads, voxel_grid
from dela.model.contract import Contract
from dela.model.inputs import Inputs, pack_inputs
from dela.training.augment.columns import Columns
from dela.training.augment.geometry import cut_out, jitter, keep_rows
from dela.training.augment.mixing import mix_objects, mix_scenes
from dela.training.augment.steps import change_attributes, move_attributes, move_points
from dela.training.data.clouds import Clouds, pack_clouds
from dela.training.data.scans import AnyScan
from dela.training.settings.augment import AugmentConfig


@dataclass(frozen=True)
class Sample:
    """One cloud for the network.

    Attributes:
        pyramid: the input, N0 points at stage 0; or the cloud that it is to be built from.
        labels: [N0] int64, -1 where ignored; for an object [1], its class.
        scan: index of the scan it comes from.
        target: [1, classes] float32, the shares of a mixed object's classes; None: ``labels`` alone
            say it.
    """

    pyramid: Inputs | Clouds
    labels: np.ndarray
    scan: int
    target: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """Samples packed into one pyramid, their labels one after the other.

    Attributes:
        pyramid: as arrays or tensors; or the clouds that it is to be built from.
        targets: [clouds, classes] float32 class shares of objects; None where no sample has any.
    """

    pyramid: Inputs | Clouds
    labels: np.ndarray
    targets: np.ndarray | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a scan, moved, one point per voxel; coordinates are meters about its center.

    Attributes:
        floor: where along the vertical axis the scan's lowest point is in these coordinates.
    """

    points: np.ndarray
    attributes: np.ndarray
    labels: np.ndarray
    floor: float = 0.0

    def select(self, rows: np.ndarray) -> Piece:
        return Piece(self.points[rows], self.attributes[rows], self.labels[rows], self.floor)


@dataclass(frozen=True)
class Sampler:
    """What turns scans into samples: sizes, columns and random changes.

    Attributes:
        threads: native threads; None for all. Changes only the speed.
        build: build the pyramids of scenes; else samples hold their clouds.
    """

    model: Contract
    columns: Columns
    augmentation: AugmentConfig
    threads: int | None = None
    build: bool = True

    def piece(
        self, scan: AnyScan, center_row: int, count: int, generator: np.random.Generator
    ) -> Piece:
        """At most ``count`` voxels of a scan, the nearest to one of its voxels, moved.

        Args:
            center_row: row of ``scan.grid.kept``.
        """
        config = self.augmentation
        voxels = scan.points[scan.grid.kept]
        center = voxels[center_row]
        # Enlarging spreads the crop over more voxels; the surplus is cut after augmentation.
        wanted = int(count * 1.2 / min(1.0, config.scale[0]) ** 2)
        rows = _members_of(scan, nearest_rows(voxels, center, wanted))
        if config.drop_points:
            rows = rows[keep_rows(len(rows), config.drop_points, generator)]
        points, motion = move_points(scan.points[rows] - center, config, generator)
        kept = self._one_per_voxel(points, generator)
        if len(kept) > count:
            kept = kept[nearest_rows(points[kept], np.zeros(3, np.float32), count)]
        points = points[kept]
        if config.jitter:
            points = jitter(points, config.jitter, generator)
        attributes = move_attributes(scan.attributes[rows[kept]], self.columns, motion.select(kept))
        labels = scan.labels[rows[kept]].astype(np.int64)
        return Piece(points, attributes, labels, -motion.growth * float(center[config.vertical]))

    def mixed(
        self, first: Piece, second: Piece, count: int, generator: np.random.Generator
    ) -> Piece:
        """Two pieces laid over each other, at most ``count`` voxels about their common center."""
        vertical = self.augmentation.vertical
        points = mix_scenes(first.points, second.points, first.floor, second.floor, vertical)
        whole = Piece(
            points,
            np.concatenate([first.attributes, second.attributes]),
            np.concatenate([first.labels, second.labels]),
            first.floor,
        )
        kept = self._one_per_voxel(points, generator)
        if len(kept) > count:
            kept = kept[nearest_rows(points[kept], np.zeros(3, np.float32), count)]
        return whole.select(kept)

    def scene_sample(
        self, piece: Piece, largest: int, index: int, generator: np.random.Generator
    ) -> Sample:
        """A piece with holes cut out and its columns changed, as the network's input.

        Args:
            largest: voxels of a full sample, for which ``cutout`` balls are meant.
            index: of the scan.
        """
        config = self.augmentation
        if config.cutout:
            most = round(config.cutout * len(piece.points) / largest)
            piece = piece.select(cut_out(piece.points, most, config.cutout_radius, generator))
        attributes = change_attributes(piece.attributes, self.columns, config, generator)
        seed = seed_of(generator)
        if not self.build:
            return Sample(
                Clouds.of(piece.points, attributes, self.model, seed), piece.labels, index
            )
        pyramid = self._prepared(piece.points, attributes, seed)
        return Sample(pyramid, piece.labels, index)

    def object_sample(
        self, scan: AnyScan, other: AnyScan | None, index: int, generator: np.random.Generator
    ) -> Sample:
        """An object as the network's input, mixed with another one when there is one.

        The target then tells the share of each class; ``labels`` holds the class of the larger.
        """
        points, target = self._object(scan, generator), None
        labels = scan.labels[:1].astype(np.int64)
        if other is not None:
            points, share = mix_objects(points, self._object(other, generator), generator)
            target = np.zeros((1, self.model.num_classes), np.float32)
            target[0, labels[0]] += 1 - share
            target[0, other.labels[0]] += share
            labels = target.argmax(axis=1)
        pyramid = self._prepared(points, None, seed_of(generator))
        return Sample(pyramid, labels, index, target)

    def _object(self, scan: AnyScan, generator: np.random.Generator) -> np.ndarray:
        """Points [N, 3] of an object about the middle of its extent, moved."""
        config = self.augmentation
        points = np.asarray(scan.points)
        points = points - (points.min(axis=0) + points.max(axis=0)) / 2
        if config.drop_points:
            points = points[keep_rows(len(points), config.drop_points, generator)]
        points, _ = move_points(points, config, generator)
        return jitter(points, config.jitter, generator) if config.jitter else points

    def _prepared(self, points: np.ndarray, attributes: np.ndarray | None, seed: int) -> Inputs:
        """The network's input, its choices drawn at random."""
        with native_threads(self.threads):
            return family_of(self.model).prepare(
                points, attributes, self.model, seed=seed, pick=None
            )

    def _one_per_voxel(self, points: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return voxel_grid(points, self.model.grid[0], None, seed_of(generator), self.threads).kept


def pack_samples(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch."""
    targets = None
    if any(sample.target is not None for sample in samples):
        classes = next(s.target.shape[1] for s in samples if s.target is not None)
        targets = np.concatenate(
            [
                np.eye(classes, dtype=np.float32)[sample.labels]
                if sample.target is None
                else sample.target
                for sample in samples
            ]
        )
    pyramids = [sample.pyramid for sample in samples if not isinstance(sample.pyramid, Clouds)]
    clouds = [sample.pyramid for sample in samples if isinstance(sample.pyramid, Clouds)]
    return Batch(
        pack_clouds(clouds) if clouds else pack_inputs(pyramids),
        np.concatenate([sample.labels for sample in samples]),
        targets,
    )


def seed_of(generator: np.random.Generator) -> int:
    """A seed drawn for native code."""
    return int(generator.integers(2**31))


def nearest_rows(points: np.ndarray, center: np.ndarray, count: int) -> np.ndarray:
    """Ascending rows of the ``count`` points nearest a place."""
    if count >= len(points):
        return np.arange(len(points))
    distance = np.square(points - center).sum(1)
    return np.sort(np.argpartition(distance, count - 1)[:count])


def _members_of(scan: AnyScan, voxels: np.ndarray) -> np.ndarray:
    """Ascending rows of the points in these voxels."""
    chosen = np.zeros(len(scan.grid.kept), bool)
    chosen[voxels] = True
    return np.flatnonzero(chosen[scan.grid.voxel_of_point])
