"""PLY headers of other programs: names in Latin-1, thousands of properties, long lists."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from dela.cloud.formats import read_cloud, write_cloud
from dela.errors import InputError

XYZ = "property float x\nproperty float y\nproperty float z\n"


def ply(path: Path, properties: str, body: bytes, order: str = "binary_little_endian") -> Path:
    head = f"ply\nformat {order} 1.0\ncomment Höhe\nelement vertex 1\n{XYZ}{properties}end_header\n"
    path.write_bytes(head.encode("latin-1") + body)
    return path


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian"])
def test_names_and_comments_in_latin1_are_written_as_read(tmp_path: Path, order: str) -> None:
    values = b"1 2 3 4\n" if order == "ascii" else np.arange(1, 5, dtype="<f4").tobytes()
    path = ply(tmp_path / "a.ply", "property float Höhe\n", values, order)
    cloud = read_cloud(path)
    assert list(cloud.columns) == ["Höhe"]
    write_cloud(tmp_path / "b.ply", cloud)
    assert (tmp_path / "b.ply").read_bytes() == path.read_bytes()
    cloud.columns["Ω"] = np.ones(1, np.float32)
    write_cloud(tmp_path / "c.ply", cloud)
    assert list(read_cloud(tmp_path / "c.ply").columns) == ["Höhe", "Ω"]


def test_a_header_of_thousands_of_properties_takes_linear_time(tmp_path: Path) -> None:
    count = 20_000
    properties = "".join(f"property char a{index}\n" for index in range(count))
    path = ply(tmp_path / "a.ply", properties, bytes(12) + bytes(count))
    start = time.process_time()
    cloud = read_cloud(path)
    write_cloud(tmp_path / "b.ply", cloud)
    assert time.process_time() - start < 5
    assert len(cloud.columns) == count
    assert (tmp_path / "b.ply").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian"])
def test_thousands_of_lists_and_long_lists_take_linear_time(tmp_path: Path, order: str) -> None:
    lists = "".join(f"property list uchar char a{index}\n" for index in range(3_000))
    lists += "property list uint uchar f\n"
    if order == "ascii":
        body = b"1 2 3 " + b"2 5 6 " * 3_000 + b"20000 " + b"7 " * 20_000 + b"\n"
    else:
        body = np.arange(1, 4, dtype="<f4").tobytes() + b"\x02\x05\x06" * 3_000
        body += np.array([20_000], "<u4").tobytes() + b"\x07" * 20_000
    path = ply(tmp_path / "a.ply", lists, body, order)
    start = time.process_time()
    cloud = read_cloud(path)
    assert time.process_time() - start < 5
    assert len(cloud.columns) == 2 * 3_000 + 20_000
    assert cloud.columns["a2999_1"].tolist() == [6] and cloud.columns["f_19999"].tolist() == [7]


@pytest.mark.parametrize("order", ["ascii", "binary_little_endian"])
def test_a_list_beyond_measure_is_refused(tmp_path: Path, order: str) -> None:
    if order == "ascii":
        body = b"1 2 3 70000 " + b"7 " * 70_000 + b"\n"
    else:
        body = bytes(12) + np.array([70_000], "<u4").tobytes() + bytes(70_000)
    with pytest.raises(InputError, match="columns, more than 65536"):
        read_cloud(ply(tmp_path / "a.ply", "property list uint uchar f\n", body, order))


def test_parts_of_a_list_keep_clear_of_other_properties(tmp_path: Path) -> None:
    properties = "property list uchar char f\nproperty char f_1\nproperty char f_1_\n"
    cloud = read_cloud(ply(tmp_path / "a.ply", properties, bytes(12) + b"\x02\x05\x06\x07\x08"))
    values = {name: int(column[0]) for name, column in cloud.columns.items()}
    assert values == {"f_0": 5, "f_1__": 6, "f_1": 7, "f_1_": 8}


@pytest.mark.parametrize("name", ["H_plyhdr_5000.ply", "H_plylist_20000.ply"])
def test_hostile_headers_are_read_at_once(hostile_dir: Path, name: str) -> None:
    start = time.process_time()
    assert len(read_cloud(hostile_dir / name)) == 1
    assert time.process_time() - start < 3


def test_field_case_with_a_latin1_comment(field_dir: Path, tmp_path: Path) -> None:
    path = field_dir / "ply" / "latin1_comment.ply"
    write_cloud(tmp_path / "a.ply", read_cloud(path))
    assert (tmp_path / "a.ply").read_bytes() == path.read_bytes()


def test_field_case_with_other_spellings_of_nan(field_dir: Path) -> None:
    cloud = read_cloud(field_dir / "ply" / "ascii_nan_spellings.ply")
    assert np.isnan(cloud.columns["q"]).any() and np.isfinite(cloud.points).all()
