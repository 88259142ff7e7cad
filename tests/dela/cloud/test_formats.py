"""Every format reads back what it wrote, and writes back what it read."""

from __future__ import annotations

import struct
import time
import zipfile
from pathlib import Path

import laspy
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dela.cloud.formats import (
    FORMATS,
    find_scans,
    format_of,
    read_cloud,
    read_extent,
    write_cloud,
)
from dela.cloud.formats.pcd import PcdSource
from dela.cloud.formats.ply import PlySource
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError, ScanWarning

FILE_SETTINGS = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
GENERAL = [suffix for suffix, form in FORMATS.items() if form.any_columns]
DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"]


def _values(dtype: str, count: int, generator: np.random.Generator) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return (generator.normal(size=count) * 10.0 ** generator.integers(-5, 6)).astype(kind)
    limits = np.iinfo(kind)
    return generator.integers(limits.min, limits.max, count, dtype=kind, endpoint=True)


@st.composite
def clouds(draw: st.DrawFn) -> PointCloud:
    """Clouds of a few points with canonical and own columns of any plain type."""
    count = draw(st.integers(0, 12))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    origin = draw(st.sampled_from([0.0, 5e5, -3e6]))
    points = np.round(generator.uniform(-50, 50, (count, 3)) + origin, 3)
    columns = {}
    for index, dtype in enumerate(draw(st.lists(st.sampled_from(DTYPES), max_size=5))):
        columns[f"own {index}" if index % 2 else f"own_{index}"] = _values(dtype, count, generator)
    if draw(st.booleans()):
        for name in ("red", "green", "blue"):
            columns[name] = _values("u1", count, generator)
    if draw(st.booleans()):
        columns["classification"] = generator.integers(0, 256, count).astype(np.uint8)
        columns["return_number"] = generator.integers(0, 16, count).astype(np.uint8)
        columns["label"] = _values("i4", count, generator)
    if draw(st.booleans()):
        for name in ("normal_x", "normal_y", "normal_z"):
            columns[name] = _values("f4", count, generator)
    return PointCloud(points, columns)


def _same_columns(left: PointCloud, right: PointCloud, exact_types: bool) -> None:
    assert {name.replace(" ", "_") for name in left.columns} <= {
        name.replace(" ", "_") for name in right.columns
    }
    spelled = {name.replace(" ", "_"): name for name in right.columns}
    for name, column in left.columns.items():
        other = right.columns[spelled[name.replace(" ", "_")]]
        np.testing.assert_array_equal(other, column, err_msg=name)
        if exact_types:
            assert other.dtype == column.dtype, name


@pytest.mark.parametrize("suffix", GENERAL)
@FILE_SETTINGS
@given(cloud=clouds())
def test_any_cloud_comes_back(tmp_path: Path, suffix: str, cloud: PointCloud) -> None:
    path = tmp_path / f"a{suffix}"
    assert write_cloud(path, cloud, overwrite=True) == path
    again = read_cloud(path)
    is_text = suffix in (".txt", ".csv", ".xyz", ".asc", ".pts")
    if suffix in (".las", ".laz"):
        np.testing.assert_allclose(again.points, cloud.points, rtol=0, atol=5.1e-5)
    else:
        np.testing.assert_array_equal(again.points, cloud.points)
    if is_text:
        cloud = PointCloud(
            cloud.points,
            {
                name: np.array([float(f"{v:.9g}") for v in column])
                if column.dtype == "f4"
                else column
                for name, column in cloud.columns.items()
            },
        )
    _same_columns(cloud, again, exact_types=not is_text)


@pytest.mark.parametrize("suffix", GENERAL)
@FILE_SETTINGS
@given(cloud=clouds())
def test_second_writing_gives_the_same_bytes(
    tmp_path: Path, suffix: str, cloud: PointCloud
) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_cloud(first, cloud, overwrite=True)
    if suffix in (".txt", ".csv", ".xyz", ".asc", ".pts"):  # types settle with the first reading
        write_cloud(first, read_cloud(first), overwrite=True)
    write_cloud(second, read_cloud(first), overwrite=True)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("suffix", GENERAL)
def test_selection_and_new_columns_are_written(tmp_path: Path, suffix: str) -> None:
    cloud = PointCloud(np.arange(30.0).reshape(10, 3), {"intensity": np.arange(10, dtype="u2")})
    write_cloud(tmp_path / f"a{suffix}", cloud)
    part = read_cloud(tmp_path / f"a{suffix}").select(np.array([7, 2, 5]))
    part.columns["confidence"] = np.array([0.5, 0.25, 0.125], np.float32)
    part.columns["classification"] = np.array([6, 2, 5], np.uint8)
    write_cloud(tmp_path / f"b{suffix}", part)
    again = read_cloud(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(again.points, cloud.points[[7, 2, 5]])
    assert again.columns["intensity"].tolist() == [7, 2, 5]
    assert again.columns["confidence"].tolist() == [0.5, 0.25, 0.125]
    assert again.columns["classification"].tolist() == [6, 2, 5]


@pytest.mark.parametrize("source", GENERAL)
@pytest.mark.parametrize("target", [".laz", ".ply", ".pcd", ".npz", ".npy", ".csv"])
def test_every_format_converts_to_every_other(tmp_path: Path, source: str, target: str) -> None:
    generator = np.random.default_rng(0)
    cloud = PointCloud(
        np.round(generator.normal(size=(20, 3)), 3),
        {
            **{name: _values("u1", 20, generator) for name in ("red", "green", "blue")},
            "intensity": _values("u2", 20, generator),
            "label": generator.integers(0, 13, 20).astype(np.int32),
        },
    )
    write_cloud(tmp_path / f"a{source}", cloud)
    write_cloud(tmp_path / f"b{target}", read_cloud(tmp_path / f"a{source}"))
    again = read_cloud(tmp_path / f"b{target}")
    np.testing.assert_allclose(again.points, cloud.points, atol=1e-9)
    _same_columns(cloud, again, exact_types=False)


# LAS and LAZ


def _las(path: Path, point_format: int, count: int = 50) -> laspy.LasData:
    """A LAS file with every dimension of its point format filled, extra ones and a WKT record."""
    generator = np.random.default_rng(point_format)
    version = "1.4" if point_format >= 6 else "1.3"
    header = laspy.LasHeader(version=version, point_format=point_format)
    header.scales, header.offsets = np.array([0.001, 0.01, 0.0025]), np.array([7e5, 6e6, -10.0])
    header.system_identifier, header.file_source_id = "scanner", 77
    header.vlrs.append(laspy.VLR("LASF_Projection", 2112, "wkt", b'PROJCS["here"]\x00'))
    header.vlrs.append(laspy.VLR("somebody", 9, "own", bytes(range(40))))
    header.add_extra_dims(
        [
            laspy.ExtraBytesParams("reflectance", "f4", "dB"),
            laspy.ExtraBytesParams("deviation", "u2", scales=[0.01], offsets=[-1.0]),
            laspy.ExtraBytesParams("vector", "3i2"),
        ]
    )
    las = laspy.LasData(header)
    raw = generator.integers(0, 256, (count, header.point_format.size)).astype(np.uint8)
    las.points = laspy.ScaleAwarePointRecord(
        np.frombuffer(bytearray(raw.tobytes()), header.point_format.dtype()).copy(),
        header.point_format,
        header.scales,
        header.offsets,
    )
    for name in ("X", "Y", "Z"):
        las.points.array[name] = generator.integers(-(2**30), 2**30, count)
    las.points.array["reflectance"] = generator.normal(size=count)
    if "gps_time" in las.points.array.dtype.names:
        las.points.array["gps_time"] = generator.uniform(0, 1e6, count)
    for name in ("x_t", "y_t", "z_t"):
        if name in las.points.array.dtype.names:
            las.points.array[name] = generator.normal(size=count)
    if version == "1.4":
        las.evlrs = laspy.vlrs.vlrlist.VLRList([laspy.VLR("somebody", 12, "far", b"z" * 70000)])
    las.write(str(path))
    return las


@pytest.mark.parametrize("suffix", ["las", "laz"])
@pytest.mark.parametrize("point_format", range(11))
def test_las_of_every_point_format_is_written_back_whole(
    tmp_path: Path, point_format: int, suffix: str
) -> None:
    if suffix == "laz" and point_format in (4, 5, 9, 10):
        pytest.skip("lazrs does not compress wave packets")
    path, copy = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    _las(path, point_format)
    cloud = read_cloud(path)
    assert {"vector_0", "vector_2", "deviation", "reflectance"} <= set(cloud.columns)
    write_cloud(copy, cloud)
    before, after = laspy.read(path), laspy.read(copy)
    assert after.points.array.tobytes() == before.points.array.tobytes()
    assert after.header.point_format == before.header.point_format
    for name in ("version", "system_identifier", "file_source_id", "creation_date", "uuid"):
        assert getattr(after.header, name) == getattr(before.header, name), name
    assert (after.header.scales == before.header.scales).all()
    assert (after.header.offsets == before.header.offsets).all()
    assert (after.header.mins == before.header.mins).all()
    kept = [(v.user_id, v.record_id, v.record_data_bytes()) for v in before.header.vlrs]
    assert [(v.user_id, v.record_id, v.record_data_bytes()) for v in after.header.vlrs] == kept
    assert len(kept) >= 3
    far = [v.record_data_bytes() for v in before.evlrs or []]
    assert [v.record_data_bytes() for v in after.evlrs or []] == far


def test_real_tiles_are_written_back_whole(lidar_dir: Path, tmp_path: Path) -> None:
    for path in find_scans([lidar_dir])[:2]:
        cloud = read_cloud(path)
        write_cloud(tmp_path / path.name, cloud)
        before, after = laspy.read(path), laspy.read(tmp_path / path.name)
        assert after.points.array.tobytes() == before.points.array.tobytes()
        np.testing.assert_array_equal(cloud.points, before.xyz)
        assert [v.record_data_bytes() for v in after.header.vlrs] == [
            v.record_data_bytes() for v in before.header.vlrs
        ]
        assert after.header.version == before.header.version


def test_prediction_written_into_a_tile_changes_nothing_else(
    lidar_dir: Path, tmp_path: Path
) -> None:
    path = find_scans([lidar_dir])[0]
    cloud = read_cloud(path)
    cloud.columns["input_classification"] = cloud.columns["classification"]
    cloud.columns["classification"] = np.full(len(cloud), 6, np.uint8)
    cloud.columns["confidence"] = np.linspace(0, 1, len(cloud), dtype=np.float32)
    write_cloud(tmp_path / "a.laz", cloud)
    before, after = laspy.read(path), laspy.read(tmp_path / "a.laz")
    for name in before.point_format.dimension_names:
        if name != "classification":
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert (np.asarray(after.classification) == 6).all()
    np.testing.assert_array_equal(after["input_classification"], before.classification)
    assert after["confidence"].dtype == np.float32
    assert after.header.vlrs.get("GeoKeyDirectoryVlr")


@pytest.mark.parametrize(
    ("raw", "expected", "dtype"),
    [
        ([[0, 128, 255], [1, 2, 3]], [[0, 128, 255], [1, 2, 3]], np.uint8),
        ([[0, 32768, 65280], [256, 512, 0]], [[0, 128, 255], [1, 2, 0]], np.uint8),
        ([[0, 32896, 65535], [257, 514, 0]], [[0, 128, 255], [1, 2, 0]], np.uint8),
        (
            [[0, 1000, 65535], [3, 500, 7]],
            [[0, 1000 / 257, 255], [3 / 257, 500 / 257, 7 / 257]],
            "f4",
        ),
        ([[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]], np.uint8),
    ],
    ids=["8 bit", "shifted", "repeated", "16 bit", "none"],
)
def test_las_colours_are_0_to_255_and_written_back_untouched(
    tmp_path: Path, raw: list, expected: list, dtype: type
) -> None:
    las = laspy.LasData(laspy.LasHeader(version="1.2", point_format=2))
    las.xyz = np.zeros((2, 3))
    las.red, las.green, las.blue = np.array(raw, np.uint16).T
    las.write(str(tmp_path / "a.las"))
    cloud = read_cloud(tmp_path / "a.las")
    colors = np.stack([cloud.columns[name] for name in ("red", "green", "blue")], axis=1)
    np.testing.assert_allclose(colors, expected, rtol=1e-6)
    assert colors.dtype == dtype
    write_cloud(tmp_path / "b.las", cloud)
    again = laspy.read(tmp_path / "b.las")
    np.testing.assert_array_equal(np.stack([again.red, again.green, again.blue], axis=1), raw)


def test_class_beyond_five_bits_is_refused_in_words(tmp_path: Path) -> None:
    las = laspy.LasData(laspy.LasHeader(version="1.2", point_format=3))
    las.xyz = np.zeros((2, 3))
    las.write(str(tmp_path / "a.las"))
    cloud = read_cloud(tmp_path / "a.las")
    cloud.columns["classification"] = np.array([2, 64], np.uint8)
    with pytest.raises(InputError, match=r"classification' holds 64.*from 0 to 31.*LAS 1.4"):
        write_cloud(tmp_path / "b.las", cloud)


def test_names_too_long_or_taken_for_las_find_a_place(tmp_path: Path) -> None:
    columns = {f"{'very ' * 8}long {index}": np.array([index], "i4") for index in range(3)}
    columns |= {"X": np.array([1], "i4"), "x": np.array([2], "i4"), "intensity": np.array([0.5])}
    write_cloud(tmp_path / "a.las", PointCloud(np.zeros((1, 3)), columns))
    again = read_cloud(tmp_path / "a.las").columns
    assert again["intensity_value"].tolist() == [0.5]
    assert [again[name][0] for name in again if name.startswith("very")] == [0, 1, 2]
    assert again["X_2"].tolist() == [1]
    assert again["x_2"].tolist() == [2]


def test_moved_cloud_gets_new_offsets_not_an_overflow(tmp_path: Path) -> None:
    write_cloud(tmp_path / "a.las", PointCloud(np.random.default_rng(0).random((5, 3))))
    cloud = read_cloud(tmp_path / "a.las")
    cloud.points += [7e6, 6e7, 0]
    write_cloud(tmp_path / "b.las", cloud)
    np.testing.assert_allclose(read_cloud(tmp_path / "b.las").points, cloud.points, atol=5.1e-5)
    cloud.points[0] = 1e9
    with pytest.raises(InputError, match="spans"):
        write_cloud(tmp_path / "c.las", cloud)


# PLY


PLY_TYPES = ["char", "uint8", "short", "uint16", "int", "uint32", "float", "float64"]


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("coordinate", ["float", "double", "int", "short"])
def test_ply_of_every_order_and_type(tmp_path: Path, order: str, coordinate: str) -> None:
    mark = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}[order]
    kinds = dict(zip(PLY_TYPES, ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"], strict=True))
    kinds["double"] = "f8"
    fields = [(f"own{index}", name) for index, name in enumerate(PLY_TYPES)]
    fields[2:2] = [("z", coordinate), ("x", coordinate), ("nx", "float")]
    fields.append(("y", coordinate))
    generator = np.random.default_rng(3)
    table = np.empty(30, [(name, mark + kinds[kind]) for name, kind in fields])
    for name, kind in fields:
        small = name in "xyz"
        table[name] = (
            generator.integers(-99, 99, 30) if small else _values(kinds[kind], 30, generator)
        )
    lines = ["ply", f"format {order} 1.0", "comment made by hand", "element vertex 30"]
    lines += [f"property {kind} {name}" for name, kind in fields]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header", ""]
    header = "\n".join(lines).encode()
    face = b"3 0 1 2\n" if order == "ascii" else struct.pack(f"{mark}B3i", 3, 0, 1, 2)
    if order == "ascii":
        rows = [" ".join(repr(value) for value in row.tolist()) for row in table]
        body = ("\n".join(rows) + "\n").encode()
    else:
        body = table.tobytes()
    path, copy = tmp_path / "a.ply", tmp_path / "b.ply"
    path.write_bytes(header + body + face)
    cloud = read_cloud(path)
    np.testing.assert_array_equal(
        cloud.points, np.stack([table[axis] for axis in "xyz"], axis=1).astype(float)
    )
    for index in range(8):
        np.testing.assert_array_equal(cloud.columns[f"own{index}"], table[f"own{index}"])
        assert cloud.columns[f"own{index}"].dtype.isnative
    np.testing.assert_array_equal(cloud.columns["normal_x"], table["nx"])
    write_cloud(copy, cloud)
    written = copy.read_bytes()
    assert b"comment made by hand" in written
    assert written.endswith(face)
    if order != "ascii":
        assert written.endswith(body + face)
    again = read_cloud(copy)
    for name, column in cloud.columns.items():
        np.testing.assert_array_equal(again.columns[name], column)
        assert again.columns[name].dtype == column.dtype


@pytest.mark.parametrize("order", ["<", ">"])
def test_ply_elements_before_the_vertices_and_lists_in_them(tmp_path: Path, order: str) -> None:
    name = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    header = (
        f"ply\r\nformat {name} 1.0\r\nelement face 2\r\nproperty list uchar int i\r\n"
        "property float w\r\nelement vertex 2\r\nproperty float x\r\nproperty float y\r\n"
        "property list ushort short d\r\nproperty float z\r\nend_header\r\n"
    ).encode()
    faces = struct.pack(f"{order}B3if", 3, 0, 1, 1, 0.5) + struct.pack(f"{order}Bif", 1, 0, 0.5)
    rows = [(1, 2, 3, 7, 8, 9, 4), (5, 6, 3, 10, 11, 12, 8)]
    body = b"".join(struct.pack(f"{order}ffH3hf", *row) for row in rows)
    (tmp_path / "a.ply").write_bytes(header + faces + body)
    cloud = read_cloud(tmp_path / "a.ply")
    assert cloud.points.tolist() == [[1, 2, 4], [5, 6, 8]]
    assert cloud.columns["d_1"].tolist() == [8, 11]
    write_cloud(tmp_path / "b.ply", cloud)
    assert faces in (tmp_path / "b.ply").read_bytes()
    assert read_cloud(tmp_path / "b.ply").columns["d_1"].tolist() == [8, 11]
    write_cloud(tmp_path / "c.ply", cloud.select(np.array([1])))
    assert b"face" not in (tmp_path / "c.ply").read_bytes()
    varying = body.replace(struct.pack(f"{order}H", 3), struct.pack(f"{order}H", 2), 1)
    (tmp_path / "d.ply").write_bytes(header + faces + varying)
    with pytest.raises(InputError, match="'d' varies in length"):
        read_cloud(tmp_path / "d.ply")


def test_ply_colours_of_every_scale_are_0_to_255(tmp_path: Path) -> None:
    for kind, values in {
        "uchar": "0 128 255",
        "ushort": "0 32896 65535",
        "float": "0 0.5 1",
    }.items():
        path = tmp_path / f"{kind}.ply"
        path.write_text(
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
            "property float z\n"
            + "".join(f"property {kind} {name}\n" for name in ("red", "green", "blue"))
            + f"end_header\n1 2 3 {values}\n"
        )
        cloud = read_cloud(path)
        colors = [float(cloud.columns[name][0]) for name in ("red", "green", "blue")]
        assert colors == pytest.approx([0, 128, 255], abs=0.6)
        write_cloud(tmp_path / "again.ply", cloud, overwrite=True)
        assert (tmp_path / "again.ply").read_text().split("\n")[-2] == f"1 2 3 {values}"


def test_cloudcompare_names_become_canonical_and_go_back(tmp_path: Path) -> None:
    header = "ply\nformat ascii 1.0\nelement vertex 1\n" + "".join(
        f"property float {name}\n"
        for name in ("x", "y", "z", "scalar_Intensity", "scalar_Classification", "scalar_Other")
    )
    (tmp_path / "a.ply").write_text(f"{header}end_header\n1 2 3 4 5 6\n")
    cloud = read_cloud(tmp_path / "a.ply")
    assert set(cloud.columns) == {"intensity", "classification", "scalar_Other"}
    write_cloud(tmp_path / "b.ply", cloud)
    assert (tmp_path / "a.ply").read_text() == (tmp_path / "b.ply").read_text()


# NPY, NPZ, PCD, text


def test_npy_columns_by_position(tmp_path: Path) -> None:
    rooms = np.array([[1.5, 2, 3, 255, 0, 128, 4], [4, 5, 6, 1, 2, 3, 12]])
    np.save(tmp_path / "a.npy", rooms)
    with pytest.warns(ScanWarning, match="x,y,z,column_3"):
        assert list(read_cloud(tmp_path / "a.npy").columns) == [f"column_{i}" for i in range(3, 7)]
    cloud = read_cloud(tmp_path / "a.npy", "x,y,z,red,green,blue,label")
    assert list(cloud.columns) == ["red", "green", "blue", "label"]
    assert cloud.columns["label"].tolist() == [4, 12]
    assert cloud.columns["label"].dtype == np.int32
    write_cloud(tmp_path / "b.npy", cloud)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), rooms)
    np.save(tmp_path / "c.npy", np.array([[0, 0, 0, 0.6, 0, -0.8]]))
    with pytest.warns(ScanWarning, match="normal_x,normal_y,normal_z"):
        assert list(read_cloud(tmp_path / "c.npy").columns) == ["normal_x", "normal_y", "normal_z"]
    np.save(tmp_path / "d.npy", np.asfortranarray(np.arange(20.0, dtype=">f4").reshape(4, 5)))
    with pytest.warns(ScanWarning, match="column_3,column_4"):
        cloud = read_cloud(tmp_path / "d.npy")
    assert cloud.points[1].tolist() == [5, 6, 7]
    assert list(cloud.columns) == ["column_3", "column_4"]
    assert cloud.columns["column_4"].dtype.isnative


def test_npz_layouts_are_kept(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.npz", tmp_path / "b.npz"
    generator = np.random.default_rng(0)
    np.savez_compressed(
        path,
        xyz=generator.normal(size=(5, 3)).astype(np.float32),
        colors=generator.random((5, 3)).astype(np.float32),
        normals=generator.normal(size=(5, 3)).astype(np.float16),
        labels=np.arange(5),
        features=generator.normal(size=(5, 2)),
        origin=np.array([1.0, 2.0]),
        name="room 7",
    )
    cloud = read_cloud(path)
    assert set(cloud.columns) == {
        *("red", "green", "blue", "normal_x", "normal_y", "normal_z"),
        *("label", "features_0", "features_1"),
    }
    assert 0 < cloud.columns["red"].max() <= 255
    cloud.columns["confidence"] = np.ones(5, np.float32)
    write_cloud(copy, cloud)
    with np.load(path) as before, np.load(copy) as after:
        assert set(after.files) == {*before.files, "confidence"}
        for name in before.files:
            assert after[name].dtype == before[name].dtype, name
            np.testing.assert_array_equal(after[name], before[name])
    with zipfile.ZipFile(copy) as archive:
        assert archive.infolist()[0].compress_type == zipfile.ZIP_DEFLATED


def test_npz_with_x_y_z_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([1, 2]), y=np.array([3, 4]), z=np.array([5, 6]))
    cloud = read_cloud(tmp_path / "a.npz")
    assert cloud.points.tolist() == [[1, 3, 5], [2, 4, 6]]
    write_cloud(tmp_path / "b.npz", cloud)
    with np.load(tmp_path / "b.npz") as data:
        assert data.files == ["x", "y", "z"]


@pytest.mark.parametrize("kind", ["ascii", "binary"])
def test_pcd_packed_colours(tmp_path: Path, kind: str) -> None:
    generator = np.random.default_rng(0)
    cloud = PointCloud(
        generator.normal(size=(6, 3)).astype(np.float32),
        {name: _values("u1", 6, generator) for name in ("red", "green", "blue")},
        PcdSource(kind=kind, packed="rgb", viewpoint="1 2 3 1 0 0 0", shape=(3, 2)),
    )
    write_cloud(tmp_path / "a.pcd", cloud)
    text = (tmp_path / "a.pcd").read_bytes()
    assert b"FIELDS x y z rgb" in text
    assert b"WIDTH 3\nHEIGHT 2\nVIEWPOINT 1 2 3 1 0 0 0" in text
    again = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_array_equal(again.points, cloud.points)
    _same_columns(cloud, again, exact_types=True)
    write_cloud(tmp_path / "b.pcd", again)
    assert (tmp_path / "b.pcd").read_bytes() == text


def test_pcd_compressed(tmp_path: Path) -> None:
    header = (
        b"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z label\nSIZE 4 4 4 2\nTYPE F F F U\n"
        b"COUNT 1 1 1 1\nWIDTH 20\nHEIGHT 1\nPOINTS 20\nDATA binary_compressed\n"
    )
    x = np.arange(20, dtype="<f4")
    planes = x.tobytes() + bytes(80) + (-x).tobytes() + np.arange(20, dtype="<u2").tobytes()
    # By hand: literal runs, except the 80 zeros: one literal zero, then overlapping references.
    packed = b""
    for part in (planes[:80], planes[160:]):
        for start in range(0, len(part), 32):
            run = part[start : start + 32]
            packed += bytes([len(run) - 1]) + run
        if part is not planes[160:] and len(packed) < 100:
            packed += b"\x00\x00" + bytes([7 << 5, 79 - 9, 0])
    body = struct.pack("<II", len(packed), len(planes)) + packed
    (tmp_path / "a.pcd").write_bytes(header + body)
    cloud = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_array_equal(cloud.points, np.stack([x, 0 * x, -x], axis=1))
    assert cloud.columns["label"].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("a.txt", "#x y z r g b\n1 2 3 10 20 30\n4 5 6 11 21 31\n", ["red", "green", "blue"]),
        ("a.csv", "X,Y,Z,Intensity\n1,2,3,9\n4,5,6,8\n", ["intensity"]),
        ("a.csv", "id;x;y;z\n7;1;2;3\n7;4;5;6\n", ["id"]),
        ("a.asc", "//X Y Z R G B\n1 2 3 1 2 3\n\n4 5 6 7 8 9\n", ["red", "green", "blue"]),
        ("a.xyz", "# a remark\n1\t2\t3\n4\t5\t6\n", []),
        ("a.xyz", "\ufeff1 2 3\r\n4 5 6\r\n", []),
        ("a.txt", "1,2,3\n# between\n4,5,6\n", []),
    ],
)
def test_text_tables(tmp_path: Path, name: str, text: str, columns: list[str]) -> None:
    path, copy = tmp_path / name, tmp_path / f"copy_{name}"
    path.write_text(text, encoding="utf-8", newline="")
    cloud = read_cloud(path)
    assert cloud.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert list(cloud.columns) == columns
    write_cloud(copy, cloud)
    again = read_cloud(copy)
    np.testing.assert_array_equal(again.points, cloud.points)
    _same_columns(cloud, again, exact_types=True)


# Paths and speed


def test_folders_and_files_are_found(tmp_path: Path) -> None:
    for name in ("b/2.laz", "b/1.PLY", "b/notes.txt", "b/.half.laz", "c/room.txt", "d/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_scans([tmp_path / "b", tmp_path / "c", tmp_path / "b/2.laz"])
    assert [path.name for path in found] == ["1.PLY", "2.laz", "room.txt"]
    with pytest.raises(InputError, match="holds no scan"):
        find_scans([tmp_path / "d"])
    with pytest.raises(InputError, match="does not exist"):
        find_scans([tmp_path / "b", tmp_path / "missing.ply"])
    with pytest.raises(InputError, match="no scan given"):
        find_scans([])


def test_columns_stored_beside_their_points_are_no_scans(tmp_path: Path) -> None:
    for name in ("a/coord.npy", "a/color.npy", "a/segment.npy", "b/color.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_scans([tmp_path])]
    assert found == ["a/coord.npy", "b/color.npy"]


def test_a_million_points_read_in_array_time(tmp_path: Path) -> None:
    """Processor time, so that busy machines do not matter; a Python loop takes seconds."""
    generator = np.random.default_rng(0)
    count = 1_000_000
    cloud = PointCloud(
        generator.uniform(0, 100, (count, 3)),
        {name: _values("u1", count, generator) for name in ("red", "green", "blue")},
    )
    for suffix in (".las", ".ply", ".npz", ".npy", ".pcd"):
        path = tmp_path / f"a{suffix}"
        write_cloud(path, cloud)
        start = time.process_time()
        read_cloud(path)
        spent = time.process_time() - start
        path.unlink()
        assert spent < 0.6, suffix


def test_ply_source_can_be_given_by_hand(tmp_path: Path) -> None:
    cloud = PointCloud(np.zeros((2, 3)), source=PlySource("ascii", ["comment from us"]))
    write_cloud(tmp_path / "a.ply", cloud)
    assert (tmp_path / "a.ply").read_text().startswith("ply\nformat ascii 1.0\ncomment from us\n")


@pytest.mark.parametrize("suffix", GENERAL)
def test_every_format_says_where_its_labels_go_and_keeps_them_there(tmp_path: Path, suffix: str):
    form = format_of(f"scan{suffix}")
    limits = np.iinfo(form.label_dtype)
    labels = np.array([min(limits.max, 1000), form.unlabelled, 0], form.label_dtype)
    cloud = PointCloud(np.arange(9.0).reshape(3, 3), {form.label_column: labels})
    again = read_cloud(write_cloud(tmp_path / f"scan{suffix}", cloud))
    np.testing.assert_array_equal(again.columns[form.label_column], labels)


@pytest.mark.parametrize("suffix", GENERAL)
def test_extents_told_by_a_header_are_those_of_the_points(tmp_path: Path, suffix: str):
    points = np.array([[0.5, 2.0, -3.0], [1.5, -2.0, 4.0]])
    extent = read_extent(write_cloud(tmp_path / f"scan{suffix}", PointCloud(points, {})))
    if suffix in (".las", ".laz"):
        np.testing.assert_allclose(extent, [[0.5, -2.0, -3.0], [1.5, 2.0, 4.0]])
    else:
        assert extent is None
