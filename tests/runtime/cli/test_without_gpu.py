"""What the GPU backends say on a machine that lacks something, and what stays unimported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dela.cli import main as cli
from dela.cloud.formats import write_cloud
from dela.errors import CheckpointError, InputError, MissingDependencyError
from dela.plugins import native
from dela.plugins.tensorrt import bindings
from dela.runtime import load_backend
from dela.runtime.backends import onnx_runtime as backends
from dela.runtime.info import describe
from dela.runtime.verify import tolerance_of
from small_networks import Trained, make_cloud
from standin_tensorrt import write_engine

HIDDEN = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def engines(network: Trained, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("engines")
    found = {}
    for flavour in ("tensorrt", "tensorrt-rtx"):
        (folder / flavour).mkdir()
        found[flavour] = write_engine(folder / flavour, network.onnx, "1:500:5000", flavour=flavour)
    return found


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    return write_cloud(tmp_path_factory.mktemp("scan") / "scan.ply", make_cloud(300))


def run_dela(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dela", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=HIDDEN, timeout=120)


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("command", ["predict", "verify", "bench"])
def test_without_the_package_one_line_says_what_to_install(
    network, engines, scan, monkeypatch, capsys, flavour, command
):
    monkeypatch.setitem(bindings.MODULES, flavour, ("no_such_module",))
    bindings.load.cache_clear()
    words = {
        "predict": ["predict", scan, "-m", engines[flavour], "--backend", flavour],
        "verify": ["verify", engines[flavour], "--checkpoint", network.checkpoint, "-i", scan],
        "bench": ["bench", engines[flavour]],
    }[command]
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, words)))
    bindings.load.cache_clear()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {flavour} is not installed; pip install 'dela[{flavour}]'"


def test_without_a_driver_one_line_says_so(engines, scan):
    pytest.importorskip("cuda.bindings")
    pytest.importorskip("tensorrt_rtx_bindings")
    done = run_dela("predict", scan, "-m", engines["tensorrt-rtx"])
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "NVIDIA driver" in line and "Traceback" not in line


def test_torch_without_a_gpu(network):
    torch = pytest.importorskip("torch")
    number = torch.cuda.device_count()
    with pytest.raises(MissingDependencyError, match=f"finds {number} GPUs, not one numbered"):
        load_backend(network.checkpoint, device=f"cuda:{number}")


def test_onnxruntime_without_cuda(network, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingDependencyError, match=r"built without CUDA; .*onnxruntime-gpu"):
        load_backend(network.onnx, device="cuda")


def test_onnxruntime_that_falls_back_to_the_cpu_in_silence(network, monkeypatch):
    """The session itself is real: it runs on the CPU although a GPU was asked for."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime may use a GPU")
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(MissingDependencyError, match="GPU 0 and fell back to the CPU"),
    ):
        load_backend(network.onnx, device="cuda")


@pytest.mark.parametrize("kernels", [True, False])
def test_onnxruntime_on_a_gpu_runs_our_kernels_unless_told_not_to(network, monkeypatch, kernels):
    """The library that is registered has them for the CUDA provider too."""
    loaded, registered = [], []

    def session(path, options, gpu, tf32):
        loaded.append(gpu)
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    monkeypatch.setattr(backends, "cuda_session", session)
    monkeypatch.setattr(
        onnxruntime.SessionOptions,
        "register_custom_ops_library",
        lambda options, path: registered.append(path),
    )
    backend = load_backend(network.onnx, device="cuda:1", kernels=kernels)
    assert backend.kernels is kernels
    assert loaded == [1]
    assert registered == [str(native.library_path())] * kernels


@pytest.mark.parametrize("no_kernels", [True, False])
def test_verify_compares_both_ways_of_onnxruntime_on_a_gpu(
    network, scan, monkeypatch, capsys, no_kernels
):
    """The CPU stands in for the GPU: that is where the session is asked to run."""

    def session(path, options, gpu, tf32):
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(backends, "cuda_session", session)
    words = ["verify", network.onnx, "--checkpoint", network.checkpoint, "-i", scan, "--json"]
    words += ["--device", "cuda", *["--no-kernels"] * no_kernels]
    cli.run_command(list(map(str, words)))
    titles = [report["backend"] for report in json.loads(capsys.readouterr().out)["reports"]]
    bodies = "onnxruntime on cuda, function bodies"
    kernels = [] if no_kernels else ["onnxruntime on cuda, our kernels"]
    assert titles == [*kernels, bodies]


def test_a_gpu_that_our_kernels_do_not_know_is_told_the_way_out(network, monkeypatch):
    def session(path, options, gpu, tf32):
        raise RuntimeError("SPAMP: the GPU has compute capability 7.5; the kernels need 8.0")

    monkeypatch.setattr(backends, "cuda_session", session)
    with pytest.raises(CheckpointError, match=r"capability 7\.5; .*; --no-kernels .*bodies"):
        load_backend(network.onnx, device="cuda")


@pytest.fixture
def cuda_settings(network, monkeypatch):
    """The settings of ONNX Runtime's sessions on a GPU; they run on the CPU."""
    asked, real = [], onnxruntime.InferenceSession

    class Session(real):
        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def make(path, options, providers):
        asked.extend(provider for provider in providers if isinstance(provider, tuple))
        return Session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", make)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    return asked


def test_a_cuda_session_computes_in_tf32_only_if_asked(network, cuda_settings):
    for tf32 in (False, True):
        backend = load_backend(network.onnx, device="cuda:1", tf32=tf32)
        name, settings = cuda_settings.pop()
        assert name == "CUDAExecutionProvider" and settings["device_id"] == 1
        assert int(settings["use_tf32"]) == tf32
        assert tolerance_of(backend).error == (2e-2 if tf32 else 1e-4)


def test_commands_pass_tf32_on(network, cuda_settings, tmp_path):
    scan = write_cloud(tmp_path / "scan.ply", make_cloud(300))
    words = {
        "predict": (scan, "-m", network.onnx, "-o", tmp_path / "out.ply"),
        "verify": (network.onnx, "--checkpoint", network.checkpoint, "-i", scan),
        "bench": (network.onnx, "-i", scan, "--repeat", 1, "--warmup", 0),
    }
    for command, rest in words.items():
        for asked in (True, False):
            extra = ["--tf32"] if asked else []
            line = [command, *rest, "--device", "cuda", *extra]
            cli.run_command([*map(str, line), *(["--overwrite"] if command == "predict" else [])])
            assert int(cuda_settings.pop()[1]["use_tf32"]) == asked


@pytest.mark.parametrize(
    ("name", "device"), [("onnxruntime", None), ("torch", None), ("torch", "cuda")]
)
def test_tf32_is_refused_where_it_is_no_choice(network, name, device):
    model = network.onnx if name == "onnxruntime" else network.checkpoint
    with pytest.raises(InputError, match=f"leave out --tf32 for {name}, or build an engine"):
        load_backend(model, device=device, tf32=True)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1"])
def test_an_unknown_device_is_named(network, device):
    with pytest.raises(InputError, match=f"device '{device}' is unknown; choose cpu, cuda"):
        load_backend(network.onnx, device=device)


def test_the_cpu_may_be_asked_for(network):
    cloud = make_cloud(200)
    from dela.runtime import Predictor

    one = Predictor(load_backend(network.onnx, device="cpu")).predict(cloud)
    other = Predictor(load_backend(network.onnx)).predict(cloud)
    assert np.array_equal(one.classes, other.classes)


def test_info_describes_an_engine_without_tensorrt(engines, network, monkeypatch):
    monkeypatch.setattr(bindings, "load", lambda flavour: pytest.fail("loaded TensorRT"))
    values = describe(engines["tensorrt"])
    assert values["kind"] == "engine" and values["flavour"] == "tensorrt"
    assert values["profiles"][0].startswith("1:500:5000,1:")
    assert values["dims"] == list(network.config.dims)


def test_nothing_of_cuda_tensorrt_or_torch_is_imported_unasked(network, scan, engines):
    program = f"""
import sys
from dela.runtime import Predictor, load_backend
from dela.cloud.formats import read_cloud
from dela.runtime.info import describe
from dela.runtime.verify import tolerance_of
Predictor(load_backend({str(network.onnx)!r})).predict(read_cloud({str(scan)!r}))
describe({str(engines["tensorrt"])!r})
unasked = {{"torch", "cuda", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"}}
print(sorted(unasked & {{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr
