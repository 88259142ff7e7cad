"""Scores of a network at full resolution: every input point through the voxel it fell into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dela.families import family_of
from dela.model.inputs import Inputs, pack_inputs
from dela.scan.protocols import Look, add_looks
from dela.scan.votes import Forward, VoteOptions, predict_voxels, softmax
from dela.scores.confusion import Confusion
from dela.scores.parts import PartScores
from dela.training.data.dataset import Dataset
from dela.training.data.scans import AnyScan

# Called with the scans done (a fraction while one is under way) and the scans in all.
ScoreProgress = Callable[[float, int], None]
# Objects that go through the network together.
OBJECTS = 32


@dataclass(frozen=True)
class ScanAnswer:
    """What a network says of one scan.

    Attributes:
        scan: with the true labels.
        predicted: class index of every label of the scan: [N] of its points, [1] of an object.
        confidence: the probability of that class, float32.
    """

    scan: AnyScan
    predicted: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class Scores:
    """Scores of a split.

    Attributes:
        confusion: of points, or of objects for classification.
        parts: per object, for part segmentation.
    """

    confusion: Confusion
    parts: PartScores | None = None

    def __add__(self, other: Scores) -> Scores:
        parts = None
        if self.parts is not None and other.parts is not None:
            parts = self.parts + other.parts
        return Scores(self.confusion + other.confusion, parts)

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain JSON types: those of :meth:`Confusion.to_dict`, and ``parts``."""
        extra = {} if self.parts is None else {"parts": self.parts.to_dict()}
        return self.confusion.to_dict(names) | extra


def score_split(
    forward: Forward,
    dataset: Dataset,
    *,
    votes: int = 1,
    looks: Sequence[Look] = (),
    progress: ScoreProgress | None = None,
    after_scan: Callable[[ScanAnswer], None] | None = None,
) -> Scores:
    """Label every point (or object) of a split and compare; ignored points are left out.

    Scans are answered as ``dela predict`` answers them, see :func:`dela.scan.votes.predict_voxels`,
    or by a published protocol. Objects vote with other points of theirs: the first vote takes those
    of farthest point sampling, the others random ones as in training.

    Args:
        forward: from pyramid to logits; :func:`network_forward` makes one of a network.
        votes: passes over the data.
        looks: a protocol of :data:`dela.scan.protocols.PROTOCOLS` instead of votes.
        progress: see :data:`ScoreProgress`.
        after_scan: called with the answer of every scan.
    """
    model = dataset.model
    confusion = Confusion(model.num_classes)
    parts = PartScores(model.categories) if model.categories else None
    answers = (
        _objects(forward, dataset, votes)
        if model.task == "classification"
        else _scenes(forward, dataset, votes, looks, progress)
    )
    for done, answer in enumerate(answers, start=1):
        truth = answer.scan.labels
        confusion.add(truth, answer.predicted)
        if parts is not None:
            columns = np.asarray(answer.scan.attributes[:1])[0, -len(model.categories) :]
            parts.add(int(columns.argmax()), truth, answer.predicted)
        if after_scan is not None:
            after_scan(answer)
        if progress is not None:
            progress(done, len(dataset.scans))
    return Scores(confusion, parts)


def _scenes(
    forward: Forward,
    dataset: Dataset,
    votes: int,
    looks: Sequence[Look],
    progress: ScoreProgress | None,
) -> Iterator[ScanAnswer]:
    model = dataset.model
    for number, scan in enumerate(dataset.scans):
        options = VoteOptions(
            dataset.data.eval_points,
            votes,
            dataset.data.margin,
            _within(progress, number, len(dataset.scans)) if progress else None,
        )
        if looks:
            answer = add_looks(forward, scan.points, scan.attributes, model, looks, options)
        else:
            answer = predict_voxels(forward, scan.points, scan.voxels, model, options)
        best = answer.probabilities.argmax(1)
        confidence = answer.probabilities.max(1)
        yield ScanAnswer(scan, best[answer.row_of_point], confidence[answer.row_of_point])


def _within(progress: ScoreProgress, before: int, scans: int) -> Callable[[int, int], None]:
    return lambda done, total: progress(before + done / total, scans)


def _objects(forward: Forward, dataset: Dataset, votes: int) -> Iterator[ScanAnswer]:
    model = dataset.model
    family = family_of(model)
    for first in range(0, len(dataset.scans), OBJECTS):
        scans = dataset.scans[first : first + OBJECTS]
        total = np.zeros((len(scans), model.num_classes), np.float32)
        for vote in range(votes):
            inputs = [
                family.prepare(
                    np.asarray(scan.points), None, model, seed=vote, pick=None if vote else 0
                )
                for scan in scans
            ]
            total += softmax(forward(pack_inputs(inputs)))
        for scan, row in zip(scans, total / np.float32(votes), strict=True):
            yield ScanAnswer(scan, row.argmax()[None], row.max()[None])


def network_forward(model: object) -> Forward:
    """A torch network, put into evaluation mode, as what :func:`score_split` takes; float32."""
    import torch

    assert isinstance(model, torch.nn.Module)
    model.eval()

    def forward(inputs: Inputs) -> np.ndarray:
        with torch.inference_mode():
            return model(inputs).float().cpu().numpy()

    return forward
