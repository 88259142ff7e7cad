"""Random streams of a run: every random number follows from ``train.seed`` and a place in the run.

Nothing is drawn from a generator that lives on from step to step, so neither a resumed run nor the
order in which workers prepare samples changes what is drawn.
"""

from __future__ import annotations

import numpy as np

# Independent streams of one seed: training samples, a network's own randomness (stochastic depth,
# head drop, coordinate loss), measurements before and between steps, the order of scans, the
# largest batch, adapters.
SAMPLE, NETWORK, MEASURE, ORDER, LARGEST, ADAPTERS = 1, 2, 3, 4, 5, 6


def generator(seed: int, stream: int, *number: int) -> np.random.Generator:
    """The random generator of one purpose and one step, sample or epoch.

    Args:
        seed: of the run; ``stream``: one of the constants above.
        number: of the step, of the sample within it, and so on.
    """
    return np.random.default_rng(np.random.SeedSequence([seed, stream, *number]))


def torch_seed(seed: int, stream: int, *number: int) -> int:
    """What torch's generator is seeded with for one purpose: 0 .. 2^63 - 1."""
    return int(generator(seed, stream, *number).integers(2**63))
