"""The emulated CUDA driver: what it runs, and the faults it must catch."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

KERNELS = Path(__file__).parent / "emulator_kernels.cu"
FLOAT, INT, POINTER = ctypes.c_float, ctypes.c_int, ctypes.c_void_p


class Cuda:
    """The driver's functions as ``cuda.scale(...)``, failing where they fail, and a stream."""

    def __init__(self, emulated_cuda) -> None:
        from cuda.bindings import driver

        self.driver = driver
        driver.cuInit(0)
        self.context = self.call("cuDevicePrimaryCtxRetain", 0)
        self.call("cuCtxSetCurrent", self.context)
        emulated_cuda.add_kernels(KERNELS)
        # Kept, as a module's image is read when it is loaded.
        self.image = emulated_cuda.image(KERNELS)
        self.module = self.call("cuModuleLoadData", self.image)
        self.stream = self.call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)

    def code(self, name: str, *arguments: Any) -> str:
        """The name of the status that a call returns."""
        return getattr(self.driver, name)(*arguments)[0].name.removeprefix("CUDA_")

    def call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self.driver, name)(*arguments)
        assert status.name == "CUDA_SUCCESS", f"{name}: {status.name}"
        return values[0] if values else None

    def up(self, array: np.ndarray) -> int:
        address = self.empty(array.nbytes)
        self.call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self.stream)
        return address

    def empty(self, size: int) -> int:
        return int(self.call("cuMemAlloc", size))

    def down(self, address: int, like: np.ndarray) -> np.ndarray:
        array = np.empty_like(like)
        self.call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self.stream)
        self.call("cuStreamSynchronize", self.stream)
        return array

    def pinned(self, like: np.ndarray) -> np.ndarray:
        address = int(self.call("cuMemHostAlloc", like.nbytes, 0))
        data = (ctypes.c_char * like.nbytes).from_address(address)
        return np.frombuffer(data, like.dtype).reshape(like.shape)

    def launch(
        self, name: str, blocks: Any, threads: Any, values: tuple, types: tuple, stream: Any = None
    ) -> str:
        """The status of a launch."""
        grid = (blocks,) if isinstance(blocks, int) else blocks
        block = (threads,) if isinstance(threads, int) else threads
        return self.code(
            "cuLaunchKernel", self.call("cuModuleGetFunction", self.module, name.encode()),
            *(*grid, 1, 1)[:3], *(*block, 1, 1)[:3], 0, stream or self.stream, (values, types), 0,
        )  # fmt: skip

    def scale(self, source: int, factor: float, n: int, target: int, stream: Any = None) -> None:
        values, types = (source, factor, n, target), (POINTER, FLOAT, INT, POINTER)
        assert self.launch("scale", -(-n // 64), 64, values, types, stream) == "SUCCESS"

    def capture(self, stream: Any = None, mode: str = "GLOBAL") -> None:
        modes = self.driver.CUstreamCaptureMode
        mode = getattr(modes, f"CU_STREAM_CAPTURE_MODE_{mode}")
        self.call("cuStreamBeginCapture", stream or self.stream, mode)

    def end_capture(self) -> Any:
        """The executable graph of a capture."""
        return self.call("cuGraphInstantiate", self.call("cuStreamEndCapture", self.stream), 0)


@pytest.fixture
def cuda(emulated_cuda):
    return Cuda(emulated_cuda)


VALUES = np.arange(1, 301, dtype=np.float32)


# ---- the process ----


def test_runs_in_a_process_of_its_own(emulated_cuda, request):
    assert "EMULATED_CUDA_PIPES" in os.environ
    with open("/proc/self/maps") as maps:
        assert "build/cuda_emulator/driver" in maps.read()


def test_a_test_without_the_fixture_has_no_emulated_driver():
    assert "EMULATED_CUDA_PIPES" not in os.environ
    with open("/proc/self/maps") as maps:
        assert "cuda_emulator" not in maps.read()


def pytest_on(folder: Path, source: str) -> subprocess.CompletedProcess:
    (folder / "conftest.py").write_text('pytest_plugins = ["cuda_emulator.plugin"]\n')
    (folder / "test_inner.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\n")
    tests = str(Path(__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_inner.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": tests},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def needs_emulator():
    from cuda_emulator import build

    reason = build.missing()
    if reason:
        pytest.skip(reason)


def test_a_crash_fails_its_own_test_only(tmp_path, needs_emulator):
    done = pytest_on(
        tmp_path,
        "import os\n"
        "def test_before(emulated_cuda): pass\n"
        "def test_crash(emulated_cuda): os._exit(7)\n"
        "def test_after(emulated_cuda): pass\n"
        "def test_outside(): pass\n",
    )
    assert "1 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    assert "ended with status 7" in done.stdout


def test_a_fault_nobody_expected_fails_the_test(tmp_path, needs_emulator):
    done = pytest_on(
        tmp_path,
        "def test_double_free(emulated_cuda):\n"
        "    from cuda.bindings import driver as d\n"
        "    d.cuInit(0)\n"
        "    d.cuCtxSetCurrent(d.cuDevicePrimaryCtxRetain(0)[1])\n"
        "    address = d.cuMemAlloc(64)[1]\n"
        "    d.cuMemFree(address)\n"
        "    d.cuMemFree(address)\n",
    )
    assert "second free" in done.stdout and done.returncode == 1, done.stdout + done.stderr


def test_host_code_that_reads_device_memory_dies_of_it(tmp_path, needs_emulator):
    done = pytest_on(
        tmp_path,
        "import ctypes\n"
        "def test_read(emulated_cuda):\n"
        "    from cuda.bindings import driver as d\n"
        "    d.cuInit(0)\n"
        "    d.cuCtxSetCurrent(d.cuDevicePrimaryCtxRetain(0)[1])\n"
        "    ctypes.string_at(int(d.cuMemAlloc(64)[1]), 4)\n",
    )
    assert "host code touched address" in done.stdout and done.returncode == 1
    assert "byte 0 of an allocation of 64 bytes of device memory" in done.stdout


# ---- what it runs ----


def test_a_kernel_between_two_copies(cuda):
    target = cuda.empty(VALUES.nbytes)
    cuda.scale(cuda.up(VALUES), 3.0, len(VALUES), target)
    assert np.array_equal(cuda.down(target, VALUES), VALUES * 3)


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_barriers_shared_memory_warps_and_atomics(cuda, emulated_cuda, order):
    emulated_cuda.order = order
    source, sums = cuda.up(VALUES), cuda.empty(2 * 4)
    types = (POINTER, INT, POINTER)
    assert cuda.launch("block_sums", 2, 256, (source, len(VALUES), sums), types) == "SUCCESS"
    expected = [VALUES[:256].sum(), VALUES[256:].sum()]
    assert np.array_equal(cuda.down(sums, np.empty(2, np.float32)), expected)

    numbers = np.random.default_rng(0).integers(-9, 9, 128).astype(np.int32)
    source, sums, positive = cuda.up(numbers), cuda.empty(512), cuda.empty(16)
    types = (POINTER, POINTER, POINTER)
    assert cuda.launch("warp_sums", 2, 64, (source, sums, positive), types) == "SUCCESS"
    warps = numbers.reshape(4, 32)
    assert np.array_equal(cuda.down(sums, numbers), np.repeat(warps.sum(1), 32))
    assert np.array_equal(cuda.down(positive, numbers[:4]), (warps > 0).sum(1))

    count = cuda.empty(4)
    cuda.call("cuMemsetD32Async", count, 5, 1, cuda.stream)
    types = (POINTER, INT, POINTER)
    assert cuda.launch("count_even", 3, 50, (source, 128, count), types) == "SUCCESS"
    assert cuda.down(count, np.empty(1, np.uint32))[0] == 5 + (numbers % 2 == 0).sum()


def test_blocks_of_two_dimensions_and_wide_types(cuda):
    four = np.arange(40, dtype=np.float32)
    target = cuda.empty(80)
    values, types = (cuda.up(four), 10, target), (POINTER, INT, POINTER)
    assert cuda.launch("pick", 1, (4, 3), values, types) == "SUCCESS"
    assert np.array_equal(cuda.down(target, np.empty(10, np.float64)), four[3::4])


@pytest.mark.parametrize("defer", [False, True])
def test_streams_and_events_order_their_work(cuda, emulated_cuda, defer):
    emulated_cuda.defer = defer
    driver, n = cuda.driver, len(VALUES)
    other = cuda.call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
    event = cuda.call("cuEventCreate", 0)
    first, second, third = cuda.up(VALUES), cuda.empty(VALUES.nbytes), cuda.empty(VALUES.nbytes)
    cuda.scale(first, 2.0, n, second)
    cuda.call("cuEventRecord", event, cuda.stream)
    cuda.call("cuStreamWaitEvent", other, event, 0)
    cuda.scale(second, 5.0, n, third, other)
    if defer:
        assert cuda.code("cuEventQuery", event) == "ERROR_NOT_READY"
    cuda.call("cuStreamSynchronize", other)
    assert cuda.code("cuEventQuery", event) == "SUCCESS"
    assert np.array_equal(cuda.down(third, VALUES), VALUES * 10)


def test_polling_deferred_work_comes_to_an_end(cuda, emulated_cuda):
    emulated_cuda.defer = True
    target = cuda.empty(VALUES.nbytes)
    cuda.scale(cuda.up(VALUES), 2.0, len(VALUES), target)
    polls = 0
    while cuda.code("cuStreamQuery", cuda.stream) == "ERROR_NOT_READY":
        polls += 1
    assert 0 < polls < 10


@pytest.mark.parametrize("defer", [False, True])
def test_a_graph_is_replayed_with_what_its_arrays_then_hold(cuda, emulated_cuda, defer):
    emulated_cuda.defer = defer
    source, target = cuda.up(VALUES), cuda.empty(VALUES.nbytes)
    cuda.call("cuStreamSynchronize", cuda.stream)
    before = emulated_cuda.count("launches")
    cuda.capture()
    cuda.scale(source, 2.0, len(VALUES), target)
    cuda.scale(target, 2.0, len(VALUES), target)
    graph = cuda.end_capture()
    assert emulated_cuda.count("launches") == before  # a capture runs nothing
    for factor in (1, 7):
        given = VALUES * factor
        cuda.call("cuMemcpyHtoDAsync", source, given.ctypes.data, given.nbytes, cuda.stream)
        cuda.call("cuGraphLaunch", graph, cuda.stream)
        assert np.array_equal(cuda.down(target, VALUES), given * 4)
    assert emulated_cuda.count("launches") == before + 4


def test_another_stream_joins_a_capture_through_events(cuda):
    driver, n = cuda.driver, len(VALUES)
    other = cuda.call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
    forked, joined = (cuda.call("cuEventCreate", 0) for _ in range(2))
    source, target = cuda.up(VALUES), cuda.empty(VALUES.nbytes)

    def fork() -> None:
        cuda.capture()
        cuda.call("cuEventRecord", forked, cuda.stream)
        cuda.call("cuStreamWaitEvent", other, forked, 0)
        cuda.scale(source, 2.0, n, target, other)

    fork()
    cuda.call("cuEventRecord", joined, other)
    cuda.call("cuStreamWaitEvent", cuda.stream, joined, 0)
    cuda.scale(target, 3.0, n, target)
    cuda.call("cuGraphLaunch", cuda.end_capture(), cuda.stream)
    assert np.array_equal(cuda.down(target, VALUES), VALUES * 6)
    fork()
    assert cuda.code("cuStreamEndCapture", cuda.stream) == "ERROR_STREAM_CAPTURE_UNJOINED"


def test_a_graph_takes_other_arguments_of_the_same_shape(cuda):
    source, target = cuda.up(VALUES), cuda.empty(VALUES.nbytes)
    graphs = []
    for factor in (2.0, 3.0):
        cuda.capture()
        cuda.scale(source, factor, len(VALUES), target)
        graphs.append(cuda.call("cuStreamEndCapture", cuda.stream))
    executable = cuda.call("cuGraphInstantiate", graphs[0], 0)
    cuda.call("cuGraphExecUpdate", executable, graphs[1])
    cuda.call("cuGraphLaunch", executable, cuda.stream)
    assert np.array_equal(cuda.down(target, VALUES), VALUES * 3)
    cuda.capture()
    cuda.call("cuMemsetD32Async", target, 0, len(VALUES), cuda.stream)
    other = cuda.call("cuStreamEndCapture", cuda.stream)
    status = cuda.code("cuGraphExecUpdate", executable, other)
    assert status == "ERROR_GRAPH_EXEC_UPDATE_FAILURE"


def test_pinned_memory_and_copies_between_devices(cuda):
    host = cuda.pinned(VALUES)
    host[:] = VALUES
    first, second = cuda.up(host), cuda.empty(VALUES.nbytes)
    cuda.call("cuMemcpyDtoDAsync", second, first, VALUES.nbytes, cuda.stream)
    host[:] = 0
    cuda.call("cuMemcpyDtoHAsync", host.ctypes.data, second, host.nbytes, cuda.stream)
    cuda.call("cuStreamSynchronize", cuda.stream)
    assert np.array_equal(host, VALUES)


def test_memory_runs_out_where_the_test_says(cuda, emulated_cuda):
    emulated_cuda.memory = emulated_cuda.count("device_bytes") + 1000
    address = cuda.empty(800)
    assert cuda.code("cuMemAlloc", 300) == "ERROR_OUT_OF_MEMORY"
    cuda.call("cuMemFree", address)
    cuda.empty(300)


# ---- images ----


def test_a_driver_refuses_images_it_could_not_run(cuda, emulated_cuda):
    newer = cuda.image.replace(b".version 7.0", b".version 9.1")
    assert cuda.code("cuModuleLoadData", newer) == "ERROR_UNSUPPORTED_PTX_VERSION"
    emulated_cuda.capability = (7, 5)
    assert cuda.code("cuModuleLoadData", cuda.image) == "ERROR_NO_BINARY_FOR_GPU"
    assert cuda.code("cuModuleLoadData", b"no image\0") == "ERROR_INVALID_PTX"


def test_an_image_must_hold_the_kernel_with_the_parameters_of_its_source(cuda):
    assert cuda.code("cuModuleGetFunction", cuda.module, b"absent") == "ERROR_NOT_FOUND"
    other = cuda.image.replace(b".b8 scale_param_1[4]", b".b8 scale_param_1[8]")
    module = cuda.call("cuModuleLoadData", other)
    assert cuda.code("cuModuleGetFunction", module, b"scale") == "ERROR_INVALID_IMAGE"


# ---- planted faults: in kernels ----


@pytest.mark.parametrize("name,values,types,fault", [
    ("write_one_too_far", ("to", 300), (POINTER, INT),
     r"kernel write_one_too_far, block \(4, 0, 0\), thread \(44, 0, 0\): write of 4 bytes at "
     r"0x[0-9a-f]+, 0 bytes past the end of an allocation of 1200 bytes"),
    ("read_before", ("to", "to"), (POINTER, POINTER),
     "read of 4 bytes at .*, 4 bytes before an allocation of 1200 bytes"),
    ("read_misaligned", ("to", "to"), (POINTER, POINTER), "read_misaligned.* misaligned access"),
    ("split_barrier", ("to",), (POINTER,), "split_barrier.* waits at a barrier"),
    ("past_shared", ("to",), (POINTER,), "past_shared.*read of 4 bytes"),
    ("divide", ("to", 0, "to"), (POINTER, INT, POINTER), "divide.*division by zero"),
    ("scale", (0, 1.0, 300, "to"), (POINTER, FLOAT, INT, POINTER), "scale.*a null pointer"),
    ("scale", ("host", 1.0, 300, "to"), (POINTER, FLOAT, INT, POINTER),
     "scale.*memory that CUDA did not allocate"),
], ids=lambda value: value if isinstance(value, str) and " " not in value else "")  # fmt: skip
def test_a_fault_in_a_kernel_names_kernel_and_address(
    cuda, emulated_cuda, name, values, types, fault
):
    places = {"to": cuda.up(VALUES), "host": VALUES.ctypes.data}
    values = tuple(
        places.get(value, value) if isinstance(value, str) else value for value in values
    )
    blocks, threads = (5, 64) if "scale" in name or "write" in name else (1, 32)
    with emulated_cuda.expect_fault(fault):
        assert cuda.launch(name, blocks, threads, values, types) == "SUCCESS"
    # The error comes with the next call, and stays.
    for _ in range(2):
        assert cuda.code("cuStreamSynchronize", cuda.stream).startswith("ERROR_")
    assert cuda.code("cuMemAlloc", 16) != "SUCCESS"
    emulated_cuda.recover()
    cuda.scale(places["to"], 1.0, len(VALUES), places["to"])


def test_use_after_free(cuda, emulated_cuda):
    source, target = cuda.up(VALUES), cuda.empty(VALUES.nbytes)
    cuda.call("cuStreamSynchronize", cuda.stream)
    cuda.call("cuMemFree", source)
    with emulated_cuda.expect_fault("kernel scale.*a freed allocation of 1200 bytes"):
        cuda.scale(source, 2.0, len(VALUES), target)
    assert cuda.code("cuStreamSynchronize", cuda.stream) == "ERROR_ILLEGAL_ADDRESS"


def test_a_graph_that_uses_freed_memory(cuda, emulated_cuda):
    source, target = cuda.up(VALUES), cuda.empty(VALUES.nbytes)
    cuda.capture()
    cuda.scale(source, 2.0, len(VALUES), target)
    graph = cuda.end_capture()
    cuda.call("cuMemFree", target)
    with emulated_cuda.expect_fault("kernel scale.*write.*a freed allocation"):
        cuda.call("cuGraphLaunch", graph, cuda.stream)


def test_reading_what_nobody_wrote(cuda, emulated_cuda):
    emulated_cuda.check_initialised = True
    source, target = cuda.empty(VALUES.nbytes), cuda.empty(VALUES.nbytes)
    half = VALUES[:150]
    cuda.call("cuMemcpyHtoDAsync", source, half.ctypes.data, half.nbytes, cuda.stream)
    cuda.scale(source, 2.0, 150, target)
    with emulated_cuda.expect_fault("scale.*nobody wrote at .*, byte 600 of an allocation"):
        cuda.scale(source, 2.0, 151, target)


def test_a_missing_barrier_shows_as_junk(cuda, emulated_cuda):
    values, target = (cuda.up(VALUES), cuda.empty(256)), np.empty(64, np.float32)
    assert cuda.launch("no_barrier", 1, 64, values, (POINTER, POINTER)) == "SUCCESS"
    found = cuda.down(values[1], target)
    junk = np.frombuffer(bytes([emulated_cuda.junk] * 4), np.float32)[0]
    assert (found == junk).sum() == 32


# ---- planted faults: in what the host does ----


def test_a_missing_synchronisation_leaves_the_result_unmade(cuda, emulated_cuda):
    emulated_cuda.defer = True
    host = cuda.pinned(VALUES)
    host[:] = VALUES
    target = cuda.empty(VALUES.nbytes)
    cuda.scale(cuda.up(host), 2.0, len(VALUES), target)
    cuda.call("cuMemcpyDtoHAsync", host.ctypes.data, target, host.nbytes, cuda.stream)
    assert np.array_equal(host, VALUES)
    # A copy in the default stream does not wait for a non-blocking one.
    early = np.empty_like(VALUES)
    cuda.call("cuMemcpyDtoH", early.ctypes.data, target, early.nbytes)
    junk = np.frombuffer(bytes([emulated_cuda.junk] * 4), np.float32)[0]
    assert (early == junk).all()
    cuda.call("cuStreamSynchronize", cuda.stream)
    assert np.array_equal(host, VALUES * 2)


def test_a_staging_buffer_written_too_early_reaches_the_device(cuda, emulated_cuda):
    emulated_cuda.defer = True
    host = cuda.pinned(VALUES)
    host[:] = VALUES
    target = cuda.up(host)
    host[:] = -1  # before the copy has run
    assert (cuda.down(target, VALUES) == -1).all()


def test_a_missing_wait_between_streams(cuda, emulated_cuda):
    emulated_cuda.defer = True
    driver = cuda.driver
    other = cuda.call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
    emulated_cuda.check_initialised = True
    source, target = cuda.up(VALUES), cuda.empty(VALUES.nbytes)
    with emulated_cuda.expect_fault("scale.*nobody wrote"):
        cuda.scale(source, 2.0, len(VALUES), target, other)
        cuda.code("cuStreamSynchronize", other)


@pytest.mark.parametrize("mode", ["GLOBAL", "THREAD_LOCAL"])
@pytest.mark.parametrize("name,arguments", [
    ("cuMemAlloc", (64,)), ("cuMemHostAlloc", (64, 0)), ("cuCtxSynchronize", ()),
    ("cuStreamSynchronize", ("stream",)), ("cuStreamQuery", ("stream",)),
    ("cuMemAllocAsync", (64, "stream")), ("cuMemcpyDtoH", ("host", "device", 4)),
    ("cuMemcpyDtoHAsync", ("host", "device", 4, "stream")),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_no_capture_allows(cuda, name, arguments, mode):
    host = np.zeros(1, np.float32)
    named = {"stream": cuda.stream, "host": host.ctypes.data, "device": cuda.empty(64)}
    arguments = [named.get(a, a) if isinstance(a, str) else a for a in arguments]
    cuda.capture(mode=mode)
    assert cuda.code(name, *arguments) == "ERROR_STREAM_CAPTURE_UNSUPPORTED"
    assert cuda.code("cuStreamEndCapture", cuda.stream) == "ERROR_STREAM_CAPTURE_INVALIDATED"


def test_allocating_in_a_relaxed_capture_is_a_fault(cuda, emulated_cuda):
    cuda.capture(mode="RELAXED")
    with emulated_cuda.expect_fault("cuMemAlloc while a stream captures"):
        cuda.empty(64)
    cuda.end_capture()
    emulated_cuda.allow_capture_allocation = True
    cuda.capture(mode="RELAXED")
    cuda.empty(64)
    cuda.end_capture()


def test_the_default_stream_breaks_the_capture_of_a_blocking_one(cuda):
    stream = cuda.call("cuStreamCreate", 0)
    target = cuda.empty(64)
    cuda.capture(stream)
    assert cuda.code("cuMemsetD8Async", target, 0, 64, 0) == "ERROR_STREAM_CAPTURE_IMPLICIT"
    assert cuda.code("cuStreamEndCapture", stream) == "ERROR_STREAM_CAPTURE_INVALIDATED"


def test_waiting_in_a_capture_for_work_outside_it(cuda):
    event, other = cuda.call("cuEventCreate", 0), cuda.call("cuStreamCreate", 1)
    cuda.call("cuEventRecord", event, other)
    cuda.capture()
    status = cuda.code("cuStreamWaitEvent", cuda.stream, event, 0)
    assert status == "ERROR_STREAM_CAPTURE_ISOLATION"
    assert cuda.code("cuStreamEndCapture", cuda.stream) == "ERROR_STREAM_CAPTURE_INVALIDATED"


@pytest.mark.parametrize("blocks,threads,status", [
    (0, 64, "ERROR_INVALID_VALUE"), (1, 0, "ERROR_INVALID_VALUE"),
    (1, 1025, "ERROR_INVALID_VALUE"), ((1, 65536), 64, "ERROR_INVALID_VALUE"),
    (1, (1, 1, 65), "ERROR_INVALID_VALUE"), (1, (32, 64), "ERROR_INVALID_VALUE"),
    (1, 1024, "SUCCESS"),
])  # fmt: skip
def test_a_launch_has_limits(cuda, blocks, threads, status):
    target = cuda.empty(4096)
    values, types = (target, 1.0, 0, target), (POINTER, FLOAT, INT, POINTER)
    assert cuda.launch("scale", blocks, threads, values, types) == status


def test_more_threads_than_the_image_was_compiled_for(emulated_cuda):
    from dela.plugins.cuda.driver import CudaError, Device, Stream
    from dela.plugins.cuda.kernels import Kernels

    device = Device()
    kernels, sizes = Kernels.of(device), [np.int32(0)] * 7
    with pytest.raises(CudaError, match="dela_spse_0 with 1 blocks of 256 threads"):
        kernels.launch("dela_spse_0", 1, 256, (None, None, None, *sizes, None), Stream(device))


def test_wrong_handles(cuda):
    for name, arguments in (
        ("cuLaunchKernel", (0, 1, 1, 1, 1, 1, 1, 0, cuda.stream, 0, 0)),
        ("cuStreamSynchronize", (0x1234500,)),
        ("cuEventRecord", (0x1234500, cuda.stream)),
        ("cuModuleUnload", (0x1234500,)),
    ):
        assert cuda.code(name, *arguments) == "ERROR_INVALID_HANDLE", name


@pytest.mark.parametrize("size", [20, 28, 32])
def test_a_wrong_number_of_arguments(cuda, size):
    # pointer, float, int, pointer: 24 bytes.
    arguments = ctypes.create_string_buffer(64)
    length = ctypes.c_size_t(size)
    end, buffer, buffer_size = 0, 1, 2
    extra = (ctypes.c_void_p * 5)(
        buffer, ctypes.addressof(arguments), buffer_size, ctypes.addressof(length), end
    )
    function = cuda.call("cuModuleGetFunction", cuda.module, b"scale")
    status = cuda.code(
        "cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, cuda.stream, 0, ctypes.addressof(extra)
    )
    assert status == "ERROR_INVALID_VALUE"


def test_an_argument_that_is_missing_or_nowhere(cuda, capfd):
    function = cuda.call("cuModuleGetFunction", cuda.module, b"scale")
    value = ctypes.c_uint64(0)
    here = ctypes.addressof(value)
    for pointers in ((here, here, here, None), (here, here, 8, here)):
        array = (ctypes.c_void_p * 5)(*pointers, None)
        status = cuda.code(
            "cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, cuda.stream, ctypes.addressof(array), 0
        )
        assert status == "ERROR_INVALID_VALUE"
    assert "launch of scale: no argument 3; it takes 4" in capfd.readouterr().err


@pytest.mark.parametrize("bytes_", [1204, 1 << 20])
def test_a_copy_past_the_end(cuda, bytes_):
    target, host = cuda.empty(VALUES.nbytes), np.zeros(bytes_, np.uint8)
    for name, arguments in (
        ("cuMemcpyHtoDAsync", (target, host.ctypes.data, bytes_, cuda.stream)),
        ("cuMemcpyDtoH", (host.ctypes.data, target, bytes_)),
        ("cuMemsetD8Async", (target, 0, bytes_, cuda.stream)),
    ):
        assert cuda.code(name, *arguments) == "ERROR_INVALID_VALUE", name


def test_freeing_twice_and_freeing_what_was_never_allocated(cuda, emulated_cuda):
    address = cuda.empty(64)
    with emulated_cuda.expect_fault("free of .*, which is byte 16 of an allocation of 64 bytes"):
        assert cuda.code("cuMemFree", address + 16) == "ERROR_INVALID_VALUE"
    emulated_cuda.recover()
    cuda.call("cuMemFree", address)
    with emulated_cuda.expect_fault("second free"):
        assert cuda.code("cuMemFree", address) == "ERROR_INVALID_VALUE"


def test_pageable_copies_are_counted(cuda, emulated_cuda):
    before = emulated_cuda.count("pageable_copies")
    address = cuda.up(VALUES)
    assert emulated_cuda.count("pageable_copies") == before + 1
    host = cuda.pinned(VALUES)
    cuda.call("cuMemcpyDtoHAsync", host.ctypes.data, address, host.nbytes, cuda.stream)
    assert emulated_cuda.count("pageable_copies") == before + 1


# ---- other libraries on it, unmodified ----


def test_cuda_core_launches_and_replays_a_graph(emulated_cuda):
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    emulated_cuda.add_kernels(KERNELS)
    device = core.Device(0)
    device.set_current()
    stream = device.create_stream()
    kernel = core.ObjectCode.from_ptx(emulated_cuda.image(KERNELS)).get_kernel("scale")
    cuda = Cuda(emulated_cuda)
    cuda.stream = cuda.driver.CUstream(int(stream.handle))
    source, target = cuda.up(VALUES), cuda.empty(VALUES.nbytes)
    arguments = (source, np.float32(2), np.int32(len(VALUES)), target)
    config = core.LaunchConfig(grid=5, block=64)
    core.launch(stream, config, kernel, *arguments)
    assert np.array_equal(cuda.down(target, VALUES), VALUES * 2)

    builder = device.create_graph_builder().begin_building()
    core.launch(builder, config, kernel, target, *arguments[1:])
    graph = builder.end_building().complete()
    for power in (4, 8):
        graph.launch(stream)
        stream.sync()
        assert np.array_equal(cuda.down(target, VALUES), VALUES * power)


def test_pycuda_launches_and_hands_its_array_over(emulated_cuda):
    pycuda = pytest.importorskip("pycuda.driver", reason="PyCUDA is not installed")
    gpuarray = pytest.importorskip("pycuda.gpuarray", reason="PyCUDA is not installed")

    from dela.plugins.cuda.arrays import as_device_array
    from dela.plugins.cuda.driver import Device, Graph, Stream

    emulated_cuda.add_kernels(KERNELS)
    pycuda.init()
    context = pycuda.Device(0).retain_primary_context()
    context.push()
    try:
        module = pycuda.module_from_buffer(emulated_cuda.image(KERNELS))
        scale = module.get_function("scale")
        source, target = gpuarray.to_gpu(VALUES), gpuarray.empty(len(VALUES), np.float32)
        arguments = (source, np.float32(2), np.int32(len(VALUES)), target)
        scale(*arguments, grid=(5, 1), block=(64, 1, 1))
        assert np.array_equal(target.get(), VALUES * 2)
        with pytest.raises(pycuda.LogicError):
            scale(*arguments[:3], grid=(5, 1), block=(64, 1, 1))
        # PyCUDA has no graphs of its own; its array goes into ours.
        stream = Stream(Device())
        array = as_device_array(target, stream)
        assert array.pointer == int(target.gpudata)
        with Graph.capture(stream) as graph:
            array.fill_zero(stream)
        assert np.array_equal(array.to_host(stream), VALUES * 2)
        graph.launch(stream)
        stream.synchronize()
        assert not target.get().any()
    finally:
        context.pop()


# ---- whole programs ----


@pytest.mark.parametrize("defer,expected", [("0", b"4.0"), ("1", b"junk")])
def test_a_program_runs_on_it(tmp_path, needs_emulator, defer, expected):
    program = tmp_path / "program.py"
    program.write_text(
        "import ctypes\n"
        "from cuda.bindings import driver as d\n"
        "d.cuInit(0)\n"
        "d.cuCtxSetCurrent(d.cuDevicePrimaryCtxRetain(0)[1])\n"
        "stream, target = d.cuStreamCreate(1)[1], d.cuMemAlloc(4)[1]\n"
        "d.cuMemsetD32Async(target, 0x40800000, 1, stream)\n"
        "value = ctypes.c_float()\n"
        "d.cuMemcpyDtoH(ctypes.addressof(value), target, 4)\n"
        "print(value.value if value.value == 4 else 'junk')\n"
    )
    runner = Path(__file__).resolve().parents[1] / "cuda_emulator" / "run.py"
    printed = subprocess.run(
        [sys.executable, str(runner), str(program)],
        env=os.environ | {"EMULATED_CUDA_DEFER": defer},
        capture_output=True,
        check=True,
    ).stdout
    assert printed.strip() == expected
