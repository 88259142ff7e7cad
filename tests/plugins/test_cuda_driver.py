"""Devices, streams, graphs, arrays and the exchange of arrays, on the emulated CUDA driver."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from dela.plugins.cuda import dlpack, driver, kernels
from dela.plugins.cuda.arrays import (
    BFLOAT16,
    DeviceArray,
    GrowingBuffer,
    PinnedArray,
    as_device_array,
)
from dela.plugins.cuda.driver import (
    CudaError,
    CudaUnavailable,
    Device,
    Event,
    Graph,
    Stream,
)


@pytest.fixture
def stream(emulated_cuda) -> Stream:
    return Stream(Device())


class Interface:
    """Another library's array with ``__cuda_array_interface__``."""

    def __init__(self, array: DeviceArray, **changes) -> None:
        self.array = array  # keeps the memory
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | changes


class Lender:
    """Another library's array with DLPack, which notes the stream it was asked for."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.asked: list = []

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream=None):
        self.asked.append(stream)
        return self.array.__dlpack__(stream=stream)


def test_importing_loads_no_cuda_package():
    code = (
        "import sys, dela.plugins.cuda.kernels, dela.pyramid.gpu;"
        "print([name for name in sys.modules if name.split('.')[0] in ('cuda', 'torch')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_machine_without_a_driver_is_told_what_to_install():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(CudaUnavailable, match=r"no NVIDIA driver found \(libcuda.so.1\)"):
            driver.driver()
    else:
        pytest.skip("this machine has a CUDA driver")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(CudaUnavailable, match=r"pip install 'dela\[cuda\]'"):
        driver.driver.__wrapped__()


def test_the_device_describes_itself(emulated_cuda):
    emulated_cuda.capability = (8, 6)
    device = Device()
    assert device.compute_capability == (8, 6)
    assert device.name and "\0" not in device.name
    free, total = device.memory()
    assert 0 < free <= total
    assert Device.count() == driver.count() == 1
    with pytest.raises(CudaUnavailable, match="there is no GPU 1; this machine has 1"):
        Device(1)


def test_a_failed_call_names_itself(emulated_cuda):
    device = Device()
    device.make_current()
    with pytest.raises(CudaError, match="cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY") as caught:
        DeviceArray.empty((1 << 50,), np.uint8, device)
    assert caught.value.code == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float64, np.uint64])
def test_values_come_back_as_they_went(stream, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array = DeviceArray.from_host(values.transpose(2, 0, 1), stream)
    assert (array.shape, array.dtype, array.nbytes) == ((4, 2, 3), values.dtype, values.nbytes)
    np.testing.assert_array_equal(array.to_host(stream), values.transpose(2, 0, 1))


def test_bfloat16_travels_as_bits(stream):
    bits = np.array([0x3F80, 0xC000], np.uint16)
    array = DeviceArray.from_host(bits, stream, dtype=BFLOAT16)
    assert array.dtype == BFLOAT16
    np.testing.assert_array_equal(array.to_host(stream), bits)
    assert not hasattr(array, "__cuda_array_interface__")


def test_views_share_memory_and_stay_inside(stream):
    array = DeviceArray.from_host(np.arange(12, dtype=np.int32), stream)
    view = array.view((2, 2), offset=16)
    np.testing.assert_array_equal(view.to_host(stream), [[4, 5], [6, 7]])
    del array
    gc.collect()
    np.testing.assert_array_equal(view.to_host(stream), [[4, 5], [6, 7]])
    with pytest.raises(ValueError, match=r"a view of \[3\] int32 from byte 8 does not fit into 16"):
        view.view((3,), offset=8)


def test_memory_is_given_back_when_nothing_refers_to_it(stream, emulated_cuda):
    before = emulated_cuda.count("device_bytes")
    array = DeviceArray.empty((1000,), np.float32, stream=stream)
    view = array.view((10,))
    del array
    gc.collect()
    assert emulated_cuda.count("device_bytes") > before
    del view
    gc.collect()
    assert emulated_cuda.count("device_bytes") == before


def test_empty_arrays_take_no_memory(stream, emulated_cuda):
    before = emulated_cuda.count("allocations")
    array = DeviceArray.from_host(np.zeros((0, 3), np.float32), stream)
    assert array.pointer == 0 and array.to_host(stream).shape == (0, 3)
    array.fill_zero(stream)
    assert GrowingBuffer(stream.device).array((0, 4), np.int32).shape == (0, 4)
    assert emulated_cuda.count("allocations") == before


def test_copies_wait_their_turn_in_the_stream(stream, emulated_cuda):
    emulated_cuda.defer = True
    pinned = PinnedArray((4,), np.int32, stream.device)
    pinned.array[:] = [1, 2, 3, 4]
    array = DeviceArray.empty((4,), np.int32, stream=stream)
    array.copy_from_host(pinned.array, stream)
    back = PinnedArray((4,), np.int32, stream.device)
    back.array[:] = 0
    array.copy_to_host(back.array, stream)
    np.testing.assert_array_equal(back.array, 0)
    stream.synchronize()
    np.testing.assert_array_equal(back.array, [1, 2, 3, 4])


def test_a_stream_waits_for_another(stream, emulated_cuda):
    emulated_cuda.defer = True
    other = Stream(stream.device)
    array = DeviceArray.from_host(np.ones(3, np.int32), stream)
    array.fill_zero(other)
    stream.wait_for(other)
    copy = DeviceArray.empty((3,), np.int32, stream=stream)
    copy.copy_from(array, stream)
    np.testing.assert_array_equal(copy.to_host(stream), 0)


def test_events_measure_time(stream):
    first = Event(stream.device, timing=True).record(stream)
    last = Event(stream.device, timing=True).record(stream)
    assert last.milliseconds_since(first) >= 0.0


def test_copies_of_another_size_are_refused(stream):
    array = DeviceArray.empty((3,), np.float32, stream=stream)
    with pytest.raises(ValueError, match="8 bytes; the device array needs 12"):
        array.copy_from_host(np.zeros(2, np.float32), stream)
    with pytest.raises(ValueError, match="with gaps"):
        array.copy_to_host(np.zeros(6, np.float32)[::2], stream)
    with pytest.raises(ValueError, match="4 bytes do not fit into 12"):
        array.copy_from(DeviceArray.empty((1,), np.float32, stream=stream), stream)


def test_a_graph_runs_only_when_launched(stream, emulated_cuda):
    array = DeviceArray.from_host(np.ones(5, np.int32), stream)
    with Graph.capture(stream) as graph:
        array.fill_zero(stream)
        with pytest.raises(CudaError, match="still being captured"):
            graph.launch(stream)
    np.testing.assert_array_equal(array.to_host(stream), 1)
    for _ in range(2):
        graph.launch(stream)
        np.testing.assert_array_equal(array.to_host(stream), 0)
        array.copy_from_host(np.ones(5, np.int32), stream)


def test_an_error_while_capturing_leaves_the_stream_usable(stream):
    array = DeviceArray.from_host(np.ones(5, np.int32), stream)
    with pytest.raises(KeyError), Graph.capture(stream):
        array.fill_zero(stream)
        raise KeyError
    np.testing.assert_array_equal(array.to_host(stream), 1)


@pytest.mark.parametrize("of_this_thread", [True, False])
def test_what_is_collected_spoils_no_graph_of_others(stream, emulated_cuda, of_this_thread):
    """Torch captures in the strictest mode, in which freeing memory anywhere ends the capture."""
    array = DeviceArray.from_host(np.ones(5, np.int32), stream)
    doomed = [
        DeviceArray.empty((3,), np.int32, stream=stream),
        PinnedArray((3,), np.int32, stream.device),
        Stream(stream.device),
        Event(stream.device),
    ]
    frees = emulated_cuda.count("frees"), emulated_cuda.count("host_frees")
    mode = driver.driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    driver.call("cuStreamBeginCapture", stream.handle, mode)
    array.fill_zero(stream)
    if of_this_thread:
        doomed.clear()
    else:
        thread = threading.Thread(target=doomed.clear)
        thread.start()
        thread.join()
    array.fill_zero(stream)
    driver.call("cuGraphDestroy", driver.call("cuStreamEndCapture", stream.handle))
    after = emulated_cuda.count("frees"), emulated_cuda.count("host_frees")
    assert after == (frees[0] + 1, frees[1] + 1)
    # The thread is as strict as before.
    driver.call("cuStreamBeginCapture", stream.handle, mode)
    with pytest.raises(CudaError, match="cuMemAlloc failed"):
        DeviceArray.empty((3,), np.int32, stream=stream)
    with pytest.raises(CudaError, match="cuStreamEndCapture failed"):
        driver.call("cuStreamEndCapture", stream.handle)


def test_a_device_is_current_for_a_block(stream):
    def current() -> int:
        return int(driver.call("cuCtxGetCurrent"))

    ours, theirs, library = current(), ctypes.c_void_p(), ctypes.CDLL("libcuda.so.1")
    driver.call("cuCtxPopCurrent")
    for create in (False, True):
        if create:
            assert library.cuCtxCreate_v2(ctypes.byref(theirs), 0, 0) == 0
        before = current()
        assert before == (theirs.value or 0) != ours
        for _ in range(2):
            with pytest.raises(KeyError), stream.device.current():
                stream.device.make_current()
                with stream.device.current():
                    assert current() == ours
                assert current() == ours
                raise KeyError
            assert current() == before
    assert library.cuCtxDestroy_v2(theirs) == 0


def test_a_growing_buffer_grows_by_half_more_and_never_shrinks(stream):
    buffer = GrowingBuffer(stream.device)
    assert (buffer.capacity, buffer.pointer) == (0, 0)
    first = buffer.array((1024,), np.uint8)
    assert buffer.capacity == 1024 and first.pointer == buffer.pointer
    assert buffer.array((10, 10), np.float32).pointer == first.pointer
    buffer.array((1025,), np.uint8)
    assert buffer.capacity == 1536
    first.fill_zero(stream)  # memory handed out earlier is still there
    stream.synchronize()
    buffer.array((5000,), np.uint8)
    assert buffer.capacity == 5120
    buffer.array((1,), np.uint8)
    assert buffer.capacity == 5120


def test_a_growing_buffer_makes_do_with_what_it_needs(stream, emulated_cuda):
    buffer = GrowingBuffer(stream.device)
    buffer.reserve(100 << 10)
    emulated_cuda.memory = emulated_cuda.count("device_bytes") + (20 << 10)
    buffer.reserve(110 << 10)
    assert buffer.capacity == 110 << 10
    with pytest.raises(CudaError, match="OUT_OF_MEMORY"):
        buffer.reserve(130 << 10)
    assert (buffer.capacity, buffer.pointer) == (0, 0)
    assert buffer.array((5,), np.uint8).nbytes == 5


def test_a_pinned_buffer_hands_out_numpy_arrays(stream):
    buffer = GrowingBuffer(stream.device, pinned=True)
    array = buffer.array((2, 3), np.float32)
    array[:] = 7
    assert array.ctypes.data == buffer.pointer
    device = DeviceArray.empty((2, 3), np.float32, stream=stream)
    device.copy_from_host(array, stream)
    np.testing.assert_array_equal(device.to_host(stream), 7)
    assert buffer.array((3,), BFLOAT16).dtype == np.uint16


def test_pinned_memory_lives_as_long_as_a_view(stream, emulated_cuda):
    before = emulated_cuda.count("host_frees")
    view = PinnedArray((100,), np.int32, stream.device).array[10:20]
    gc.collect()
    assert emulated_cuda.count("host_frees") == before
    view[:] = 3
    del view
    gc.collect()
    assert emulated_cuda.count("host_frees") == before + 1


# ------------------------------------------------------------------------ other libraries' arrays


def test_our_arrays_are_taken_as_they_are(stream):
    array = DeviceArray.from_host(np.arange(3), stream)
    assert as_device_array(array, stream) is array


def test_an_array_interface_is_taken_without_a_copy(stream):
    array = DeviceArray.from_host(np.arange(6, dtype=np.float32).reshape(2, 3), stream)
    source = Interface(array)
    assert source.__cuda_array_interface__["version"] == 3
    taken = as_device_array(source, stream)
    assert (taken.pointer, taken.shape, taken.dtype) == (array.pointer, (2, 3), np.float32)
    del array, source
    gc.collect()
    np.testing.assert_array_equal(taken.to_host(stream), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("with_stream", [True, False])
@pytest.mark.parametrize("wrap", [Interface, Lender, lambda array: array])
def test_the_stream_that_makes_the_values_is_waited_for(stream, emulated_cuda, wrap, with_stream):
    producer = Stream(stream.device)
    array = DeviceArray.from_host(np.ones(4, np.int32), producer)
    emulated_cuda.defer = True
    array.fill_zero(producer)
    taken = as_device_array(wrap(array), stream if with_stream else None)
    copy = DeviceArray.empty((4,), np.int32, stream=stream)
    copy.copy_from(taken, stream)
    np.testing.assert_array_equal(copy.to_host(stream), 0)


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.uint8, np.int64, np.float16, np.complex64, BFLOAT16]
)
def test_dlpack_goes_and_comes_without_a_copy(stream, dtype):
    shape = (2, 1, 3)
    array = DeviceArray.empty(shape, dtype, stream=stream)
    lender = Lender(array)
    taken = as_device_array(lender, stream)
    assert lender.asked == [stream.handle]
    assert (taken.pointer, taken.shape, taken.dtype) == (array.pointer, shape, array.dtype)


def test_the_default_stream_is_named_as_other_libraries_know_it(stream):
    default = Stream.borrowed(0)
    lender = Lender(DeviceArray.from_host(np.arange(3), stream))
    taken = as_device_array(lender, default)
    assert lender.asked == [1]  # 0 is ambiguous in DLPack and in the array interface
    assert taken.__cuda_array_interface__["stream"] == 1
    taken.fill_zero(default)
    np.testing.assert_array_equal(taken.to_host(default), 0)


def test_what_was_lent_by_dlpack_lives_until_it_is_given_back(stream, emulated_cuda):
    before = emulated_cuda.count("device_bytes")
    taken = as_device_array(Lender(DeviceArray.from_host(np.arange(5), stream)), stream)
    gc.collect()
    np.testing.assert_array_equal(taken.to_host(stream), np.arange(5))
    del taken
    gc.collect()
    capsule = DeviceArray.from_host(np.arange(5), stream).__dlpack__()
    assert emulated_cuda.count("device_bytes") > before
    del capsule  # that nobody took
    gc.collect()
    assert emulated_cuda.count("device_bytes") == before
    assert not dlpack._exported


def test_what_dlpack_cannot_do_is_said(stream):
    array = DeviceArray.from_host(np.arange(3), stream)
    for options in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError, match="lent as it is"):
            array.__dlpack__(**options)
    array.__dlpack__(stream=-1, max_version=(1, 0), dl_device=(2, 0), copy=False)

    class Refusing(Lender):
        def __dlpack__(self, *, stream=None):
            raise BufferError("it needs a gradient")

    with pytest.raises(TypeError, match="Refusing is not lent: it needs a gradient"):
        as_device_array(Refusing(array), stream)


def test_only_contiguous_arrays_of_plain_numbers_are_taken(stream):
    array = DeviceArray.from_host(np.arange(12, dtype=np.float32).reshape(3, 4), stream)
    as_device_array(Interface(array, strides=(16, 4)), stream)
    as_device_array(Interface(array, shape=(1, 4), strides=(999, 4)), stream)
    as_device_array(Interface(array, shape=(0, 4), strides=(7, 7)), stream)
    with pytest.raises(TypeError, match=r"shape \[4, 3\] has gaps .* \[4, 16\]"):
        as_device_array(Interface(array, shape=(4, 3), strides=(4, 16)), stream)
    with pytest.raises(TypeError, match=">f4"):
        as_device_array(Interface(array, typestr=">f4"), stream)
    with pytest.raises(TypeError, match="mask"):
        as_device_array(Interface(array, mask=array), stream)
    with pytest.raises(TypeError, match="list is no array on a CUDA device"):
        as_device_array([1, 2], stream)
    with pytest.raises(TypeError, match="ndarray does not lie on a CUDA device"):
        as_device_array(np.zeros(3), stream)


# ------------------------------------------------------------------------ kernels


def test_the_image_that_fits_best_comes_first():
    def names(capability):
        return [path.name for path in kernels.image_candidates("operators", capability)]

    ptx = "operators.compute_80.ptx"
    assert names((8, 0)) == ["operators.sm_80.cubin", ptx]
    assert names((8, 9))[0] == "operators.sm_89.cubin"
    assert names((8, 7))[:2] == ["operators.sm_87.cubin", "operators.sm_86.cubin"]
    assert names((9, 0)) == ["operators.sm_90.cubin", ptx]
    assert names((11, 0)) == ["operators.sm_110.cubin", ptx]
    assert names((12, 1)) == ["operators.sm_120.cubin", ptx]
    assert names((13, 0)) == [ptx]
    with pytest.raises(CudaUnavailable, match=r"7.5; dela's kernels need 8.0"):
        names((7, 5))


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (12, 1), (13, 0)])
def test_kernels_load_on_devices_known_and_unknown(emulated_cuda, capability):
    emulated_cuda.capability = capability
    loaded = kernels.Kernels(Device(), "operators")
    assert loaded.image.suffix == (".ptx" if capability == (13, 0) else ".cubin")
    assert loaded.function("dela_spse_0")
    with pytest.raises(CudaError, match="has no kernel 'dela_nothing'"):
        loaded.function("dela_nothing")


def test_an_old_driver_is_asked_to_be_updated(emulated_cuda):
    emulated_cuda.capability = (13, 0)
    emulated_cuda.driver_version = 11000
    with pytest.raises(CudaError, match="the driver is older than the kernels; update it"):
        kernels.Kernels(Device(), "operators")


@pytest.mark.parametrize("broken", [b"", b"no image", b"\x7fELF" + bytes(60)])
def test_an_image_that_is_none_makes_way_for_the_next(emulated_cuda, tmp_path, monkeypatch, broken):
    for image in kernels.IMAGES.glob("operators.*"):
        shutil.copy(image, tmp_path)
    monkeypatch.setattr(kernels, "IMAGES", tmp_path)
    emulated_cuda.capability = (8, 7)
    (tmp_path / "operators.sm_87.cubin").write_bytes(broken)
    loaded = kernels.Kernels(Device(), "operators")
    assert loaded.image.name == "operators.sm_86.cubin"
    assert loaded.function("dela_spse_0")
    for image in tmp_path.glob("operators.*"):
        image.write_bytes(broken)
    with pytest.raises(CudaError, match=r"operators\.compute_80\.ptx does not load on"):
        kernels.Kernels(Device(), "operators")


def test_kernels_are_loaded_once_per_device(emulated_cuda):
    assert kernels.Kernels.of(Device()) is kernels.Kernels.of(Device())
    assert kernels.Kernels.of(Device(), "geometry") is not kernels.Kernels.of(Device())


def test_a_bad_launch_names_the_kernel(stream):
    loaded = kernels.Kernels.of(stream.device)
    with pytest.raises(CudaError, match="dela_reverse_place with 1 blocks of 4096 threads failed"):
        loaded.launch("dela_reverse_place", 1, 4096, (0, np.int32(0), 0, 0), stream)


def test_no_blocks_are_no_launch(stream, emulated_cuda):
    before = emulated_cuda.count("launches")
    kernels.Kernels.of(stream.device).launch("dela_reverse_place", 0, 128, (), stream)
    assert emulated_cuda.count("launches") == before


def test_epsilon_travels_as_bits():
    assert kernels.float_bits(1.0) == np.int32(0x3F800000)
    assert kernels.float_bits(1e-8).dtype == np.int32


# ------------------------------------------------------------------------ a real GPU


@pytest.mark.gpu
def test_arrays_of_torch_on_a_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU that torch can use")
    stream = Stream(Device())
    theirs = torch.arange(12, device="cuda").reshape(3, 4).bfloat16()
    ours = as_device_array(theirs, stream)
    assert (ours.pointer, ours.dtype) == (theirs.data_ptr(), BFLOAT16)
    np.testing.assert_array_equal(ours.to_host(stream), theirs.view(torch.uint16).cpu().numpy())
    ours = DeviceArray.from_host(np.arange(6, dtype=np.float32).reshape(2, 3), stream)
    for taken in (torch.from_dlpack(ours), torch.as_tensor(ours, device="cuda")):
        assert taken.data_ptr() == ours.pointer
        np.testing.assert_array_equal(taken.cpu().numpy(), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.gpu
def test_a_graph_on_a_gpu():
    try:
        stream = Stream(Device())
    except CudaUnavailable as error:
        pytest.skip(str(error))
    array = DeviceArray.from_host(np.ones(5, np.int32), stream)
    with Graph.capture(stream) as graph:
        array.fill_zero(stream)
    np.testing.assert_array_equal(array.to_host(stream), 1)
    graph.launch(stream)
    np.testing.assert_array_equal(array.to_host(stream), 0)
