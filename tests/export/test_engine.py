"""Engines of TensorRT for RTX, built on the CPU; and everything a build refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import sys
import time
import types
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from dela.artifacts.sidecar import digest_of, read_sidecar, sidecar_path
from dela.cli.main import main, run_command
from dela.errors import (
    CheckpointError,
    DelaError,
    EngineError,
    InputError,
    MissingDependencyError,
)
from dela.export import engine as engine_module
from dela.export import tensorrt_network as network
from dela.export.engine import BuildRequest, build_engine
from dela.export.onnx_file import read_onnx
from dela.families.dela.config import PRESETS
from dela.plugins.cuda import kernels
from dela.plugins.cuda.driver import CudaUnavailable
from dela.plugins.tensorrt import bindings, messages, native
from onnx_operators import spelled_out

pytest.importorskip("tensorrt_rtx_bindings")

RTX = BuildRequest(backend="tensorrt-rtx")
KINDS = ("one_stage", "four_stages", "directions", "classification")
DTYPES = ("fp32", "fp16", "bf16")
CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")


def rtx(**changes) -> BuildRequest:
    return dataclasses.replace(RTX, **changes)


@pytest.fixture(scope="module")
def trt():
    return bindings.load("tensorrt-rtx")


@pytest.fixture(scope="session")
def small(network, tmp_path_factory):
    """(kind, dtype) -> an exported file of a tiny network, not compared with PyTorch."""
    from dela.export import export_onnx

    folder = tmp_path_factory.mktemp("small")

    @functools.cache
    def make(kind: str, dtype: str):
        return export_onnx(network(kind), folder / f"{kind}_{dtype}.onnx", dtype, check=False)

    return lambda kind, dtype="fp32": make(kind, dtype)


def operators_of(path) -> dict[str, int]:
    proto, _ = read_onnx(path)
    nodes = [node.op_type for node in proto.graph.node if node.domain == "dela"]
    return {name: nodes.count(name) for name in dict.fromkeys(nodes)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", PRESETS)
def test_published_networks_build_at_full_size(preset, dtype, tmp_path, record_property):
    from dela.export import export_onnx
    from dela.families import create_model

    config = PRESETS[preset]
    path = export_onnx(create_model(config, seed=0), tmp_path / "m.onnx", dtype, check=False)
    start = time.perf_counter()
    sidecar = build_engine(path, tmp_path / "m.engine", RTX)
    seconds = time.perf_counter() - start
    size = (tmp_path / "m.engine").stat().st_size
    # one SPSE per stage; one SPAMP with its residual per block and per step down
    layers = {"SPSE": config.stages, "SPAMPResidual": sum(config.depths) + config.stages - 1}
    assert sidecar.plugin_layers == layers
    assert sidecar.dtype == dtype
    # the weights are in it
    assert size > path.stat().st_size * 0.95
    record_property(
        "figure",
        f"{preset} {dtype}: {sum(layers.values())} plugin layers, engine for compute capability "
        f"{', '.join(sidecar.compute_capabilities)} built in {seconds:.1f} s, {size / 1e6:.1f} MB",
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_builds_in_every_precision(small, kind, dtype, tmp_path):
    path = small(kind, dtype)
    sidecar = build_engine(path, tmp_path / "m.engine", rtx(dtype=dtype))
    assert sidecar.plugin_layers == operators_of(path)
    assert (sidecar.plugins, sidecar.kernels_sha256) == ("native", native.digest())
    assert read_sidecar(tmp_path / "m.engine") == sidecar


@pytest.mark.parametrize("plugins", ["python", "none"])
def test_a_file_of_before_the_residual_form_builds(small, plugins, tmp_path):
    import onnx

    onnx.save(spelled_out(onnx.load(small("four_stages"))), tmp_path / "old.onnx")
    sidecar = build_engine(tmp_path / "old.onnx", tmp_path / "m.engine", rtx(plugins=plugins))
    assert set(sidecar.plugin_layers) == ({"SPSE", "SPAMP"} if plugins == "python" else set())


def test_both_forms_with_a_registry_build_in_one_process(small, tmp_path):
    """Engines name the plugins that they were built with."""
    digests = {"native": native.digest(), "python": kernels.digest()}
    for form in ("native", "python", "native"):
        path = tmp_path / f"{form}.engine"
        sidecar = build_engine(small("directions"), path, rtx(plugins=form), overwrite=True)
        assert sidecar.plugin_layers == operators_of(small("directions"))
        assert (sidecar.plugins, sidecar.kernels_sha256) == (form, digests[form])
        assert (b"dela_native" in path.read_bytes()) == (form == "native")


def test_a_missing_plugin_library_is_told(small, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "__file__", str(tmp_path / "tensorrt" / "native.py"))
    monkeypatch.setattr(native, "_registered", set())
    with pytest.raises(EngineError, match=r"no plugin library at .*libdela_trt\.so; install dela"):
        build_engine(small("one_stage"), tmp_path / "m.engine", RTX)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_an_engine_for_one_gpu(small, capability, tmp_path):
    sidecar = build_engine(
        small("four_stages", "fp16"), tmp_path / "m.engine", rtx(compute_capabilities=[capability])
    )
    assert sidecar.compute_capabilities == (capability,)
    assert sidecar.runs_on(tuple(map(int, capability.split("."))))
    assert not sidecar.runs_on((9, 0))


def test_all_gpus_that_the_kernels_know_when_none_is_named(small, tmp_path):
    sidecar = build_engine(small("four_stages"), tmp_path / "m.engine", RTX)
    assert sidecar.compute_capabilities == CAPABILITIES


@pytest.mark.parametrize(
    ("kind", "dtype"), [("directions", "fp32"), ("directions", "bf16"), ("classification", "fp16")]
)
def test_without_plugins_the_function_bodies_are_built(small, kind, dtype, tmp_path):
    with_plugins = build_engine(small(kind, dtype), tmp_path / "p.engine", RTX)
    sidecar = build_engine(small(kind, dtype), tmp_path / "m.engine", rtx(plugins="none"))
    assert (sidecar.plugins, sidecar.plugin_layers, sidecar.kernels_sha256) == ("none", {}, "")
    assert with_plugins.plugin_layers
    content = (tmp_path / "m.engine").read_bytes()
    assert b"SPAMP" in (tmp_path / "p.engine").read_bytes()
    assert b"plugin_namespace" not in content


def test_shapes_of_the_network_follow_the_inputs(trt, small):
    """Output shapes of the plugins: rows vary, channels are known."""
    from dela.export.tensorrt_network import parse_network
    from dela.plugins.tensorrt import launched

    launched.register(trt)
    proto, metadata = read_onnx(small("four_stages", "bf16"))
    builder = trt.Builder(messages.logger(trt))
    parsed = parse_network(trt, builder, proto, metadata, "python", "m")
    layers = [parsed.network.get_layer(i) for i in range(parsed.network.num_layers)]
    plugins = [layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    outputs = [(tuple(p.get_output(0).shape), p.get_output(0).dtype) for p in plugins]
    encodings = [entry for entry in outputs if entry[1] == trt.float32]
    # stage 0 encodes 8 channels, its stages pool 8, 12, 16 and 20
    assert [shape[0] for shape, _ in outputs] == [-1] * len(outputs)
    assert len(encodings) == 4
    pooled = {shape[1] for shape, dtype in outputs if dtype == trt.bfloat16}
    assert pooled == {8, 12, 16, 20}
    assert tuple(parsed.network.get_output(0).shape) == (-1, metadata.config.num_classes)


def test_the_fields_of_every_plugin_are_in_the_engine(small, tmp_path):
    build_engine(small("directions"), tmp_path / "m.engine", RTX)
    content = (tmp_path / "m.engine").read_bytes()
    found = set()
    for match in re.finditer(b"epsilon\0.{8}(.{4}).{4}directions\0.{8}(.{4})", content, re.DOTALL):
        found.add((np.frombuffer(match[1], "<f4")[0], int.from_bytes(match[2], "little")))
    # stage 0 sees three directions, whose term can reach -1
    assert found == {(np.float32(1.0001), 3), (np.float32(1e-8), 0)}


def test_several_profiles_keep_their_order(small, tmp_path):
    sizes = ["1:100:1000,1:50:400", "1000:5000:20000"]
    sidecar = build_engine(small("four_stages"), tmp_path / "m.engine", rtx(profiles=sizes))
    assert [profile.stages[0].max for profile in sidecar.profiles] == [1000, 20000]
    assert sidecar.profiles[0].stages[1].max == 400


def test_products_stay_float32_unless_tf32_is_asked_for(trt, small):
    builder = trt.Builder(messages.logger(trt))
    for asked in (False, True):
        config = engine_module._configure(trt, builder, rtx(tf32=asked), ("8.9",))
        assert config.get_flag(trt.BuilderFlag.TF32) is asked


def settings(trt, request, config):
    """``config`` as a build of ``request`` sets it up."""
    builder = types.SimpleNamespace(create_builder_config=lambda: config)
    return engine_module._configure(trt, builder, request, ("8.9",))


def test_an_engine_for_rtx_allocates_nothing_while_it_runs(trt):
    """TensorRT for RTX asks for this flag where a CUDA graph is to be captured."""
    flag, builder = trt.BuilderFlag.REQUIRE_USER_ALLOCATION, trt.Builder(messages.logger(trt))
    for request in (RTX, rtx(plugins="none")):
        assert settings(trt, request, builder.create_builder_config()).get_flag(flag)
    plain = settings(trt, BuildRequest(), builder.create_builder_config())
    assert not plain.get_flag(flag)


def test_activation_memory_shrinks_with_the_sizes_that_run(trt):
    feature = trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10
    for request in (RTX, BuildRequest()):
        config = trt.Builder(messages.logger(trt)).create_builder_config()
        config.set_preview_feature(feature, False)
        assert settings(trt, request, config).get_preview_feature(feature)


class Recorder:
    def __init__(self):
        self.open, self.events = [], []

    def started(self, phase, parent, steps):
        assert steps > 0
        assert parent is None or parent in self.open
        self.open.append(phase)

    def advanced(self, phase, step):
        self.events.append((phase, step))

    def finished(self, phase):
        self.open.remove(phase)


def test_progress_names_phases_that_nest(small, tmp_path):
    recorder = Recorder()
    build_engine(small("four_stages"), tmp_path / "m.engine", RTX, progress=recorder)
    assert recorder.open == []
    assert len(recorder.events) > 10


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_build_stops_and_leaves_nothing(small, tmp_path):
    class Impatient(Recorder):
        def advanced(self, phase, step):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engine(small("four_stages"), tmp_path / "m.engine", RTX, progress=Impatient())
    assert signal.getsignal(signal.SIGINT) is before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ctrl_c")
def test_a_build_started_to_ignore_ctrl_c_goes_on(small, tmp_path):
    class Pressed(Recorder):
        def advanced(self, phase, step):
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    build_engine(small("four_stages"), tmp_path / "m.engine", RTX, progress=Pressed())
    assert (tmp_path / "m.engine").stat().st_size > 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_existing_files_are_kept(small, tmp_path):
    path = tmp_path / "m.engine"
    sidecar_path(path).write_text("mine")
    with pytest.raises(InputError, match=r"m\.engine\.json exists"):
        build_engine(small("one_stage"), path, RTX)
    assert sidecar_path(path).read_text() == "mine"
    assert not path.exists()
    sidecar = build_engine(small("one_stage"), path, RTX, overwrite=True)
    assert sidecar.engine_sha256 == digest_of(path)


def test_the_model_is_never_overwritten(small):
    with pytest.raises(InputError, match="is the input itself"):
        build_engine(small("one_stage"), small("one_stage"), RTX, overwrite=True)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (rtx(backend="openvino"), "backend is 'openvino'; choose one of tensorrt, tensorrt-rtx"),
        (rtx(plugins="c++"), "choose one of native, python, ahead-of-time, none"),
        (rtx(plugins="ahead-of-time"), "TensorRT for RTX has no plugins ahead of time"),
        (rtx(compatibility="ampere-plus"), "leave out --hardware-compatibility"),
        (rtx(level=6), "level is 6; it runs from 0"),
        (rtx(workspace=0), "workspace is 0 MiB"),
        (rtx(compute_capabilities=["9.0"]), "9.0 is not one of 8.0, 8.6, 8.9, 12.0, 12.1"),
        (rtx(compute_capabilities=["7.5"]), "7.5 is not one of 8.0, 8.6, 8.9, 12.0, 12.1"),
        (rtx(timing_cache=Path("timings")), "leave out --timing-cache"),
        (rtx(device=0), "TensorRT for RTX builds on the CPU; leave out --device"),
        (rtx(dtype="fp16"), "is fp32, fp16 is asked for"),
        (rtx(profiles=["1:2"]), "is not MIN:OPT:MAX"),
        (
            BuildRequest(compute_capabilities=["8.9"]),
            "tensorrt builds for the GPU of this machine",
        ),
    ],
)
def test_a_request_that_does_not_fit_is_refused_in_words(small, request_, message, tmp_path):
    with pytest.raises(DelaError) as caught:
        build_engine(small("one_stage"), tmp_path / "m.engine", request_)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_too_little_workspace_is_told(small, tmp_path):
    request = rtx(workspace=1, profiles=["1:100000:1000000"])
    with pytest.raises(EngineError, match=r"built no engine: .*workspace"):
        build_engine(small("four_stages"), tmp_path / "m.engine", request)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_ours_is_refused(small, tmp_path):
    import onnx

    path = tmp_path / "m.onnx"
    with pytest.raises(CheckpointError, match="there is no ONNX file"):
        build_engine(path, tmp_path / "m.engine", RTX)
    path.with_suffix(".pt").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="is a checkpoint; export it first"):
        build_engine(path.with_suffix(".pt"), tmp_path / "m.engine", RTX)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="is not an ONNX file, or it is cut short"):
        build_engine(path, tmp_path / "m.engine", RTX)
    proto = onnx.load(small("one_stage"))
    del proto.metadata_props[:]
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match="carries no dela metadata"):
        build_engine(path, tmp_path / "m.engine", RTX)
    proto = onnx.load(small("one_stage"))
    del proto.graph.input[0]
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match="do not fit its metadata; missing: points"):
        build_engine(path, tmp_path / "m.engine", RTX)


def test_a_precision_that_the_file_only_claims_is_noticed(small, tmp_path):
    import onnx

    proto = onnx.load(small("four_stages", "fp32"))
    for entry in proto.metadata_props:
        if entry.key == "dtype":
            entry.value = "fp16"
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="says it is fp16, but only 0 of its"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", rtx(dtype="fp16"))


def test_a_missing_plugin_is_noticed(small, tmp_path, monkeypatch):
    choose = network._choose_form

    def ask_for_another(proto, plugins):
        choose(proto, plugins)
        next(node for node in proto.graph.node if node.op_type == "SPSE").op_type = "SPSX"

    monkeypatch.setattr(network, "_choose_form", ask_for_another)
    with pytest.raises(EngineError, match=r"parser refuses it: SPSX: .*Plugin not found"):
        build_engine(small("one_stage"), tmp_path / "m.engine", RTX)


def test_an_operator_that_became_no_plugin_is_noticed(small, tmp_path, monkeypatch):
    def keep_one_body(proto, plugins):
        """Leaves the file as it is, but for the node's request for a plugin."""
        node = next(node for node in proto.graph.node if node.op_type == "SPSE")
        del node.attribute[[entry.name for entry in node.attribute].index("plugin_namespace")]

    monkeypatch.setattr(network, "_choose_form", keep_one_body)
    count = sum(operators_of(small("four_stages")).values())
    with pytest.raises(EngineError, match=rf"{count - 1} of its {count} operators became plugin"):
        build_engine(small("four_stages"), tmp_path / "m.engine", RTX)


@pytest.fixture
def fake_tensorrt(monkeypatch):
    """version -> puts a package ``tensorrt`` of that version in place, which can do nothing."""
    bindings.load.cache_clear()

    def make(version: str) -> None:
        module = types.ModuleType("tensorrt")
        module.__version__ = version
        monkeypatch.setitem(sys.modules, "tensorrt", module)

    yield make
    bindings.load.cache_clear()


@pytest.mark.parametrize("flavour", ("tensorrt", "tensorrt-rtx"))
def test_without_the_package_one_line_says_what_to_install(
    flavour, small, tmp_path, monkeypatch, fake_tensorrt
):
    for name in bindings.MODULES[flavour]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError) as caught:
        build_engine(small("one_stage"), tmp_path / "m.engine", BuildRequest(backend=flavour))
    assert str(caught.value) == f"{flavour} is not installed; pip install 'dela[{flavour}]'"


@pytest.mark.parametrize("version", ("10.2.0.19", "8.6.2.3", "12.0.0.1"))
def test_an_unsupported_version_is_named(version, small, tmp_path, fake_tensorrt):
    fake_tensorrt(version)
    with pytest.raises(MissingDependencyError) as caught:
        build_engine(small("one_stage"), tmp_path / "m.engine")
    assert f"tensorrt {version} is not supported; dela works with 10.3 up to" in str(caught.value)


def test_without_a_driver_tensorrt_names_the_other_way(small, tmp_path, fake_tensorrt, monkeypatch):
    def no_gpu(ordinal):
        raise CudaUnavailable("no NVIDIA driver found (libcuda.so.1)")

    fake_tensorrt("10.13.3.9")
    monkeypatch.setattr(engine_module, "Device", no_gpu)
    with pytest.raises(EngineError, match=r"no NVIDIA driver found.*--backend tensorrt-rtx"):
        build_engine(small("one_stage"), tmp_path / "m.engine")
    assert list(tmp_path.iterdir()) == []


class FakeDevice:
    """A GPU that nothing runs on; notes which one is current during a block."""

    current_now: ClassVar[list[int]] = []

    def __init__(self, ordinal: int = 0, capability: tuple[int, int] = (8, 9)) -> None:
        self.ordinal, self.compute_capability = ordinal, capability

    @contextlib.contextmanager
    def current(self):
        self.current_now.append(self.ordinal)
        try:
            yield
        finally:
            self.current_now.pop()


@pytest.fixture
def gpu_of_8_9(trt, monkeypatch):
    """Lets the way of ``tensorrt`` be walked with the bindings at hand, as if on a GPU."""
    monkeypatch.setattr(engine_module, "_bindings", lambda flavour: trt)
    monkeypatch.setattr(engine_module, "Device", FakeDevice)


def test_a_compatibility_that_is_newer_than_tensorrt_is_named(
    small, tmp_path, gpu_of_8_9, trt, monkeypatch
):
    older = types.SimpleNamespace(__members__={"NONE": 0, "AMPERE_PLUS": 1})  # as 10.3 has it
    monkeypatch.setattr(trt, "HardwareCompatibilityLevel", older)
    request = BuildRequest(compatibility="same-compute-capability")
    with pytest.raises(EngineError, match=r"'same-compute-capability', which came with 10\.9"):
        build_engine(small("one_stage"), tmp_path / "m.engine", request)
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_builds_for_the_gpu_at_hand(small, tmp_path, gpu_of_8_9):
    request = BuildRequest(level=1, workspace=2048, compatibility="ampere-plus")
    sidecar = build_engine(small("four_stages"), tmp_path / "m.engine", request)
    assert sidecar.flavour == "tensorrt"
    assert sidecar.compute_capabilities == ("8.9",)
    assert sidecar.runs_on((12, 0))
    assert not sidecar.runs_on((7, 5))


@pytest.mark.parametrize(("words", "number"), [((), 0), (("--device", "cuda:2"), 2)])
def test_the_gpu_that_is_named_builds(small, tmp_path, trt, gpu_of_8_9, monkeypatch, words, number):
    """All that TensorRT measures, it measures on the thread's current GPU."""
    used = []
    for name in ("_builder", "_build"):
        before = getattr(engine_module, name)

        def noted(*arguments, before=before):
            used.append(list(FakeDevice.current_now))
            return before(*arguments)

        monkeypatch.setattr(engine_module, name, noted)
    run_command(["build", str(small("one_stage")), "-o", str(tmp_path / "m.engine"), *words])
    assert used == [[number], [number]] and FakeDevice.current_now == []


def test_a_gpu_that_is_none_is_refused(small, tmp_path, capsys, emulated_cuda, trt, monkeypatch):
    monkeypatch.setattr(engine_module, "_bindings", lambda flavour: trt)
    words = ["build", str(small("one_stage")), "-o", str(tmp_path / "m.engine"), "--device"]
    with pytest.raises(EngineError, match="there is no GPU 3; this machine has 1"):
        run_command([*words, "3"])
    for name in ("cpu", "gpu1", "cuda:", "cuda:x"):
        with pytest.raises(InputError, match=f"device '{name}' is no GPU; give cuda or cuda:N"):
            run_command([*words, name])
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_older_than_the_kernels_gets_no_plugins(small, tmp_path, gpu_of_8_9, monkeypatch):
    monkeypatch.setattr(engine_module, "Device", lambda number: FakeDevice(number, (7, 5)))
    with pytest.raises(EngineError, match=r"8\.0 or newer, this GPU has 7\.5; .*--plugins none"):
        build_engine(small("one_stage"), tmp_path / "m.engine")
    build_engine(small("one_stage"), tmp_path / "m.engine", BuildRequest(plugins="none"))


def test_a_form_that_the_bindings_lack_is_told(small, tmp_path, gpu_of_8_9):
    with pytest.raises(EngineError, match="has no plugins ahead of time"):
        build_engine(
            small("one_stage"), tmp_path / "m.engine", BuildRequest(plugins="ahead-of-time")
        )


def test_a_tensorrt_that_does_not_start_is_told(small, tmp_path, trt, monkeypatch):
    def no_builder(log):
        log.log(trt.ILogger.Severity.INTERNAL_ERROR, "CUDA driver version is insufficient")
        raise TypeError("factory function returned nullptr")

    started = types.ModuleType("tensorrt_that_does_not_start")
    started.__dict__.update({**vars(trt), "Builder": no_builder})
    monkeypatch.setattr(engine_module, "_bindings", lambda flavour: started)
    monkeypatch.setattr(engine_module, "_register", lambda trt, plugins: "")
    with pytest.raises(EngineError, match="does not start: CUDA driver version is insufficient"):
        build_engine(small("one_stage"), tmp_path / "m.engine", RTX)


@pytest.mark.filterwarnings("ignore:.*Timing cache:DeprecationWarning")
def test_timings_are_kept_and_read_again(small, tmp_path, gpu_of_8_9):
    request = BuildRequest(timing_cache=tmp_path / "timings")
    for overwrite in (False, True):
        build_engine(small("one_stage"), tmp_path / "m.engine", request, overwrite)
        assert (tmp_path / "timings").stat().st_size > 0


def test_a_foreign_timing_cache_is_refused(trt, tmp_path):
    """TensorRT for RTX takes anything: it measures nothing."""
    path = tmp_path / "timings"
    path.write_bytes(b"from another GPU")
    offered = []

    class Config:
        def create_timing_cache(self, stored):
            offered.append(stored)
            return object()

        def set_timing_cache(self, cache, ignore_mismatch):
            assert not ignore_mismatch
            return False

    with pytest.raises(EngineError, match="is no timing cache of this TensorRT and GPU"):
        engine_module._load_timings(trt, Config(), path)
    assert offered == [b"from another GPU"]


def test_the_command_writes_both_files_and_a_summary(small, tmp_path, capsys):
    path = tmp_path / "m.engine"
    command = f"build {small('four_stages')} -o {path} --backend tensorrt-rtx --json"
    options = "--points 100:3000:20000 --compute-capability 8.9"
    summary = run_command([*command.split(), *options.split()])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads(json.dumps(summary))
    assert captured.err == ""
    assert summary["file"] == str(path)
    assert summary["bytes"] == path.stat().st_size
    assert summary["profiles"][0]["stages"][0] == {"min": 100, "opt": 3000, "max": 20000}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.engine", "m.engine.json"]


def test_the_command_tells_a_person_what_was_built(small, tmp_path, capsys):
    import shutil

    model = tmp_path / "net.onnx"
    shutil.copy(small("classification"), model)
    command = f"build {model} --backend tensorrt-rtx --points 1:2:4 --points 4:8:64"
    run_command(command.split())
    captured = capsys.readouterr()
    assert "3 SPSE" not in captured.out  # two stages
    assert "2 SPSE" in captured.out
    assert "profile 0 64:128:256,16:32:64" in captured.out
    assert "profile 1 256:512:4096,64:128:1024" in captured.out
    assert f"wrote     {tmp_path / 'net.engine'}" in captured.out
    assert "Building engine" in captured.err


def test_the_command_fails_in_one_line(small, tmp_path, capsys, monkeypatch, fake_tensorrt):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(SystemExit) as ended:
        main(["build", str(small("one_stage")), "-o", str(tmp_path / "m.engine")])
    assert ended.value.code == 1
    message = "error: tensorrt is not installed; pip install 'dela[tensorrt]'\n"
    assert capsys.readouterr().err == message
