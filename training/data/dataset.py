"""The scans of one split, and random crops of them as training samples.

A training sample is a fresh random choice (center, augmentation, one random point per voxel);
evaluation takes whole scans (:mod:`dela.training.evaluate.split`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from dela.model.contract import Contract
from dela.training.augment.columns import Columns
from dela.training.data.prepared import ObjectScan
from dela.training.data.samples import Sample, Sampler
from dela.training.data.scans import AnyScan
from dela.training.settings.augment import NOTHING, AugmentConfig
from dela.training.settings.data import DataConfig


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
        index, row = self._center(generator, scan)
        piece = sampler.piece(self.scans[index], row, count, generator)
        if mixed:
            second = None if scan is None else int(generator.integers(len(self.scans)))
            second, row = self._center(generator, second)
            other_piece = sampler.piece(self.scans[second], row, count, generator)
            piece = sampler.mixed(piece, other_piece, count, generator)
        return sampler.scene_sample(piece, self.data.points, index, generator)

    def _center(self, generator: np.random.Generator, scan: int | None) -> tuple[int, int]:
        """Scan and voxel row of a random center, of one scan when it is given."""
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
