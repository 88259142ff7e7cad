"""The native libraries' edge cases under AddressSanitizer and UndefinedBehaviorSanitizer.

Every ``*_edges.cpp`` beside this file is a program that calls the libraries with arrays of exactly
the promised sizes and checks the answers; a new one is picked up by its name. The CUDA driver that
it finds is ``fake_driver.cpp``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import dela
from c_library import LIDAR, onnxruntime_library
from dela.runtime import Predictor, load_backend
from small_networks import write_network

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "cpp"
PROGRAMS = sorted(Path(__file__).parent.glob("*_edges.cpp"))


def run(*command: object, **variables: str) -> None:
    # A leak in OpenMP's own thread pool at exit is not ours.
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        **variables,
    }
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> Path:
    """The folder of the libraries built with both sanitizers."""
    if not (REPOSITORY / "CMakeLists.txt").is_file():
        pytest.skip("no source tree")
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    folder = tmp_path_factory.mktemp("sanitized")
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    run("cmake", "-S", REPOSITORY, "-B", folder, "-DDELA_SANITIZE=ON", *generator)
    run("cmake", "--build", folder, "--parallel", os.cpu_count() or 1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_edge_cases_are_clean(sanitized: Path, program: Path, tmp_path: Path):
    driver = tmp_path / "libcuda.so.1"
    run(
        "c++", "-std=c++17", "-shared", "-fPIC", program.with_name("fake_driver.cpp"),
        "-Wl,-soname,libcuda.so.1", "-o", driver,
    )  # fmt: skip
    libraries = (sanitized / "libdela.so", sanitized / "libdela_trt.so", driver)
    compile_program(program, libraries, tmp_path / program.stem)
    run(tmp_path / program.stem, LD_LIBRARY_PATH=str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--votes", 3, "--max-points", 3000)])
def test_the_c_library_labels_a_lidar_tile_cleanly(
    sanitized, lidar_tile, tmp_path, monkeypatch, options
):
    """The example program, instrumented as well; its labels are the Python predictor's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DELA_ONNXRUNTIME", str(onnxruntime_library()))
    network, cloud = lidar_tile
    libraries = (sanitized / "libdela.so",)
    compile_program(EXAMPLE / "dela_label.cpp", libraries, tmp_path / "dela_label")
    np.save("scan.npy", cloud.points)
    columns = []
    for name in ("intensity", "return_number"):
        np.save(f"{name}.npy", cloud.columns[name])
        columns += ["--column", f"{name}={name}.npy"]
    run(tmp_path / "dela_label", network, "scan.npy", "labels.npy", *columns, *options)
    told = dict(zip(("votes", "max_points"), options[1::2], strict=False))
    expected = Predictor(load_backend(network)).predict(cloud, **told)
    np.testing.assert_array_equal(np.load("labels.npy"), expected.labels)


@pytest.mark.slow
def test_the_c_librarys_own_tests_are_clean(sanitized, monkeypatch):
    """Bad calls, damaged files and odd scans; Python itself is not instrumented."""
    runtimes = [
        subprocess.run(
            ["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(runtime).is_file() for runtime in runtimes):
        pytest.skip("the sanitizers' runtimes are linked statically here")
    monkeypatch.setenv("LD_PRELOAD", " ".join(runtimes))
    monkeypatch.setenv("DELA_LIBRARY", str(sanitized / "libdela.so"))
    tests = Path(__file__).with_name("test_capi.py")
    run(sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", tests, "-k", "not header")


@pytest.fixture(scope="module")
def lidar_tile(tmp_path_factory, lidar_dir):
    """A network for lidar, and a quarter of a tile."""
    network = write_network(tmp_path_factory.mktemp("network"), LIDAR, seed=10).onnx
    cloud = dela.read_cloud(sorted(lidar_dir.glob("*.laz"))[0])
    middle = np.median(cloud.points[:, :2], axis=0)
    return network, cloud.select((cloud.points[:, :2] < middle).all(axis=1))


def compile_program(source: Path, libraries: Sequence[Path], binary: Path) -> None:
    folders = ":".join(dict.fromkeys(str(library.parent) for library in libraries))
    run(
        "c++", "-std=c++17", "-g", "-O1", "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all", "-I", REPOSITORY / "plugins", f"-I{dela.get_include()}",
        source, "-pthread", *libraries, f"-Wl,-rpath,{folders}", "-o", binary,
    )  # fmt: skip
