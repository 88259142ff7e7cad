"""Which samples make up a training step, and packing them into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from dela.training.data.dataset import Dataset
from dela.training.data.prefetch import pinned
from dela.training.data.samples import Batch, Sample, pack_samples
from dela.training.settings.seeds import LARGEST, ORDER, SAMPLE, generator
from dela.training.settings.train import ScheduleConfig

# A batch that is nearly full is not topped up with a sample below this share of a whole one.
SMALLEST_SHARE = 0.125


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of any step from the step's number alone.

    With ``train.gpu_pyramid`` batches hold the clouds that their pyramids are to be built from.

    Attributes:
        steps_per_epoch, total_steps: of the whole training.
        per_step: samples of a step, over all processes and accumulated batches; 0 for
            ``batch_size``.
        threads: native threads; None for all. Changes only the speed.
    """

    dataset: Dataset
    schedule: ScheduleConfig
    steps_per_epoch: int
    total_steps: int
    per_step: int = 0
    threads: int | None = None

    def samples(self, step: int, slots: Sequence[int] | None = None) -> list[Sample]:
        """The samples of a step.

        With ``train.batch_points`` they are packed until so many points are together: the last is
        cut to what is left, and the slots after it stay empty.

        Args:
            slots: places in the step, 0 .. ``per_step`` - 1; None for all of them.
        """
        schedule = self.schedule
        slots = range(self.per_step or schedule.batch_size) if slots is None else slots
        largest = self.dataset.data.points
        left = schedule.batch_points or len(slots) * largest
        taken: list[Sample] = []
        for slot in slots:
            if taken and left < SMALLEST_SHARE * largest:
                break
            sample = self.dataset.sample(
                generator(schedule.seed, SAMPLE, step, slot),
                self.threads,
                self._scan(step, slot),
                step / max(1, self.total_steps),
                left,
                not schedule.gpu_pyramid,
            )
            taken.append(sample)
            left -= sample.pyramid.rows
        return taken

    def largest(self) -> tuple[Batch, list[str]]:
        """As large a batch as the data can make: samples of the scan with the most points."""
        schedule, scan = self.schedule, self.dataset.largest_scan
        left = schedule.batch_points or schedule.batch_size * self.dataset.data.points
        taken: list[Sample] = []
        while left > 0 and len(taken) < schedule.batch_size:
            random = generator(schedule.seed, LARGEST, len(taken))
            build = not schedule.gpu_pyramid
            taken.append(self.dataset.sample(random, self.threads, scan, most=left, build=build))
            left -= taken[-1].pyramid.rows
        return pack_samples(taken), [self.dataset.scans[scan].name]

    def __call__(self, step: int, slots: Sequence[int] | None = None) -> tuple[Batch, list[str]]:
        """The batch of a step and the names of the scans in it."""
        samples = self.samples(step, slots)
        return pack_samples(samples), [self.dataset.scans[sample.scan].name for sample in samples]

    def _scan(self, step: int, slot: int) -> int | None:
        """The scan of a place in a step; None where samples are drawn by place."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = _order(self.dataset, self.schedule.seed, epoch)
        if order is None:
            return None
        per_step = self.per_step or self.schedule.batch_size
        return int(order[(within * per_step + slot) % len(order)])


@dataclass(frozen=True)
class StepBatches:
    """One process's batches of any step, with the names of the scans in each. Picklable.

    Attributes:
        rank, processes: which process of how many.
        pin: leave the arrays in page-locked memory, for a GPU.
    """

    make_batch: BatchMaker
    rank: int = 0
    processes: int = 1
    pin: bool = False

    def __call__(self, step: int) -> list[tuple[Batch, list[str]]]:
        schedule = self.make_batch.schedule
        made = []
        for number in range(schedule.accumulate):
            first = (number * self.processes + self.rank) * schedule.batch_size
            batch, names = self.make_batch(step, range(first, first + schedule.batch_size))
            if self.pin:
                batch = replace(batch, pyramid=pinned(batch.pyramid))
            made.append((batch, names))
        return made


@lru_cache(maxsize=4)
def _order(dataset: Dataset, seed: int, epoch: int) -> np.ndarray | None:
    return dataset.order(generator(seed, ORDER, epoch))
