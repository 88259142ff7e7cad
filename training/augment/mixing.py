"""Two samples made one: scenes laid over each other, objects with a share of another's points."""

from __future__ import annotations

import math

import numpy as np


def mix_scenes(
    first: np.ndarray,
    second: np.ndarray,
    first_floor: float,
    second_floor: float,
    vertical: int = 2,
) -> np.ndarray:
    """float32 [N + M, 3]: two pieces about their own centers as one, on one floor.

    Center stands on center; the second is moved up or down until the lowest points of the two
    scenes are level. Every point keeps its label. After Nekrasov et al., "Mix3D", 2021.

    Args:
        first, second: [N, 3] and [M, 3] float32, meters about the center of each piece.
        first_floor, second_floor: where each scene's lowest point is in the same coordinates.
        vertical: index of the vertical axis.
    """
    lift = np.zeros(3, np.float32)
    lift[vertical] = first_floor - second_floor
    return np.concatenate([first, second + lift])


def mix_objects(
    first: np.ndarray, second: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Points [N, 3] of an object of which up to half are another's, and the other's part of the
    label.

    Args:
        first, second: [N, 3] and [M, 3] float32.
    """
    count = min(len(first), len(second))
    taken = int(generator.integers(0, count // 2 + 1))
    kept = first[generator.permutation(len(first))[taken:]]
    added = second[generator.permutation(len(second))[:taken]]
    return np.concatenate([kept, added]), label_share(taken / (len(kept) + taken))


def label_share(taken: float) -> float:
    """The part of the label that an object gets for its share of the points.

    A few points tell nothing of an object, so a share s weighs ``s / (1 + exp(2 - 16 s))``
    (published DeLA v2); the two weights are then scaled to add up to 1.

    Args:
        taken: share of the points, 0..1.
    """

    def weight(share: float) -> float:
        return share / (1 + math.exp(2 - 16 * share))

    return weight(taken) / (weight(taken) + weight(1 - taken))
