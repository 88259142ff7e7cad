"""Inputs on their way to the device and logits on their way back, on the emulated CUDA driver."""

from __future__ import annotations

import types

import numpy as np
import pytest

from dela.errors import InputError
from dela.model.inputs import InputSpec
from dela.plugins.cuda import driver
from dela.plugins.cuda.arrays import DeviceArray, PinnedArray
from dela.plugins.cuda.driver import Device, Event, Stream
from dela.runtime.backends.gpu_buffers import InputBlock, OutputBuffer, device_inputs, on_device

SPECS = (
    InputSpec("points", "float32", "n0", (3,), padding="repeat"),
    InputSpec("neighbors_0", "int32", "n0", (5,), indexes="n0"),
    InputSpec("kept_1", "int32", "n1", indexes="n0"),
)
DTYPES = {spec.name: spec.dtype for spec in SPECS}


@pytest.fixture(params=[False, True], ids=["at once", "deferred"])
def stream(emulated_cuda, request) -> Stream:
    emulated_cuda.defer = request.param
    return Stream(Device())


def make_inputs(rows: int, kept: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "points": generator.normal(size=(rows, 3)).astype(np.float32),
        "neighbors_0": generator.integers(1, 100, (rows, 5)).astype(np.int32),
        "kept_1": generator.integers(1, 100, kept).astype(np.int32),
    }


def padded(array: np.ndarray, rows: int, repeat: bool) -> np.ndarray:
    """What :class:`InputBlock` promises, said in another way."""
    fill = array[:1] if repeat and len(array) else np.zeros((1, *array.shape[1:]), array.dtype)
    return np.concatenate([array, np.repeat(fill, rows - len(array), axis=0)])


def shapes_of(rows: int, kept: int) -> dict[str, tuple[int, ...]]:
    return {"points": (rows, 3), "neighbors_0": (rows, 5), "kept_1": (kept,)}


def assert_holds(found: dict[str, DeviceArray], inputs, rows: int, kept: int, stream) -> None:
    for name, total in {"points": rows, "neighbors_0": rows, "kept_1": kept}.items():
        expected = padded(np.asarray(inputs[name]), total, name == "points")
        assert found[name].pointer % 256 == 0
        values = found[name].to_host(stream)
        assert values.dtype == DTYPES[name] and np.array_equal(values, expected), name


@pytest.mark.parametrize("capability", [(9, 0), (7, 5)], ids=["kernel", "copies"])
@pytest.mark.parametrize(
    ("rows", "kept", "more", "more_kept"),
    [
        (40, 10, 0, 0),
        (40, 10, 1, 3),
        (1, 1, 31, 31),
        (33, 7, 100, 64),
        (0, 0, 32, 32),
        (0, 0, 0, 0),
    ],
)
def test_host_and_device_arrays_are_padded_alike(
    emulated_cuda, rows, kept, more, more_kept, capability
):
    """By a kernel, and by copies on a GPU that is too old for our kernels."""
    emulated_cuda.capability, emulated_cuda.check_initialised = capability, True
    stream = Stream(Device())
    inputs = make_inputs(rows, kept)
    sizes = rows + more, kept + more_kept
    block = InputBlock(stream, SPECS)
    uploaded = block.upload(inputs, shapes_of(*sizes))
    assert_holds(uploaded, inputs, *sizes, stream)
    there = {name: DeviceArray.from_host(array, stream) for name, array in inputs.items()}
    assert_holds(block.gather(there, shapes_of(*sizes)), inputs, *sizes, stream)


@pytest.mark.parametrize("offset", [0, 4, 12])
def test_arrays_anywhere_are_gathered_by_one_launch(emulated_cuda, stream, offset):
    inputs, there = make_inputs(700, 90), {}
    for name, array in inputs.items():
        memory = DeviceArray.empty((array.nbytes + offset,), np.uint8, stream=stream)
        there[name] = memory.view(array.shape, array.dtype, offset)
        there[name].copy_from_host(np.ascontiguousarray(array), stream)
    block = InputBlock(stream, SPECS)
    block.gather(there, shapes_of(832, 96))
    stream.synchronize()
    before = {name: emulated_cuda.count(name) for name in ("calls", "launches", "copies")}
    found = block.gather(there, shapes_of(832, 96))
    assert emulated_cuda.count("calls") == before["calls"] + 1
    assert_holds(found, inputs, 832, 96, stream)
    assert emulated_cuda.count("launches") == before["launches"] + 1


def test_arrays_amid_a_word_are_copied(stream):
    inputs, there = make_inputs(30, 9), {}
    for name, array in inputs.items():
        memory = DeviceArray.empty((array.nbytes + 1,), np.uint8, stream=stream)
        there[name] = memory.view(array.shape, array.dtype, 1)
        there[name].copy_from_host(np.ascontiguousarray(array), stream)
    assert_holds(InputBlock(stream, SPECS).gather(there, shapes_of(33, 9)), inputs, 33, 9, stream)


def test_more_inputs_than_a_launch_takes(emulated_cuda, stream):
    specs = [InputSpec(f"input_{index}", "int32", "n0", (index,)) for index in range(1, 40)]
    values = {
        spec.name: np.full((5, *spec.columns), index, np.int32) for index, spec in enumerate(specs)
    }
    there = {name: DeviceArray.from_host(array, stream) for name, array in values.items()}
    shapes = {spec.name: (9, *spec.columns) for spec in specs}
    launches = emulated_cuda.count("launches")
    found = InputBlock(stream, specs).gather(there, shapes)
    for name, array in values.items():
        assert np.array_equal(found[name].to_host(stream), padded(array, 9, False)), name
    assert emulated_cuda.count("launches") == launches + 3


def test_wide_values_become_the_networks_own(stream):
    inputs = make_inputs(6, 2)
    wide = {
        name: array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        for name, array in inputs.items()
    }
    assert_holds(InputBlock(stream, SPECS).upload(wide, shapes_of(8, 4)), inputs, 8, 4, stream)


def test_host_arrays_may_change_as_soon_as_they_are_queued(stream):
    inputs = make_inputs(50, 20)
    kept = {name: array.copy() for name, array in inputs.items()}
    found = InputBlock(stream, SPECS).upload(inputs, shapes_of(64, 32))
    for array in inputs.values():
        array[:] = 77
    assert_holds(found, kept, 64, 32, stream)


def second_upload_overtakes(stream: Stream) -> bool:
    """Whether a second upload spoils what an earlier one has yet to copy."""
    block = InputBlock(stream, SPECS)
    first, second = make_inputs(50, 20, seed=1), make_inputs(50, 20, seed=2)
    result = PinnedArray((50, 3), np.float32).array
    block.upload(first, shapes_of(50, 20))["points"].copy_to_host(result, stream)
    block.upload(second, shapes_of(50, 20))
    stream.synchronize()
    return not np.array_equal(result, first["points"])


def test_a_second_upload_waits_for_the_first(stream):
    assert not second_upload_overtakes(stream)


def test_without_that_wait_the_first_would_be_spoilt(emulated_cuda, monkeypatch):
    emulated_cuda.defer = True
    monkeypatch.setattr(Event, "synchronize", lambda event: None)
    assert second_upload_overtakes(Stream(Device()))


def test_memory_is_reused_and_grows(emulated_cuda, stream):
    block, output = InputBlock(stream, SPECS), OutputBuffer(stream)
    for rows in (1000, 10, 999, 1000):
        block.upload(make_inputs(rows, 5), shapes_of(rows, 5))
        output.download(output.reserve((rows, 4)))
        stream.synchronize()
        if rows == 1000:
            allocated = emulated_cuda.count("allocations")
            pinned = emulated_cuda.count("host_allocations")
        assert emulated_cuda.count("allocations") == allocated
        assert emulated_cuda.count("host_allocations") == pinned
    block.upload(make_inputs(1100, 5), shapes_of(1100, 5))
    assert emulated_cuda.count("allocations") == allocated + 1


def test_one_copy_takes_all_inputs_up_and_none_is_pageable(emulated_cuda, stream):
    block = InputBlock(stream, SPECS)
    copies, pageable = emulated_cuda.count("copies"), emulated_cuda.count("pageable_copies")
    block.upload(make_inputs(100, 30), shapes_of(128, 32))
    stream.synchronize()
    assert emulated_cuda.count("copies") == copies + 1
    assert emulated_cuda.count("pageable_copies") == pageable


def test_logits_are_there_when_they_are_read(stream):
    output = OutputBuffer(stream)
    logits = output.reserve((30, 4))
    expected = np.arange(120, dtype=np.float32).reshape(30, 4)
    source = PinnedArray((30, 4), np.float32).array
    source[:] = expected
    logits.copy_from_host(source, stream)
    found = output.download(logits.view((20, 4)))
    stream.synchronize()
    assert np.array_equal(found, expected[:20])


def test_memory_grows_only_once_the_work_that_uses_it_is_over(emulated_cuda):
    """The driver would free memory that queued copies still write to."""
    emulated_cuda.defer = True
    stream = Stream(Device())
    block, output = InputBlock(stream, SPECS), OutputBuffer(stream)
    for rows in (10, 500, 4000):
        there = {
            name: DeviceArray.from_host(array, stream)
            for name, array in make_inputs(rows, 5).items()
        }
        block.gather(there, shapes_of(rows, 5))
        logits = output.reserve((rows, 4))
        logits.fill_zero(stream)
        host = output.download(logits)
        del logits
    stream.synchronize()
    assert not host.any()


class OnlyInterface:
    """An array of a library that has ``__cuda_array_interface__`` and nothing else (PyCUDA)."""

    def __init__(self, array: DeviceArray, **changes) -> None:
        self.array = array
        self.shape = array.shape
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


class OnlyDlpack:
    """An array of a library that has DLPack and nothing else."""

    def __init__(self, array: DeviceArray) -> None:
        self.shape = array.shape
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


@pytest.mark.parametrize("wrap", [lambda array: array, OnlyInterface, OnlyDlpack])
def test_arrays_of_other_libraries_are_taken_where_they_lie(emulated_cuda, stream, wrap):
    array = DeviceArray.from_host(np.ones((4, 3), np.float32), stream)
    before = emulated_cuda.count("copies"), emulated_cuda.count("allocations")
    found = device_inputs({"points": wrap(array)}, DTYPES, stream)["points"]
    assert (found.pointer, found.shape, found.dtype) == (array.pointer, (4, 3), np.float32)
    assert (emulated_cuda.count("copies"), emulated_cuda.count("allocations")) == before


def test_values_made_on_another_stream_are_waited_for(emulated_cuda):
    emulated_cuda.defer = True
    theirs, ours = Stream(Device()), Stream(Device())
    source = PinnedArray((8, 3), np.float32).array
    source[:] = 3
    array = DeviceArray.empty((8, 3), np.float32, stream=theirs)
    array.copy_from_host(source, theirs)
    found = device_inputs({"points": OnlyDlpack(array)}, DTYPES, ours)
    values = InputBlock(ours, SPECS).gather(found, {"points": (9, 3)})["points"].to_host(ours)
    assert (values == 3).all()


def test_device_arrays_that_do_not_fit_are_named(stream):
    points = DeviceArray.from_host(np.ones((4, 3), np.float32), stream)
    with pytest.raises(InputError, match="neighbors_0 lies in host memory"):
        device_inputs({"points": points, "neighbors_0": np.zeros((4, 5), np.int32)}, DTYPES, stream)
    with pytest.raises(InputError, match="kept_1 is float32 on the device; expected int32"):
        device_inputs({"kept_1": points}, DTYPES, stream)
    points.device = types.SimpleNamespace(ordinal=1)
    with pytest.raises(InputError, match="points lies on GPU 1, the engine runs on GPU 0"):
        device_inputs({"points": points}, DTYPES, stream)
    points.device = stream.device
    with pytest.raises(InputError, match=r"points: .*contiguous"):
        device_inputs({"points": OnlyInterface(points, strides=(4, 16))}, DTYPES, stream)


class OfAGpuLibrary:
    def __init__(self, kind: int | None) -> None:
        if kind is None:
            self.__cuda_array_interface__: dict[str, object] = {}
        else:
            self.__dlpack_device__ = lambda: (kind, 0)


def test_what_lies_on_the_device_is_told_without_cuda(monkeypatch):
    monkeypatch.setattr(driver, "driver", lambda: pytest.fail("asked the CUDA driver"))
    torch = pytest.importorskip("torch")
    assert not on_device(np.zeros(3)) and not on_device(torch.zeros(3)) and not on_device([1])
    assert on_device(OfAGpuLibrary(None)) and on_device(OfAGpuLibrary(2))
    assert not on_device(OfAGpuLibrary(1))
