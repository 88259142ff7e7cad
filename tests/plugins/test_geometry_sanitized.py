"""The geometry kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from dela.plugins import native

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    ROOT / "tests/plugins/geometry_edges.cpp",
    ROOT / "plugins/cpu/geometry.cpp",
    ROOT / "plugins/cpu/dispatch.cpp",
    *(ROOT / f"plugins/cpu/isa/{name}.cpp" for name in ("knn", "sampling", "voxel")),
]


@pytest.mark.slow
@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
def test_edge_cases_are_clean_under_sanitizers(level, tmp_path):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("x86-64 levels on another processor")
    try:
        native.set_isa(level)
    except native.NativeLibraryError:
        pytest.skip(f"this processor lacks x86-64-{level}")
    finally:
        native.set_isa("auto")
    program = tmp_path / "geometry_edges"
    # One level at a time, as if it were the portable build.
    flags = (
        f"-std=c++17 -O1 -g -fopenmp -ffp-contract=off -march=x86-64-{level} -DDELA_ISA=portable"
    )
    sanitize = "-fsanitize=address,undefined -fno-sanitize-recover=undefined"
    subprocess.run(
        [
            *(compiler, *flags.split(), *sanitize.split(), f"-I{ROOT / 'plugins'}"),
            *(*SOURCES, "-o", program),
        ],
        check=True,
        capture_output=True,
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    environment.pop("LD_PRELOAD", None)
    result = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert result.stdout == "clean\n"
