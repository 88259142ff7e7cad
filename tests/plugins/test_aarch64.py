"""The native library for 64-bit ARM: cross-compiled, run by qemu, compared with this machine's."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dela.plugins import native

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
EDGES = ("operator_edges.cpp", "geometry_edges.cpp")
PREFIX = "aarch64-linux-gnu"
QEMU = ("qemu-aarch64", "-L", f"/usr/{PREFIX}")
# What a system with glibc and GCC's runtime libraries has.
SYSTEM_LIBRARIES = {
    "ld-linux-aarch64.so.1", "libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libgomp.so.1",
    "libm.so.6", "libpthread.so.0", "libstdc++.so.6",
}  # fmt: skip


def run(*command: object) -> str:
    """Standard output of a command that must succeed."""
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def compile_program(compiler: str, source: Path, library: Path, folder: Path) -> Path:
    program = folder / source.stem
    run(
        compiler, "-std=c++17", "-O1", "-ffp-contract=off", source, library,
        f"-Wl,-rpath,{library.parent}", "-o", program,
    )  # fmt: skip
    return program


@functools.cache
def missing_tool() -> str | None:
    """Why nothing can be cross-compiled and run here, if it cannot."""
    if not (REPOSITORY / "CMakeLists.txt").is_file():
        return "no source tree"
    for tool in ("cmake", "c++", f"{PREFIX}-g++", f"{PREFIX}-readelf", QEMU[0]):
        if shutil.which(tool) is None:
            return f"no {tool}; apt-get install cmake g++ g++-aarch64-linux-gnu qemu-user"
    return None


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """The folder that CMake built the library in, with the toolchain file of the repository."""
    if reason := missing_tool():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("aarch64")
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    toolchain = REPOSITORY / "tools" / f"{PREFIX}.cmake"
    run("cmake", "-S", REPOSITORY, "-B", folder, *generator, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")
    run("cmake", "--build", folder, "--parallel", os.cpu_count() or 1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("source", EDGES)
def test_edge_cases_hold_on_arm(build: Path, source: str, tmp_path: Path):
    program = compile_program(f"{PREFIX}-g++", HERE / source, build / "libdela.so", tmp_path)
    assert "clean" in run(*QEMU, program)


@pytest.mark.slow
def test_answers_are_those_of_this_machine(build: Path, tmp_path: Path):
    libraries = {f"{PREFIX}-g++": build / "libdela.so", "c++": native.library_path()}
    answers = []
    for compiler, library in libraries.items():
        folder = tmp_path / compiler
        folder.mkdir()
        program = compile_program(compiler, HERE / "sample_results.cpp", library, folder)
        run(*(QEMU if compiler != "c++" else ()), program, folder)
        answers.append(read_answers(folder))
    (decisions, values, halves), (here, values_here, halves_here) = answers
    # Voxels, neighbors and samples are decided alike: a scan has one answer, wherever it is made.
    assert np.array_equal(decisions, here)
    assert np.unique(decisions).size > 1000
    assert np.isfinite(values_here).all()
    np.testing.assert_allclose(values, values_here, rtol=2e-5, atol=2e-5)
    for arm, ours, limit in zip(widen(halves), widen(halves_here), (2**-10, 2**-7), strict=True):
        np.testing.assert_allclose(arm, ours, rtol=limit, atol=1e-6)


def read_answers(folder: Path) -> list[np.ndarray]:
    kinds = {"decisions": np.int32, "values": np.float32, "halves": np.uint16}
    return [np.fromfile(folder / name, kind) for name, kind in kinds.items()]


def widen(halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The float16 and the bfloat16 half of an array of bits, as float32."""
    float16, bfloat16 = np.split(halves, 2)
    return (
        float16.view(np.float16).astype(np.float32),
        (bfloat16.astype(np.uint32) << 16).view(np.float32),
    )


@pytest.mark.slow
def test_libraries_for_arm_need_the_system_only(build: Path):
    libraries = sorted(build.glob("libdela*.so"))
    assert libraries
    for library in libraries:
        text = run(f"{PREFIX}-readelf", "-h", "-d", library)
        assert re.search(r"Machine:\s+AArch64", text)
        needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", text))
        assert needed and needed <= SYSTEM_LIBRARIES, library.name
