"""Optimization profiles: for which sizes an engine is built."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from dela.artifacts.metadata import ModelMetadata
from dela.artifacts.sidecar import Profile, SizeRange
from dela.errors import InputError
from dela.model.contract import Contract

# Scenes differ from those the ratios were measured on: room above their largest share.
HEADROOM = 1.5
# Used when nothing else is asked for: up to a tile of the predictor, or clouds a batch.
DEFAULT_POINTS = "1:60000:200000"
DEFAULT_CLOUDS = "1:8:32"


def parse_profile(text: str, metadata: ModelMetadata, headroom: float = HEADROOM) -> Profile:
    """The profile of ``MIN:OPT:MAX``, or of one such triple per stage between commas.

    Segmentation counts points of stage 0 over all clouds of a batch. Stages without a triple of
    their own get sizes from the ratios measured in training: the mean for the best size, the
    largest share times ``headroom`` for the maximum, 1 for the minimum, which costs nothing.
    Classification counts clouds, whose points are fixed.

    Args:
        text: such as ``5000:30000:120000`` or ``5000:30000:120000,1:9000:60000``.
        metadata: of the network.
        headroom: at least 1.

    Raises:
        InputError: not three ascending sizes, more triples than stages, or ``headroom`` below 1.
    """
    if not headroom >= 1:
        raise InputError(f"headroom is {headroom}; it is a factor of at least 1")
    given = [_parse_range(part, text) for part in text.split(",")]
    sizes = metadata.family.sizes(metadata.config)
    if len(given) > len(sizes):
        raise InputError(
            f"{text}: {len(given)} sizes are given; the network has {len(sizes)} stages"
        )
    if sizes[0].per_cloud:
        if len(given) > 1:
            raise InputError(f"{text}: give clouds as MIN:OPT:MAX; the points of a cloud are fixed")
        (clouds,) = given
        return Profile(
            tuple(
                SizeRange(
                    *(count * size.per_cloud for count in (clouds.min, clouds.opt, clouds.max))
                )
                for size in sizes
            )
        )
    stages = list(given)
    for stage in range(len(given), len(sizes)):
        mean, largest = _shares(metadata, stage, headroom)
        first, before = given[0], stages[-1]
        most = max(1, min(math.ceil(first.max * largest), before.max))
        best = max(1, min(math.ceil(first.opt * mean), before.opt, most))
        stages.append(SizeRange(1, best, most))
    _check_stages(stages, text)
    return Profile(tuple(stages))


def _parse_range(part: str, text: str) -> SizeRange:
    try:
        smallest, best, largest = (int(number) for number in part.split(":"))
    except ValueError:
        raise InputError(
            f"{text}: {part!r} is not MIN:OPT:MAX, such as 5000:30000:120000"
        ) from None
    if not 1 <= smallest <= best <= largest:
        raise InputError(f"{text}: {part} must ascend from 1 on: MIN <= OPT <= MAX")
    return SizeRange(smallest, best, largest)


def _shares(metadata: ModelMetadata, stage: int, headroom: float) -> tuple[float, float]:
    """Mean and largest share of stage 0's points that ``stage`` keeps."""
    if metadata.stage_ratios:
        ratio = metadata.stage_ratios[stage]
        return ratio["mean"], min(1.0, ratio["max"] * headroom)
    size = metadata.family.sizes(metadata.config)[stage]
    return size.mean_share, min(1.0, size.max_share * headroom)


def _check_stages(stages: Sequence[SizeRange], text: str) -> None:
    for stage, (finer, coarser) in enumerate(itertools.pairwise(stages), start=1):
        for name in ("opt", "max"):
            if getattr(coarser, name) > getattr(finer, name):
                raise InputError(
                    f"{text}: stage {stage} has {name} {getattr(coarser, name)}, more than stage "
                    f"{stage - 1} ({getattr(finer, name)}); a stage keeps at most the last one's"
                )


def default_profile(config: Contract) -> str:
    """What :func:`parse_profile` is given when nothing is asked for."""
    return DEFAULT_CLOUDS if config.task == "classification" else DEFAULT_POINTS


def input_shapes(
    metadata: ModelMetadata, profile: Profile
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Smallest, best and largest shape of every graph input under a profile."""
    index = {size.name: i for i, size in enumerate(metadata.family.sizes(metadata.config))}
    shapes = {}
    for spec in metadata.family.inputs(metadata.config):
        sizes = profile.stages[index[spec.rows]]
        shapes[spec.name] = (
            (sizes.min, *spec.columns),
            (sizes.opt, *spec.columns),
            (sizes.max, *spec.columns),
        )
    return shapes
