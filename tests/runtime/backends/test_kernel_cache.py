"""Kernels that TensorRT for RTX compiled, kept beside the engine; a stand-in compiles them."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

from cuda_emulator import build
from dela.cli import main as cli
from dela.plugins.tensorrt import bindings
from dela.runtime import load_backend
from dela.runtime.backends.kernel_cache import KernelCache, cache_files
from small_networks import scene_pyramid
from standin_tensorrt import RuntimeCache, StandInTensorRT, write_engine

KEY = {
    "gpu": "NVIDIA RTX 4090 (laptop)",
    "compute_capability": "8.9",
    "tensorrt_version": "1.7.1.116",
    "engine": "ab" * 32,
}


def cache_of(tmp_path, kernels=(), **changes) -> KernelCache:
    runtime_cache = RuntimeCache()
    runtime_cache.kernels |= set(kernels)
    return KernelCache(runtime_cache, tmp_path / "model.engine", {**KEY, **changes})


def loaded(tmp_path, **changes) -> set:
    """What a start finds in the file."""
    cache = cache_of(tmp_path, **changes)
    cache.load()
    return cache._cache.kernels


def filled(tmp_path) -> KernelCache:
    cache = cache_of(tmp_path)
    cache.load()
    cache._cache.kernels |= {"a", "b"}
    cache.save()
    return cache


def test_kernels_come_back_for_the_same_gpu_and_version(tmp_path, capsys):
    cache = filled(tmp_path)
    assert cache.path.name == "model.engine.NVIDIA_RTX_4090_laptop_-8.9-1.7.1.116.cache"
    assert loaded(tmp_path) == {"a", "b"}
    assert list(tmp_path.iterdir()) == [cache.path] == cache_files(tmp_path / "model.engine")
    # Another machine on the same folder keeps a file of its own.
    assert loaded(tmp_path, gpu="NVIDIA RTX 5090", compute_capability="12.0") == set()
    assert loaded(tmp_path, tensorrt_version="1.8.0") == set()
    assert capsys.readouterr().err == ""


def test_nothing_is_written_where_nothing_was_compiled(tmp_path):
    cache = cache_of(tmp_path)
    cache.load()
    cache.save()
    assert list(tmp_path.iterdir()) == []
    path = filled(tmp_path).path
    before = path.stat().st_mtime_ns
    again = cache_of(tmp_path)
    again.load()
    again.save()
    assert path.stat().st_mtime_ns == before


def damaged(content: bytes) -> dict[str, bytes]:
    head, _, kernels = content.partition(b"\n")
    foreign = json.dumps({**json.loads(head), "engine": "cd" * 32, "gpu": "another"}).encode()
    return {
        "is damaged, cut": content[:-3],
        "is damaged, flipped": content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        "is damaged, empty": b"",
        "is damaged, no header": kernels,
        "is damaged, not JSON": b"{" * 100_000 + b"\n" + kernels,
        "is damaged, a list": b"[1]\n" + kernels,
        "is of another gpu and engine": foreign + b"\n" + kernels,
    }


@pytest.mark.parametrize("case", damaged(b"{}\n"))
def test_a_file_of_no_use_is_told_once_and_rewritten(tmp_path, capsys, case):
    path = filled(tmp_path).path
    path.write_bytes(damaged(path.read_bytes())[case])
    cache = cache_of(tmp_path)
    cache.load()
    assert cache._cache.kernels == set()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path} is not used: it {case.split(',')[0]}; kernels are")
    cache._cache.kernels.add("c")
    cache.save()
    cache.save()
    assert loaded(tmp_path) == {"c"} and capsys.readouterr().err == ""


def test_a_file_that_tensorrt_refuses_is_told(tmp_path, capsys, monkeypatch):
    filled(tmp_path)
    monkeypatch.setattr(RuntimeCache, "deserialize", lambda cache, blob: False)
    assert loaded(tmp_path) == set()
    assert "is not used: TensorRT does not take it here" in capsys.readouterr().err


def test_a_folder_that_takes_no_file_is_left_alone(tmp_path, capsys):
    blocked = cache_of(tmp_path, {"a"})
    blocked.path.mkdir()  # root may write anywhere, but nobody replaces a folder
    blocked.load()
    blocked._cache.kernels.add("b")
    blocked.save()
    assert capsys.readouterr().err == "" and list(tmp_path.iterdir()) == [blocked.path]


@pytest.fixture
def tensorrt(emulated_cuda, monkeypatch):
    trt = StandInTensorRT()
    monkeypatch.setattr(bindings, "load", lambda flavour: trt)
    yield trt
    assert not trt.problems


@pytest.mark.parametrize("graphs_on", [True, False])
def test_a_second_start_compiles_nothing(tensorrt, network, tmp_path, graphs_on, capsys):
    path = write_engine(tmp_path, network.onnx, "100:1000:6000", flavour="tensorrt-rtx")
    pyramid = scene_pyramid(network.config)
    for start in range(2):
        backend = load_backend(path, graphs=graphs_on)
        for _ in range(3):
            backend.run(pyramid)
        # Where a graph was captured the kernels are safe already, should the process be killed.
        assert len(cache_files(path)) == (1 if graphs_on or start else 0)
        del backend
        gc.collect()
        assert tensorrt.compilations == 1
    (file,) = cache_files(path)
    assert "-9.0-10.13.0.35.cache" in file.name
    capsys.readouterr()
    described = cli.run_command(["info", str(path)])
    assert described["kernel_caches"] == [{"name": file.name, "bytes": file.stat().st_size}]
    assert file.name in "".join(capsys.readouterr().out.split())


def test_an_engine_that_was_built_again_compiles_again(tensorrt, network, tmp_path, capsys):
    pyramid = scene_pyramid(network.config)
    for points in ("100:1000:6000", "100:1000:5000"):
        path = write_engine(tmp_path, network.onnx, points, flavour="tensorrt-rtx")
        load_backend(path, graphs=False).run(pyramid)
        gc.collect()
    assert tensorrt.compilations == 2
    assert "is not used: it is of another engine; " in capsys.readouterr().err


def test_tensorrt_itself_keeps_no_kernels(tensorrt, network, tmp_path):
    path = write_engine(tmp_path, network.onnx, "100:1000:6000")
    backend = load_backend(path)
    for _ in range(3):
        backend.run(scene_pyramid(network.config))
    assert cache_files(path) == []


PROGRAM = """
import sys
sys.path[:0] = {path!r}
from dela.plugins.tensorrt import bindings
from dela.runtime import load_backend
from small_networks import scene_pyramid
from standin_tensorrt import StandInTensorRT
trt = StandInTensorRT()
bindings.load = lambda flavour: trt
backend = load_backend({engine!r}, graphs=False)
backend.run(scene_pyramid(backend.config))
"""


def test_kernels_are_kept_when_a_process_ends(tensorrt, network, tmp_path):
    path = write_engine(tmp_path, network.onnx, "100:1000:6000", flavour="tensorrt-rtx")
    program = PROGRAM.format(path=sys.path, engine=str(path))
    ended = subprocess.run(
        [sys.executable, "-c", program], env=build.environment(), capture_output=True, text=True
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert len(cache_files(path)) == 1
