"""Sizes that a file declares are held against its length before memory is asked for."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dela.cloud.formats import FORMATS, read_cloud, read_extent, write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError

_READ = """
import sys
from dela.cloud.formats import read_cloud, read_extent
from dela.errors import InputError
read_extent(sys.argv[1])
try:
    read_cloud(sys.argv[1])
except InputError as error:
    assert len(str(error).splitlines()) <= 2, error
    sys.exit(2)
"""


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))


def _cloud(count: int = 60) -> PointCloud:
    generator = np.random.default_rng(3)
    return PointCloud(generator.normal(size=(count, 3)), {})


def test_every_damaged_scan_is_read_or_refused_in_a_limited_process(hostile_dir: Path) -> None:
    for path in sorted(each for each in hostile_dir.iterdir() if each.suffix in FORMATS):
        done = subprocess.run(
            [sys.executable, "-c", _READ, str(path)],
            preexec_fn=_limit,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in (0, 2), f"{path.name}: {done.returncode} {done.stderr[-500:]}"


def test_laz_with_a_chunk_beyond_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scan.laz"
    write_cloud(path, _cloud())
    data = bytearray(path.read_bytes())
    record = data.index(b"laszip encoded") - 2 + 54
    assert struct.unpack_from("<I", data, record + 12) == (50_000,)
    struct.pack_into("<I", data, record + 12, 0x4000C350)
    path.write_bytes(data)
    with pytest.raises(InputError, match="1073791824 points would take"):
        read_cloud(path)


def test_npz_that_inflates_beyond_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("points.npy", "w") as stream,
    ):
        for _ in range(400):
            stream.write(bytes(1_000_000))
    with pytest.raises(InputError, match="its arrays would take 400 MB"):
        read_cloud(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_array_header_that_claims_more_than_is_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 3)}
    bare = tmp_path / "points.bin"
    with bare.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(240))
    if suffix == ".npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(bare, "points.npy")
    else:
        bare.rename(path)
    with pytest.raises(InputError, match="is cut short"):
        read_cloud(path)


def test_more_columns_than_any_scan_has(tmp_path: Path) -> None:
    names = [f"c{index}" for index in range(70_000)]
    header = "ply\nformat ascii 1.0\nelement vertex 0\n"
    files = {
        "wide.npy": None,
        "wide.ply": header + "".join(f"property float {n}\n" for n in names) + "end_header\n",
        "wide.pcd": (
            "VERSION 0.7\nFIELDS x y z c\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 70000\n"
            "WIDTH 0\nHEIGHT 1\nPOINTS 0\nDATA binary\n"
        ),
        "wide.txt": " ".join(["1"] * 70_000) + "\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        if text is None:
            np.save(path, np.zeros((2, 70_000), np.float32))
        else:
            path.write_text(text)
        with pytest.raises(InputError, match=r"columns, more than 65536|no end_header line"):
            read_cloud(path)


def test_column_named_three_times_is_kept_three_times(tmp_path: Path) -> None:
    path = tmp_path / "scan.csv"
    path.write_text("x,y,z,own,own,own\n1,2,3,4,5,6\n")
    assert [float(column[0]) for column in read_cloud(path).columns.values()] == [4, 5, 6]


@pytest.mark.parametrize(
    ("place", "value", "words"), [(24, b"\0\1", "LAS version 0.1"), (131, bytes(8), "scales")]
)
def test_las_header_that_could_not_be_written(
    tmp_path: Path, place: int, value: bytes, words: str
) -> None:
    path = tmp_path / "scan.las"
    write_cloud(path, _cloud())
    data = bytearray(path.read_bytes())
    data[place : place + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_cloud(path)
    assert read_extent(path) is None


def test_extent_in_the_header_is_the_points_extent(tmp_path: Path) -> None:
    path = tmp_path / "scan.las"
    write_cloud(path, _cloud())
    points = read_cloud(path).points
    extent = read_extent(path)
    assert extent is not None
    np.testing.assert_allclose(extent, [points.min(axis=0), points.max(axis=0)], atol=1e-9)
