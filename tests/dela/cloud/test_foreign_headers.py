"""Headers that other programs write: older keywords, fields of several values, old counts."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from dela.cloud.formats import read_cloud, write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError, ScanWarning

_HEADER = (
    "VERSION 0.7\nFIELDS x y z own\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 3\n"
    "WIDTH {count}\nHEIGHT 1\nPOINTS {count}\nDATA {kind}\n"
)


def _literal(body: bytes) -> bytes:
    """An LZF body of literal runs alone."""
    runs = [body[at : at + 32] for at in range(0, len(body), 32)]
    packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
    return struct.pack("<II", len(packed), len(body)) + packed


@pytest.mark.parametrize("count", [0, 1, 7])
def test_compressed_pcd_with_several_values_a_field(tmp_path: Path, count: int) -> None:
    points = np.arange(count * 3, dtype="<f4").reshape(count, 3)
    own = 100 + np.arange(count * 3, dtype="<f4").reshape(count, 3)
    rows = np.concatenate([points, own], axis=1)
    blocks = points.T.tobytes() + own.tobytes()  # PCL: one block a field, point after point
    path = tmp_path / "scan.pcd"
    for kind, body in (("binary", rows.tobytes()), ("binary_compressed", _literal(blocks))):
        path.write_bytes(_HEADER.format(count=count, kind=kind).encode() + body)
        cloud = read_cloud(path)
        np.testing.assert_array_equal(cloud.points, points)
        for index in range(3):
            np.testing.assert_array_equal(cloud.columns[f"own_{index}"], own[:, index])


def test_pcd_with_columns_and_without_points(tmp_path: Path) -> None:
    path = tmp_path / "scan.pcd"
    path.write_text(
        "# .PCD v.5\nCOLUMNS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 2\nHEIGHT 1\n"
        "DATA ascii\n1 2 3\n4 5 6\n"
    )
    np.testing.assert_array_equal(read_cloud(path).points, [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las_14_with_the_older_count_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    points = np.random.default_rng(1).normal(size=(20, 3)).round(3)
    write_cloud(path, PointCloud(points, {}))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 107, 20)
    struct.pack_into("<Q", data, 247, 0)
    path.write_bytes(data)
    cloud = read_cloud(path)
    np.testing.assert_allclose(cloud.points, points, atol=1e-4)
    written = write_cloud(tmp_path / f"again{suffix}", cloud)
    np.testing.assert_array_equal(read_cloud(written).points, cloud.points)


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_header_bytes_outside_ascii_survive(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    write_cloud(path, PointCloud(np.random.default_rng(2).normal(size=(9, 3)), {}))
    data = bytearray(path.read_bytes())
    names = "Système".encode("latin-1").ljust(32, b"\0") + "Géomètre".encode("latin-1").ljust(
        32, b"\0"
    )
    data[26:90] = names
    path.write_bytes(data)
    written = write_cloud(tmp_path / f"again{suffix}", read_cloud(path))
    assert written.read_bytes()[26:90] == names


@pytest.mark.parametrize("records", [0, 1])
def test_more_points_than_the_header_says_are_told(tmp_path: Path, records: int) -> None:
    """What stands behind the points, an extended record here, is none of them."""
    import laspy

    las = laspy.LasData(laspy.LasHeader(point_format=6, version="1.4"))
    las.x, las.y, las.z = np.random.default_rng(5).normal(size=(3, 50))
    las.evlrs = laspy.vlrs.vlrlist.VLRList()
    for _ in range(records):
        las.evlrs.append(laspy.VLR("somebody", 1, "", bytes(1000)))
    path = tmp_path / "scan.las"
    las.write(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_cloud(path)) == 50
    data = bytearray(path.read_bytes())
    data[107:111] = (20).to_bytes(4, "little")
    data[247:255] = (20).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.warns(ScanWarning, match="its header says 20 points, 50 are there"):
        assert len(read_cloud(path)) == 20


def test_field_case_of_a_count_too_small(field_dir: Path) -> None:
    with pytest.warns(ScanWarning, match="says 100 points, 500 are there"):
        assert len(read_cloud(field_dir / "las" / "header_count_too_small.las")) == 100


def test_array_with_a_row_for_each_coordinate(tmp_path: Path) -> None:
    table = np.random.default_rng(4).normal(size=(3, 3000))
    np.save(tmp_path / "scan.npy", table)
    np.savez(tmp_path / "scan.npz", points=table)
    for name in ("scan.npy", "scan.npz"):
        with pytest.raises(InputError, match="transposed"):
            read_cloud(tmp_path / name)
    np.save(tmp_path / "right.npy", table[:, :9])
    assert len(read_cloud(tmp_path / "right.npy")) == 3


def test_a_structured_array_in_an_archive_is_its_fields(tmp_path: Path) -> None:
    kind = [("x", "f8"), ("y", "f8"), ("z", "f8"), ("intensity", "u2"), ("label", "i4")]
    rng = np.random.default_rng(6)
    table = np.zeros(40, kind)
    for axis in "xyz":
        table[axis] = rng.normal(size=40) + 5e5
    table["intensity"], table["label"] = rng.integers(0, 60_000, 40), rng.integers(0, 5, 40)
    np.savez(tmp_path / "scan.npz", cloud=table, label=np.arange(40))
    cloud = read_cloud(tmp_path / "scan.npz")
    for index, axis in enumerate("xyz"):
        np.testing.assert_array_equal(cloud.points[:, index], table[axis])
    np.testing.assert_array_equal(cloud.columns["intensity"], table["intensity"])
    np.testing.assert_array_equal(cloud.columns["label"], np.arange(40))  # the archive's own
    np.testing.assert_array_equal(cloud.columns["label_"], table["label"])
    again = read_cloud(write_cloud(tmp_path / "again.npz", cloud))
    np.testing.assert_array_equal(again.points, cloud.points)
    assert again.columns.keys() == cloud.columns.keys()


def test_field_case_of_a_structured_array(field_dir: Path) -> None:
    cloud = read_cloud(field_dir / "npy" / "struct.npz")
    assert len(cloud) == 300 and cloud.columns.keys() == {"intensity"}
