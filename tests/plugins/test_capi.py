"""The C library against the Python predictor: the same labels; bad input is told in words."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dela
from c_library import (
    BAD_ARGUMENT,
    BAD_INPUT,
    BAD_MODEL,
    FAILED,
    LIDAR,
    NO_RUNTIME,
    OK,
    CError,
    Cloud,
    Column,
    LabelOptions,
    LoadOptions,
    Model,
    library,
    raw_cloud,
)
from dela.cloud.point_cloud import PointCloud
from dela.model.contract import AttributeInfo, CategoryInfo
from dela.runtime import Predictor, load_backend
from small_networks import CLASSIFICATION, CONFIG, make_cloud, write_network

PARTS = replace(
    CONFIG,
    attributes=(AttributeInfo("height", 3.0, 0.2),),
    directions=tuple(AttributeInfo(f"normal_{axis}") for axis in "xyz"),
    categories=(CategoryInfo("table", (0, 1)), CategoryInfo("lamp", (2,))),
    vote_axis="y",
)
# Of the weights' seeds: labels of every class on these scans.
SEEDS = {"colors": 5, "lidar": 10, "parts": 3, "objects": 0}
CONFIGS = {"colors": CONFIG, "lidar": LIDAR, "parts": PARTS, "objects": CLASSIFICATION}


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Files of all networks, by name."""
    return {
        name: write_network(tmp_path_factory.mktemp(name), config, SEEDS[name]).onnx
        for name, config in CONFIGS.items()
    }


@pytest.fixture(scope="module")
def colors(networks) -> Model:
    return Model(networks["colors"])


def scan(count: int = 4000, size=(4.0, 4.0, 2.0), seed: int = 0) -> PointCloud:
    """A cloud far from the origin with the columns of every network."""
    cloud = make_cloud(count, size, seed)
    rng = np.random.default_rng(seed)
    normals = rng.standard_normal((count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    cloud.columns |= {f"normal_{axis}": normals[:, i].copy() for i, axis in enumerate("xyz")}
    cloud.columns["category"] = np.full(count, 1, np.uint8)
    cloud.columns["return_number"] = rng.integers(1, 6, count).astype(np.uint8)
    cloud.columns["intensity"] = rng.integers(0, 3000, count).astype(np.uint16)
    return cloud


def agree(path: Path, cloud: PointCloud, model: Model | None = None, **options: int) -> np.ndarray:
    """Labels of the C library, which are those of the Python predictor."""
    told = {key: bool(value) if key == "drop_invalid" else value for key, value in options.items()}
    expected = Predictor(load_backend(path)).predict(cloud, **told)
    labels, confidences = (model or Model(path)).label(cloud, **options)
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_allclose(confidences, expected.confidence, rtol=0, atol=1e-6)
    return labels


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "options",
    [{}, {"max_points": 700}, {"votes": 3}, {"votes": 4, "max_points": 900}],
    ids=["plain", "tiles", "votes", "both"],
)
def test_labels_are_those_of_the_python_predictor(networks, name, options):
    labels = agree(networks[name], scan(), **options)
    assert len(np.unique(labels)) == (1 if name == "objects" else 3)


def test_classes_that_are_level_fall_the_same_way(tmp_path):
    """An untrained network tells classes apart in the last bits alone."""
    from dela.export import export_onnx

    dela.save_checkpoint(tmp_path / "model.pt", dela.create_model(CONFIG, seed=3))
    export_onnx(tmp_path / "model.pt", tmp_path / "model.onnx", check=False)
    cloud = scan(5000)
    confidences = Model(tmp_path / "model.onnx").label(cloud)[1]
    assert np.median(confidences) < 1 / 3 + 1e-4
    labels = agree(tmp_path / "model.onnx", cloud)
    assert len(np.unique(labels)) > 1


def test_a_lidar_tile_gets_the_same_labels(networks, lidar_dir):
    cloud = dela.read_cloud(sorted(lidar_dir.glob("*.laz"))[0])
    shares = np.bincount(agree(networks["lidar"], cloud), minlength=7)[[2, 5, 6]] / len(cloud)
    assert shares.min() > 0.1
    agree(networks["lidar"], cloud, max_points=4000, votes=2)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_fewer_points_than_neighbors(networks, count):
    agree(networks["colors"], scan(count))
    agree(networks["objects"], scan(count))


def test_many_points_in_one_place(networks):
    cloud = scan(300)
    again = np.repeat(np.arange(300), 5)
    agree(networks["colors"], cloud.select(again), votes=7)


@pytest.mark.parametrize("extent", [60.0, 90_000.0])
def test_ground_of_scans_with_gaps_and_strays(networks, extent):
    """Beyond 4 million cells empty stretches are cut."""
    rng = np.random.default_rng(5)
    cloud = scan(6000, (60.0, 45.0, 8.0))
    cloud.points[:3000, 2] = cloud.points[:, 2].min() + rng.normal(0, 0.05, 3000)
    cloud.points[:40, :2] += extent
    agree(networks["lidar"], cloud)


def test_float32_points_and_rows_with_gaps(networks, colors):
    """A message of a robot: one record for each point, read where it lies."""
    cloud = scan(1500)
    cloud = PointCloud(cloud.points - cloud.points.min(axis=0), cloud.columns)
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("gap", "i2")]
    records = np.zeros(1500, np.dtype([*fields, ("green", "<i8"), ("blue", "<f8")]))
    for axis, name in enumerate("xyz"):
        records[name] = cloud.points[:, axis]
    for name in ("red", "green", "blue"):
        records[name] = cloud.columns[name]
    points = np.ndarray((1500, 3), np.float32, records, 0, (records.itemsize, 4))
    given = raw_cloud(points, {name: records[name] for name in ("red", "green", "blue")})
    same = PointCloud(points, {name: records[name].copy() for name in ("red", "green", "blue")})
    expected = Predictor(load_backend(networks["colors"])).predict(same)
    labels, confidences = colors.label_raw(given, 1500)
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_allclose(confidences, expected.confidence, rtol=0, atol=1e-6)


def test_points_that_are_not_finite_are_dropped_when_asked(networks, colors):
    cloud = scan(1200)
    cloud.points[[0, 7, 1199], [0, 1, 2]] = np.nan, np.inf, -np.inf
    cloud.columns["red"] = cloud.columns["red"].astype(np.float32)
    cloud.columns["red"][7] = np.nan  # of a point that is left out
    labels = agree(networks["colors"], cloud, colors, drop_invalid=1)
    assert (labels[[0, 7, 1199]] == -1).all() and (labels != -1).sum() == 1197
    with pytest.raises(CError, match=r"3 of 1200 points have NaN .*first: row 0.*drop_invalid"):
        colors.label(cloud)


def test_threads_share_a_model_and_keep_their_own_errors(networks, colors):
    clouds = [scan(1000, seed=seed) for seed in range(6)]
    alone = [colors.label(cloud) for cloud in clouds]
    broken = scan(10)
    del broken.columns["blue"]

    def both(index: int):
        with pytest.raises(CError, match="no column 'blue'"):
            colors.label(broken)
        model = Model(networks["colors"]) if index % 2 else colors
        return model.label(clouds[index])

    with ThreadPoolExecutor(3) as pool:
        for (labels, confidences), expected in zip(pool.map(both, range(6)), alone, strict=True):
            np.testing.assert_array_equal(labels, expected[0])
            np.testing.assert_array_equal(confidences, expected[1])


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_gives_the_same_labels(networks, threads):
    agree(networks["colors"], scan(), Model(networks["colors"], threads))


def test_a_model_tells_its_classes_and_columns(networks, colors):
    count = library().dela_model_class_count(colors.handle)
    classes = [
        (
            library().dela_model_class_name(colors.handle, i).decode(),
            library().dela_model_class_code(colors.handle, i),
        )
        for i in range(count)
    ]
    assert classes == [(info.name, info.code) for info in CONFIG.classes]
    assert library().dela_model_class_name(colors.handle, count) is None
    assert library().dela_model_class_code(colors.handle, -1) == -1
    parts = Model(networks["parts"])
    names = [
        library().dela_model_column_name(parts.handle, i).decode()
        for i in range(library().dela_model_column_count(parts.handle))
    ]
    assert names == ["normal_x", "normal_y", "normal_z", "category"]
    assert library().dela_model_column_name(parts.handle, 4) is None


def changed(cloud: PointCloud, name: str, values: np.ndarray) -> PointCloud:
    return PointCloud(cloud.points, {**cloud.columns, name: values})


@pytest.mark.parametrize(
    ("cloud", "words"),
    [
        (PointCloud(np.zeros((0, 3))), "the scan is empty"),
        (PointCloud(np.full((4, 3), np.nan)), "all 4 points have NaN or infinite coordinates"),
        (PointCloud(np.zeros((4, 3))), "no column 'red'.*needs red, green, blue.*coordinates only"),
        (PointCloud(np.array([[0.0, 0, 0], [1e300, 0, 0]])), "a coordinate is 1e.300 from the low"),
        (
            changed(scan(4), "green", np.array([1, np.nan, np.nan, 2])),
            "column 'green' holds 2 NaN values of 4",
        ),
        (PointCloud(scan(9).points * 1e-6, scan(9).columns), "all 9 points fall into one voxel"),
        (PointCloud(scan(9).points * 1e15, scan(9).columns), "more than 2.42 along an axis"),
    ],
)
def test_a_scan_that_cannot_be_labeled_is_told_in_words(colors, cloud, words):
    with pytest.raises(CError, match=words) as caught:
        colors.label(cloud)
    assert caught.value.status == BAD_INPUT


def test_an_unknown_category_is_told(networks):
    cloud = changed(scan(50), "category", np.full(50, 2, np.int32))
    with pytest.raises(CError, match=r"column 'category' holds 2; .* are 0..1") as caught:
        Model(networks["parts"]).label(cloud)
    assert caught.value.status == BAD_INPUT


def test_mistakes_in_a_call_are_told(networks, colors):
    cloud = scan(20)
    given = raw_cloud(cloud.points, cloud.columns)

    def refused(words: str, call) -> None:
        with pytest.raises(CError, match=words) as caught:
            call()
        assert caught.value.status == BAD_ARGUMENT

    refused("max_points is 0 and votes -2", lambda: colors.label(cloud, votes=-2))
    given.type = 7
    refused("points have the type 7", lambda: colors.label_raw(given, 20))
    given = raw_cloud(cloud.points, cloud.columns)
    given.columns[0].type = 99
    refused("column 'red' has the type 99", lambda: colors.label_raw(given, 20))
    given = raw_cloud(cloud.points, cloud.columns)
    given.columns[1].data = None
    refused("column 1 has no name or no data", lambda: colors.label_raw(given, 20))
    given.count = -1
    refused("the scan has -1 points", lambda: colors.label_raw(given, 20))
    refused("points or columns are NULL", lambda: colors.label_raw(Cloud(count=3), 20))
    refused("threads is -1; give 0 to 4096", lambda: Model(networks["colors"], -1))
    labels = np.empty(20, np.int32)
    wrong = LabelOptions(1 << 20, 0, 0, 0)
    given = raw_cloud(cloud.points, cloud.columns)
    places = (colors.handle, ctypes.byref(given), ctypes.byref(wrong), labels.ctypes.data, None)
    assert library().dela_model_label(*places) == BAD_ARGUMENT
    assert b"dela_label_options.size is 1048576" in library().dela_last_error()
    for missing in (0, 1, 3):
        holes = [None if i == missing else place for i, place in enumerate(places)]
        assert library().dela_model_label(*holes) == BAD_ARGUMENT
    assert library().dela_model_load(None, None, None) == BAD_ARGUMENT
    assert library().dela_model_class_count(None) == 0
    library().dela_model_free(None)


def test_options_may_be_left_out(networks, colors):
    cloud = scan(500)
    given, labels = raw_cloud(cloud.points, cloud.columns), np.empty(500, np.int32)
    places = (colors.handle, ctypes.byref(given), None, labels.ctypes.data, None)
    assert library().dela_model_label(*places) == OK
    np.testing.assert_array_equal(labels, colors.label(cloud)[0])
    # A program of an earlier version, whose structure ends before the votes.
    before = LabelOptions(LabelOptions.votes.offset, 150, votes=9, drop_invalid=9)
    places = (*places[:2], ctypes.byref(before), *places[3:])
    assert library().dela_model_label(*places) == OK
    np.testing.assert_array_equal(labels, colors.label(cloud, max_points=150)[0])


def rewritten(source: Path, folder: Path, **properties: str | None) -> Path:
    """The file with text properties of its own changed, or left out for None."""
    import onnx

    model = onnx.load(source)
    held = {entry.key: entry.value for entry in model.metadata_props} | properties
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {k: v for k, v in held.items() if v is not None})
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"format": None}, "is not a dela network"),
        ({"format": "other"}, "is not a dela network"),
        ({"config": None}, "lacks 'config'"),
        ({"format_version": "x"}, "format version 'x' is not a number"),
        ({"format_version": "99", "dela_version": "9.9"}, "up to 1; install dela 9.9 or newer"),
        ({"config": ""}, "metadata is damaged: letter 1 of the JSON text"),
        ({"config": "[]"}, "metadata is damaged: .* must be an object"),
        ({"config": "[" * 5000}, "metadata is damaged: .*64 levels"),
        ({"config": '{"family": "other"}', "format_version": "2"}, "of the family 'other'"),
    ],
)
def test_a_file_that_does_not_describe_itself_is_refused(networks, tmp_path, properties, words):
    with pytest.raises(CError, match=words) as caught:
        Model(rewritten(networks["colors"], tmp_path, **properties))
    assert caught.value.status == BAD_MODEL


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("task", "detection", "task is 'detection'"),
        ("grid", [0.2, 0.1], "grid must have an entry for each stage, each above"),
        ("grid", [0.1], "grid must have an entry"),
        ("neighbors", [8, 0], "an entry of neighbors is 0"),
        ("neighbors", [8, 2.5], "an entry of neighbors is 2.5"),
        ("neighbors", [4, 8], "neighbors_0 is int32 .*, 8.; its metadata needs .*, 4."),
        ("classes", [], "classes is empty"),
        ("classes", [{"name": "a", "code": 1e12}], "code of a class is 1e.12"),
        ("classes", [{"name": "a", "code": 1}], "output does not fit its metadata; 1 classes"),
        ("attributes", [{"name": "red", "scale": 0}], "column red has the scale 0"),
        ("attributes", [], "it takes 6 inputs, its metadata describes 5"),
        ("attributes", "red", "attributes is a text; it must be a list"),
        ("vote_axis", "xy", "vote_axis is 'xy'"),
    ],
)
def test_metadata_that_does_not_hold_together_is_refused(networks, tmp_path, field, value, words):
    config = CONFIG.to_dict() | {field: value}
    with pytest.raises(CError, match=words) as caught:
        Model(rewritten(networks["colors"], tmp_path, config=json.dumps(config)))
    assert caught.value.status == BAD_MODEL


def test_no_part_of_a_description_passes_for_the_whole(networks, tmp_path):
    text = json.dumps(CONFIG.to_dict())
    for end in range(1, len(text), 29):
        with pytest.raises(CError, match="metadata is damaged"):
            Model(rewritten(networks["colors"], tmp_path, config=text[:end]))


@pytest.mark.parametrize(
    "name", ["caf\u00e9", 'quo"te\\', "\U0001f332 tree", "tab\there", "\u2028"]
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_names_of_classes_come_through_whatever_their_letters(networks, tmp_path, name, ascii_only):
    config = CONFIG.to_dict()
    config["classes"][0]["name"] = name
    text = json.dumps(config, ensure_ascii=ascii_only)
    model = Model(rewritten(networks["colors"], tmp_path, config=text))
    assert library().dela_model_class_name(model.handle, 0).decode() == name


def test_names_that_are_no_utf8_are_refused(networks, tmp_path):
    whole = networks["colors"].read_bytes()
    (tmp_path / "changed.onnx").write_bytes(whole.replace(b'"middle"', b'"mid\xc3le"'))
    with pytest.raises(CError, match=r"letter .* of the JSON text is not UTF-8"):
        Model(tmp_path / "changed.onnx")


def test_a_network_that_gives_no_numbers_is_told(networks, tmp_path):
    import onnx

    model = onnx.load(networks["colors"])
    for weights in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weights)
        if values.dtype == np.float32 and values.ndim == 2:
            broken = onnx.numpy_helper.from_array(np.full_like(values, np.nan), weights.name)
            weights.CopyFrom(broken)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(CError, match=r"the network gave -?nan for a class") as caught:
        Model(tmp_path / "changed.onnx").label(scan(200))
    assert caught.value.status == FAILED


def test_half_precision_gives_the_same_labels(networks, tmp_path):
    from dela.export import export_onnx

    export_onnx(networks["colors"].with_suffix(".pt"), tmp_path / "half.onnx", dtype="fp16")
    agree(tmp_path / "half.onnx", scan(), votes=2)


def test_files_that_are_no_network_are_refused(networks, tmp_path):
    whole = networks["colors"].read_bytes()
    (tmp_path / "short.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("no network")
    for name, words in (
        ("short.onnx", "is not an ONNX file, or it is cut short"),
        ("text.onnx", "is not an ONNX file, or it is cut short"),
        ("none.onnx", "there is no file .*none.onnx to read"),
    ):
        with pytest.raises(CError, match=words) as caught:
            Model(tmp_path / name)
        assert caught.value.status == BAD_MODEL


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("/nowhere/libonnxruntime.so", "ONNX Runtime does not load: /nowhere/libonnxruntime.so"),
        ("OURS", "is not ONNX Runtime's library: it has no OrtGetApiBase"),
        ("", "there is no ONNX Runtime on the library path"),
    ],
)
def test_without_onnx_runtime_the_model_says_so(networks, runtime, words):
    """In a process of its own: the first library that loads serves the rest of a process."""
    program = (
        "import ctypes, sys; from c_library import *; from dela.plugins import native\n"
        "path = sys.argv[2] if sys.argv[2] != 'OURS' else str(native.library_path())\n"
        "options = LoadOptions(ctypes.sizeof(LoadOptions), path.encode() or None, 0)\n"
        "handle = ctypes.c_void_p(1)\n"
        "model, place = sys.argv[1].encode(), ctypes.byref(handle)\n"
        "status = library().dela_model_load(model, ctypes.byref(options), place)\n"
        "print(status, handle.value, library().dela_last_error().decode())\n"
        "options.onnxruntime = str(onnxruntime_library()).encode()\n"
        "print(library().dela_model_load(model, ctypes.byref(options), place))\n"
    )
    helpers = Path(__file__).resolve().parents[1] / "helpers"
    done = subprocess.run(
        [sys.executable, "-c", program, str(networks["colors"]), runtime],
        capture_output=True, text=True, check=True, cwd=helpers,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{NO_RUNTIME} None ") and words in first
    assert second == str(OK)


def test_the_header_is_plain_c_and_lays_structures_out_as_here(tmp_path):
    program = tmp_path / "sizes.c"
    program.write_text(
        "#include <stdio.h>\n#include <dela.h>\nint main(void) {\n"
        '  printf("%zu %zu %zu %zu", sizeof(dela_load_options), sizeof(dela_column),\n'
        "         sizeof(dela_cloud), sizeof(dela_label_options));\n  return 0;\n}\n"
    )
    flags = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{dela.get_include()}")
    subprocess.run(["cc", *flags, program, "-o", tmp_path / "sizes"], check=True)
    printed = subprocess.run([tmp_path / "sizes"], capture_output=True, text=True, check=True)
    ours = [ctypes.sizeof(each) for each in (LoadOptions, Column, Cloud, LabelOptions)]
    assert [int(size) for size in printed.stdout.split()] == ours
