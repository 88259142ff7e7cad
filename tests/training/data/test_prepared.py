"""Prepared data as training reads it, against the same scans in memory and the raw arrays."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import raw_layouts
from dela.errors import ConfigError, InputError
from dela.families.dela.config import DelaConfig
from dela.geometry.cpu import voxel_grid
from dela.training.data.dataset import Dataset
from dela.training.data.kinds import open_dataset
from dela.training.data.prepared import LabelMap, prepared_names
from dela.training.evaluate.split import score_split
from dela.training.prepare import store
from dela.training.prepare.plan import Options
from dela.training.prepare.runner import prepare
from dela.training.settings.data import named_classes
from dela.training.settings.train import (
    ClassMap,
    DataConfig,
    TrainConfig,
    load_config,
    model_classes,
)

PUBLISHED = Path(__file__).resolve().parents[3] / "configs"

# In this process.
SERIAL = Options(workers=1)


def quiet(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder of scans and its prepared form, each with its configuration."""
    raw = tmp_path_factory.mktemp("raw")
    out = tmp_path_factory.mktemp("prepared") / "out"
    path, _ = raw_layouts.write_folder(raw, points=1500)
    prepare("folder", raw, out, Options(config=path, workers=1), log=quiet)
    folder = load_config(path, data_root=raw)
    prepared = load_config(
        path, ["data.kind=prepared", "data.train=[]", "data.val=[]"], data_root=out
    )
    return folder, prepared


def opened(config: TrainConfig, split: str = "train") -> Dataset:
    return open_dataset(config.data, config.model, split, config.augment)


def with_data(config: TrainConfig, **changes: object) -> TrainConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def with_model(config: TrainConfig, **changes: object) -> TrainConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


@pytest.mark.parametrize("split", ["train", "val"])
def test_prepared_scans_are_the_scans_of_the_files(both, split):
    folder, prepared = (opened(config, split) for config in both)
    assert len(folder.scans) == len(prepared.scans)
    for file, mapped in zip(folder.scans, prepared.scans, strict=True):
        assert np.array_equal(mapped.points, file.points)
        assert np.array_equal(mapped.origin, file.origin)
        assert np.array_equal(mapped.labels, file.labels)
        assert np.array_equal(mapped.grid.kept, file.grid.kept)
        assert np.array_equal(mapped.grid.voxel_of_point, file.grid.voxel_of_point)
        assert mapped.size == file.size
        everything = mapped.attributes[:]
        assert everything.dtype == np.float32 and mapped.attributes.shape == file.attributes.shape
        assert np.allclose(everything, file.attributes, atol=1e-5)
        assert np.array_equal(mapped.class_voxels(2), file.class_voxels(2))
        for pick in (0, 3):
            ours, theirs = mapped.voxels(pick), file.voxels(pick)
            assert np.array_equal(ours.points, theirs.points)
            assert np.allclose(ours.attributes, theirs.attributes, atol=1e-5)
    assert folder.steps_per_epoch(2) == prepared.steps_per_epoch(2)
    assert np.array_equal(folder.class_counts(), prepared.class_counts())


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_samples_of_prepared_scans_are_those_of_the_files(both, balance):
    folder, prepared = (opened(with_data(config, balance=balance)) for config in both)
    for seed in range(4):
        ours, theirs = (d.sample(np.random.default_rng(seed)) for d in (prepared, folder))
        assert ours.scan == theirs.scan
        assert np.array_equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.pyramid.points, theirs.pyramid.points)
        assert np.allclose(ours.pyramid.attributes, theirs.pyramid.attributes, atol=1e-5)


def test_rows_of_attributes_are_taken_as_from_an_array(both):
    scan = opened(both[1]).scans[0]
    whole = scan.attributes[:]
    rng = np.random.default_rng(0)
    for rows in (
        np.array([5, 3, 3]),
        rng.random(len(whole)) < 0.1,
        slice(10, 20, 3),
        np.zeros(0, np.int64),
    ):
        assert np.array_equal(scan.attributes[rows], whole[rows])
    assert len(scan.attributes) == len(scan) == len(whole)


def test_columns_are_mapped_and_read_only_and_datasets_small_to_pickle(both):
    dataset = opened(both[1])
    scan = dataset.scans[0]
    for column in (scan.points, scan.labels, scan.grid.kept):
        assert isinstance(column, np.memmap) and not column.flags.writeable
    copy = pickle.dumps(dataset)
    assert len(copy) < 6000
    first = dataset.sample(np.random.default_rng(3))
    again = pickle.loads(copy).sample(np.random.default_rng(3))
    assert np.array_equal(first.pyramid.points, again.pyramid.points)
    assert len(pickle.dumps(dataset)) < 6000


def test_another_voxel_size_than_the_indexed_one_is_computed(both):
    _, prepared = both
    scan = opened(with_model(prepared, grid=(0.15, 0.3))).scans[0]
    grid = voxel_grid(scan.points, 0.15)
    assert np.array_equal(scan.grid.kept, grid.kept) and scan.size == len(grid.kept)
    assert np.array_equal(scan.grid.voxel_of_point, grid.voxel_of_point)
    labels = scan.labels[grid.kept]
    assert scan.class_voxels(2).tolist() == [int((labels == c).sum()) for c in range(2)]


def test_heights_above_ground_are_computed_where_they_are_not_stored(both, tmp_path):
    _, prepared = both
    stored = opened(prepared).scans[0]
    scene = store.read_scene(Path(prepared.data.root) / store.SCENES / stored.name)
    columns = {
        name: store.load_column(Path(prepared.data.root) / store.SCENES / stored.name, name)
        for name in scene["columns"]
        if name != "height_above_ground"
    }
    facts = {key: value for key, value in scene.items() if key != "columns"}
    written = store.write_scene(tmp_path / store.SCENES / stored.name, columns, facts)
    manifest = store.read_manifest(Path(prepared.data.root))
    manifest["scenes"] = {stored.name: written | {"columns": list(written["columns"])}}
    manifest["splits"] = {"train": [stored.name], "val": [], "test": []}
    store.write_manifest(tmp_path, manifest)
    scan = opened(with_data(prepared, root=str(tmp_path))).scans[0]
    assert np.allclose(scan.attributes[:], stored.attributes[:], atol=1e-4)


def test_scenes_are_chosen_by_split_name_or_glob(both):
    _, prepared = both
    data = prepared.data
    assert prepared_names(data, "train") == ["north__a", "north__b"]
    assert prepared_names(data, "val") == ["c"]
    assert prepared_names(data, "test") == []
    chosen = dataclasses.replace(data, train=("*__b", "north__b"), test=("c", "north__a"))
    assert prepared_names(chosen, "train") == ["north__b"]
    assert prepared_names(chosen, "test") == ["c", "north__a"]
    with pytest.raises(InputError, match=r"data\.val: 'x\*' matches no scene in .*north__a"):
        prepared_names(dataclasses.replace(data, val=("x*",)), "val")
    with pytest.raises(ConfigError, match=r"north__b is in data\.train and in data\.val"):
        prepared_names(dataclasses.replace(data, val=("*",), train=("*b",)), "val")
    with pytest.raises(InputError, match=r"no scenes in its test split \(it has train, val\)"):
        opened(prepared, "test")


def test_data_that_does_not_fit_is_refused(both, tmp_path):
    _, prepared = both
    wanted = (
        *prepared.model.attributes,
        dataclasses.replace(prepared.model.attributes[0], name="x"),
    )
    with pytest.raises(InputError, match=r"north__a has no column for 'x', .*it has color"):
        opened(with_model(prepared, attributes=wanted))
    objects = DelaConfig(
        task="classification",
        classes=prepared.model.classes,
        dims=(16,),
        depths=(1,),
        neighbors=(8,),
        spread=(2.0,),
        coordinate_scale=40.0,
        points=(64,),
    )
    with pytest.raises(ConfigError, match="is for segmentation, the network for classification"):
        opened(dataclasses.replace(prepared, model=objects))
    for change in ({"join": True}, {"context": ("c",)}):
        with pytest.raises(ConfigError, match=r"data\.join and data\.context are for kind"):
            opened(with_data(prepared, **change))
    with pytest.raises(InputError, match="holds no prepared data"):
        opened(with_data(prepared, root=str(tmp_path)))
    ignored = (ClassMap("other", (1,)),)
    with pytest.raises(ConfigError, match=r"'ground' \(label 0\) is in no class"):
        opened(with_data(prepared, classes=ignored, ignore=()))
    nothing = with_data(prepared, classes=(ClassMap("x", (1,)),), ignore=(0,))
    assert len(opened(nothing).scans) == 2
    manifest = store.read_manifest(Path(prepared.data.root))
    for scene in manifest["scenes"].values():
        scene["counts"] = [7, 0]
    store.write_manifest(tmp_path, manifest)
    with pytest.raises(InputError, match="every label is ignored"):
        opened(with_data(nothing, root=str(tmp_path)))
    for scene in manifest["scenes"].values():
        scene["columns"].remove("labels")
    store.write_manifest(tmp_path, manifest)
    with pytest.raises(InputError, match="north__a has no labels"):
        opened(with_data(nothing, root=str(tmp_path)))


NAMES = ("ground", "low", "high")


@pytest.mark.parametrize(
    ("classes", "ignore", "expected"),
    [
        ((("ground", 0), ("low", 1), ("high", 2)), (), [-1, 0, 1, 2]),
        # The same names are the same classes, whatever their codes and order.
        ((("high", 5), ("ground", 2), ("low", 3)), (), [-1, 1, 2, 0]),
        ((("earth", 0), ("plants", 1, 2)), (), [-1, 0, 1, 1]),
        ((("plants", 2, 1),), (0, -1), [-1, -1, 0, 0]),
    ],
)
def test_labels_follow_names_or_codes(classes, ignore, expected):
    maps = tuple(ClassMap(name, tuple(codes)) for name, *codes in classes)
    mapping = LabelMap.of(DataConfig(classes=maps, ignore=ignore), NAMES)
    stored = np.array([-1, 0, 1, 2, 1], np.int16)
    assert mapping(stored).tolist() == [expected[i + 1] for i in stored]
    assert mapping(stored).dtype == np.int16
    counts = mapping.counts([10, 20, 30], len(maps))
    assert counts.tolist() == [
        sum(n for to, n in zip(expected[1:], (10, 20, 30), strict=True) if to == index)
        for index in range(len(maps))
    ]


def test_labels_that_are_not_stored_are_refused():
    for classes, ignore, message in (
        ((ClassMap("a", (0, 1, 2, 3)),), (), "class 'a' has the code 3; .* 0 .. 2"),
        ((ClassMap("a", (0, 1, 2)),), (7,), "data.ignore has the code 7"),
        ((ClassMap("a", (0, 2)),), (), r"'low' \(label 1\) is in no class"),
    ):
        with pytest.raises(ConfigError, match=message):
            LabelMap.of(DataConfig(classes=classes, ignore=ignore), NAMES)


def test_a_column_damaged_later_is_named_when_it_is_read(both, tmp_path):
    _, prepared = both
    shutil.copytree(prepared.data.root, tmp_path / "copy")
    path = tmp_path / "copy" / store.SCENES / "north__a" / "color.npy"
    path.write_bytes(path.read_bytes()[:-50])
    dataset = opened(with_data(prepared, root=str(tmp_path / "copy")))
    with pytest.raises(InputError, match=r"north__a/color\.npy is damaged"):
        dataset.scans[0].attributes[:5]


# Published datasets, with the committed configurations


def tiny(name: str, out: Path, **model: object) -> TrainConfig:
    """A committed configuration on prepared data, for small samples."""
    overrides = ["data.points=400", "train.epochs=1"]
    return with_model(load_config(PUBLISHED / f"{name}.toml", overrides, out), **model)


def constant(label: int, classes: int):
    """A network that answers the same of every point, or of every object."""

    def forward(pyramid):
        whole = not pyramid.nearest
        logits = np.zeros((pyramid.clouds if whole else len(pyramid.points), classes), np.float32)
        logits[:, label] = 1
        return logits

    return forward


def test_s3dis_columns_reach_the_network_scaled(tmp_path):
    expected = raw_layouts.write_s3dis(tmp_path / "raw", points=600)
    prepare("s3dis", tmp_path / "raw", tmp_path / "out", SERIAL, log=quiet)
    config = tiny("s3dis", tmp_path / "out")
    dataset = opened(config, "val")
    points, color, labels = expected["Area_5_office_1"]
    height = points[:, 2] - points[:, 2].min()
    wanted = np.column_stack([color / 250, height / 3.3])
    assert np.allclose(dataset.scans[0].attributes[:], wanted, atol=1e-5)
    confusion = score_split(constant(2, 13), dataset).confusion
    assert confusion.points == 600 and np.isclose(confusion.oa, (labels == 2).mean())


def test_scannet_normals_reach_the_network(tmp_path):
    raw_layouts.write_scannet(tmp_path / "raw", side=14)
    lists = {split: tmp_path / "raw" / f"scannetv2_{split}.txt" for split in ("train", "val")}
    options = Options(lists=lists, workers=1)
    prepare("scannet", tmp_path / "raw", tmp_path / "out", options, log=quiet)
    dataset = opened(tiny("scannet", tmp_path / "out"))
    normals = dataset.scans[0].attributes[:][:, 4:]
    assert np.allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-3)
    assert (dataset.scans[0].labels == -1).sum() == 5
    sample = dataset.sample(np.random.default_rng(0))
    assert len(sample.labels) == len(sample.pyramid.points) > 100


def test_classification_counts_objects_not_points(tmp_path):
    arrays = raw_layouts.write_scanobjectnn(tmp_path / "raw", clouds=8, points=150)
    prepare("scanobjectnn", tmp_path / "raw", tmp_path / "out", SERIAL, log=quiet)
    config = tiny("scanobjectnn", tmp_path / "out", points=(64, 32, 16), neighbors=(8, 8, 8))
    train, val = opened(config), opened(config, "val")
    assert len(train.scans) == 8 and train.steps_per_epoch(3) == 2
    for number, scan in enumerate(train.scans):
        assert np.array_equal(scan.points, arrays["train"]["data"][number])
        assert scan.labels.tolist() == [arrays["train"]["label"][number]]
    sample = train.sample(np.random.default_rng(0), scan=5)
    assert sample.pyramid.lengths == ((64,), (32,), (16,)) and len(sample.labels) == 1
    truth = arrays["val"]["label"]
    assert val.class_counts().tolist() == np.bincount(truth, minlength=15).tolist()
    confusion = score_split(constant(int(truth[2]), 15), val, votes=2).confusion
    assert confusion.points == 8 and confusion.oa == (truth == truth[2]).mean()
    copy = pickle.loads(pickle.dumps(train))
    assert np.array_equal(copy.scans[3].points, train.scans[3].points)

    merged = (ClassMap("first", (0, 1, 2, 3, 4)), ClassMap("others", tuple(range(5, 14))))
    fewer = with_data(config, classes=merged, ignore=(14,))
    dataset = opened(with_model(fewer, classes=model_classes(fewer.data)), "val")
    kept = truth[truth != 14]
    assert 0 < len(kept) < len(truth)
    assert [int(scan.labels[0]) for scan in dataset.scans] == (kept > 4).astype(int).tolist()
    assert dataset.class_counts().tolist() == [(kept <= 4).sum(), (kept > 4).sum()]


def test_parts_know_their_category(tmp_path):
    tables = raw_layouts.write_shapenetpart(tmp_path / "raw", shapes=2)
    prepare("shapenetpart", tmp_path / "raw", tmp_path / "out", SERIAL, log=quiet)
    config = tiny("shapenetpart", tmp_path / "out")
    dataset = opened(config)
    assert len(dataset.scans) == 3 * 3  # the committed recipe trains on train and val
    sizes = [len(scan) for scan in dataset.scans]
    assert sizes[dataset.largest_scan] == max(sizes) > sizes[0]
    mugs = [scan for scan in dataset.scans if scan.name.startswith("train_mug")]
    table = tables["train/mug/shape1"]
    scan = mugs[1]
    assert np.array_equal(scan.labels, table[:, 6])
    centered = table[:, :3] - table[:, :3].mean(axis=0)
    centered /= np.linalg.norm(centered, axis=1).max()
    assert np.allclose(scan.points, centered - centered.min(axis=0), atol=1e-6)
    attributes = scan.attributes[:]
    assert attributes.shape == (len(table), 3 + 16)
    assert np.allclose(attributes[:, :3], table[:, 3:6], atol=1e-3)
    assert np.array_equal(attributes[:, 3:], np.tile(np.eye(16)[11], (len(table), 1)))
    sample = dataset.sample(np.random.default_rng(0), scan=dataset.scans.index(scan))
    assert set(sample.labels) <= {36, 37}
    assert (sample.pyramid.attributes[:, 3 + 11] == 1).all()
    confusion = score_split(constant(36, 50), opened(config, "val")).confusion
    assert confusion.points == sum(len(t) for name, t in tables.items() if name.startswith("test/"))


def test_semantickitti_scans_without_labels_are_refused_for_scoring(tmp_path):
    expected = raw_layouts.write_semantickitti(tmp_path / "raw", points=400)
    prepare("semantickitti", tmp_path / "raw", tmp_path / "out", SERIAL, log=quiet)
    config = tiny("semantickitti", tmp_path / "out")
    dataset = opened(config, "val")
    values, ids = expected["08_000000"]
    column = [info.name for info in config.model.input_columns].index("intensity")
    scale = config.model.input_columns[column].scale
    assert np.allclose(dataset.scans[0].attributes[:][:, column], values[:, 3] / scale, atol=1e-6)
    points = dataset.scans[0].points + dataset.scans[0].origin
    assert np.allclose(points, values[:, :3], atol=1e-6)
    assert (dataset.scans[0].labels == -1).sum() == ((ids & 0xFFFF) == 99).sum()
    with pytest.raises(InputError, match="11_000000 has no labels"):
        opened(config, "test")


def test_committed_configurations_name_the_classes_of_the_preparation():
    for path in PUBLISHED.glob("*.toml"):
        if "prepared" not in path.read_text():
            continue
        config = load_config(path, data_root="/nowhere")
        names = [info["name"] for info in named_classes(path.stem)]
        assert [info.name for info in config.model.classes] == names
        json.dumps(config.to_dict())
