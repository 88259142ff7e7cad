"""Both forms of the TensorRT plugins, their kernels run by the emulated CUDA driver."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnx_operators
import quick_plugin_host
from dela.plugins.cuda import launch
from dela.plugins.tensorrt import ahead_of_time, bindings, launched, library_alias, operators
from plugin_cases import (
    NUMPY,
    ROUNDING,
    SPAMP_FORMS,
    SPSE_SHAPES,
    assert_close,
    on_device,
    spamp_case,
    spse_case,
    to_float64,
)

if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
    pytest.skip("TensorRT for RTX is not installed", allow_module_level=True)

AHEAD = operators.AHEAD_OF_TIME_NAMESPACE


@pytest.fixture(scope="module")
def trt():
    loaded = bindings.load("tensorrt-rtx")
    launched.register(loaded)
    return loaded


@pytest.fixture(scope="module")
def tensorrt(trt):
    """A ``tensorrt`` with NVIDIA's own ``tensorrt.plugin`` in which our plugins are registered."""
    found = importlib.util.find_spec("tensorrt_bindings")
    if found is None or found.origin is None:
        pytest.skip("the wheel tensorrt-cu13-bindings is not installed")
    if sys.modules.get("tensorrt") is not None:
        pytest.skip("tensorrt itself is loaded in this process")
    fake = quick_plugin_host.fake_tensorrt(trt, Path(found.origin).parent / "plugin")
    try:
        ahead_of_time.register(fake)
        ahead_of_time.register(fake)
        # Nothing of it is imported later; other tests ask whether there is a tensorrt.
        for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt"]:
            del sys.modules[name]
        yield fake
    finally:
        ahead_of_time._registered.discard("tensorrt")


def spse_fields(trt, epsilon: float, directions: int):
    return [
        trt.PluginField("epsilon", np.float32([epsilon]), trt.PluginFieldType.FLOAT32),
        trt.PluginField("directions", np.int32([directions]), trt.PluginFieldType.INT32),
    ]


def description(trt, kind, shape):
    described = trt.PluginTensorDesc()
    described.type, described.dims = kind, trt.Dims(shape)
    described.format = trt.TensorFormat.LINEAR
    return described


def created(trt, name: str, fields=(), phase: str = "RUNTIME"):
    creator = trt.get_plugin_registry().get_creator(name, "1", "dela")
    collection = trt.PluginFieldCollection(list(fields))
    return creator.create_plugin(name, collection, getattr(trt.TensorRTPhase, phase))


def data_types(trt, name: str, dtype: str):
    features = {"float32": trt.float32, "float16": trt.float16, "bfloat16": trt.bfloat16}[dtype]
    operator = operators.OPERATORS[name]
    inputs = tuple(operators.tensor_type(trt, kind, features) for kind in operator.inputs)
    return inputs, operators.tensor_type(trt, operator.output, features)


# --- launched from Python -------------------------------------------------------------------------


class Call:
    """A plugin attached to a context, with inputs and output on the device."""

    def __init__(self, trt, name, arrays, expected, dtype="float32", fields=()):
        from dela.plugins.cuda.arrays import DeviceArray
        from dela.plugins.cuda.driver import Stream

        self.stream, self.expected, self.dtype = Stream(), expected, dtype
        self.inputs = on_device(arrays, self.stream)
        self.out = DeviceArray.empty(expected.shape, dtype, stream=self.stream)
        kinds, kind = data_types(trt, name, dtype)
        self.input_desc = [description(trt, t, a.shape) for t, a in zip(kinds, arrays, strict=True)]
        self.output_desc = [description(trt, kind, expected.shape)]
        self.plugin = created(trt, name, fields).attach_to_context(None)
        self.plugin.on_shape_change(self.input_desc, self.output_desc)

    def enqueue(self, stream=None):
        self.plugin.enqueue(
            self.input_desc,
            self.output_desc,
            [array.pointer for array in self.inputs],
            [self.out.pointer],
            0,
            (stream or self.stream).handle,
        )

    def check(self):
        assert_close(to_float64(self.out, self.stream), self.expected, ROUNDING[self.dtype])


@pytest.mark.parametrize(("attributes", "directions", "epsilon"), SPSE_SHAPES)
def test_spse_gives_the_reference(emulated_cuda, trt, attributes, directions, epsilon):
    emulated_cuda.check_initialised = True
    arrays, expected = spse_case(attributes, directions, epsilon)
    call = Call(trt, "SPSE", arrays, expected, fields=spse_fields(trt, epsilon, directions))
    call.enqueue()
    call.check()


@pytest.mark.parametrize("channels", (12, 16))
@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("form", SPAMP_FORMS)
def test_spamp_gives_the_reference(emulated_cuda, trt, form, dtype, channels):
    emulated_cuda.check_initialised = True
    arrays, expected = SPAMP_FORMS[form](dtype, channels)
    call = Call(trt, form, arrays, expected, dtype)
    call.enqueue()
    call.check()


def test_an_index_outside_reads_nothing_outside(emulated_cuda, trt):
    arrays, _ = spamp_case("float32", 16)
    features, points, neighbors, centers, weight = arrays
    bad = neighbors.copy()
    bad[3] = [10**9, -1, 50, -(2**31), 2**31 - 1, 50]
    mended = neighbors.copy()
    mended[3] = centers[3]  # a bad neighbor counts as the center itself
    expected = onnx_operators.spamp_reference(features, points, mended, centers, weight)
    call = Call(trt, "SPAMP", [features, points, bad, centers, weight], expected)
    call.enqueue()
    call.check()


def test_one_point_with_itself_as_neighbor(emulated_cuda, trt):
    arrays, expected = spse_case(0, 0, 1e-8, n=1, k=1, channels=4)
    call = Call(trt, "SPSE", arrays, expected, fields=spse_fields(trt, 1e-8, 0))
    call.enqueue()
    call.check()


@pytest.mark.parametrize("form", SPAMP_FORMS)
def test_enqueue_queues_one_kernel_and_does_nothing_else(emulated_cuda, trt, form):
    emulated_cuda.defer = True
    arrays, expected = SPAMP_FORMS[form]("float32", 16)
    call = Call(trt, form, arrays, expected)
    names = ("allocations", "host_allocations", "copies", "pageable_copies", "synchronisations")
    before = {name: emulated_cuda.count(name) for name in (*names, "launches", "calls")}
    call.enqueue()
    assert emulated_cuda.count("calls") == before["calls"] + 1
    assert {name: emulated_cuda.count(name) for name in names} == {n: before[n] for n in names}
    call.stream.synchronize()
    assert emulated_cuda.count("launches") == before["launches"] + 1
    call.check()


@pytest.mark.parametrize("told_shapes", [False, True])
def test_a_plugin_without_a_context_loads_its_kernels_when_it_runs(emulated_cuda, trt, told_shapes):
    arrays, expected = spamp_case("float32", 16)
    call = Call(trt, "SPAMP", arrays, expected)
    call.plugin = created(trt, "SPAMP")
    if told_shapes:
        call.plugin.on_shape_change(call.input_desc, call.output_desc)
    call.enqueue()
    call.check()


def test_a_launch_follows_the_shapes_and_the_addresses(emulated_cuda, trt):
    """What is packed for one size and place must not be launched for another."""
    large = Call(trt, "SPAMP", *spamp_case("float32", 16, n=90, m=70))
    small = Call(trt, "SPAMP", *spamp_case("float32", 16, n=20, m=9, k=3))
    small.plugin = large.plugin
    for call in (large, small, large, small):
        call.out.fill_zero(call.stream)
        call.plugin.on_shape_change(call.input_desc, call.output_desc)
        for _ in range(2):
            call.enqueue()
        call.check()


def test_no_rows_queue_nothing(emulated_cuda, trt):
    arrays, _ = spamp_case("float32", 16)
    features, points, neighbors, centers, weight = arrays
    none = [features, points, neighbors[:0], centers[:0], weight]
    call = Call(trt, "SPAMP", none, np.zeros((0, 16)))
    before = emulated_cuda.count("calls")
    call.enqueue()
    assert emulated_cuda.count("calls") == before


def test_a_launch_that_fails_names_the_kernel(emulated_cuda, trt):
    from dela.plugins.cuda.driver import CudaError

    arrays, expected = spamp_case("float32", 16)
    call = Call(trt, "SPAMP", arrays, expected)
    with pytest.raises(CudaError, match=r"dela_spamp_f32 with .* blocks of 128 threads failed: "):
        call.plugin.plan.queue([0x10] * 6, 0xBAD)


def test_enqueue_is_captured_into_a_graph(emulated_cuda, trt):
    from dela.plugins.cuda.driver import Graph

    arrays, expected = spse_case(4, 0, 1e-8)
    call = Call(trt, "SPSE", arrays, expected, fields=spse_fields(trt, 1e-8, 0))
    with Graph.capture(call.stream) as graph:
        call.enqueue()
    call.out.fill_zero(call.stream)
    graph.launch(call.stream)
    call.check()


def test_work_goes_to_the_stream_it_is_given(emulated_cuda, trt):
    from dela.plugins.cuda.driver import Stream

    emulated_cuda.defer = True
    arrays, expected = spamp_case("float16", 16)
    call = Call(trt, "SPAMP", arrays, expected, "float16")
    other = Stream()
    call.enqueue(other)
    other.synchronize()
    call.check()


@pytest.mark.parametrize("phase", ("BUILD", "RUNTIME"))
def test_fields_survive_the_engine(trt, phase):
    plugin = created(trt, "SPSE", spse_fields(trt, 1.0001, 3), "BUILD")
    again = created(trt, "SPSE", plugin.get_fields_to_serialize(), phase)
    for one in (again, again.clone(), plugin.clone()):
        assert one.fields["epsilon"] == np.float32(1.0001)
        assert one.fields["directions"] == 3
    assert len(created(trt, "SPAMP").get_fields_to_serialize()) == 0


def test_registering_again_changes_nothing(trt):
    registry = trt.get_plugin_registry()
    before = [registry.get_creator(name, "1", "dela") for name in operators.OPERATORS]
    launched.register(trt)
    assert [registry.get_creator(name, "1", "dela") for name in operators.OPERATORS] == before
    assert [creator.name for creator in before] == ["SPSE", "SPAMP", "SPAMPResidual"]


def accepted(trt, name: str, kinds, layout="LINEAR"):
    """Which positions the plugin accepts, asked in order as TensorRT does."""
    tensors = []
    for kind in kinds:
        tensor = trt.DynamicPluginTensorDesc()
        tensor.desc = description(trt, kind, (8, 8))
        tensor.desc.format = getattr(trt.TensorFormat, layout)
        tensors.append(tensor)
    plugin = created(trt, name)
    return [
        plugin.supports_format_combination(position, tensors, len(kinds) - 1)
        for position in range(len(kinds))
    ]


def test_spse_takes_float32_only(trt):
    f32, f16, i32, i64 = trt.float32, trt.float16, trt.int32, trt.int64
    assert accepted(trt, "SPSE", [f32, i32, f32, f32]) == [True] * 4
    assert accepted(trt, "SPSE", [f16, i64, f16, f16]) == [False] * 4
    assert accepted(trt, "SPSE", [f32, i32, f32, f32], "CHW4") == [False] * 4


@pytest.mark.parametrize("dtype", NUMPY)
def test_spamp_takes_features_of_three_types(trt, dtype):
    kinds, out = data_types(trt, "SPAMP", dtype)
    assert accepted(trt, "SPAMP", [*kinds, out]) == [True] * 6
    wrong = [trt.int8, trt.float16, trt.int64, trt.float32, trt.bfloat16, trt.int32]
    assert accepted(trt, "SPAMP", wrong) == [False] * 6
    # the output follows the features, points and weight do not
    for position in (1, 4, 5):
        mixed = [*kinds, out]
        mixed[position] = trt.float16 if dtype != "float16" else trt.bfloat16
        assert accepted(trt, "SPAMP", mixed)[position] is False


@pytest.mark.parametrize("dtype", NUMPY)
def test_the_residual_form_takes_a_base_of_the_features_type(trt, dtype):
    kinds, out = data_types(trt, "SPAMPResidual", dtype)
    assert accepted(trt, "SPAMPResidual", [*kinds, out]) == [True] * 8
    for position in (1, 4, 5, 6, 7):
        mixed = [*kinds, out]
        mixed[position] = trt.float16 if dtype != "float16" else trt.bfloat16
        assert accepted(trt, "SPAMPResidual", mixed)[position] is False


# --- compiled into the engine ---------------------------------------------------------------------


def spse_layer(tensorrt, attributes, directions, epsilon, k=6, channels=20):
    columns = 3 + attributes + directions
    return quick_plugin_host.Layer(
        tensorrt,
        AHEAD,
        "SPSE",
        spse_fields(tensorrt, epsilon, directions),
        list(data_types(tensorrt, "SPSE", "float32")[0]),
        [("n", columns), ("n", k), (9 + columns, channels)],
    )


def spamp_layer(tensorrt, dtype, channels, k=6, form="SPAMP"):
    shapes = [("n", channels), ("n", 3), ("m", k), ("m",), (4, channels // 4)]
    if form == "SPAMPResidual":
        shapes += [("m", channels), (channels,)]
    kinds = list(data_types(tensorrt, form, dtype)[0])
    return quick_plugin_host.Layer(tensorrt, AHEAD, form, [], kinds, shapes)


def run_compiled(compiled, arrays, expected, dtype, sizes):
    """Launches a compiled plugin as TensorRT would: inputs, sizes, outputs."""
    from dela.plugins.cuda.arrays import DeviceArray
    from dela.plugins.cuda.driver import Stream
    from dela.plugins.cuda.kernels import Kernels

    stream = Stream()
    inputs = on_device(arrays, stream)
    out = DeviceArray.empty(expected.shape, dtype, stream=stream)
    numbers = [np.int32(expression.value(sizes)) for expression in compiled.sizes]
    Kernels.of().launch(
        compiled.name,
        compiled.grid.value(sizes),
        compiled.block,
        (*inputs, *numbers, out),
        stream,
    )
    assert_close(to_float64(out, stream), expected, ROUNDING[dtype])


@pytest.mark.parametrize("tactic", ahead_of_time.SPSE_TACTICS)
@pytest.mark.parametrize(("attributes", "directions", "epsilon"), SPSE_SHAPES)
def test_every_tactic_of_spse_gives_the_reference(
    emulated_cuda, tensorrt, attributes, directions, epsilon, tactic
):
    layer = spse_layer(tensorrt, attributes, directions, epsilon)
    assert tactic in layer.tactics()
    arrays, expected = spse_case(attributes, directions, epsilon)
    run_compiled(layer.compile(tactic), arrays, expected, "float32", {"n": 50})


@pytest.mark.parametrize("channels", (12, 16))
@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("form", SPAMP_FORMS)
def test_every_tactic_of_spamp_gives_the_reference(emulated_cuda, tensorrt, form, dtype, channels):
    layer = spamp_layer(tensorrt, dtype, channels, form=form)
    arrays, expected = SPAMP_FORMS[form](dtype, channels)
    wide = dtype != "float32" and channels % 8 == 0
    assert layer.tactics() == ([1, 2, 3, 4] if wide else [3, 4])
    for tactic in layer.tactics():
        run_compiled(layer.compile(tactic), arrays, expected, dtype, {"n": 50, "m": 30})


@pytest.mark.parametrize("n", (1, 3, 127, 30_000, 200_000))
def test_grids_are_those_of_the_python_launches(tensorrt, n):
    layer = spse_layer(tensorrt, 4, 0, 1e-8, k=24, channels=64)
    for tactic, rows in ahead_of_time.SPSE_TACTICS.items():
        compiled = layer.compile(tactic)
        assert compiled.grid.value({"n": n}) == launch.spse_grid(n, 64, rows)
        bits = int(np.float32(1e-8).view(np.int32))
        found = [size.value({"n": n}) for size in compiled.sizes]
        assert found == [n, 24, 64, 4, 0, rows, bits]
    compiled = spamp_layer(tensorrt, "float16", 64).compile(1)
    assert compiled.name == "dela_spamp_f16_8"
    assert compiled.grid.value({"n": 7, "m": n}) == launch.spamp_grid(n, 64, 8)
    assert [size.value({"n": 7, "m": n}) for size in compiled.sizes] == [7, n, 6, 64]


def test_output_shape_and_type_follow_the_inputs(tensorrt):
    layer = spamp_layer(tensorrt, "bfloat16", 12)
    assert layer.output_types == [tensorrt.bfloat16]
    assert [size.value({"n": 5, "m": 3}) for size in layer.output] == [3, 12]
    layer = spse_layer(tensorrt, 4, 3, 1.0)
    assert layer.output_types == [tensorrt.float32]
    assert [size.value({"n": 5}) for size in layer.output] == [5, 20]


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("form", SPAMP_FORMS)
def test_type_combinations_are_those_of_the_python_form(trt, tensorrt, form, dtype):
    kinds, out = data_types(trt, form, dtype)
    combinations = spamp_layer(tensorrt, dtype, 16, form=form).combinations()
    assert (*kinds, out) in combinations
    assert len(combinations) == 3
    for combination in combinations:
        assert accepted(trt, form, combination) == [True] * (len(kinds) + 1)


def test_embedded_ptx_holds_one_kernel_and_assembles(tensorrt, tmp_path):
    assembler = shutil.which("ptxas") or "/usr/local/cuda/bin/ptxas"
    if not Path(assembler).exists():
        pytest.skip("no ptxas, the assembler of the CUDA toolkit")
    layers = [spse_layer(tensorrt, *shape) for shape in SPSE_SHAPES]
    layers += [
        spamp_layer(tensorrt, dtype, channels, form=form)
        for form in SPAMP_FORMS
        for dtype in NUMPY
        for channels in (12, 16)
    ]
    kernels = {}
    for layer in layers:
        for tactic in layer.tactics():
            compiled = layer.compile(tactic)
            kernels[compiled.name] = compiled
            assert compiled.block <= launch.BLOCK
    for name, compiled in kernels.items():
        assert re.findall(r"\.entry (\w+)\(", compiled.ptx) == [name]
        arguments = (
            compiled.ptx.count(f".param .u64 {name}_param"),
            compiled.ptx.count(f".param .u32 {name}_param"),
        )
        pointers = 4 if "spse" in name else 8 if "residual" in name else 6
        assert arguments == (pointers, len(compiled.sizes))
        (tmp_path / name).write_text(compiled.ptx)
        command = [assembler, "-arch=sm_89", "-O0", str(tmp_path / name), "-o", "/dev/null"]
        subprocess.run(command, check=True, capture_output=True)
    assert len(kernels) == 4 + 5 + 5


def test_a_kernel_that_is_not_shipped_is_named():
    with pytest.raises(RuntimeError, match="no kernel 'dela_other'"):
        ahead_of_time.ptx_of("dela_other")


def test_tensorrt_for_rtx_has_no_plugins_ahead_of_time(trt):
    with pytest.raises(RuntimeError, match="has no plugins ahead of time"):
        ahead_of_time.register(trt)


# --- loading --------------------------------------------------------------------------------------


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize("first", ("import tensorrt_rtx_bindings", "pass"))
def test_the_parser_runs_whoever_imports_the_bindings_first(first):
    """Without its library's second name it would end the process."""
    assert "True 1" in python(
        f"{first}\n"
        "import onnx.parser\n"
        "from dela.plugins.tensorrt import bindings, launched, messages\n"
        "trt = bindings.load('tensorrt-rtx'); launched.register(trt)\n"
        "builder = trt.Builder(messages.logger(trt))\n"
        "network = builder.create_network(1)\n"
        "parser = trt.OnnxParser(network, messages.logger(trt))\n"
        'model = onnx.parser.parse_model(\'<ir_version: 10, opset_import: ["" : 20, '
        '"dela" : 1]> graph (float[N, 3] p, int32[N, 4] i, float[12, 8] w) => (float[N, 8] o) '
        '{ o = dela.SPSE <plugin_namespace = "dela"> (p, i, w) }\')\n'
        "print(parser.parse(model.SerializeToString()), network.num_layers)"
    )


def test_nothing_heavy_is_imported_before_it_is_asked_for():
    assert (
        python(
            "import sys\n"
            "from dela.plugins.tensorrt import ahead_of_time, bindings, launched, messages\n"
            "heavy = ('torch', 'onnx', 'tensorrt', 'tensorrt_rtx_bindings', 'cuda')\n"
            "print([name for name in heavy if name in sys.modules])"
        )
        == "[]"
    )


def test_a_second_name_finds_the_library_itself():
    assert python(
        "import ctypes\n"
        "from dela.plugins.tensorrt.library_alias import add_name\n"
        "libm = ctypes.CDLL('libm.so.6')\n"
        "add_name('libanothermath.so', 'libm.so.6')\n"
        "cosine = ctypes.CDLL('libanothermath.so').cos\n"
        "cosine.restype, cosine.argtypes = ctypes.c_double, [ctypes.c_double]\n"
        "print(cosine(0.0))"
    ) == ("1.0")


def test_a_second_name_needs_a_library():
    with pytest.raises(OSError, match="libnosuchthing"):
        library_alias.add_name("libother.so", "libnosuchthing.so.1")


def test_an_empty_library_is_what_readelf_expects(tmp_path):
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf (binutils)")
    path = tmp_path / "empty.so"
    path.write_bytes(library_alias.empty_library("liba.so", "libb.so.1", 62))
    done = subprocess.run([readelf, "-Wad", path], capture_output=True, text=True, check=True)
    assert "soname: [liba.so]" in done.stdout
    assert "Shared library: [libb.so.1]" in done.stdout
    assert "DYN" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10.13.3.9", (10, 13, 3, 9)), ("11.4.0.106.post1", (11, 4, 0, 106)), ("1.7", (1, 7))],
)
def test_versions_are_compared_by_their_numbers(text, expected):
    class Module:
        __version__ = text

    assert bindings.version_of(Module) == expected
