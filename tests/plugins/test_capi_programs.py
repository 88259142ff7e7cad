"""A C++ program on the installed package: found by CMake, compiled, and of the Python predictor's
mind."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import dela
from c_library import LIDAR, onnxruntime_library
from dela.cloud.point_cloud import PointCloud
from dela.plugins import native
from dela.runtime import Predictor, load_backend
from documents import blocks
from small_networks import CONFIG, make_cloud, write_network

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "cpp"


def cmake(*words: object) -> subprocess.CompletedProcess[str]:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler")
    return subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The example, built as its first lines say."""
    folder = tmp_path_factory.mktemp("build")
    found = f"-Ddela_DIR={dela.get_cmake_dir()}"
    for words in (("-S", EXAMPLE, "-B", folder, found), ("--build", folder)):
        done = cmake(*words)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stdout + done.stderr
    return folder / "dela_label"


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return write_network(tmp_path_factory.mktemp("network"), CONFIG, seed=5).onnx


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs the program with ONNX Runtime named in the environment."""
    return subprocess.run(
        [str(program), *map(str, words)],
        env=os.environ | {"DELA_ONNXRUNTIME": str(onnxruntime_library())},
        capture_output=True,
        text=True,
        check=False,
    )


def write_scan(cloud: PointCloud, names: tuple[str, ...]) -> list[str]:
    """Writes a scan as the program reads it; returns the words that name its columns."""
    np.save("scan.npy", cloud.points)
    for name in names:
        np.save(f"{name}.npy", cloud.columns[name])
    return [word for name in names for word in ("--column", f"{name}={name}.npy")]


def check_answer(network: Path, cloud: PointCloud, **options: int) -> None:
    """Whether labels.npy and confidence.npy hold what the Python predictor says."""
    expected = Predictor(load_backend(network)).predict(cloud, **options)
    np.testing.assert_array_equal(np.load("labels.npy"), expected.labels)
    confidence = np.load("confidence.npy")
    np.testing.assert_allclose(confidence, expected.confidence, rtol=0, atol=1e-6)


def test_a_lidar_tile_is_labeled_as_in_python(program, tmp_path_factory, folder, lidar_dir):
    network = write_network(tmp_path_factory.mktemp("lidar"), LIDAR, seed=10).onnx
    cloud = dela.read_cloud(sorted(lidar_dir.glob("*.laz"))[0])
    columns = write_scan(cloud, ("intensity", "return_number"))
    words = (network, "scan.npy", "labels.npy", "--confidence", "confidence.npy", *columns)
    done = run(program, *words)
    assert done.returncode == 0, done.stderr
    check_answer(network, cloud)
    printed = [line.split() for line in done.stdout.splitlines()[1:]]
    counts = np.bincount(np.load("labels.npy"), minlength=7)
    assert [[int(code), int(n)] for code, _, n in printed] == [[c, counts[c]] for c in (2, 5, 6)]
    assert run(program, *words, "--votes", 2, "--max-points", 4000).returncode == 0
    check_answer(network, cloud, votes=2, max_points=4000)


def test_from_start_to_labels_takes_little(program, network, folder, record_property):
    cloud = make_cloud(300, (2.0, 2.0, 1.0))
    columns = write_scan(cloud, ("red", "green", "blue"))
    words = (network, "scan.npy", "labels.npy", "--confidence", "confidence.npy", *columns)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert run(program, *words).returncode == 0
        seconds.append(time.perf_counter() - start)
    check_answer(network, cloud)
    record_property(
        "figure", f"C++ program from start to labels of 300 points: {min(seconds) * 1000:.0f} ms"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("scan.npy",), "the scan has no column 'red'"),
        (("nowhere.npy",), "cannot read nowhere.npy"),
        (("red.npy",), "red.npy is not [N, 3]"),
        (("cut.npy",), "cut.npy is cut short"),
        (("fortran.npy",), "fortran.npy is in Fortran's order"),
        (("text.npy",), "text.npy is no .npy file"),
        (("strings.npy",), "holds values of the type"),
        (("scan.npy", "--column", "red=scan.npy"), "does not hold one number for each point"),
        (("scan.npy", "--votes", "0"), "--votes is 0; give a number above 0"),
        (("scan.npy", "--votes", "many"), "--votes is many; give a number above 0"),
        (("scan.npy", "--quick"), "there is no option --quick"),
        (("scan.npy", "--onnxruntime", "none.so"), "ONNX Runtime does not load"),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_no_file(program, network, folder, words, told):
    write_scan(make_cloud(300, (2.0, 2.0, 1.0)), ("red",))
    whole = Path("scan.npy").read_bytes()
    Path("cut.npy").write_bytes(whole[:-1])
    Path("text.npy").write_text("some text that is long enough")
    np.save("fortran.npy", np.asfortranarray(np.ones((5, 3))))
    np.save("strings.npy", np.array([["a", "b", "c"]]))
    done = run(program, network, words[0], "labels.npy", *words[1:])
    assert done.returncode == 1
    assert told in done.stderr and done.stderr.count("\n") == 1
    assert not list(folder.glob("labels*"))


@pytest.mark.parametrize(("language", "compiler"), [("c", "cc"), ("cpp", "c++ -std=c++17")])
def test_the_programs_of_the_documentation_run(network, folder, language, compiler):
    """Both label the same three points, whose colors differ."""
    (block,) = (b for b in blocks(REPOSITORY / "docs" / "c.md") if b.language == language)
    Path(f"program.{language}").write_text(block.text)
    library = native.library_path()
    flags = ("-Wall", "-Wextra", "-Werror", f"-I{dela.get_include()}", f"program.{language}")
    words = (*compiler.split(), *flags, library, f"-Wl,-rpath,{library.parent}", "-o", "program")
    subprocess.run([str(word) for word in words], check=True)
    done = run(folder / "program", network)
    assert done.returncode == 0, done.stderr
    points = np.array([[0.1, 0.2, 0.0], [0.7, 0.1, 0.0], [0.4, 0.9, 1.5]], np.float64)
    red = np.array([200, 190, 40], np.uint8)
    columns = {"red": red, "green": red, "blue": red}
    if language == "c":
        points = points.astype(np.float32)
        columns |= {"green": np.array([180, 185, 90]), "blue": np.array([160, 150, 30])}
    expected = Predictor(load_backend(network)).predict(PointCloud(points, columns)).labels
    lines = [line for line in done.stdout.splitlines() if not line.startswith("wants")]
    assert [int(line.split()[0]) for line in lines] == expected.tolist()
    missing = run(folder / "program", "none.onnx")
    assert missing.returncode == 1 and "there is no file none.onnx" in missing.stderr


@pytest.mark.parametrize(("asked", "fits"), [("0.2", True), ("0.1", False), ("9.0", False)])
def test_cmake_is_told_which_version_this_is(tmp_path, asked, fits):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(one LANGUAGES NONE)\n"
        f"find_package(dela {asked} REQUIRED)\n"
    )
    done = cmake("-S", tmp_path, "-B", tmp_path / "b", f"-Ddela_DIR={dela.get_cmake_dir()}")
    assert (done.returncode == 0) is fits
    assert fits or f"version: {dela.__version__}" in done.stderr
