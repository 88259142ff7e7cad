"""Which of an engine's profiles takes a pyramid, and the least rows it takes there.

Plain integers; nothing of TensorRT or CUDA is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dela.artifacts.sidecar import Profile
from dela.errors import EngineError

# Padded stages come in eight sizes per doubling: padding adds at most an eighth.
_STEPS_AS_BITS = 3
_SMALLEST_STEP = 32


def choose_profile(
    profiles: Sequence[Profile],
    counts: Sequence[int],
    per_cloud: Sequence[int] = (),
    source: str = "this engine",
) -> int:
    """Index of the profile for a pyramid. Fewer points than a profile's least can be padded, more
    than its most cannot: one that needs no padding comes first, then the smallest.

    Args:
        profiles: at least one.
        counts: points per stage.
        per_cloud: points of one cloud per stage (classification); empty for segmentation.
        source: how the error names the engine.

    Raises:
        EngineError: too many points for every profile; it names the range and the ``--points`` to
            build with.
    """
    holding = [index for index, profile in enumerate(profiles) if _holds(profile, counts)]
    if holding:
        return min(
            holding,
            key=lambda index: (_short(profiles[index], counts), _largest(profiles[index])),
        )
    stages = max(profiles, key=_largest).stages
    excess = [count / limits.max for count, limits in zip(counts, stages, strict=True)]
    stage = excess.index(max(excess))
    units = tuple(per_cloud) or (1,) * len(counts)
    found, least, best, most = (
        size // units[stage]
        for size in (counts[stage], stages[stage].min, stages[stage].opt, stages[stage].max)
    )
    # The builder derives coarser stages from stage 0: enough there is enough everywhere.
    wanted = max(counts[0], math.ceil(stages[0].max * excess[stage])) // units[0]
    again = f"{stages[0].min // units[0]}:{stages[0].opt // units[0]}:{bucket(wanted)}"
    if per_cloud:
        what, otherwise = "clouds", "pack fewer"
    else:
        what, otherwise = f"points at stage {stage}", "use a smaller --max-points"
    raise EngineError(
        f"{source}: {found} {what} are more than its range {least}:{best}:{most} (min:opt:max); "
        f"{otherwise}, or build it again with `dela build --points {again}`"
    )


def padded_counts(
    counts: Sequence[int], profile: Profile, per_cloud: Sequence[int] = ()
) -> tuple[int, ...]:
    """Rows per stage that the engine is given at least: the counts, or the profile's least.

    Args:
        counts: points per stage, none above the profile's most.
        per_cloud: points of one cloud per stage (classification), where only whole clouds can be
            added; empty for segmentation.
    """
    units = tuple(per_cloud) or (1,) * len(counts)
    return tuple(
        max(count, -(-limits.min // unit) * unit)
        for count, unit, limits in zip(counts, units, profile.stages, strict=True)
    )


def bucket(count: int, smallest: int = _SMALLEST_STEP) -> int:
    """The next size of at least ``count``: eight per doubling, all multiples of ``smallest``."""
    step = max(smallest, 1 << max(count.bit_length() - 1 - _STEPS_AS_BITS, 0))
    return max(-(-count // step), 1) * step


def _holds(profile: Profile, counts: Sequence[int]) -> bool:
    return all(count <= limits.max for count, limits in zip(counts, profile.stages, strict=True))


def _short(profile: Profile, counts: Sequence[int]) -> bool:
    return any(count < limits.min for count, limits in zip(counts, profile.stages, strict=True))


def _largest(profile: Profile) -> tuple[int, ...]:
    return tuple(limits.max for limits in profile.stages)
