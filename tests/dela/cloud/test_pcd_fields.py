"""PCD: fields of several values, padding, compression, older headers, headers that ask too much."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from dela.cloud.formats import read_cloud, write_cloud
from dela.cloud.formats.lzf import lzf_decompress
from dela.errors import InputError

FIELDS = "FIELDS x y z _ fpfh rgb _ t\nSIZE 4 4 4 1 4 4 2 8\nTYPE F F F U F F I U\n"
ROW = np.dtype(
    [
        ("xyz", "<f4", 3),
        ("pad", "u1", 4),
        ("fpfh", "<f4", 33),
        ("rgb", "<u4"),
        ("pad2", "<i2", 3),
        ("t", "<u8"),
    ]
)
HEAD = f"VERSION 0.7\n{FIELDS}COUNT 1 1 1 4 33 1 3 1\nWIDTH 9\nHEIGHT 1\nPOINTS 9\n"


def rows() -> np.ndarray:
    generator = np.random.default_rng(2)
    table = np.zeros(9, ROW)
    for name in ROW.names or ():
        values = generator.integers(1, 100, table[name].shape)
        table[name] = values + (0.5 if table[name].dtype.kind == "f" else 0)
    return table


def compressed(plain: bytes) -> bytes:
    """LZF of literal runs and, where 8 bytes repeat, one reference each."""
    out, at, literal = bytearray(), 0, bytearray()

    def flush() -> None:
        for start in range(0, len(literal), 32):
            run = literal[start : start + 32]
            out.append(len(run) - 1)
            out.extend(run)
        literal.clear()

    while at < len(plain):
        before = plain.rfind(plain[at : at + 8], max(0, at - 8192), at + 7)
        if before >= 0 and before < at and at + 8 <= len(plain):
            flush()
            distance = at - before - 1
            out += bytes([(6 << 5) | distance >> 8, distance & 255])
            at += 8
        else:
            literal.append(plain[at])
            at += 1
    flush()
    return bytes(out)


def body(kind: str, table: np.ndarray) -> bytes:
    if kind == "binary":
        return table.tobytes()
    if kind == "ascii":
        table = table.astype([(n, "<f4" if n == "rgb" else ROW[n]) for n in ROW.names or ()])
        table["rgb"] = rows()["rgb"].view("<f4")
        flat = ([np.atleast_1d(row[name]) for name in ROW.names or ()] for row in table)
        return "".join(" ".join(f"{v}" for v in np.concatenate(r)) + "\n" for r in flat).encode()
    xyz = [np.ascontiguousarray(table["xyz"][:, i]) for i in range(3)]
    rest = [np.ascontiguousarray(table[name]) for name in (ROW.names or ())[1:]]
    plain = b"".join(block.tobytes() for block in (*xyz, *rest))
    packed = compressed(plain)
    return struct.pack("<II", len(packed), len(plain)) + packed


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_fields_of_several_values_and_padding_come_back(tmp_path: Path, kind: str) -> None:
    table = rows()
    (tmp_path / "a.pcd").write_bytes(f"{HEAD}DATA {kind}\n".encode() + body(kind, table))
    cloud = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_array_equal(cloud.points, table["xyz"])
    parts = [f"fpfh_{index}" for index in range(33)]
    assert set(cloud.columns) == {"red", "green", "blue", *parts, "t"}
    for index, name in enumerate(parts):
        np.testing.assert_array_equal(cloud.columns[name], table["fpfh"][:, index])
    np.testing.assert_array_equal(cloud.columns["t"], table["t"])
    cloud.columns["label"] = np.arange(9, dtype=np.int32)
    write_cloud(tmp_path / "b.pcd", cloud)
    head, _, written = (tmp_path / "b.pcd").read_bytes().partition(b"DATA ")
    assert b"FIELDS x y z _ fpfh rgb _ t label\n" in head
    assert b"COUNT 1 1 1 4 33 1 3 1 1\n" in head
    if kind != "ascii":
        again = np.frombuffer(written.split(b"\n", 1)[1], [("row", ROW), ("label", "<i4")])
        np.testing.assert_array_equal(again["row"], table)
    reread = read_cloud(tmp_path / "b.pcd")
    assert list(reread.columns) == list(cloud.columns)
    for name, column in cloud.columns.items():
        np.testing.assert_array_equal(reread.columns[name], column)


def test_padding_of_fewer_points_is_zero_and_parts_may_go(tmp_path: Path) -> None:
    (tmp_path / "a.pcd").write_bytes(f"{HEAD}DATA binary\n".encode() + rows().tobytes())
    cloud = read_cloud(tmp_path / "a.pcd").select(np.arange(4))
    del cloud.columns["fpfh_7"]
    write_cloud(tmp_path / "b.pcd", cloud)
    again = read_cloud(tmp_path / "b.pcd")
    assert list(again.columns) == list(cloud.columns)
    assert not again.source.padding[3].any() and again.source.padding[3].shape == (4, 4)
    np.testing.assert_array_equal(again.columns["fpfh_8"], cloud.columns["fpfh_8"])


@pytest.mark.parametrize(
    "head",
    [
        "# .PCD v.5\nVERSION .5\nCOLUMNS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 2\nHEIGHT 1\n",
        "COLUMNS x y z\nPOINTS 2\n",
        "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 1\nHEIGHT 2\n",
        "fields x y z\nsize 4 4 4\ntype f f f\nwidth 2\n",
    ],
)
def test_older_headers_are_read(tmp_path: Path, head: str) -> None:
    (tmp_path / "a.pcd").write_text(f"{head}DATA ascii\n1 2 3\n4 5 6\n")
    assert read_cloud(tmp_path / "a.pcd").points.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_compressed_file_without_points_is_empty(tmp_path: Path) -> None:
    head = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nWIDTH 0\nPOINTS 0\nDATA binary_compressed\n"
    for end in (b"", bytes(8)):
        (tmp_path / "a.pcd").write_bytes(head.encode() + end)
        assert len(read_cloud(tmp_path / "a.pcd")) == 0


def test_fields_of_one_name_and_names_outside_ascii(tmp_path: Path) -> None:
    head = "FIELDS x y z a a a_ Höhe\nSIZE 4 4 4 4 4 4 4\nTYPE F F F F F F F\nPOINTS 1\nWIDTH 1\n"
    (tmp_path / "a.pcd").write_bytes(f"{head}DATA ascii\n1 2 3 4 5 6 7\n".encode("latin-1"))
    cloud = read_cloud(tmp_path / "a.pcd")
    assert list(cloud.columns) == ["a", "a_2", "a_", "Höhe"]
    assert [int(column[0]) for column in cloud.columns.values()] == [4, 5, 6, 7]
    write_cloud(tmp_path / "b.pcd", cloud)
    assert "Höhe".encode("latin-1") in (tmp_path / "b.pcd").read_bytes()
    cloud.columns["Ω"] = np.ones(1, np.float32)
    write_cloud(tmp_path / "c.pcd", cloud)
    assert list(read_cloud(tmp_path / "c.pcd").columns) == [*cloud.columns]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("COUNT 1 1 1 70000", "declares 70003 columns, more than 65536"),
        ("COUNT 1 1 1 -1", "COUNT '-1'"),
        ("COUNT 1 1 1 ²", "COUNT '²'"),
        ("POINTS 99999999999999", "promises 99999999999999 points"),
    ],
)
def test_counts_beyond_measure_are_refused(tmp_path: Path, line: str, words: str) -> None:
    head = "FIELDS x y z a\nSIZE 4 4 4 4\nTYPE F F F F\nWIDTH 1\nHEIGHT 1\nPOINTS 1\n"
    (tmp_path / "a.pcd").write_bytes(f"{head}{line}\nDATA binary\n".encode() + bytes(64))
    with pytest.raises(InputError, match=words):
        read_cloud(tmp_path / "a.pcd")


@pytest.mark.parametrize("name", ["a", "_"])
def test_a_header_of_thousands_of_fields_takes_linear_time(tmp_path: Path, name: str) -> None:
    count = 20_000
    fields = [f"FIELDS x y z{f' {name}' * count}", f"SIZE 4 4 4{' 1' * count}"]
    fields += [f"TYPE F F F{' U' * count}", "WIDTH 1\nHEIGHT 1\nPOINTS 1\nDATA binary\n"]
    (tmp_path / "a.pcd").write_bytes("\n".join(fields).encode() + bytes(12 + count))
    start = time.process_time()
    cloud = read_cloud(tmp_path / "a.pcd")
    assert len(cloud.columns) == (count if name == "a" else 0)
    write_cloud(tmp_path / "b.pcd", cloud)
    assert time.process_time() - start < 5


def test_hostile_count_is_refused_at_once(hostile_dir: Path) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match="columns, more than 65536"):
        read_cloud(hostile_dir / "H_pcdcount_100x10000.pcd")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "name", ["count33.pcd", "ros_bag_to_pcd_padding.pcd", "v5_columns.pcd", "no_points_line.pcd"]
)
def test_field_cases_are_read_and_written(field_dir: Path, tmp_path: Path, name: str) -> None:
    path = field_dir / "pcd" / name
    cloud = read_cloud(path)
    assert len(cloud) == 300 and not any(column.startswith("_") for column in cloud.columns)
    cloud.columns["label"] = np.arange(300, dtype=np.int32)
    write_cloud(tmp_path / name, cloud)
    before, after = path.read_bytes(), (tmp_path / name).read_bytes()
    for key in (b"FIELDS", b"COUNT"):
        old = [line for line in before.split(b"\n")[:12] if line.startswith(key)]
        assert all(any(new.startswith(line) for new in after.split(b"\n")[:12]) for line in old)
    np.testing.assert_array_equal(read_cloud(tmp_path / name).points, cloud.points)


@pytest.mark.parametrize("seed", range(4))
def test_lzf_gives_back_what_was_compressed(seed: int) -> None:
    generator = np.random.default_rng(seed)
    plain = np.repeat(generator.integers(0, 9, 400), generator.integers(1, 60, 400)).astype("u1")
    packed = np.frombuffer(compressed(plain.tobytes()), np.uint8)
    assert len(packed) < len(plain)
    np.testing.assert_array_equal(lzf_decompress(packed, len(plain)), plain)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"", 1),
        (b"\x05ab", 6),  # a run cut short
        (b"\x00a\x20\x05", 4),  # a reference before the first byte
        (b"\x00a\xe0", 10),  # a length cut short
        (b"\x00a\xe0\xff", 300),  # a distance cut short
        (b"\x00a\xe0\xff\x00", 100),  # more than promised
        (b"\x00a", 2),  # less than promised
        (b"\x00a", 2**40),  # more than any data of this length hold
    ],
)
def test_broken_lzf_is_refused(data: bytes, size: int) -> None:
    with pytest.raises(ValueError, match="compressed"):
        lzf_decompress(np.frombuffer(data, np.uint8), size)


def test_lzf_of_overlapping_references_repeats_the_last_bytes() -> None:
    data = np.frombuffer(b"\x01ab\xe0\xff\x01", np.uint8)  # 2 literals, then 264 bytes from 2 back
    assert lzf_decompress(data, 266).tobytes() == b"ab" * 133


def test_lzf_survives_every_flipped_byte() -> None:
    plain = np.tile(np.arange(40, dtype=np.uint8), 30)
    packed = np.frombuffer(compressed(plain.tobytes()), np.uint8)
    generator = np.random.default_rng(0)
    outcomes = set()
    for place in range(len(packed)):
        broken = packed.copy()
        broken[place] ^= np.uint8(generator.integers(1, 256))
        try:
            outcomes.add(len(lzf_decompress(broken, len(plain))))
        except ValueError:
            outcomes.add(0)
    assert outcomes == {0, len(plain)}
