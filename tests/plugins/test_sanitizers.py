"""The native libraries' edge cases under AddressSanitizer and UndefinedBehaviorSanitizer.

Every ``*_edges.cpp`` beside this file is a program that calls the libraries with arrays of exactly
the promised sizes and checks the answers; a new one is picked up by its name. The CUDA driver that
it finds is ``fake_driver.cpp``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
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
    binary, driver = tmp_path / program.stem, tmp_path / "libcuda.so.1"
    run(
        "c++", "-std=c++17", "-shared", "-fPIC", program.with_name("fake_driver.cpp"),
        "-Wl,-soname,libcuda.so.1", "-o", driver,
    )  # fmt: skip
    run(
        "c++", "-std=c++17", "-g", "-O1", "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all", "-I", REPOSITORY / "plugins", program, "-pthread",
        sanitized / "libdela.so", sanitized / "libdela_trt.so", driver,
        f"-Wl,-rpath,{sanitized}:{tmp_path}", "-o", binary,
    )  # fmt: skip
    run(binary, LD_LIBRARY_PATH=str(tmp_path))
