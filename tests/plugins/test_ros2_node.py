"""The ROS 2 node, compiled against stubs of ROS's headers: a message in, labeled messages out.

No ROS 2 is here, so what its middleware does with the node is not tested.
"""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import dela
from c_library import onnxruntime_library
from dela.cloud.point_cloud import PointCloud
from dela.plugins import native
from dela.runtime import Predictor, load_backend
from small_networks import CONFIG, make_cloud, write_network

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "examples" / "ros2"
STUBS = Path(__file__).parent / "ros2_stubs"
# numpy's type -> the code of sensor_msgs/PointField
CODES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}

# Messages of drivers: a type of one point, with gaps.
SIDE_BY_SIDE = np.dtype(
    {
        "names": ["x", "y", "z", "red", "green", "blue", "ring"],
        "formats": ["f4", "f4", "f4", "u1", "u2", "f4", "u2"],
        "offsets": [0, 4, 8, 16, 18, 20, 24],
        "itemsize": 27,
    }
)
SCATTERED = np.dtype(
    [("z", "f4"), ("red", "u1"), ("y", "f4"), ("green", "f8"), ("x", "f4"), ("blue", "i4")]
)
DOUBLES = np.dtype([("red", "u1"), ("x", "f8"), ("y", "f8"), ("z", "f8"), ("green", "u1"),
                    ("blue", "u1")])  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The node in a program that sends it one message."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    binary = tmp_path_factory.mktemp("node") / "run_node"
    library = native.library_path()
    sources = [*sorted((PACKAGE / "src").glob("*.cpp")), STUBS / "run_node.cpp"]
    done = subprocess.run(
        [
            "c++", "-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-isystem", STUBS,
            f"-I{dela.get_include()}", f"-I{PACKAGE / 'src'}", *sources, library,
            f"-Wl,-rpath,{library.parent}", "-o", binary,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return binary


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return write_network(tmp_path_factory.mktemp("network"), CONFIG, seed=5).onnx


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records_of(cloud: PointCloud, layout: np.dtype) -> np.ndarray:
    """The cloud as points of a message, counted from its corner."""
    records = np.zeros(len(cloud), layout)
    moved = cloud.points - cloud.points.min(axis=0)
    for axis, name in enumerate("xyz"):
        records[name] = moved[:, axis]
    for name in layout.names:
        if name in cloud.columns:
            records[name] = cloud.columns[name]
    return records


def cloud_of(records: np.ndarray, red: str = "red") -> PointCloud:
    """What Python reads from the same points."""
    points = np.column_stack([records[axis] for axis in "xyz"]).astype(np.float64)
    names = {"red": red, "green": "green", "blue": "blue"}
    return PointCloud(points, {key: records[name].copy() for key, name in names.items()})


def fields_of(layout: np.dtype) -> list[str]:
    assert layout.fields is not None
    return [
        f"{name},{layout.fields[name][1]},{CODES[layout.fields[name][0].str[1:]]}"
        for name in layout.names or ()
    ]


def send(program: Path, network: Path, records: np.ndarray, *words: str, rows: int = 1, gap=0):
    """Sends a message of so many rows, each with a gap of so many points behind it."""
    step = records.dtype.itemsize
    width = len(records) // rows
    data = np.zeros((rows, width * step + gap), np.uint8)
    data[:, : width * step] = np.frombuffer(records.tobytes(), np.uint8).reshape(rows, -1)
    np.save("records.npy", data.ravel())
    return subprocess.run(
        [
            str(part)
            for part in (program, network, onnxruntime_library(), "records.npy", rows, step,
                         width * step + gap, *(words or fields_of(records.dtype)))
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def received(name: str, layout: np.dtype) -> np.ndarray:
    """A published message's points, with the two new fields behind those that were sent."""
    begin = (layout.itemsize + 3) // 4 * 4
    assert layout.fields is not None and layout.names is not None
    whole = np.dtype(
        {
            "names": [*layout.names, "label", "confidence"],
            "formats": [*(layout.fields[each][0] for each in layout.names), "i4", "f4"],
            "offsets": [*(layout.fields[each][1] for each in layout.names), begin, begin + 4],
            "itemsize": begin + 8,
        }
    )
    return np.load(f"{name}.npy").view(whole)


@pytest.mark.parametrize("layout", [SIDE_BY_SIDE, SCATTERED, DOUBLES], ids=["near", "apart", "f8"])
def test_every_point_of_a_message_gets_its_label(program, network, layout):
    records = records_of(make_cloud(2000), layout)
    done = send(program, network, records)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    expected = Predictor(load_backend(network)).predict(cloud_of(records))
    labeled = received("labeled", layout)
    step = labeled.dtype.itemsize
    begin = step - 8
    added = [f"label,{begin},{CODES['i4']}", f"confidence,{begin + 4},{CODES['f4']}"]
    head = ["lidar", "1", "2000", str(step), str(2000 * step)]
    assert lines["labeled"] == [*head, *fields_of(layout), *added]
    np.testing.assert_array_equal(labeled["label"], expected.labels)
    np.testing.assert_allclose(labeled["confidence"], expected.confidence, rtol=0, atol=1e-6)
    for name in layout.names or ():
        np.testing.assert_array_equal(labeled[name], records[name])
    ground, other = received("ground", layout), received("no_ground", layout)
    np.testing.assert_array_equal(ground, labeled[labeled["label"] == 2])
    np.testing.assert_array_equal(other, labeled[labeled["label"] != 2])
    assert 0 < len(ground) < 2000
    assert 0 < float(lines["latency"][0]) < 60_000


def test_rows_with_gaps_and_points_that_are_no_numbers(program, network):
    """An organized scan: rings as rows, NaN where nothing came back."""
    records = records_of(make_cloud(1600), SIDE_BY_SIDE)
    lost = np.arange(0, 1600, 7)
    records["x"][lost] = np.nan
    done = send(program, network, records, rows=16, gap=11)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    labeled = received("labeled", SIDE_BY_SIDE)
    assert done.stdout.startswith(f"labeled lidar 16 100 36 {100 * 36} ")
    expected = Predictor(load_backend(network)).predict(cloud_of(records), drop_invalid=True)
    np.testing.assert_array_equal(labeled["label"], expected.labels)
    assert (labeled["label"][lost] == -1).all()
    parts = np.concatenate([received("ground", SIDE_BY_SIDE), received("no_ground", SIDE_BY_SIDE)])
    assert len(parts) == 1600 - len(lost) and (parts["label"] != -1).all()


def test_a_column_may_have_another_name_in_the_message(program, network):
    layout = np.dtype([*((axis, "f4") for axis in "xyz"), ("reflectivity", "u1"), ("green", "u1"),
                       ("blue", "u1")])  # fmt: skip
    records = records_of(make_cloud(900), layout)
    records["reflectivity"] = np.arange(900) % 250
    done = send(program, network, records, *fields_of(layout), "--", "red=reflectivity")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    expected = Predictor(load_backend(network)).predict(cloud_of(records, "reflectivity"))
    np.testing.assert_array_equal(received("labeled", layout)["label"], expected.labels)


def changed(old: str, new: str) -> list[str]:
    return [new if word == old else word for word in fields_of(SIDE_BY_SIDE)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (changed("red,16,2", "rot,16,2"), "the message has no field red"),
        (changed("z,8,7", "z,8,5"), "x, y and z are not all float32 or all float64"),
        (changed("ring,24,4", "ring,26,4"), "field ring lies beyond the point"),
        (changed("ring,24,4", "ring,24,9"), "field ring has the unknown type 9"),
        (changed("ring,24,4", "label,24,4"), "the message has a field label already"),
        (fields_of(SIDE_BY_SIDE), "column 'blue' holds 1 NaN values of 300"),
    ],
)
def test_a_message_that_cannot_be_labeled_is_told_and_the_node_lives(program, network, words, told):
    records = records_of(make_cloud(300), SIDE_BY_SIDE)
    if "NaN" in told:
        records["blue"][3] = np.nan
    done = send(program, network, records, *words)
    assert done.returncode == 0
    assert "a scan is not labeled" in done.stderr and told in done.stderr
    assert done.stdout == "" and not Path("labeled.npy").exists()


def test_a_message_that_says_more_than_it_holds_is_refused(program, network):
    records = records_of(make_cloud(300), SIDE_BY_SIDE)
    np.save("records.npy", np.frombuffer(records.tobytes()[:-1], np.uint8))
    words = (program, network, onnxruntime_library(), "records.npy", 1, 27, 300 * 27)
    done = subprocess.run(
        [*map(str, words), *fields_of(SIDE_BY_SIDE)], capture_output=True, text=True, check=False
    )
    assert "the message holds 8099 bytes" in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("model", "renamed", "told"),
    [
        ("none.onnx", (), "there is no file none.onnx to read"),
        (None, ("--", "intensity=i"), "fields holds 'intensity=i'; write column=field"),
    ],
)
def test_a_node_that_cannot_start_fails_at_once(program, network, model, renamed, told):
    records = records_of(make_cloud(10), SIDE_BY_SIDE)
    done = send(program, model or network, records, *fields_of(SIDE_BY_SIDE), *renamed)
    assert done.returncode == 1 and told in done.stderr


def test_the_package_says_what_it_builds_and_launches():
    package = ElementTree.parse(PACKAGE / "package.xml").getroot()
    launch = ElementTree.parse(PACKAGE / "launch" / "label.launch.xml").getroot()
    cmake = (PACKAGE / "CMakeLists.txt").read_text()
    node = launch.find("node")
    assert node is not None
    name = package.findtext("name")
    assert node.get("pkg") == name and f"project({name} " in cmake
    assert f"EXECUTABLE {node.get('exec')})" in cmake
    for depend in package.findall("depend"):
        assert f"find_package({depend.text} REQUIRED)" in cmake
    source = (PACKAGE / "src" / "label_node.cpp").read_text()
    for parameter in node.findall("param"):
        assert f'("{parameter.get("name")}"' in source
