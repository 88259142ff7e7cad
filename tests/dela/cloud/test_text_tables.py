"""Text tables as people have them: nameless columns, titles, counts, decimals, encodings."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from dela.cloud.formats import read_cloud, write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError, ScanWarning

GENERATOR = np.random.default_rng(5)
XYZ = GENERATOR.uniform(0, 20, (30, 3)).round(3)
RGB = GENERATOR.integers(0, 256, (30, 3))
UNIT = XYZ / np.linalg.norm(XYZ, axis=1, keepdims=True)


def saved(path: Path, *parts: np.ndarray, head: str = "") -> Path:
    rows = np.column_stack(parts)
    text = "".join(" ".join(f"{value:.15g}" for value in row) + "\n" for row in rows)
    path.write_text(head + text)
    return path


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ([RGB], ["red", "green", "blue"]),
        ([UNIT], ["normal_x", "normal_y", "normal_z"]),
        ([RGB, UNIT], ["red", "green", "blue", "normal_x", "normal_y", "normal_z"]),
        ([RGB % 16], ["column_3", "column_4", "column_5"]),
        ([RGB[:, :1]], ["column_3"]),
        ([RGB - 100], ["column_3", "column_4", "column_5"]),
        ([RGB, RGB[:, :1] % 13], [f"column_{index}" for index in range(3, 7)]),
        ([RGB[:, :1], RGB], [f"column_{index}" for index in range(3, 7)]),
        ([UNIT, RGB[:, :1] % 13], [f"column_{index}" for index in range(3, 7)]),
        ([RGB, XYZ], [f"column_{index}" for index in range(3, 9)]),
    ],
)
def test_nameless_columns_are_guessed_only_where_they_can_be_nothing_else(
    tmp_path: Path, columns: list[np.ndarray], names: list[str]
) -> None:
    np.save(tmp_path / "a.npy", np.column_stack([XYZ, *columns]))
    np.savez(tmp_path / "a.npz", points=np.column_stack([XYZ, *columns]))
    for path in (saved(tmp_path / "a.txt", XYZ, *columns), tmp_path / "a.npy", tmp_path / "a.npz"):
        with pytest.warns(ScanWarning, match=",".join(["x,y,z", *names])) as told:
            assert list(read_cloud(path).columns) == names
        assert len(told) == 1 and "--columns" in str(told[0].message)


def test_three_columns_need_no_word(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_cloud(saved(tmp_path / "a.xyz", XYZ)).points, XYZ)


@pytest.mark.parametrize("suffix", [".txt", ".npy", ".npz"])
def test_columns_named_by_the_user(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / f"a{suffix}", np.column_stack([XYZ, RGB[:, 0] - 1023, RGB])
    if suffix == ".txt":
        saved(path, table)
    elif suffix == ".npy":
        np.save(path, table)
    else:
        np.savez(path, points=table)
    cloud = read_cloud(path, "x,y,z,intensity,red,green,blue")
    np.testing.assert_array_equal(cloud.points, XYZ)
    assert list(cloud.columns) == ["intensity", "red", "green", "blue"]
    np.testing.assert_array_equal(cloud.columns["green"], RGB[:, 1])
    copy = write_cloud(tmp_path / f"b{suffix}", cloud)
    again = read_cloud(copy, ["x", "y", "z", "intensity", "r", "g", "b"])
    np.testing.assert_array_equal(again.columns["intensity"], cloud.columns["intensity"])
    np.testing.assert_array_equal(again.columns["blue"], cloud.columns["blue"])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("x,y,z", "7 columns and 3 are named"),
        ("x,y,z,red,green,blue,label", "'red' holds -.*no color"),
        ("x,y,red,z,green,blue,label", "'red' holds .*no color"),
        ("x,y,intensity,a,b,c,d", "z missing"),
        ("x,y,z,a,a,b,c", "a is there twice"),
        ("x,y,z,,b,c,d", "a name is empty"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, columns: str, words: str) -> None:
    path = saved(tmp_path / "a.txt", XYZ, RGB[:, :1] - 1023, RGB)
    with pytest.raises(InputError, match=words):
        read_cloud(path, columns)


def test_names_for_a_file_that_has_its_own(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.txt", XYZ, RGB[:, :1], head="x y z a\n")
    assert list(read_cloud(path, "z,y,x,intensity").columns) == ["intensity"]
    np.testing.assert_array_equal(read_cloud(path, "z,y,x,intensity").points, XYZ[:, ::-1])
    cloud = PointCloud(XYZ)
    with pytest.raises(InputError, match="PLY names its columns itself"):
        read_cloud(write_cloud(tmp_path / "a.ply", cloud), "x,y,z")
    structured = np.zeros(3, [("x", "f4"), ("y", "f4"), ("z", "f4")])
    np.save(tmp_path / "a.npy", structured)
    with pytest.raises(InputError, match="names its columns itself: x,y,z"):
        read_cloud(tmp_path / "a.npy", "x,y,z")


@pytest.mark.parametrize(
    "head",
    [
        "2\nx y z i\n",
        "//X,Y,Z,I\n2\n",
        "The hall, second floor\n",
        "Hall\n\n2\n",
        "# remark\nHall 3\nX Y Z intensity\n",
        "Hall of the old town house\n2\n# x y z intensity\n",
    ],
)
def test_title_and_count_lines_are_read_and_written_again(tmp_path: Path, head: str) -> None:
    path = tmp_path / "a.asc"
    path.write_text(f"{head}1 2 3 9.5\n4 5 6 8.5\n")
    cloud = read_cloud(path, "x,y,z,intensity")
    assert cloud.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert cloud.columns["intensity"].tolist() == [9.5, 8.5]
    cloud.columns["label"] = np.array([1, 2])
    again = read_cloud(write_cloud(tmp_path / "b.asc", cloud))
    assert again.points.tolist() == cloud.points.tolist()
    assert again.columns["label"].tolist() == [1, 2]
    written = (tmp_path / "b.asc").read_text().splitlines()
    kept = [line for line in head.splitlines() if "x" not in line.lower()]
    assert [line for line in kept if line in written] == kept
    half = write_cloud(tmp_path / "c.asc", cloud.select(np.array([True, False])))
    assert len(read_cloud(half)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3\n1 2 3\n4 5 6\n", "line 1 promises 3 points, 2 are there"),
        ("abc 2 3\n4 5 6\n", "line 1: 'abc' is not a number"),
        ("x y z\n1 2 3 4\n", "names 3 columns, its lines hold 4"),
        ("notes on the hall\nall is well\n", "line 1: 'notes' is not a number"),
        ("1\n2\n3\n", "has 1 columns"),
        ("1 2 3\n4\n", "line 2: 1 values, expected 3"),
    ],
)
def test_what_is_no_title_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        read_cloud(tmp_path / "a.txt")


def test_more_points_than_the_count_says_are_read_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.pts").write_text("1\n1 2 3\n4 5 6\n")
    with pytest.warns(ScanWarning, match="says 1 points; all 2 are read"):
        assert len(read_cloud(tmp_path / "a.pts")) == 2


def test_leica_points_have_the_columns_of_their_format(tmp_path: Path) -> None:
    head = f"{len(XYZ)}\n"
    cloud = read_cloud(saved(tmp_path / "a.pts", XYZ, RGB[:, :1] - 2048, RGB, head=head))
    assert list(cloud.columns) == ["intensity", "red", "green", "blue"]
    write_cloud(tmp_path / "b.pts", cloud)
    assert (tmp_path / "b.pts").read_text().startswith(head)


@pytest.mark.parametrize(
    "text",
    [
        "x;y;z\n1,5;2;3,25\n4;5;6\n",
        "1,5 2,0 3,25\n4,0 5,0 6,0\n",
        "4 5 6\n1,5 2 3,25\n",
        "x\ty\tz\n1,5\t2,0\t3,25\n4,0\t5,0\t6,0\n",
    ],
)
def test_decimal_commas_are_read_told_and_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.warns(ScanWarning, match="commas read as decimal points"):
        cloud = read_cloud(tmp_path / "a.txt")
    assert sorted(cloud.points.tolist()) == [[1.5, 2, 3.25], [4, 5, 6]]
    cloud.columns["confidence"] = np.array([0.5, 0.25])
    write_cloud(tmp_path / "b.txt", cloud)
    assert "0,25" in (tmp_path / "b.txt").read_text()
    with pytest.warns(ScanWarning, match="commas"):
        again = read_cloud(tmp_path / "b.txt")
    np.testing.assert_array_equal(again.points, cloud.points)
    np.testing.assert_array_equal(again.columns["confidence"], [0.5, 0.25])


def test_separators_of_thousands_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1;2;3\n1,234.5;2;3\n")
    with pytest.raises(InputError, match="line 2: commas and points"):
        read_cloud(tmp_path / "a.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_names_and_remarks_outside_ascii_come_back(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("# Gemäß Plan\nx,y,z,Höhe über Grund\n1,2,3,4.5\n", encoding=encoding)
    cloud = read_cloud(path)
    assert list(cloud.columns) == ["Höhe über Grund"]
    cloud.columns["label"] = np.array([7])
    write_cloud(tmp_path / "b.csv", cloud)
    text = (tmp_path / "b.csv").read_bytes().decode(encoding)
    assert text.splitlines()[:2] == ["# Gemäß Plan", "x,y,z,Höhe über Grund,label"]
    assert read_cloud(tmp_path / "b.csv").columns["label"].tolist() == [7]


NAN = ["nan", "NaN", "-nan", "-nan(ind)", "nan(snan)", "1.#QNAN", "-1.#IND", "1.#QNAN000"]


@pytest.mark.parametrize("word", NAN)
def test_every_spelling_of_nan_is_one(tmp_path: Path, word: str) -> None:
    (tmp_path / "a.xyz").write_text(f"1 2 {word}\n4 1.#INF 6\n")
    expected = [[1, 2, np.nan], [4, np.inf, 6]]
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.xyz").points, expected)
    head = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\n"
    (tmp_path / "a.ply").write_text(
        f"{head}property float z\nend_header\n1 2 {word}\n4 -1.#INF 6\n"
    )
    expected[1][1] = -np.inf
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.ply").points, expected)


@pytest.mark.parametrize("name", ["semantic3d.txt", "toronto_xyzirgb.txt", "xyzrgbi.txt"])
def test_field_cases_without_names(field_dir: Path, name: str) -> None:
    path = field_dir / "txt" / name
    with pytest.warns(ScanWarning, match="column_6"):
        assert not {"red", "label"} & set(read_cloud(path).columns)
    names = "x,y,z,red,green,blue,scalar" if "rgbi" in name else "x,y,z,intensity,red,green,blue"
    assert {"red", "green", "blue"} < set(read_cloud(path, names).columns)


@pytest.mark.parametrize(
    "name",
    [
        *("cc_header_count.asc", "pts_count_first.xyz", "leica.pts", "latin1_header.txt"),
        *("semicolon_comma_decimal.csv", "comma_decimal_spaces.txt", "cc_scalar_spaces.txt"),
    ],
)
@pytest.mark.filterwarnings("ignore::dela.errors.ScanWarning")
def test_field_cases_are_read_and_written(field_dir: Path, tmp_path: Path, name: str) -> None:
    cloud = read_cloud(field_dir / "txt" / name)
    assert len(cloud) == 300
    assert cloud.points[0].tolist() == [10.236, 19.009, 0.577]
    cloud.columns["label"] = np.arange(300)
    again = read_cloud(write_cloud(tmp_path / name, cloud))
    assert list(again.columns) == list(cloud.columns)
    np.testing.assert_array_equal(again.points, cloud.points)
