"""Runs of an engine on the caller's stream, and how often a run talks to the driver."""

from __future__ import annotations

import types

import numpy as np
import pytest

from dela.errors import InputError
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.driver import Device, Stream
from dela.plugins.tensorrt import bindings
from dela.pyramid.cpu import Pyramid
from dela.runtime import load_backend
from small_networks import scene_pyramid
from standin_tensorrt import StandInTensorRT, write_engine


@pytest.fixture
def tensorrt(emulated_cuda, monkeypatch):
    trt = StandInTensorRT()
    monkeypatch.setattr(bindings, "load", lambda flavour: trt)
    yield trt
    assert not trt.problems


@pytest.fixture
def engine(tensorrt, network, tmp_path):
    return write_engine(tmp_path, network.onnx, "100:1000:6000")


class Interface:
    """An array of another library, whose values are made on a stream of its own."""

    def __init__(self, array: DeviceArray) -> None:
        self.shape, self.array = array.shape, array
        self.__cuda_array_interface__ = array.__cuda_array_interface__


def queued_on(stream: Stream, pyramid: Pyramid, wrap=lambda array: array) -> Pyramid:
    """The pyramid on the device; ``stream`` has yet to copy it."""

    def up(array):
        array = np.ascontiguousarray(array)
        there = DeviceArray.empty(array.shape, array.dtype, stream=stream)
        there.copy_from_host(array, stream)
        return wrap(there)

    return pyramid.each(up)


def assert_same(found, expected) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("wrap", [lambda array: array, Interface])
def test_a_replay_talks_to_the_driver_a_few_times(
    emulated_cuda, engine, network, wrap, record_property
):
    """With arrays that another stream makes, however many they are."""
    backend, mine = load_backend(engine), Stream(Device())
    pyramid = queued_on(mine, scene_pyramid(network.config), wrap)
    calls, waits = [], []
    for output, stream in (("device", None), ("host", None), ("device", mine), ("pinned", mine)):
        for _ in range(3):
            before = [emulated_cuda.count(name) for name in ("calls", "synchronisations")]
            backend.run(pyramid, output, stream=stream)
        calls.append(emulated_cuda.count("calls") - before[0])
        waits.append(emulated_cuda.count("synchronisations") - before[1])
    assert backend.graphs == 1
    assert max(calls) <= 12 and waits == [1, 1, 0, 0]
    record_property("figure", f"driver calls of a replay: {calls}")


def test_a_run_on_the_callers_stream_waits_for_nothing(emulated_cuda, tensorrt, engine, network):
    emulated_cuda.defer = True
    backend, mine = load_backend(engine), Stream(Device())
    small, large = (scene_pyramid(network.config, count) for count in (700, 1500))
    reference = load_backend(network.onnx)
    for pyramid in (small, large) * 3:
        backend.run(pyramid)
    expected = {id(pyramid): reference.run(pyramid) for pyramid in (small, large)}
    runs, waits = len(tensorrt.runs), emulated_cuda.count("synchronisations")
    found = []
    for pyramid in (small, large, small, small, large):
        output = DeviceArray.empty((len(pyramid.points), 3), np.float32, stream=mine)
        there = queued_on(mine, pyramid)
        assert backend.run(there, output, stream=mine) is output
        found.append((there, output, expected[id(pyramid)]))
    assert emulated_cuda.count("synchronisations") == waits and len(tensorrt.runs) == runs
    for _, output, logits in found:
        assert_same(output.to_host(mine), logits)
    assert len(tensorrt.runs) == runs + 5


@pytest.mark.parametrize("graphs_on", [True, False])
def test_sizes_that_change_under_way_are_waited_for(emulated_cuda, engine, network, graphs_on):
    """New shapes, captures and memory that grows: no context is changed beneath a run."""
    emulated_cuda.defer = True
    backend, reference = load_backend(engine, graphs=graphs_on), load_backend(network.onnx)
    mine, found = Stream(Device()), []
    for count in (300, 300, 2500, 700, 2500, 300, 5000, 700):
        pyramid = scene_pyramid(network.config, count)
        output = DeviceArray.empty((len(pyramid.points), 3), np.float32, stream=mine)
        there = queued_on(mine, pyramid)
        backend.run(there, output, stream=mine)
        found.append((there, output, reference.run(pyramid)))
    for _, output, logits in found:
        assert_same(output.to_host(mine), logits)


@pytest.mark.parametrize("host_input", [True, False])
def test_logits_are_there_in_the_streams_order(emulated_cuda, engine, network, host_input):
    emulated_cuda.defer = True
    backend, mine, other = load_backend(engine), Stream(Device()), Stream(Device())
    host = scene_pyramid(network.config)
    expected = load_backend(network.onnx).run(host)
    for _ in range(3):
        pyramid = host if host_input else queued_on(mine, host)
        there = backend.run(pyramid, "device", stream=mine)
        assert_same(there.to_host(mine), expected)
        there = backend.run(pyramid, "device", stream=mine)
        # A library that takes the array to a stream of its own waits by itself.
        other.wait_for(there.stream)
        assert_same(there.to_host(other), expected)
        pinned = backend.run(pyramid, "pinned", stream=mine)
        mine.synchronize()
        assert_same(pinned, expected)


def test_the_next_run_does_not_overtake_what_the_stream_still_reads(emulated_cuda, engine, network):
    emulated_cuda.defer = True
    backend, mine = load_backend(engine), Stream(Device())
    first, second = (scene_pyramid(network.config, 1500, seed) for seed in (1, 2))
    reference = load_backend(network.onnx)
    copies = []
    for pyramid in (first, second, first):
        there = backend.run(pyramid, "device", stream=mine)
        copies.append(DeviceArray.empty(there.shape, np.float32, stream=mine))
        copies[-1].copy_from(there, mine)
    for copy, pyramid in zip(copies, (first, second, first), strict=True):
        assert_same(copy.to_host(mine), reference.run(pyramid))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda handle: handle,
        lambda handle: types.SimpleNamespace(cuda_stream=handle),
        lambda handle: types.SimpleNamespace(ptr=handle),
        lambda handle: types.SimpleNamespace(handle=handle),
        lambda handle: types.SimpleNamespace(__cuda_stream__=lambda: (0, handle)),
    ],
    ids=["handle", "torch", "cupy", "pycuda", "protocol"],
)
def test_streams_of_other_libraries_are_taken(emulated_cuda, engine, network, wrap):
    emulated_cuda.defer = True
    backend, mine = load_backend(engine), Stream(Device())
    host = scene_pyramid(network.config)
    pyramid = queued_on(mine, host, Interface)
    there = backend.run(pyramid, "device", stream=wrap(mine.handle))
    assert_same(there.to_host(mine), load_backend(network.onnx).run(host))


def test_what_cannot_be_is_refused(engine, network):
    backend, pyramid = load_backend(engine), scene_pyramid(network.config, 300)
    with pytest.raises(InputError, match="does not wait, so its logits cannot go to the host"):
        backend.run(pyramid, stream=Stream(Device()))
    for wrong in ("stream", object(), [3]):
        with pytest.raises(InputError, match="give a stream of torch, CuPy, PyCUDA or dela"):
            backend.run(pyramid, "device", stream=wrong)
