"""Which samples a step takes, how they are packed, and what the recipes ask of a sample."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from dela.cloud.formats import write_cloud
from dela.families import resolve_config
from dela.geometry.cpu import VoxelGrid
from dela.training.data.batches import BatchMaker
from dela.training.data.dataset import Dataset
from dela.training.data.kinds import open_dataset
from dela.training.data.samples import pack_samples
from dela.training.data.scans import Scan
from dela.training.settings.augment import NOTHING, AugmentConfig
from dela.training.settings.data import ClassMap, DataConfig


@pytest.fixture
def scenes(tiny_config, tiny_scans, tmp_path) -> Dataset:
    """Three scans of different sizes, two passes an epoch."""
    from dela.cloud.formats import read_cloud

    whole = read_cloud(tiny_scans / "train.ply")
    for number, share in enumerate((1, 2, 4)):
        write_cloud(tmp_path / f"{number}.ply", whole.select(np.arange(0, len(whole), share)))
    data = dataclasses.replace(
        tiny_config.data, root=str(tmp_path), train=("*.ply",), passes=2, points=200
    )
    return open_dataset(data, tiny_config.model, "train")


OBJECTS = resolve_config(
    "scanobjectnn",
    dims=(16, 32),
    depths=(1, 1),
    neighbors=(6, 6),
    spread=(2.2, 4.4),
    points=(64, 16),
    num_classes=4,
)


def objects(augmentation: AugmentConfig, count: int = 8) -> Dataset:
    """Balls of 200 points anywhere; their radius is 1 more than their class."""
    rng = np.random.default_rng(0)
    rows = np.arange(200, dtype=np.int32)
    poles = np.concatenate([np.eye(3), -np.eye(3)])
    ball = np.concatenate([poles, rng.standard_normal((194, 3))])
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    scans = [
        Scan(
            f"object {number}",
            ((1 + number % 4) * ball + rng.uniform(0, 9, 3)).astype(np.float32),
            np.zeros((200, 0), np.float32),
            np.array([number % 4], np.int16),
            np.zeros(3),
            VoxelGrid(rows, rows),
        )
        for number in range(count)
    ]
    data = DataConfig(
        kind="prepared", classes=tuple(ClassMap(str(c), (c,)) for c in range(4)), passes=1
    )
    return Dataset(scans, data, OBJECTS, augmentation)


def test_an_epoch_takes_every_scan_as_often_as_asked(scenes, tiny_config):
    schedule = dataclasses.replace(tiny_config.train, batch_size=2)
    steps = scenes.steps_per_epoch(2)
    assert steps == 3 * 2 // 2
    assert scenes.steps_per_epoch(4) == 1  # an unfull batch is left out
    maker = BatchMaker(scenes, schedule, steps, 2 * steps)
    epochs = []
    for epoch in range(2):
        taken = [
            sample.scan
            for step in range(epoch * steps, (epoch + 1) * steps)
            for sample in maker.samples(step)
        ]
        assert Counter(taken) == {0: 2, 1: 2, 2: 2}
        epochs.append(taken)
    assert len({tuple(order) for order in epochs}) == 2
    again = BatchMaker(scenes, schedule, steps, 2 * steps)
    assert [s.scan for s in again.samples(1)] == epochs[0][2:4]


def test_processes_that_share_a_step_take_different_samples(scenes, tiny_config):
    schedule = dataclasses.replace(tiny_config.train, batch_size=1)
    maker = BatchMaker(scenes, schedule, 3, 3, per_step=2)
    whole = [sample.scan for step in range(3) for sample in maker.samples(step)]
    assert Counter(whole) == {0: 2, 1: 2, 2: 2}
    parts = [[maker.samples(step, [slot])[0].scan for step in range(3)] for slot in (0, 1)]
    assert [scan for pair in zip(*parts, strict=True) for scan in pair] == whole


@pytest.mark.parametrize("limit", [1, 100, 250, 330, 500, 10_000])
def test_samples_are_packed_up_to_the_limit(scenes, tiny_config, limit):
    schedule = dataclasses.replace(tiny_config.train, batch_size=4, batch_points=limit)
    maker = BatchMaker(scenes, schedule, 3, 3)
    sizes = [len(sample.labels) for sample in maker.samples(0)]
    assert sum(sizes) <= limit
    full = min(
        limit, sum(len(s.labels) for s in BatchMaker(scenes, tiny_config.train, 3, 3, 4).samples(0))
    )
    assert sum(sizes) >= full - 0.125 * 200
    batch, names = maker(0)
    assert len(batch.labels) == sum(sizes)
    assert len(names) == batch.pyramid.clouds == len(sizes)


def test_mixing_fades_with_the_progress(scenes, tiny_config):
    mixing = AugmentConfig(rotate_z=0, flip=False, scale=(1, 1), mix=1.0, mix_end=0.0)
    mixed = Dataset(scenes.scans, scenes.data, scenes.model, mixing)
    plain = Dataset(scenes.scans, scenes.data, scenes.model, NOTHING)

    def differs(progress: float) -> int:
        pairs = [
            [data.sample(np.random.default_rng(s), scan=0, progress=progress) for s in range(20)]
            for data in (mixed, plain)
        ]
        return sum(
            not np.array_equal(a.pyramid.points, b.pyramid.points)
            for a, b in zip(*pairs, strict=True)
        )

    assert differs(0.0) == 20
    assert 3 < differs(0.5) < 17
    assert differs(1.0) == 0


def test_holes_leave_less_of_a_sample(scenes):
    config = dataclasses.replace(NOTHING, cutout=6, cutout_radius=1.0)
    cut = Dataset(scenes.scans, scenes.data, scenes.model, config)
    sizes = [len(cut.sample(np.random.default_rng(seed), scan=0).labels) for seed in range(10)]
    assert max(sizes) < 200
    assert len(set(sizes)) > 3


def test_an_object_is_one_cloud_with_one_label():
    data = objects(NOTHING)
    sample = data.sample(np.random.default_rng(0), scan=3)
    sample.pyramid.validate()
    assert sample.labels.tolist() == [3]
    assert sample.target is None
    assert [sum(lengths) for lengths in sample.pyramid.lengths] == [64, 16]
    assert data.steps_per_epoch(3) == 2
    # Training takes a random part of an object's points, another one each time.
    other = data.sample(np.random.default_rng(1), scan=3)
    assert not np.array_equal(sample.pyramid.points, other.pyramid.points)


def test_a_mixed_objects_target_is_its_share_of_the_points():
    data = objects(dataclasses.replace(NOTHING, mix=1.0))
    seen, shares = set(), []
    for seed in range(40):
        sample = data.sample(np.random.default_rng(seed), scan=1)
        target = sample.target[0]
        assert target.sum() == pytest.approx(1)
        assert sample.labels[0] == target.argmax()
        # Both balls stand about one middle: the radius tells whose a point is.
        radius = np.linalg.norm(sample.pyramid.points, axis=1)
        whose = np.rint(radius).astype(int) - 1
        assert np.abs(radius - whose - 1).max() < 1e-4
        other = [c for c in range(4) if c != 1 and target[c] > 0]
        if other:
            (kind,) = other
            assert set(whose) <= {1, kind}
            assert target[kind] <= 0.5
            shares.append((target[kind], (whose == kind).mean()))
        seen.add(round(float(target[1]), 3))
    assert len(seen) > 10
    # The pyramid's points are chosen for even spread, so the shares agree in tendency alone.
    assert np.corrcoef(np.array(shares).T)[0, 1] > 0.5


def test_packed_objects_have_targets_when_one_of_them_is_mixed():
    mixing = objects(dataclasses.replace(NOTHING, mix=0.5))
    samples = [mixing.sample(np.random.default_rng(seed), scan=seed % 8) for seed in range(8)]
    assert {sample.target is None for sample in samples} == {True, False}
    batch = pack_samples(samples)
    batch.pyramid.validate()
    assert batch.targets.shape == (8, 4)
    assert batch.targets.dtype == np.float32
    for row, sample in zip(batch.targets, samples, strict=True):
        if sample.target is None:
            assert row[sample.labels[0]] == 1
        assert row.sum() == pytest.approx(1)
    plain = [objects(NOTHING).sample(np.random.default_rng(seed)) for seed in range(3)]
    assert pack_samples(plain).targets is None
