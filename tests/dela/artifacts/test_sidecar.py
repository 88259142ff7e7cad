"""What stands beside an engine, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dela.artifacts.metadata import ModelMetadata
from dela.artifacts.sidecar import (
    Profile,
    Sidecar,
    SizeRange,
    digest_of,
    read_sidecar,
    sidecar_path,
)
from dela.errors import EngineError
from dela.families.dela.config import PRESETS


def sidecar(**changes) -> Sidecar:
    values = {
        "flavour": "tensorrt",
        "tensorrt_version": "10.13.3.9",
        "compute_capabilities": ("8.9",),
        "compatibility": "none",
        "dtype": "fp16",
        "tf32": False,
        "plugins": "python",
        "plugin_layers": {"SPSE": 4, "SPAMP": 27},
        "kernels_sha256": "ab" * 32,
        "profiles": (
            Profile((SizeRange(1, 100, 1000), SizeRange(1, 50, 500))),
            Profile((SizeRange(500, 2000, 9000), SizeRange(1, 900, 4000))),
        ),
        "engine_sha256": "",
        "properties": ModelMetadata(PRESETS["s3dis"], "fp16").to_properties(),
        "dela_version": "0.1.0",
    }
    return Sidecar(**(values | changes))


@pytest.fixture
def engine(tmp_path):
    """An engine file with its sidecar."""
    path = tmp_path / "model.engine"
    path.write_bytes(b"an engine")
    sidecar(engine_sha256=digest_of(path)).write(sidecar_path(path))
    return path


def test_what_is_written_is_read(engine):
    found = read_sidecar(engine)
    assert found == sidecar(engine_sha256=digest_of(engine))
    assert found.metadata().config == PRESETS["s3dis"]
    assert sidecar_path(engine).name == "model.engine.json"


def test_another_engine_under_the_name_is_noticed(engine):
    engine.write_bytes(b"another engine")
    with pytest.raises(EngineError, match=r"is not the engine that model\.engine\.json"):
        read_sidecar(engine)
    assert read_sidecar(engine, check_digest=False).dtype == "fp16"


def test_a_missing_file_is_named(engine):
    with pytest.raises(EngineError, match="there is no engine at"):
        read_sidecar(engine.with_name("other.engine"))
    sidecar_path(engine).unlink()
    with pytest.raises(EngineError, match=r"has no model\.engine\.json beside it"):
        read_sidecar(engine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "does not describe a dela engine"),
        ({"format_version": 2}, "has format version 2, this dela reads up to 1"),
        ({"format_version": "1"}, "has format version '1', this dela"),
        ({"profiles": [{"stages": [{"min": 1}]}]}, "is damaged"),
        ({"profiles": 3}, "is damaged"),
        ({"flavour": "openvino"}, "flavour 'openvino' is not one of tensorrt, tensorrt-rtx"),
        ({"plugins": "other"}, "plugins 'other' is not one of"),
        ({"compatibility": "all"}, "compatibility 'all' is not one of"),
    ],
)
def test_a_damaged_sidecar_is_refused_in_words(engine, change, message):
    path = sidecar_path(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EngineError, match=message):
        read_sidecar(engine)


def test_a_missing_entry_is_named(engine):
    path = sidecar_path(engine)
    values = json.loads(path.read_text())
    del values["dtype"]
    path.write_text(json.dumps(values))
    with pytest.raises(EngineError, match="lacks 'dtype'"):
        read_sidecar(engine)
    path.write_text("{")
    with pytest.raises(EngineError, match="cannot be read"):
        read_sidecar(engine)


def test_what_fits_passes():
    sidecar().check_runtime("tensorrt", "10.13.3.9", (8, 9))
    # the build number after the third part does not matter
    sidecar().check_runtime("tensorrt", "10.13.3.12", (8, 9))


@pytest.mark.parametrize(
    ("flavour", "version", "capability", "message"),
    [
        ("tensorrt-rtx", "10.13.3.9", (8, 9), "is an engine of tensorrt, not tensorrt-rtx"),
        ("tensorrt", "10.14.0.1", (8, 9), "built by tensorrt 10.13.3.9, installed is 10.14.0.1"),
        ("tensorrt", "10.13.3.9", (8, 6), "for compute capability 8.9, this GPU has 8.6"),
        ("tensorrt", "10.13.3.9", (9, 0), "this GPU has 9.0; build it again"),
    ],
)
def test_what_differs_is_named(flavour, version, capability, message):
    with pytest.raises(EngineError, match=message):
        sidecar().check_runtime(flavour, version, capability)


@pytest.mark.parametrize(
    ("compatibility", "capability", "runs"),
    [
        ("none", (8, 9), True),
        ("none", (9, 0), False),
        ("same-compute-capability", (8, 9), True),
        ("same-compute-capability", (8, 6), False),
        ("ampere-plus", (8, 0), True),
        ("ampere-plus", (12, 0), True),
        ("ampere-plus", (7, 5), False),
    ],
)
def test_which_gpus_an_engine_runs_on(compatibility, capability, runs):
    assert sidecar(compatibility=compatibility).runs_on(capability) is runs


def test_reading_needs_neither_torch_nor_tensorrt(engine):
    code = (
        "import sys; from dela.artifacts.sidecar import read_sidecar; read_sidecar(sys.argv[1]); "
        "print([m for m in ('torch', 'onnx', 'tensorrt', 'cuda') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(engine)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
