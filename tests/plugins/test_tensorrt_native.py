"""The native plugin library, called as TensorRT calls it; the emulated driver runs its kernels."""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import native_plugin_host as host
import onnx_operators
from dela.plugins.cuda import kernels
from dela.plugins.tensorrt import native, operators
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

SPAMP_KINDS = ("{}", "float32", "int32", "int32", "float32")
KINDS = {
    "SPSE": ("float32", "int32", "float32"),
    "SPAMP": SPAMP_KINDS,
    "SPAMPResidual": (*SPAMP_KINDS, "{}", "float32"),
}
# Shapes of SPAMP's inputs, for five centers of eight channels.
_FITTING = [(5, 8), (5, 3), (5, 4), (5,), (4, 2)]


@pytest.fixture
def library():
    opened = host.Library(native.library_path())
    yield opened
    opened.close()


def spse_fields(epsilon: float, directions: int):
    return host.fields(
        epsilon=(host.FIELD_FLOAT32, (ctypes.c_float * 1)(epsilon)),
        directions=(host.FIELD_INT32, (ctypes.c_int32 * 1)(directions)),
    )


def described(name, arrays, dtype="float32"):
    kinds = [kind.format(dtype) for kind in KINDS[name]]
    return [(kind, array.shape) for kind, array in zip(kinds, arrays, strict=True)]


class Call:
    """A plugin attached to a context, with inputs and output on the device."""

    def __init__(self, library, name, arrays, expected, dtype="float32", fields=None):
        from dela.plugins.cuda.arrays import DeviceArray
        from dela.plugins.cuda.driver import Device, Stream

        Device().make_current()
        self.stream, self.expected, self.dtype = Stream(), expected, dtype
        self.inputs = on_device(arrays, self.stream)
        self.out = DeviceArray.empty(expected.shape, dtype, stream=self.stream)
        original = library.create(name, fields)
        self.plugin = original.attach()
        original.delete()  # what is attached lives on its own
        self.shapes = described(name, arrays, dtype)
        assert self.plugin.on_shape_change(self.shapes) == 0, library.messages

    def enqueue(self, stream=None) -> int:
        return self.plugin.enqueue(
            [array.pointer for array in self.inputs],
            self.out.pointer,
            (stream or self.stream).handle,
        )

    def check(self):
        assert_close(to_float64(self.out, self.stream), self.expected, ROUNDING[self.dtype])
        self.plugin.delete()


# --- what it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize(("attributes", "directions", "epsilon"), [*SPSE_SHAPES, (7, 2, 1e-8)])
def test_spse_gives_the_reference(emulated_cuda, library, attributes, directions, epsilon):
    emulated_cuda.check_initialised = True
    arrays, expected = spse_case(attributes, directions, epsilon)
    call = Call(library, "SPSE", arrays, expected, fields=spse_fields(epsilon, directions))
    assert call.enqueue() == 0
    call.check()


@pytest.mark.parametrize("channels", (12, 16))
@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("name", SPAMP_FORMS)
def test_spamp_gives_the_reference(emulated_cuda, library, name, dtype, channels):
    emulated_cuda.check_initialised = True
    arrays, expected = SPAMP_FORMS[name](dtype, channels)
    call = Call(library, name, arrays, expected, dtype)
    assert call.enqueue() == 0
    call.check()


@pytest.mark.parametrize("k", (1, 60))
def test_one_neighbor_and_more_neighbors_than_points(emulated_cuda, library, k):
    arrays, expected = spamp_case("float32", 8, n=50, m=3, k=k)
    call = Call(library, "SPAMP", arrays, expected)
    assert call.enqueue() == 0
    call.check()


def test_an_index_outside_reads_nothing_outside(emulated_cuda, library):
    arrays, _ = spamp_case("float32", 16)
    features, points, neighbors, centers, weight = arrays
    bad = neighbors.copy()
    bad[3] = [10**9, -1, 50, -(2**31), 2**31 - 1, 50]
    mended = neighbors.copy()
    mended[3] = centers[3]  # a bad neighbor counts as the center itself
    expected = onnx_operators.spamp_reference(features, points, mended, centers, weight)
    call = Call(library, "SPAMP", [features, points, bad, centers, weight], expected)
    assert call.enqueue() == 0
    call.check()


def test_many_points_give_each_thread_several_rows(emulated_cuda, library):
    arrays, expected = spse_case(0, 0, 1e-8, n=33_000, k=2, channels=16)
    call = Call(library, "SPSE", arrays, expected, fields=spse_fields(1e-8, 0))
    assert call.enqueue() == 0
    call.check()


def test_no_rows_are_no_launch(emulated_cuda, library):
    plugin = library.create("SPAMP").attach()
    shapes = [(5, 8), (5, 3), (0, 4), (0,), (4, 2)]
    kinds = [kind.format("float32") for kind in SPAMP_KINDS]
    assert plugin.on_shape_change(list(zip(kinds, shapes, strict=True))) == 0
    before = emulated_cuda.count("launches")
    assert plugin.enqueue([0] * 5, 0, 0) == 0
    assert emulated_cuda.count("launches") == before
    plugin.delete()


# --- how it runs ----------------------------------------------------------------------------------


def test_enqueue_queues_one_kernel_and_does_nothing_else(emulated_cuda, library):
    emulated_cuda.defer = True
    arrays, expected = spamp_case("float32", 16)
    call = Call(library, "SPAMP", arrays, expected)
    names = ("allocations", "host_allocations", "copies", "pageable_copies", "synchronisations")
    before = {name: emulated_cuda.count(name) for name in (*names, "launches")}
    assert call.enqueue() == 0
    assert {name: emulated_cuda.count(name) for name in names} == {n: before[n] for n in names}
    call.stream.synchronize()
    assert emulated_cuda.count("launches") == before["launches"] + 1
    call.check()


def test_enqueue_is_captured_into_a_graph(emulated_cuda, library):
    from dela.plugins.cuda.driver import Graph

    arrays, expected = spse_case(4, 0, 1e-8)
    call = Call(library, "SPSE", arrays, expected, fields=spse_fields(1e-8, 0))
    with Graph.capture(call.stream) as graph:
        assert call.enqueue() == 0
    call.out.fill_zero(call.stream)
    graph.launch(call.stream)
    call.check()


def test_contexts_come_and_go_while_another_thread_captures(emulated_cuda, library):
    """Kernels are loaded and unloaded then; torch captures in the strictest mode."""
    from dela.plugins.cuda import driver

    def attach_and_delete():
        device.make_current()
        attached = original.attach()
        assert attached is not None, library.messages
        attached.delete()

    device = driver.Device()
    device.make_current()
    stream, original = driver.Stream(), library.create("SPAMP")
    mode = driver.driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    driver.call("cuStreamBeginCapture", stream.handle, mode)
    thread = threading.Thread(target=attach_and_delete)
    thread.start()
    thread.join()
    driver.call("cuGraphDestroy", driver.call("cuStreamEndCapture", stream.handle))
    original.delete()


def test_contexts_in_several_threads_keep_their_shapes_apart(emulated_cuda, library):
    def run(number):
        arrays, expected = spamp_case("float16", 16, n=40 + number, m=20 + number, k=3 + number)
        call = Call(library, "SPAMP", arrays, expected, "float16")
        for _ in range(3):
            assert call.enqueue() == 0
        call.check()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(8)))


def test_shapes_may_change_between_runs(emulated_cuda, library):
    arrays, expected = spamp_case("float32", 16)
    call = Call(library, "SPAMP", arrays, expected)
    smaller = [(kind, shape) for kind, shape in call.shapes]
    smaller[2], smaller[3] = ("int32", (10, 6)), ("int32", (10,))
    assert call.plugin.on_shape_change(smaller) == 0
    call.out.fill_zero(call.stream)
    assert call.enqueue() == 0
    found = to_float64(call.out, call.stream)
    assert_close(found[:10], expected[:10], ROUNDING["float32"])
    np.testing.assert_array_equal(found[10:], 0)
    call.plugin.delete()


@pytest.mark.parametrize("capability", [(8, 0), (8, 7), (9, 0), (11, 0), (12, 1), (13, 0)])
def test_kernels_load_on_gpus_known_and_unknown(emulated_cuda, library, capability):
    emulated_cuda.capability = capability
    arrays, expected = spamp_case("float32", 8)
    call = Call(library, "SPAMP", arrays, expected)
    assert call.enqueue() == 0
    call.check()


@pytest.mark.parametrize(
    ("capability", "version", "message"),
    [
        ((7, 5), 13000, r"compute capability 7\.5; the kernels need 8\.0"),
        ((13, 0), 11000, r"no kernels for compute capability 13\.0 load: .*update the driver"),
    ],
)
def test_a_gpu_or_driver_that_is_too_old_is_told(
    emulated_cuda, library, capability, version, message
):
    from dela.plugins.cuda.driver import Device

    Device().make_current()
    emulated_cuda.capability, emulated_cuda.driver_version = capability, version
    plugin = library.create("SPAMP")
    assert plugin.attach() is None
    (line,) = library.messages
    assert line.startswith("dela SPAMP: ")
    assert re.search(message, line)
    plugin.delete()


def test_kernels_are_loaded_where_no_context_was_attached(emulated_cuda, library):
    """TensorRT times layers so."""
    from dela.plugins.cuda.driver import Device

    Device().make_current()
    arrays, expected = spamp_case("float32", 8)
    call = Call(library, "SPAMP", arrays, expected)
    call.plugin.delete()
    call.plugin = library.create("SPAMP")
    assert call.plugin.on_shape_change(call.shapes) == 0
    assert call.enqueue() == 0
    call.check()


def test_a_launch_that_fails_is_told(emulated_cuda, library):
    arrays, expected = spamp_case("float32", 8)
    call = Call(library, "SPAMP", arrays, expected)
    assert call.plugin.enqueue([0] * 5, call.out.pointer + 4, call.stream.handle) == 1
    assert "output 0 starts at no multiple of 16 bytes" in library.messages[-1]
    shifted = [array.pointer for array in call.inputs]
    shifted[0] += 8
    assert call.plugin.enqueue(shifted, call.out.pointer, call.stream.handle) == 1
    assert "input 0 starts at no multiple of 16 bytes" in library.messages[-1]
    assert call.plugin.enqueue([array.pointer for array in call.inputs], call.out.pointer, 0xDEAD0)
    assert "dela_spamp_f32 with" in library.messages[-1]
    call.plugin.delete()


# --- what it tells TensorRT -----------------------------------------------------------------------


def test_there_is_a_creator_for_every_operator(library):
    assert list(library.creators) == list(operators.OPERATORS)
    for name, creator in library.creators.items():
        assert library.interface_info(creator) == ("PLUGIN CREATOR_V3ONE", 1, 0)
        assert host.call(creator, 7, ctypes.c_char_p) == operators.VERSION.encode()
        assert host.call(creator, 8, ctypes.c_char_p) == operators.NATIVE_NAMESPACE.encode()
        listed = host.FieldCollection.from_address(host.call(creator, 5, ctypes.c_void_p))
        names = [listed.fields[i].name.decode() for i in range(listed.count)]
        assert names == list(operators.OPERATORS[name].fields)


def test_a_plugin_has_its_three_interfaces(library):
    plugin = library.create("SPSE")
    kinds = ["PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME"]
    assert library.interface_info(plugin.address) == ("PLUGIN", 1, 0)
    found = [library.interface_info(plugin.interface(number)) for number in range(3)]
    assert found == [(kind, 1, 0) for kind in kinds]
    assert plugin.interface(3) is None
    assert plugin.names() == ["SPSE", operators.VERSION, operators.NATIVE_NAMESPACE]
    plugin.delete()


def read_fields(plugin):
    found = plugin.serialized()
    values = {}
    for i in range(found.count):
        field = found.fields[i]
        kind = ctypes.c_float if field.type == host.FIELD_FLOAT32 else ctypes.c_int32
        values[field.name.decode()] = kind.from_address(field.data).value
    return values


def test_fields_survive_the_engine(library):
    plugin = library.create("SPSE", spse_fields(1.0001, 3))
    again = library.create("SPSE", plugin.serialized())
    copy = again.clone()
    for one in (plugin, again):
        assert read_fields(one) == {"epsilon": np.float32(1.0001), "directions": 3}
        one.delete()
    # A copy points to its own values.
    assert read_fields(copy) == {"epsilon": np.float32(1.0001), "directions": 3}
    copy.delete()
    spamp = library.create("SPAMP")
    assert read_fields(spamp) == {}
    spamp.delete()


def test_fields_have_the_defaults_of_the_other_plugins(library):
    wide = host.fields(directions=(host.FIELD_INT64, (ctypes.c_int64 * 1)(2)))
    for given, directions in ((None, 0), (wide, 2)):
        plugin = library.create("SPSE", given)
        _, epsilon = operators.SPSE.fields["epsilon"]
        assert read_fields(plugin) == {"epsilon": np.float32(epsilon), "directions": directions}
        plugin.delete()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epsilon": (host.FIELD_FLOAT32, (ctypes.c_float * 1)(-1))}, "epsilon is -1"),
        ({"epsilon": (host.FIELD_FLOAT32, (ctypes.c_float * 1)(np.nan))}, "epsilon is nan"),
        ({"epsilon": (host.FIELD_INT32, (ctypes.c_int32 * 1)(1))}, "epsilon is no float32"),
        ({"epsilon": (host.FIELD_FLOAT32, (ctypes.c_float * 2)(1, 1))}, "epsilon has 2 values"),
        ({"directions": (host.FIELD_INT32, (ctypes.c_int32 * 1)(-2))}, "directions is -2"),
        ({"directions": (host.FIELD_FLOAT32, (ctypes.c_float * 1)(1))}, "directions is no int"),
    ],
)
def test_bad_fields_are_refused(library, given, message):
    assert library.create("SPSE", host.fields(**given)) is None
    assert message in library.messages[-1]


def test_spse_takes_float32_only(library):
    plugin = library.create("SPSE")
    right = ["float32", "int32", "float32", "float32"]
    assert plugin.accepts(right) == [True] * 4
    assert plugin.accepts(["float16", "int64", "float16", "float16"]) == [False] * 4
    assert plugin.accepts(right, host.CHW4) == [False] * 4
    assert plugin.accepts(right[:3]) == [False] * 3
    plugin.delete()


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("name", SPAMP_FORMS)
def test_spamp_takes_features_of_three_types(library, name, dtype):
    plugin = library.create(name)
    kinds = [*(kind.format(dtype) for kind in KINDS[name]), dtype]
    assert plugin.accepts(kinds) == [True] * len(kinds)
    wrong = ["int8", "float16", "int64", "float32", "bfloat16", "int32", "int32", "int64"]
    assert plugin.accepts(wrong[: len(kinds)]) == [False] * len(kinds)
    # The output and the base follow the features, points, weight and scale do not.
    for position in (1, *range(4, len(kinds))):
        mixed = list(kinds)
        mixed[position] = "float16" if dtype != "float16" else "bfloat16"
        assert plugin.accepts(mixed)[position] is False
    assert plugin.output_types(kinds[:-1]) == host.TYPES[dtype]
    plugin.delete()


def test_output_shapes_follow_the_inputs(library):
    spse, spamp = library.create("SPSE"), library.create("SPAMP")
    assert spse.output_shape([(11, 7), (11, 24), (16, 64)]) == [11, 64]
    assert spamp.output_shape([(11, 64), (11, 3), (5, 24), (5,), (4, 16)]) == [5, 64]
    assert spse.output_types(["float32", "int32", "float32"]) == host.TYPES["float32"]
    assert spse.output_shape([(11, 7, 1), (11, 24), (16, 64)]) is None
    assert "input 0 has 3 dimensions, expected 2" in library.messages[-1]
    assert spamp.output_shape([(11, 64)]) is None
    assert "1 inputs and 1 outputs, expected 5 and 1" in library.messages[-1]
    for plugin in (spse, spamp):
        plugin.delete()


def test_channels_that_no_kernel_takes_are_refused_while_an_engine_is_built(library):
    plugin = library.create("SPAMP")
    kinds = [kind.format("float32") for kind in SPAMP_KINDS]
    for channels, status in ((8, 0), (-1, 0), (6, 1)):  # -1: not known yet
        shapes = [(-1, channels), (-1, 3), (-1, 4), (-1,), (4, -1)]
        assert plugin.configure(list(zip(kinds, shapes, strict=True))) == status
    assert "6 channels are no multiple of 4" in library.messages[-1]
    assert plugin.configure([("float32", (5, 8))]) == 1
    plugin.delete()


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("SPSE", [(5, 2), (5, 4), (12, 8)], "points have 2 columns, too few for 0 directions"),
        ("SPSE", [(5, 3), (6, 4), (12, 8)], "number of rows of neighbors is 6, expected 5"),
        ("SPSE", [(5, 4), (5, 4), (12, 8)], "number of rows of weight is 12, expected 13"),
        ("SPSE", [(2**31, 3), (2**31, 4), (12, 8)], "size 0 of input 0 is 2147483648"),
        ("SPSE", [(-1, 3), (-1, 4), (12, 8)], "size 0 of input 0 is -1"),
        ("SPSE", [(2**31 - 1, 3), (2**31 - 1, 1), (12, 64)], "values to compute are more than"),
        ("SPAMP", [(5, 6), (5, 3), (5, 4), (5,), (4, 1)], "6 channels are no multiple of 4"),
        ("SPAMP", [(5, 8), (4, 3), (5, 4), (5,), (4, 2)], "number of points is 4, expected 5"),
        ("SPAMP", [(5, 8), (5, 4), (5, 4), (5,), (4, 2)], "columns of points is 4, expected 3"),
        ("SPAMP", [(5, 8), (5, 3), (5, 4), (3,), (4, 2)], "number of centers is 3, expected 5"),
        ("SPAMP", [(5, 8), (5, 3), (5, 4), (5,), (3, 2)], "rows of weight is 3, expected 4"),
        ("SPAMP", [(5, 8), (5, 3), (5, 4), (5,), (4, 3)], "columns of weight is 3, expected 2"),
        ("SPAMP", [(0, 8), (0, 3), (5, 4), (5,), (4, 2)], "there are centers but no points"),
        ("SPAMP", [(5, 8), (5, 3), (5,), (5,), (4, 2)], "input 2 has 1 dimensions, expected 2"),
        ("SPAMPResidual", [*_FITTING, (4, 8), (8,)], "rows of base is 4, expected 5"),
        ("SPAMPResidual", [*_FITTING, (5, 4), (8,)], "channels of base is 4, expected 8"),
        ("SPAMPResidual", [*_FITTING, (5, 8), (4,)], "number of scales is 4, expected 8"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(library, name, shapes, message):
    plugin = library.create(name)
    kinds = [kind.format("float32") for kind in KINDS[name]]
    assert plugin.on_shape_change(list(zip(kinds, shapes, strict=True))) == 1
    assert message in library.messages[-1]
    # It does not run on what was planned before.
    assert plugin.enqueue([0] * len(shapes), 0, 0) == 1
    assert "run before its shapes were set" in library.messages[-1]
    plugin.delete()


# --- without a GPU, and in TensorRT ---------------------------------------------------------------


def test_without_a_driver_shapes_are_planned_and_nothing_runs(library):
    """TensorRT for RTX builds so."""
    plugin = library.create("SPSE")
    shapes = [("float32", (5, 3)), ("int32", (5, 4)), ("float32", (12, 8))]
    assert plugin.on_shape_change(shapes) == 0
    assert plugin.enqueue([0] * 3, 0, 0) == 1
    assert "no kernels were loaded" in library.messages[-1]
    assert plugin.attach() is None
    assert library.messages[-1].startswith("dela SPSE: no ")
    plugin.delete()


def test_the_library_needs_neither_tensorrt_nor_cuda():
    done = subprocess.run(
        ["readelf", "-d", native.library_path()], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("no readelf")
    needed = set(re.findall(r"NEEDED.*\[(\w[\w+]*)", done.stdout))
    assert "libc" in needed
    assert needed <= {"libc", "libm", "libgcc_s", "libstdc++", "libdl"}


def test_the_library_holds_the_images_as_they_are():
    lines = ""
    for image in sorted(kernels.IMAGES.glob("inference.*")):
        data = image.read_bytes()
        assert data in native.library_path().read_bytes()
        lines += f"{image.name} {hashlib.sha256(data).hexdigest()}\n"
    if not lines:
        pytest.skip("the images are not part of this installation")
    assert native.digest() == hashlib.sha256(lines.encode()).hexdigest()


IN_TENSORRT = """
import numpy as np
from dela.plugins.tensorrt import bindings, messages, native, operators

trt = bindings.load("tensorrt-rtx")
log = messages.logger(trt)
builder = trt.Builder(log)  # TensorRT keeps to the first logger that it is given
native.register(trt)
native._registered.clear()
native.register(trt)  # as where a program has loaded the library by itself
registry = trt.get_plugin_registry()
for name in operators.OPERATORS:
    creator = registry.get_creator(name, operators.VERSION, operators.NATIVE_NAMESPACE)
    fields = [entry.name for entry in creator.field_names]
    print(creator.name, creator.plugin_version, creator.plugin_namespace, *fields)
log.clear()
creator = registry.get_creator("SPSE", operators.VERSION, operators.NATIVE_NAMESPACE)
field = trt.PluginField("epsilon", np.float32([-1]), trt.PluginFieldType.FLOAT32)
creator.create_plugin("x", trt.PluginFieldCollection([field]), trt.TensorRTPhase.BUILD)
print(*log.errors)
"""


def test_tensorrt_takes_the_creators_and_their_errors_are_kept():
    pytest.importorskip("tensorrt_rtx_bindings")
    done = subprocess.run(
        [sys.executable, "-c", IN_TENSORRT], capture_output=True, text=True, check=False
    )
    spse, spamp, residual, errors = done.stdout.splitlines()
    assert spse == "SPSE 1 dela_native epsilon directions"
    assert (spamp, residual) == ("SPAMP 1 dela_native", "SPAMPResidual 1 dela_native")
    assert "dela SPSE: epsilon is -1, must be finite and not negative" in errors
    assert "dela SPSE" not in done.stderr
