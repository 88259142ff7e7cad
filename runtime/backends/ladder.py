"""The sets of rows that inputs are padded to, so that few CUDA graphs serve clouds of every size.

A set has the rows of all stages: clouds that share it share a graph. Stages bucketed each by itself
would make a set of nearly every cloud, for the share of rows that a stage keeps varies from place
to place. Here a cloud takes a set that an earlier one made, if it holds the cloud and few of its
rows are padding; else its own rows, with some room, become a set. Which set is taken depends on the
clouds of before; no answer does, for padding changes none.

Plain integers; nothing of TensorRT or CUDA is imported here.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from operator import ge, truediv

from dela.artifacts.metadata import ModelMetadata
from dela.artifacts.sidecar import Profile
from dela.errors import InputError
from dela.runtime.backends.profiles import bucket, choose_profile

# Rows of a new set over those of the cloud it is made for: clouds a little larger fit, too.
ROOM = 1.1
# A set is taken when its waste is at most this: a new one is cheap as long as sets are few, and
# costs another set its graph once all are there.
_WASTE_WITH_ROOM, _WASTE_WHEN_FULL = 0.25, 0.5


def waste(rows: Sequence[int], counts: Sequence[int]) -> float:
    """Share of padding: the mean over the stages of ``rows / counts - 1``.

    Stages count alike, since each costs about as much as the next: where it has a fourth of the
    rows, it has twice the channels, and products of features cost the square of these.

    Args:
        rows: per stage, padding included.
        counts: points per stage; a stage without any counts as one.
    """
    return sum(map(truediv, rows, (max(count, 1) for count in counts))) / len(rows) - 1


class Ladder:
    """Sets of rows, the one unused for longest giving way.

    Args:
        profiles: of the engine.
        per_cloud: points of one cloud per stage (classification), where only whole clouds can be
            added; empty for segmentation.
        most: sets that are kept, at least 1: as many as graphs.
    """

    def __init__(
        self, profiles: Sequence[Profile], per_cloud: Sequence[int] = (), *, most: int
    ) -> None:
        self._profiles = profiles
        self._per_cloud = tuple(per_cloud)
        self.most = most
        self._sets: OrderedDict[tuple[int, tuple[int, ...]], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sets)

    def rows(self, profile: int, counts: Sequence[int]) -> tuple[int, ...]:
        """Rows per stage that a cloud is padded to: no fewer than its counts, within the profile.

        Of the sets that hold the cloud the least wasteful is taken, if it wastes no more than a
        quarter (a half, once all sets are there), or no more than a set made for this cloud would.

        Args:
            profile: number of the profile.
            counts: points per stage, none above the profile's most.
        """
        made = self._made_for(profile, counts)
        full = len(self._sets) >= self.most
        limit = max(_WASTE_WHEN_FULL if full else _WASTE_WITH_ROOM, waste(made, counts))
        held = [
            (waste(rows, counts), rows)
            for number, rows in self._sets
            if number == profile and all(map(ge, rows, counts))
        ]
        wasted, best = min(held, default=(math.inf, made))
        return self.keep(profile, best if wasted <= limit else made)

    def keep(self, profile: int, rows: tuple[int, ...]) -> tuple[int, ...]:
        """Makes ``rows`` a set, or the one used last where it is one; gives it back."""
        self._sets[profile, rows] = None
        self._sets.move_to_end((profile, rows))
        if len(self._sets) > self.most:
            self._sets.popitem(last=False)
        return rows

    def likely(
        self, sizes: Sequence[int], metadata: ModelMetadata, source: str = "this engine"
    ) -> list[tuple[int, tuple[int, ...]]]:
        """Profile and rows of sets for clouds to come, none of them kept yet; the largest first.

        Clouds of one size differ in the share of points that coarser stages keep. Segmentation
        gets two sets of each size: half-way from the least to the mean share, and from there to
        the largest.

        Args:
            sizes: points of stage 0, or clouds of a batch, at least 1.
            metadata: of the network, with the shares that training measured.
            source: how errors name the engine.

        Raises:
            EngineError: a size above every profile's most.
            InputError: a size below 1, or more sets than are kept.
        """
        if min(sizes, default=1) < 1:
            raise InputError(f"a size to warm up is {min(sizes)}; give 1 or more")
        most = [max(limits) for limits in zip(*map(_largest_of, self._profiles), strict=True)]
        found: dict[tuple[int, tuple[int, ...]], None] = {}
        for size in sizes:
            for shares in self._shares(metadata):
                first, *coarser = (math.ceil(size * share) for share in shares)
                counts = (first, *map(min, coarser, most[1:]))
                profile = choose_profile(self._profiles, counts, self._per_cloud, source)
                found[profile, self._made_for(profile, counts, room=1.0)] = None
        if len(found) > self.most:
            raise InputError(
                f"{len(found)} CUDA graphs would be captured, {self.most} are kept; give fewer "
                f"sizes, or --graphs {len(found)}"
            )
        return sorted(found, key=lambda kept: kept[1], reverse=True)

    def _shares(self, metadata: ModelMetadata) -> list[tuple[float, ...]]:
        """Points of every stage, over those of stage 0 or over the clouds of a batch."""
        if self._per_cloud:
            return [tuple(map(float, self._per_cloud))]
        return list(zip(*map(_two_shares, measured_shares(metadata)), strict=True))

    def _made_for(self, profile: int, counts: Sequence[int], room: float = ROOM) -> tuple[int, ...]:
        """A set of bucket sizes for one cloud; a batch of whole clouds gets no room."""
        rows = []
        limits = self._profiles[profile].stages
        units = self._per_cloud or (1,) * len(counts)
        for count, unit, limit in zip(counts, units, limits, strict=True):
            wanted = (
                bucket(count // unit, 1) if self._per_cloud else bucket(math.ceil(count * room))
            )
            rows.append(min(max(wanted, limit.min // unit), limit.max // unit) * unit)
        return tuple(rows)


def _largest_of(profile: Profile) -> tuple[int, ...]:
    return tuple(limits.max for limits in profile.stages)


def measured_shares(metadata: ModelMetadata) -> list[tuple[float, float, float]]:
    """Least, mean and largest share of stage 0's points that each stage keeps.

    Where training measured none: those of the network's family, the least as far below the mean
    as the largest is above it, in factors.
    """
    if metadata.stage_ratios:
        return [(ratio["min"], ratio["mean"], ratio["max"]) for ratio in metadata.stage_ratios]
    sizes = metadata.family.sizes(metadata.config)
    return [
        (size.mean_share**2 / size.max_share, size.mean_share, size.max_share) for size in sizes
    ]


def _two_shares(shares: tuple[float, float, float]) -> tuple[float, float]:
    least, mean, largest = shares
    return min(1.0, ROOM * (least + mean) / 2), min(1.0, ROOM * (mean + largest) / 2)


def spread(smallest: int, largest: int, count: int) -> list[int]:
    """``count`` sizes from ``smallest`` to ``largest``, both among them, each by one factor larger
    than the one before; fewer where they would come twice.

    Raises:
        InputError: they do not ascend from 1 on.
    """
    if not 1 <= smallest <= largest:
        raise InputError(f"sizes {smallest}:{largest} must ascend from 1 on: MIN <= MAX")
    if count < 2:
        return [largest]
    step = (largest / smallest) ** (1 / (count - 1))
    return sorted({round(smallest * step**index) for index in range(count)})
