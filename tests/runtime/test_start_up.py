"""What is imported until the points of a scan are read: counted, not timed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dela.cloud.formats import write_cloud
from small_networks import make_cloud

# In the place of `dela`: the modules imported beyond Typer's own once the scan has been read.
_STOPPED = """
import os, sys, typer

before = set(sys.modules)

def stop(path, columns=None):
    read(path)
    print(*(set(sys.modules) - before), flush=True)
    os._exit(0)

from dela.__main__ import main
import dela.cloud.formats
read, dela.cloud.formats.read_cloud = dela.cloud.formats.read_cloud, stop
main()
"""


@pytest.fixture
def imported(network, tmp_path):
    """The modules that ``dela predict`` has imported when it has read a scan of this suffix."""

    def modules(suffix: str) -> set[str]:
        scan = write_cloud(tmp_path / f"scan{suffix}", make_cloud())
        command = [sys.executable, "-c", _STOPPED, "predict", str(scan), "-m", str(network.onnx)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    return modules


@pytest.mark.parametrize("suffix", [".ply", ".npz"])
def test_predict_imports_no_more_than_it_needs_to_read_a_point(imported, suffix):
    found = imported(suffix)
    assert {"numpy", "onnxruntime", "dela.runtime.predict.predictor"} <= found
    packages = {"torch", "onnx", "rich", "laspy", "lazrs", "scipy", "PIL", "cuda", "tensorrt"}
    assert not packages & {name.partition(".")[0] for name in found}
    own = {name for name in found if name.startswith("dela.")}
    rooms = {"training", "export", "network", "ops", "checkpoint"}
    assert not {name for name in own if rooms & set(name.split("."))}
    assert not own & {"dela.runtime.doctor", "dela.runtime.verify", "dela.cloud.formats.las"}


def test_predict_imports_the_format_it_reads(imported):
    found = imported(".las")
    assert "dela.cloud.formats.las" in found and "dela.cloud.formats.ply" not in found
