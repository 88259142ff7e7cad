"""Readers of ScanObjectNN, ModelNet40 and ShapeNetPart: contents, splits, malformed files."""

from __future__ import annotations

import json

import numpy as np
import pytest

import raw_layouts
from dela.errors import InputError
from dela.model.class_names import CLASS_NAMES, SHAPENETPART_CATEGORIES
from dela.training.prepare.plan import MalformedFiles, Options
from dela.training.prepare.sources import modelnet40, scanobjectnn, shapenetpart


def test_scanobjectnn_reads_the_hardest_variant_of_the_main_split(tmp_path):
    expected = raw_layouts.write_scanobjectnn(tmp_path, clouds=6, points=50)
    plan = scanobjectnn.plan(tmp_path, Options())
    assert [unit.split for unit in plan.units] == ["train", "val"]
    assert plan.task == "classification" and plan.grid is None
    assert tuple(info.name for info in plan.classes) == CLASS_NAMES["scanobjectnn"]
    for unit in plan.units:
        columns = scanobjectnn.read(unit).columns
        arrays = expected[unit.split]
        assert np.array_equal(columns["points"].reshape(6, 50, 3), arrays["data"])
        assert columns["offsets"].tolist() == [0, 50, 100, 150, 200, 250, 300]
        assert np.array_equal(columns["cloud_labels"], arrays["label"])
    (tmp_path / "main_split" / "test_objectdataset_augmentedrot_scale75.h5").unlink()
    with pytest.raises(InputError, match=r"holds no test_objectdataset_augmentedrot_scale75\.h5"):
        scanobjectnn.plan(tmp_path, Options())


def test_modelnet40_reads_every_file_with_normals(tmp_path):
    expected = raw_layouts.write_modelnet40(tmp_path, clouds=5, points=40)
    plan = modelnet40.plan(tmp_path, Options())
    splits = {unit.name: unit.split for unit in plan.units}
    assert splits == {"train0": "train", "train1": "train", "test0": "val"}
    assert [info.code for info in plan.classes] == list(range(40))
    for unit in plan.units:
        columns, arrays = modelnet40.read(unit).columns, expected[unit.name]
        assert np.array_equal(columns["points"].reshape(5, 40, 3), arrays["data"])
        assert np.array_equal(columns["normals"].reshape(5, 40, 3), arrays["normal"])
        assert np.array_equal(columns["cloud_labels"], arrays["label"][:, 0])
    with pytest.raises(InputError, match=r"holds no ply_data_train\*\.h5"):
        modelnet40.plan(tmp_path / "nothing", Options())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": np.zeros((4, 9, 2), np.float32)}, r"shape \[4, 9, 2\]; expected \[M, P, 3\]"),
        ({"label": np.zeros(3, np.int64)}, "3 labels for 4 clouds"),
        ({"label": np.array([0, 1, 40, 3])}, r"cloud 2: label 40 is not in 0 \.\. 39"),
        ({"label": np.array([0, -1, 2, 3])}, "cloud 1: label -1"),
        ({"data": np.full((4, 9, 3), np.inf, np.float32)}, "cloud 0: coordinates are not finite"),
        ({"normal": np.zeros((4, 8, 3), np.float32)}, r"normal has shape \[4, 8, 3\]"),
    ],
)
def test_misshapen_h5_files_say_what_does_not_fit(tmp_path, change, message):
    arrays = {"data": np.ones((4, 9, 3), np.float32), "label": np.arange(4)}
    raw_layouts.write_modelnet40(tmp_path, clouds=4, points=9)
    path = tmp_path / "ply_data_train0.h5"
    raw_layouts.write_h5(path, arrays | change)
    unit = next(u for u in modelnet40.plan(tmp_path, Options()).units if u.name == "train0")
    with pytest.raises(InputError, match=rf"{path.name}.*{message}"):
        modelnet40.read(unit)


def test_damaged_h5_files_are_told_by_name(tmp_path):
    raw_layouts.write_scanobjectnn(tmp_path, clouds=6, points=50)
    unit = scanobjectnn.plan(tmp_path, Options()).units[0]
    whole = unit.files[0].read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"no hdf5 at all"):
        unit.files[0].write_bytes(content)
        with pytest.raises(InputError, match=r"scale75\.h5 cannot be read as HDF5"):
            scanobjectnn.read(unit)
    raw_layouts.write_h5(unit.files[0], {"data": np.zeros((2, 3, 3))})
    with pytest.raises(InputError, match="has no data set 'label'; it holds data"):
        scanobjectnn.read(unit)


def test_shapenetpart_keeps_categories_parts_and_normals(tmp_path):
    expected = raw_layouts.write_shapenetpart(tmp_path, shapes=3)
    plan = shapenetpart.plan(tmp_path, Options())
    assert plan.task == "parts" and len(plan.classes) == 50 and len(plan.categories) == 16
    assert plan.categories[0] == ("airplane", (0, 1, 2, 3))
    assert plan.categories[-1] == ("table", (47, 48, 49))
    assert [unit.name for unit in plan.units] == [
        f"{split}_{category}"
        for split in ("train", "val", "test")
        for category in ("airplane", "mug", "table")
    ]
    for unit in plan.units:
        split, category = unit.name.split("_")
        tables = [
            table for name, table in sorted(expected.items()) if f"{split}/{category}/" in name
        ]
        columns = shapenetpart.read(unit).columns
        whole = np.concatenate(tables)
        shapes = np.split(columns["points"], columns["offsets"][1:-1])
        for shape, table in zip(shapes, tables, strict=True):
            centered = table[:, :3] - table[:, :3].mean(axis=0)
            assert np.allclose(shape * np.linalg.norm(centered, axis=1).max(), centered)
            assert np.isclose(np.linalg.norm(shape, axis=1).max(), 1)
        assert np.allclose(columns["normals"], whole[:, 3:6])
        assert np.array_equal(columns["labels"], whole[:, 6])
        assert np.diff(columns["offsets"]).tolist() == [len(table) for table in tables]
        number = list(SHAPENETPART_CATEGORIES).index(category)
        assert columns["cloud_labels"].tolist() == [number] * len(tables)


def test_shapenetpart_reports_every_malformed_shape(tmp_path):
    raw_layouts.write_shapenetpart(tmp_path, categories=("mug",), shapes=4)
    unit = shapenetpart.plan(tmp_path, Options()).units[0]
    folder = unit.files[0].parent
    (folder / "shape0.txt").write_text("0 0 0 0 0 1 36\n0 0 0 0 0 1\n")
    (folder / "shape1.txt").write_text("0 0 0 0 0 1 36\n0 0 0 0 0 1 3\n")
    record = shapenetpart.read(unit)
    assert [message.removeprefix(f"{folder}/") for message in record.malformed] == [
        "shape0.txt, line 2: 6 values, expected 7",
        "shape1.txt, point 2: part 3 is none of mug (36 .. 37)",
    ]
    assert len(record.columns["cloud_labels"]) == len(unit.files) - 2
    for path in unit.files:
        path.write_text("1\n")
    with pytest.raises(MalformedFiles) as caught:
        shapenetpart.read(unit)
    assert len(caught.value.messages) == len(unit.files)


def test_shapenetpart_lists_and_tables_are_checked(tmp_path):
    raw_layouts.write_shapenetpart(tmp_path / "inner")
    assert shapenetpart.plan(tmp_path, Options()).units  # one folder deeper
    root = tmp_path / "inner"
    path = root / "train_test_split" / "shuffled_val_file_list.json"
    for content, message in (
        ("[", "is not JSON"),
        ("[]", "lists no shapes"),
        (json.dumps(["shape_data/1/2"]), "entry 0: 'shape_data/1/2' is not shape_data/SYNSET"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=rf"{path.name}.*{message}"):
            shapenetpart.plan(root, Options())
    path.unlink()
    with pytest.raises(InputError, match="cannot read the split"):
        shapenetpart.plan(root, Options())
    (root / "synsetoffset2category.txt").write_text("Airplane\t02691156\n\nBoat 1 2\n")
    with pytest.raises(InputError, match=r"category\.txt, line 3: 'Boat 1 2'"):
        shapenetpart.plan(root, Options())
    with pytest.raises(InputError, match=r"holds no synsetoffset2category\.txt"):
        shapenetpart.plan(root / "train_test_split", Options())
