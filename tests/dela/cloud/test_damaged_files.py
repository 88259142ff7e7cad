"""Bad input is answered with an InputError that names the file, never with anything else."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from dela.cloud.formats import FORMATS, find_scans, read_cloud, write_cloud
from dela.cloud.formats.pcd import PcdSource
from dela.cloud.formats.ply import PlySource
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError

GENERAL = [suffix for suffix, form in FORMATS.items() if form.any_columns]
VARIANTS = {
    **{suffix[1:]: (suffix, None) for suffix in GENERAL},
    "ascii ply": (".ply", PlySource("ascii")),
    "big-endian ply": (".ply", PlySource("binary_big_endian")),
    "ascii pcd": (".pcd", PcdSource("ascii")),
}


def _whole_file(folder: Path, variant: str) -> Path:
    suffix, source = VARIANTS[variant]
    generator = np.random.default_rng(0)
    columns = {
        name: generator.integers(0, 256, 40).astype("u1") for name in ("red", "green", "blue")
    }
    columns["intensity"] = generator.integers(0, 65536, 40).astype("u2")
    columns["own"] = generator.normal(size=40).astype("f4")
    path = folder / f"whole{suffix}"
    write_cloud(path, PointCloud(generator.normal(size=(40, 3)) * 100, columns, source))
    return path


def _read(path: Path) -> PointCloud | None:
    """The cloud, or None after an InputError in one or two lines that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cloud = read_cloud(path)
    except InputError as error:
        assert path.name in str(error)
        assert len(str(error).splitlines()) <= 2
        assert len(str(error)) < 1000
        return None
    assert all(len(column) == len(cloud) for column in cloud.columns.values())
    return cloud


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_cut_anywhere(tmp_path: Path, variant: str) -> None:
    path = _whole_file(tmp_path, variant)
    data = path.read_bytes()
    cut = tmp_path / f"cut{path.suffix}"
    generator = np.random.default_rng(1)
    is_text = path.suffix in (".txt", ".csv", ".xyz", ".asc", ".pts")
    for length in [0, 1, len(data) // 2, *generator.integers(0, len(data) - 1, 40)]:
        cut.write_bytes(data[:length])
        cloud = _read(cut)
        # Text ends nowhere in particular, and compressed archives hold slack at their ends.
        assert cloud is None or is_text or len(cloud) == 40, length


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_with_changed_bytes(tmp_path: Path, variant: str) -> None:
    path = _whole_file(tmp_path, variant)
    data = path.read_bytes()
    changed = tmp_path / f"changed{path.suffix}"
    generator = np.random.default_rng(2)
    refused = 0
    for round_ in range(120):
        copy = bytearray(data)
        reach = len(copy) if round_ % 2 else min(len(copy), 400)
        for _ in range(generator.integers(1, 4)):
            copy[generator.integers(0, reach)] = generator.choice([0, 32, 48, 57, 127, 128, 255])
        if round_ % 5 == 0:
            at = generator.integers(0, reach)
            del copy[at : at + generator.integers(1, 9)]
        changed.write_bytes(copy)
        refused += _read(changed) is None
    assert refused > 10


def test_real_tile_cut_short(lidar_dir: Path, tmp_path: Path) -> None:
    data = find_scans([lidar_dir])[0].read_bytes()
    path = tmp_path / "tile.laz"
    for length in [*range(0, len(data), len(data) // 12), len(data) - 1]:
        path.write_bytes(data[:length])
        assert _read(path) is None, length


def _words(path: Path, content: str | bytes | None, *words: str) -> None:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as raised:
        read_cloud(path)
    for word in (*words, path.name):
        assert word in str(raised.value)


def test_paths_that_are_no_scans(tmp_path: Path) -> None:
    _words(tmp_path / "missing.laz", None, "does not exist")
    _words(tmp_path / "missing", None, "does not exist")
    with pytest.raises(InputError, match="missing does not exist"):
        find_scans([tmp_path / "missing"])
    (tmp_path / "folder.ply").mkdir()
    _words(tmp_path / "folder.ply", None, "is a folder")
    (tmp_path / "folder").mkdir()
    _words(tmp_path / "folder", None, "is a folder")
    _words(tmp_path / "a.e57", "", "'.e57'", ".laz", ".ply", ".npz")
    _words(tmp_path / "noname", "", "no suffix", ".laz")
    with pytest.raises(InputError, match="known formats"):
        write_cloud(tmp_path / "a.obj", PointCloud(np.zeros((1, 3))))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.touch(mode=0)
    _words(path, None, "Permission denied")


def test_lidar_headers(tmp_path: Path) -> None:
    _words(tmp_path / "a.las", b"", "does not start with LASF")
    _words(tmp_path / "a.laz", b"LASF" + bytes(100), "cut short")
    write_cloud(tmp_path / "b.las", PointCloud(np.zeros((9, 3))))
    data = (tmp_path / "b.las").read_bytes()
    _words(tmp_path / "c.las", data[:-31], "promises 9 points, 7 are there")


def test_ply_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    start = "ply\nformat ascii 1.0\n"
    vertex = "element vertex 1\nproperty float x\nproperty float y\n"
    _words(path, "solid", "first line is not 'ply'")
    _words(path, start + vertex, "end_header")
    _words(path, start + vertex + "end_header\n1 2\n", "no vertex property z", "x, y")
    _words(path, start + "element face 1\nend_header\n", "no vertex element", "face")
    _words(path, start + vertex + "property real z\nend_header\n", "line 6", "property real z")
    _words(path, start + vertex + "property float x\nend_header\n", "'x' of vertex is there twice")
    _words(path, start + "element vertex many\nend_header\n", "line 3")
    _words(path, start + "property float x\nend_header\n", "line 3")
    _words(path, "ply\nformat pdp_endian 1.0\nend_header\n", "'pdp_endian'", "ascii")
    _words(path, "ply\n" + vertex + "property float z\nend_header\n", "no format line")
    full = start + vertex + "property float z\nend_header\n"
    _words(path, full, "promises 1 vertices", "0 are there")
    _words(path, full + "1 2\n", "data line 1: 2 values, expected 3")
    _words(path, full + "1 2 x3\n", "data line 1: 'x3' is not a number")
    binary = full.replace("ascii", "binary_little_endian").replace(
        "vertex 1", "vertex 999999999999"
    )
    _words(path, binary + "abcdefghijklm", "promises 999999999999", "1 are there")


def test_numpy_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", label=np.zeros(3), xy=np.zeros((3, 2)))
    _words(tmp_path / "a.npz", None, "has no points", "label, xy")
    np.savez(tmp_path / "b.npz", points=np.zeros((3, 2)))
    _words(tmp_path / "b.npz", None, "'points'", "(3, 2)")
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    _words(tmp_path / "a.npy", None, "(3, 2)")
    np.save(tmp_path / "b.npy", np.array([["a", "b", "c"]]))
    _words(tmp_path / "b.npy", None, "<U1")
    np.save(tmp_path / "c.npy", np.zeros(3, [("x", "f4"), ("y", "f4")]))
    _words(tmp_path / "c.npy", None, "no field z", "x, y")


class _Trap:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch sprung",))


def test_pickles_are_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = np.array([[_Trap(), 1, 2]], dtype=object)
    np.save(tmp_path / "a.npy", trap)
    np.savez(tmp_path / "a.npz", points=trap)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(_Trap()))
    for name in ("a.npy", "a.npz", "b.npy"):
        _words(tmp_path / name, None)
    assert not (tmp_path / "sprung").exists()


def test_text_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    _words(path, "1 2 3\n# note\n4 5\n", "line 3: 2 values, expected 3")
    _words(path, "x y z\n1 2 3\n4 5 six\n", "line 3: 'six' is not a number")
    _words(path, "1 2\n3 4\n", "2 columns")
    _words(path, "a b c\n1 2 3\n", "no column x, y, z", "a, b, c")
    _words(path, "x,y,z,w\n1,2,3\n", "names 4 columns", "hold 3")
    _words(path, "1_0 2 3\n", "line 1")


@pytest.mark.parametrize("suffix", GENERAL)
def test_empty_and_non_finite_clouds_are_left_to_the_caller(tmp_path: Path, suffix: str) -> None:
    write_cloud(tmp_path / f"a{suffix}", PointCloud(np.zeros((0, 3))))
    assert len(read_cloud(tmp_path / f"a{suffix}")) == 0
    if suffix not in (".las", ".laz"):
        points = np.array([[np.nan, 1, 2], [3, np.inf, 4]])
        write_cloud(tmp_path / f"b{suffix}", PointCloud(points))
        np.testing.assert_array_equal(read_cloud(tmp_path / f"b{suffix}").points, points)


def test_formats_import_without_torch_and_laspy() -> None:
    code = (
        "import sys, dela.cloud.formats, dela.scan.attributes, dela.files;"
        "assert not {'torch', 'laspy', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
