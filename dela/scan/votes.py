"""Class probabilities of a whole scan: its tiles through a network, looked at several times.

Validation, ``dela eval`` and ``dela predict`` all look at a scan through :func:`take_votes`; the
answers come together on the host here, on a GPU in :mod:`dela.scan.gpu_votes`.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from dela.model.contract import Contract
from dela.model.inputs import Inputs
from dela.plugins import native
from dela.scan.tiles import Tile
from dela.scan.voxels import Voxels

# Logits [N0, classes] float32 of one input ([1, classes] for classification).
Forward = Callable[[Inputs], np.ndarray]
Progress = Callable[[int, int], None]

# How near, in voxels of stage 0, a vote's point must stand to a point to be told mostly by it, and
# how much votes farther away still count.
NEAR = 0.2
FAR_WEIGHT = 1e-3


class Scan(Protocol):
    """A scan at the resolution of stage 0, on the host or a GPU; as
    :class:`dela.scan.voxels.Voxels`."""

    def __len__(self) -> int: ...

    def cut(
        self, config: Contract, max_points: int, context: float | None = None
    ) -> list[Tile]: ...

    def inputs(self, tile: Tile, config: Contract) -> Inputs: ...

    def turned(self, matrix: np.ndarray, config: Contract) -> Any: ...


AnyScan = TypeVar("AnyScan", bound=Scan)
Seen = TypeVar("Seen", bound=Scan, contravariant=True)


class Tally(Protocol[Seen]):
    """Where the answers to a scan come together."""

    def add_tile(self, logits: Any, tile: Tile) -> None:
        """Takes the core of a tile's answer."""

    def end_vote(self, seen: Seen) -> None:
        """All tiles of a vote are in; ``seen`` is the scan with this vote's points, not turned."""


@dataclass(frozen=True)
class VoteOptions:
    """How a network looks at a scan.

    Attributes:
        max_points: voxels in one run; more are cut into overlapping tiles.
        votes: at least 1.
        context: meters around a tile's core; None for :func:`dela.scan.tiles.context_width`.
        progress: called as ``progress(voxels done, voxels in all)``, all votes counted.
    """

    max_points: int
    votes: int = 1
    context: float | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Answer:
    """What a network says of a scan.

    Attributes:
        probabilities: [R, classes] float32: a row per voxel after one vote, a row per point after
            several; [1, classes] for classification.
        row_of_point: [N] integers: each point's row of ``probabilities``.
        voxels: the scan as it is, as vote 0 sees it.
        runs: how often the network ran.
    """

    probabilities: np.ndarray
    row_of_point: np.ndarray
    voxels: Voxels
    runs: int


def predict_voxels(
    forward: Forward,
    points: np.ndarray,
    look: Callable[[int], Voxels],
    config: Contract,
    options: VoteOptions,
) -> Answer:
    """Probabilities of every point of a scan, on the host.

    Args:
        forward: a network in evaluation mode or a runtime backend.
        points: [N, 3] meters, the scan at full resolution in the frame of its voxels.
        look, options: see :func:`take_votes`.
    """
    plain = look(0)
    tally = _HostTally(points, plain, config, options.votes)
    runs = take_votes(forward, plain, look, config, tally, options)
    return Answer(*tally.answer(), plain, runs)


def take_votes(
    forward: Callable[[Inputs], Any],
    plain: AnyScan,
    look: Callable[[int], AnyScan],
    config: Contract,
    tally: Tally[AnyScan],
    options: VoteOptions,
) -> int:
    """Has a network look at a scan; returns how often it ran.

    Vote 0 is the scan as it is; vote n takes the n-th point of every voxel and sees the scan
    transformed by :func:`vote_matrix`, or as it is where the network knows one direction only
    (``config.vote_axis`` is empty). All votes use vote 0's tiles. The answer to one vote is that of
    a point's voxel. Of several, each point listens most to those whose point of its voxel stood
    near it: a vote at distance d from it weighs ``exp(-(d / (NEAR * grid[0])) ** 2) + FAR_WEIGHT``.

    Args:
        forward: a network in evaluation mode or a runtime backend; gives logits as ``tally``
            takes them.
        plain: the scan as it is.
        look: the scan's voxels with the n-th point standing for each; their order is the same for
            every n. Asked for n >= 1.
        tally: takes the answers.
        options: tiles, votes and who hears of them.
    """
    votes, progress = options.votes, options.progress
    tiles = plain.cut(config, options.max_points, options.context)
    done = 0
    for vote in range(votes):
        seen = look(vote) if vote else plain
        scan = seen
        if vote and config.vote_axis:
            scan = seen.turned(vote_matrix(vote, votes, config.vote_axis), config)
        for tile in tiles:
            tally.add_tile(forward(scan.inputs(tile, config)), tile)
            done += int(np.count_nonzero(tile.core))
            if progress is not None:
                progress(done, votes * len(plain))
        tally.end_vote(seen)
    return votes * len(tiles)


class _HostTally:
    """Answers added up on the host."""

    def __init__(self, points: np.ndarray, plain: Voxels, config: Contract, votes: int) -> None:
        self._of_point = plain.voxel_of_point
        self._config = config
        self._votes = votes
        self._scenes = config.task == "segmentation"
        rows = len(plain) if self._scenes else 1
        self._vote = np.zeros((rows, config.num_classes), dtype=np.float32)
        self._by_point = votes > 1 and self._scenes
        if self._by_point:
            self._points = points
            self._total = np.zeros((len(points), config.num_classes), dtype=np.float32)
            self._weights = np.zeros((len(points), 1), dtype=np.float32)

    def add_tile(self, logits: np.ndarray, tile: Tile) -> None:
        probabilities = softmax(logits)
        if self._scenes:
            self._vote[tile.rows[tile.core]] = probabilities[tile.core]
        else:
            self._vote += probabilities

    def end_vote(self, seen: Voxels) -> None:
        if not self._by_point:
            return
        apart = self._points - seen.points[self._of_point]
        square = np.square(apart).sum(axis=1, keepdims=True)
        weight = np.exp(-square / vote_reach(self._config) ** 2) + FAR_WEIGHT
        weight = weight.astype(np.float32)
        self._total += weight * self._vote[self._of_point]
        self._weights += weight

    def answer(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities, and each point's row of them; as of :class:`Answer`."""
        if self._by_point:
            return self._total / self._weights, np.arange(len(self._points))
        looks = 1 if self._scenes else self._votes  # objects' votes were added up
        return self._vote / np.float32(looks), self._of_point


def vote_reach(config: Contract) -> float:
    """Meters from a vote's point at which what it weighs has fallen to 1 / e."""
    return NEAR * config.grid[0]


def vote_matrix(vote: int, votes: int, axis: str = "z") -> np.ndarray:
    """[3, 3]: a turn by ``vote / votes`` of a circle about x, y or z, odd votes mirrored before."""
    angle = 2 * math.pi * vote / votes
    cosine, sine = math.cos(angle), math.sin(angle)
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    matrix = turn @ np.diag([-1.0 if vote % 2 else 1.0, 1.0, 1.0])
    # The same with x, y, z renamed in turn until z is the axis.
    return np.roll(matrix, "xyz".index(axis) - 2, axis=(0, 1))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, classes] float32 of logits, of which there is at least one a row.

    By the native code that the C library uses, so that classes that are level to the last bit fall
    the same way in both.
    """
    probabilities = np.array(logits, dtype=np.float32, order="C")
    rows, classes = probabilities.shape
    place = probabilities.ctypes.data
    native.check(_native_softmax()(place, rows, classes, place), "softmax")
    return probabilities


@functools.cache
def _native_softmax() -> Any:
    function = native.library().dela_softmax
    function.restype = ctypes.c_int32
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return function
