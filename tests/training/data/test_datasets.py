"""Labelled datasets: label mapping, file layouts, random crops, whole scans."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from dela.cloud.formats import write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import ConfigError, InputError
from dela.families.dela.config import DelaConfig
from dela.model.contract import AttributeInfo
from dela.training.data.kinds import DATA_KINDS, has_labels, names_scans, open_dataset
from dela.training.data.samples import pack_samples
from dela.training.evaluate.split import score_split
from dela.training.settings.data import KINDS, SPLITS
from dela.training.settings.splits import map_labels, room_seeds
from dela.training.settings.train import (
    AugmentConfig,
    ClassMap,
    DataConfig,
    load_config,
    model_classes,
)

DATA = DataConfig(
    classes=(ClassMap("ground", (2, 8)), ClassMap("tree", (4, 5))),
    ignore=(0,),
    train=("train.ply",),
    points=600,
)
MODEL = DelaConfig(
    task="segmentation",
    classes=model_classes(DATA),
    dims=(16, 16),
    depths=(1, 1),
    neighbors=(8, 8),
    spread=(1.6, 3.8),
    coordinate_scale=4.0,
    grid=(0.4, 0.8),
    head_dim=16,
    attributes=(AttributeInfo("intensity", 1000.0), AttributeInfo("height", 10.0)),
)


def scan(seed: int = 0, count: int = 6000) -> PointCloud:
    """Ground (2, 8) with a bump of trees (4, 5) and a few unclassified points, at UTM size."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 20, (count, 2))
    tree = np.hypot(*(xy - 12).T) < 4
    z = np.where(tree, rng.uniform(0, 5, count), 0.0)
    label = np.where(tree, rng.choice([4, 5], count), rng.choice([2, 8], count))
    label[:50] = 0
    return PointCloud(
        np.column_stack([xy, z]) + np.array([651_000.25, 6_861_000.5, 120]),
        {
            "classification": label.astype(np.uint8),
            "intensity": (100 * label + rng.integers(0, 50, count)).astype(np.uint16),
        },
    )


@pytest.fixture
def folder(tmp_path):
    write_cloud(tmp_path / "train.ply", scan(0))
    write_cloud(tmp_path / "val.npz", scan(1))
    return tmp_path


@pytest.fixture
def dataset(folder):
    return open_dataset(dataclasses.replace(DATA, root=str(folder)), MODEL, "train")


def test_codes_become_class_indices_and_ignored_ones_minus_one():
    mapped = map_labels(np.array([2, 8, 4, 5, 0]), DATA)
    assert mapped.tolist() == [0, 0, 1, 1, -1]


def test_values_outside_the_class_map_are_listed_with_their_counts():
    with pytest.raises(InputError, match=r"7 \(3 points\), 9 \(1 points\).*data.ignore"):
        map_labels(np.array([2, 7, 7, 9, 7]), DATA)
    with pytest.raises(InputError, match=r"2\.5 \(1 points\)"):
        map_labels(np.array([2.0, 2.5]), DATA)
    with pytest.raises(InputError, match=r"nan \(1 points\)"):
        map_labels(np.array([2.0, np.nan]), DATA)


@pytest.mark.parametrize("suffix", [".las", ".laz", ".ply", ".npz"])
def test_every_layout_gives_the_same_labels_and_attributes(tmp_path, suffix):
    cloud = scan()
    write_cloud(tmp_path / f"s{suffix}", cloud)
    data = dataclasses.replace(DATA, root=str(tmp_path), train=(f"s{suffix}",))
    read = open_dataset(data, MODEL, "train").scans[0]
    assert np.array_equal(read.labels, map_labels(cloud.columns["classification"], DATA))
    assert np.allclose(read.points + read.origin, cloud.points, atol=2e-3)
    assert np.allclose(read.attributes[:, 0], cloud.columns["intensity"] / 1000.0)
    assert np.allclose(read.attributes[:, 1], (cloud.points[:, 2] - 120) / 10, atol=2e-3)


def test_files_folders_and_globs_name_scans_once(folder):
    (folder / "sub").mkdir()
    write_cloud(folder / "sub" / "a.ply", scan(2))
    data = dataclasses.replace(DATA, root=str(folder), train=("*.ply", "train.ply", "sub"))
    names = [scan.name for scan in open_dataset(data, MODEL, "train").scans]
    assert [name.rsplit("/", 1)[-1] for name in names] == ["a.ply", "train.ply"]


def test_entries_without_files_and_empty_splits_are_refused(folder):
    data = dataclasses.replace(DATA, root=str(folder), test=("nothing_*.laz",))
    with pytest.raises(InputError, match=r"'nothing_\*\.laz' matches no scan"):
        open_dataset(data, MODEL, "test")
    with pytest.raises(InputError, match=r"data\.val names no scans"):
        open_dataset(data, MODEL, "val")
    with pytest.raises(ConfigError, match="split is 'valid'"):
        open_dataset(data, MODEL, "valid")


def test_a_file_in_two_splits_is_refused(folder):
    data = dataclasses.replace(DATA, root=str(folder), val=("*.ply",))
    with pytest.raises(ConfigError, match=r"train\.ply is in data\.train and in data\.val"):
        open_dataset(data, MODEL, "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "kind"}, r"train\.ply: no label column 'kind'; columns present: .*intensity"),
        ({"classes": (ClassMap("g", (2,)),)}, r"train\.ply: label values outside .*4 \("),
        ({"ignore": (0, 2, 8, 4, 5), "classes": (ClassMap("x", (77,)),)}, "every label is ignored"),
    ],
)
def test_labels_that_do_not_fit_are_refused_naming_the_file(folder, change, message):
    data = dataclasses.replace(DATA, root=str(folder), **change)
    with pytest.raises(InputError, match=message):
        open_dataset(data, MODEL, "train")


def test_missing_attributes_empty_and_broken_scans_are_refused(folder):
    model = dataclasses.replace(MODEL, attributes=(AttributeInfo("red"),))
    data = dataclasses.replace(DATA, root=str(folder))
    with pytest.raises(InputError, match=r"train\.ply: .*'red'"):
        open_dataset(data, model, "train")
    broken = scan()
    broken.points[:3] = np.nan
    write_cloud(folder / "broken.npz", broken)
    with pytest.raises(InputError, match=r"broken\.npz: 3 of 6000 points are not finite"):
        open_dataset(dataclasses.replace(data, train=("broken.npz",)), MODEL, "train")
    write_cloud(folder / "empty.npz", scan().select(np.zeros(6000, bool)))
    with pytest.raises(InputError, match=r"empty\.npz has no points"):
        open_dataset(dataclasses.replace(data, train=("empty.npz",)), MODEL, "train")


def test_a_training_sample_is_the_generators_alone(dataset):
    first = dataset.sample(np.random.default_rng(5))
    again = pickle.loads(pickle.dumps(dataset)).sample(np.random.default_rng(5))
    other = dataset.sample(np.random.default_rng(6))
    assert np.array_equal(first.labels, again.labels)
    for (name, left), (_, right) in zip(
        first.pyramid.inputs(), again.pyramid.inputs(), strict=True
    ):
        assert np.array_equal(left, right), name
    assert not np.array_equal(first.pyramid.points, other.pyramid.points)


def test_a_training_sample_keeps_to_its_size_and_its_labels_to_their_points(dataset):
    rng = np.random.default_rng(0)
    for _ in range(5):
        sample = dataset.sample(rng)
        sample.pyramid.validate()
        assert len(sample.labels) == 600
        assert sample.labels.dtype == np.int64
        # Intensity tells the code (100 code + noise): labels traveled with their points.
        code = (sample.pyramid.attributes[:, 0] * 1000 // 100).astype(int)
        expected = map_labels(code, DATA)
        assert np.array_equal(sample.labels, expected)


def test_a_training_sample_takes_random_members_of_its_voxels(dataset):
    data = dataclasses.replace(DATA, root=dataset.data.root, points=5000)
    whole = open_dataset(data, MODEL, "train")
    seen = [
        set(whole.sample(np.random.default_rng(s)).pyramid.attributes[:, 1].tolist())
        for s in (1, 2)
    ]
    assert seen[0] != seen[1]


def test_augmentation_reaches_the_sample(folder):
    data = dataclasses.replace(DATA, root=str(folder))
    grown = open_dataset(
        data, MODEL, "train", AugmentConfig(rotate_z=0, flip=False, scale=(1.5, 1.5))
    )
    samples = [grown.sample(np.random.default_rng(seed)) for seed in range(5)]
    assert [len(sample.labels) for sample in samples] == [600] * 5
    # Heights of trees reach 5 m; enlarged, up to 7.5 m.
    highest = max(10 * sample.pyramid.attributes[:, 1].max() for sample in samples)
    assert 5.5 < highest <= 7.6


def test_a_mixed_sample_lays_two_crops_over_each_other(folder):
    data = dataclasses.replace(DATA, root=str(folder), points=200)
    still = AugmentConfig(rotate_z=0, flip=False, scale=(1, 1))
    mixed, plain = (
        open_dataset(data, MODEL, "train", dataclasses.replace(still, mix=mix)) for mix in (1.0, 0)
    )
    shares = []
    for seed in range(20):
        sample = mixed.sample(np.random.default_rng(seed))
        # Intensity carries the label code: rows of points and labels stayed together.
        codes = (10 * sample.pyramid.attributes[:, 0]).astype(int)
        assert set(codes[sample.labels == 1]) <= {4, 5}
        assert set(codes[sample.labels == 0]) <= {2, 8}
        assert 100 < len(sample.labels) <= 200
        alone = plain.sample(np.random.default_rng(seed))
        # The first crop is the same, and some of its voxels made room for the second's.
        there = {tuple(p) for p in alone.pyramid.points}
        shares.append(np.mean([tuple(p) in there for p in sample.pyramid.points]))
    assert min(shares) > 0.2
    assert np.mean(shares) < 0.8


def test_balanced_centers_favor_the_rare_class(folder):
    labels = {}
    for balance in (0.0, 1.0):
        data = dataclasses.replace(DATA, root=str(folder), balance=balance, points=30)
        balanced = open_dataset(data, MODEL, "train")
        rng = np.random.default_rng(0)
        labels[balance] = np.mean([np.mean(balanced.sample(rng).labels == 1) for _ in range(60)])
    assert labels[1.0] > labels[0.0] + 0.03


@pytest.mark.parametrize("most", [100_000, 500, 60])
def test_evaluation_counts_every_labelled_point_once_by_its_own_voxel(folder, most):
    data = dataclasses.replace(DATA, root=str(folder), eval_points=most, margin=1.0)
    whole = open_dataset(data, MODEL, "train")
    full = whole.scans[0]
    sizes = []

    def by_intensity(pyramid):
        """Knows the class: intensity tells the code (100 code + noise)."""
        pyramid.validate()
        sizes.append(len(pyramid.points))
        tree = np.isin(np.rint(pyramid.attributes[:, 0] * 1000) // 100, (4, 5))
        return np.stack([~tree, tree], 1).astype(np.float32)

    confusion = score_split(by_intensity, whole).confusion
    assert max(sizes) <= most
    assert (len(sizes) == 1) == (most == 100_000)
    # The point that stands for a point's voxel decides.
    tree = np.isin(np.rint(full.attributes[:, 0] * 1000) // 100, (4, 5))
    found = tree[full.grid.kept][full.grid.voxel_of_point].astype(int)
    known = full.labels >= 0
    expected = np.zeros((2, 2), int)
    np.add.at(expected, (full.labels[known], found[known]), 1)
    assert np.array_equal(confusion.counts, expected)
    apart = full.points[full.grid.kept][full.grid.voxel_of_point] - full.points
    assert np.abs(apart).max() <= 0.4 + 1e-4


def test_looks_at_a_scan_take_other_points_of_the_same_voxels(dataset):
    full = dataset.scans[0]
    first, second = full.voxels(0), full.voxels(1)
    assert first.points.shape == second.points.shape
    assert not np.array_equal(first.points, second.points)
    assert np.abs(first.points - second.points).max() <= 0.4 + 1e-4
    assert np.array_equal(first.points, full.points[full.grid.kept])


def test_class_counts_are_voxels_of_each_class(dataset):
    full = dataset.scans[0]
    labels = full.labels[full.grid.kept]
    assert dataset.class_counts().tolist() == [(labels == 0).sum(), (labels == 1).sum()]
    assert dataset.steps_per_epoch(1) == int(np.ceil(len(full.grid.kept) / 600))


def test_packed_samples_keep_their_labels(dataset):
    samples = [dataset.sample(np.random.default_rng(s)) for s in range(3)]
    batch = pack_samples(samples)
    batch.pyramid.validate()
    assert batch.pyramid.clouds == 3
    assert np.array_equal(batch.labels, np.concatenate([s.labels for s in samples]))
    # Intensity tells the code: labels stand beside their points.
    code = (batch.pyramid.attributes[:, 0] * 1000 // 100).astype(int)
    assert np.array_equal(batch.labels, map_labels(code, DATA))


def test_generated_rooms_are_a_dataset_with_seeds_that_never_meet():
    data = DataConfig(kind="rooms", train_rooms=1, val_rooms=1, room_points=5000, points=800)
    model = dataclasses.replace(
        MODEL,
        classes=model_classes(data),
        grid=(0.1, 0.2),
        attributes=tuple(AttributeInfo(c, 250.0) for c in ("red", "green", "blue")),
    )
    calls = []
    rooms = open_dataset(data, model, "train", progress=lambda *call: calls.append(call))
    assert calls == [(0, 1, "room 0"), (1, 1, "")]
    assert len(rooms.class_counts()) == 13
    assert rooms.sample(np.random.default_rng(0)).pyramid.attributes.shape[1] == 3
    many = dataclasses.replace(data, train_rooms=500, val_rooms=500, test_rooms=500)
    splits = [set(room_seeds(many, split)) for split in ("train", "val", "test")]
    assert len(set.union(*splits)) == 1500


def test_real_tiles_load_by_the_shipped_configuration(lidar_dir):
    path = Path(__file__).resolve().parents[3] / "configs" / "ign_lidar.toml"
    config = load_config(path, ['data.train=["tile_77050_627760.laz"]'], data_root=lidar_dir)
    tile = open_dataset(config.data, config.model, "train", config.augment)
    assert len(tile.scans[0].points) == 56_035
    assert (tile.scans[0].labels == -1).sum() == 70
    sample = tile.sample(np.random.default_rng(0))
    assert len(sample.labels) == config.data.points
    assert np.isfinite(sample.pyramid.attributes).all()


def tile(seed: int, east: float) -> PointCloud:
    cloud = scan(seed)
    cloud.points[:, 0] += east
    return cloud


@pytest.fixture
def survey(tmp_path):
    for seed, name in enumerate(["t0.ply", "t1.ply", "t2.ply"]):
        write_cloud(tmp_path / name, tile(seed, 20.0 * seed))
    strange = tile(3, 60.0)
    strange.columns["classification"][:] = 77
    write_cloud(tmp_path / "t3.ply", strange)
    return dataclasses.replace(DATA, root=str(tmp_path), train=("t0.ply", "t1.ply"))


def test_joined_tiles_are_one_scan_in_one_frame(survey):
    apart = open_dataset(survey, MODEL, "train").scans
    (joined,) = open_dataset(dataclasses.replace(survey, join=True), MODEL, "train").scans
    assert joined.name == "2 joined scans"
    expected = np.concatenate([part.points + part.origin for part in apart])
    assert np.allclose(joined.points + joined.origin, expected, atol=1e-4)
    assert np.array_equal(joined.labels, np.concatenate([part.labels for part in apart]))


def test_a_wrong_label_in_a_joined_tile_names_its_file(survey):
    data = dataclasses.replace(survey, join=True, train=("t0.ply", "t3.ply"))
    with pytest.raises(InputError, match=r"t3\.ply: label values outside"):
        open_dataset(data, MODEL, "train")


@pytest.mark.parametrize("join", [False, True])
def test_context_surrounds_held_out_scans_unlabelled(survey, join):
    data = dataclasses.replace(survey, test=("t2.ply",), context=("t*.ply",), join=join, margin=5.0)
    plain = open_dataset(dataclasses.replace(data, context=()), MODEL, "test").scans[0]
    (found,) = open_dataset(data, MODEL, "test").scans
    size = len(plain.labels)
    assert np.array_equal(found.labels[:size], plain.labels)
    assert np.allclose(found.points[:size] + found.origin, plain.points + plain.origin, atol=1e-4)
    around = found.points[size:, 0].astype(float) + found.origin[0] - plain.origin[0]
    assert (found.labels[size:] == -1).all()
    # A quarter of each neighbor of 20 m, and nothing of the scan itself.
    assert 0.4 * size < len(around) < 0.6 * size
    assert ((around > -5.1) & (around < 0.1) | (around > 19.9) & (around < 25.1)).all()


def test_training_scans_have_no_context(survey):
    data = dataclasses.replace(survey, context=("t*.ply",))
    plain = open_dataset(survey, MODEL, "train").scans
    found = open_dataset(data, MODEL, "train").scans
    assert [len(a.labels) for a in found] == [len(a.labels) for a in plain]


def test_every_kind_of_data_says_which_splits_it_has(folder):
    assert set(DATA_KINDS) == set(KINDS)
    rooms = DataConfig(kind="rooms", train_rooms=1, val_rooms=0, test_rooms=2)
    assert [names_scans(rooms, split) for split in SPLITS] == [True, False, True]
    files = dataclasses.replace(DATA, root=str(folder), train=("a.ply",), val=())
    assert [names_scans(files, split) for split in SPLITS] == [True, False, False]
    assert [has_labels(files, split) for split in SPLITS] == [True, False, False]
