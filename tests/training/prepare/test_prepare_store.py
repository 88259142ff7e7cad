"""The on-disk format: what is written is read back, and nothing else is taken for it."""

from __future__ import annotations

import json
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dela.errors import InputError
from dela.geometry.cpu import voxel_grid
from dela.training.prepare import store
from dela.training.prepare.encode import GRID_KEPT, GRID_VOXEL, encode
from dela.training.prepare.store import Record

NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8)
ARRAYS = hnp.arrays(
    st.sampled_from([np.dtype(kind) for kind in ("u1", "<i2", "<i4", "<f4", "<f2", "<i8")]),
    hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=9),
)


@settings(max_examples=40, deadline=None)
@given(columns=st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=4))
def test_columns_come_back_bit_for_bit(tmp_path_factory, columns):
    folder = tmp_path_factory.mktemp("store") / "scene"
    written = store.write_scene(folder, columns, {"points": 3, "notes": ["häßlich\n"]})
    assert store.read_scene(folder) == written
    assert written["notes"] == ["häßlich\n"]
    assert sorted(written["columns"]) == sorted(columns)
    for name, column in columns.items():
        read = store.load_column(folder, name)
        assert read.dtype == column.dtype and read.shape == column.shape
        assert read.tobytes() == column.tobytes()
    assert store.damage(folder) is None


@settings(max_examples=40, deadline=None)
@given(
    points=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 50), st.just(3)),
        elements=st.floats(-2, 2, width=32),
    ),
    origin=st.tuples(*3 * [st.sampled_from([0.0, -3.5, 651_000.25, 6_860_000.5])]),
    data=st.data(),
)
def test_encoded_scenes_keep_place_labels_and_color(points, origin, data):
    count = len(points)
    labels = data.draw(hnp.arrays(np.int16, count, elements=st.integers(-1, 4)))
    color = data.draw(hnp.arrays(np.uint8, (count, 3)))
    record = Record({"points": points + origin, "labels": labels, "color": color})
    columns, facts = encode(record, "segmentation", 5, 0.25)
    back = columns["points"].astype(np.float64) + facts["origin"]
    assert np.abs(back - (points + origin)).max() <= 1e-6  # float32 of at most 4 m
    assert columns["points"].min(axis=0).tolist() == [0, 0, 0]
    assert np.array_equal(columns["labels"], labels)
    assert np.array_equal(columns["color"], color)
    assert facts["counts"] == [int((labels == c).sum()) for c in range(5)]
    assert facts["ignored"] == int((labels == -1).sum())
    moved = points + origin
    grid = voxel_grid(moved - moved.min(axis=0), 0.25)
    assert np.array_equal(columns[GRID_KEPT], grid.kept)
    assert np.array_equal(columns[GRID_VOXEL], grid.voxel_of_point)
    assert facts["voxels"] == len(grid.kept)
    kept = labels[grid.kept]
    assert facts["voxel_counts"] == [int((kept == c).sum()) for c in range(5)]


def test_types_are_the_documented_ones():
    record = Record(
        {
            "points": np.array([[1e6, 2e6, 3.0], [1e6 + 1, 2e6, 4.0]]),
            "color": np.array([[0.0, 127.6, 255.0], [1, 2, 3]]),
            "normals": np.array([[0.6, 0.8, 0.0], [0, 0, 1]]),
            "labels": np.array([0, -1]),
            "intensity": np.array([0.5, 7.25]),
            "return_number": np.array([1, 2], np.uint8),
        }
    )
    columns, _ = encode(record, "segmentation", 1, None)
    kinds = {name: column.dtype.str for name, column in columns.items()}
    assert kinds == {
        "points": "<f4",
        "color": "|u1",
        "normals": "<f2",
        "labels": "<i2",
        "intensity": "<f4",
        "return_number": "|u1",
    }
    assert columns["color"][0].tolist() == [0, 128, 255]
    assert np.abs(columns["normals"] - record.columns["normals"]).max() < 2.5e-4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"points": np.zeros((0, 3))}, "there are no points"),
        ({"points": np.zeros((4, 2))}, r"shape \[4, 2\]"),
        ({"points": np.array([[0, 0, 0], [0, np.nan, 0]])}, r"1 of 2 .* coordinates .*row 1"),
        ({"points": np.zeros((2, 3)), "labels": np.array([0, 3])}, r"label 3 \(row 1\)"),
        ({"points": np.zeros((2, 3)), "labels": np.array([-2, 0])}, r"label -2 \(row 0\)"),
        ({"points": np.zeros((2, 3)), "labels": np.zeros(3)}, "labels has 3 rows for 2"),
        ({"points": np.zeros((2, 3)), "color": np.full((2, 3), 256)}, r"256 .*not in 0 \.\. 255"),
        ({"points": np.zeros((2, 3)), "intensity": np.array([1, np.inf])}, "intensity.*row 1"),
    ],
)
def test_scenes_that_cannot_be_stored_say_why(columns, message):
    with pytest.raises(InputError, match=message):
        encode(Record(columns), "segmentation", 3, None)


def test_sets_of_clouds_must_fill_their_points():
    columns = {
        "points": np.zeros((4, 3)),
        "offsets": np.array([0, 2, 4]),
        "cloud_labels": np.array([0, 1]),
    }
    stored, facts = encode(Record(columns), "classification", 2, None)
    assert facts["clouds"] == 2 and facts["counts"] == [1, 1]
    assert stored["offsets"].dtype == np.int64 and stored["cloud_labels"].dtype == np.int16
    for changed, message in (
        ({"offsets": np.array([0, 2, 3])}, "do not fill 4"),
        ({"offsets": np.array([0, 4, 4])}, "do not fill 4"),
        ({"cloud_labels": np.array([0])}, "1 labels for 2 clouds"),
        ({"cloud_labels": np.array([0, 2])}, "label 2"),
    ):
        with pytest.raises(InputError, match=message):
            encode(Record(columns | changed), "classification", 2, None)


def test_a_changed_missing_or_cut_column_is_damage(tmp_path):
    folder = tmp_path / "scene"
    store.write_scene(folder, {"points": np.arange(30.0), "labels": np.arange(10)}, {})
    path = folder / "labels.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\1")
    assert "labels.npy" in store.damage(folder)
    path.write_bytes(whole[:-9])
    assert "checksum differs" in store.damage(folder)
    with pytest.raises(InputError, match=r"labels\.npy is damaged .*repeat `dela data prepare`"):
        store.load_column(folder, "labels")
    path.unlink()
    assert "labels.npy" in store.damage(folder)
    with pytest.raises(InputError, match=r"labels\.npy is missing"):
        store.load_column(folder, "labels")
    (folder / store.SCENE).write_text("{")
    assert "is damaged" in store.damage(folder)


def test_a_scene_that_cannot_be_written_leaves_the_older_one_and_nothing_else(tmp_path):
    folder = tmp_path / "scene"
    store.write_scene(folder, {"points": np.arange(3.0)}, {"points": 3})
    with pytest.raises(TypeError):
        store.write_scene(folder, {"points": np.arange(4.0)}, {"points": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]
    assert store.read_scene(folder)["points"] == 3
    store.write_scene(folder, {"labels": np.arange(4)}, {"points": 4})
    assert sorted(path.name for path in folder.iterdir()) == ["labels.npy", "scene.json"]


def test_another_version_an_unfinished_one_and_a_strange_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no prepared data"):
        store.read_manifest(tmp_path)
    store.write_manifest(tmp_path, {"complete": False, "dataset": "s3dis", "source": "/raw"})
    with pytest.raises(InputError, match=r"did not finish; .*dela data prepare s3dis /raw"):
        store.read_manifest(tmp_path)
    assert store.read_manifest(tmp_path, complete=False)["dataset"] == "s3dis"
    path = tmp_path / store.MANIFEST
    manifest = json.loads(path.read_text()) | {"complete": True}
    for change, message in (
        ({"version": store.VERSION + 1}, f"version {store.VERSION + 1}, this dela reads"),
        ({"version": None}, "version None"),
        ({"format": "other"}, "does not say 'dela-prepared'"),
    ):
        path.write_text(json.dumps(manifest | change))
        with pytest.raises(InputError, match=message):
            store.read_manifest(tmp_path)
    for text in ("[]", "{", ""):
        path.write_text(text)
        with pytest.raises(InputError, match=r"damaged|does not say"):
            store.read_manifest(tmp_path)


def test_digests_tell_content_names_and_settings_apart(tmp_path):
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_text("1")
    two.write_text("2")
    digests = {
        store.raw_digest(tmp_path, [one, two], {"grid": 1}),
        store.raw_digest(tmp_path, [two, one], {"grid": 1}),
        store.raw_digest(tmp_path, [one, two], {"grid": 2}),
        store.raw_digest(tmp_path, [one], {"grid": 1}),
    }
    one.write_text("3")
    digests.add(store.raw_digest(tmp_path, [one, two], {"grid": 1}))
    assert len(digests) == 5


def test_scene_names_are_fit_for_folders():
    assert store.scene_name("north/tile 1.2") == "north__tile_1.2"
    assert store.scene_name("../../etc") == "__..__etc"
    assert store.scene_name("...") == "_"
