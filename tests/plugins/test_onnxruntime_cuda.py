"""The operators that ONNX Runtime's CUDA provider takes, called as it calls them: a stand-in of its
C API hands over device memory and a stream of the emulated CUDA driver."""

from __future__ import annotations

import concurrent.futures
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dela.plugins import native
from onnx_operators import (
    residual_case,
    residual_model,
    residual_reference,
    spamp_case,
    spamp_model,
    spamp_reference,
    spse_case,
    spse_model,
    spse_reference,
)
from standin_onnxruntime import Kernel, OnnxRuntime, OperatorError, Tensor

CUDA = "CUDAExecutionProvider"
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Arithmetic is float32; the output is rounded once to the features' type.
ROUNDING = {"float32": 1e-5, "float16": 2.0**-11 + 1e-5, "bfloat16": 2.0**-8 + 1e-5}
SIZES = [(70, 30, 7, 20), (70, 70, 24, 32), (3, 5, 9, 8), (1, 1, 1, 4), (10, 0, 3, 8), (0, 0, 3, 8)]
SPAMP_FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "SPAMP": (spamp_case, spamp_reference),
    "SPAMPResidual": (residual_case, residual_reference),
}


@pytest.fixture(scope="module")
def runtime() -> OnnxRuntime:
    return OnnxRuntime(native.library_path())


class OnDevice:
    """Calls an operator with numpy arrays: up, one call, and down after the stream."""

    def __init__(self, runtime: OnnxRuntime) -> None:
        from dela.plugins.cuda.driver import Device, Stream

        self.runtime, self.device = runtime, Device()
        self.stream = Stream(self.device)

    def up(self, array: np.ndarray) -> tuple[Any, Tensor]:
        from dela.plugins.cuda.arrays import DeviceArray

        dtype = array.dtype.name
        bits = array.view(np.uint16) if dtype == "bfloat16" else array
        there = DeviceArray.from_host(bits, self.stream)
        return there, Tensor(there.pointer, dtype, array.shape)

    def prepared(self, kernel: Kernel, arrays: list[np.ndarray]) -> tuple[Callable[[], None], Any]:
        """A function that makes the call, and one that fetches what it wrote."""
        from dela.plugins.cuda.arrays import DeviceArray

        there = [self.up(array) for array in arrays]
        outputs: list[tuple[Any, np.dtype]] = []

        def make_output(shape: tuple[int, ...]) -> Tensor:
            dtype = arrays[0].dtype
            stored = np.uint16 if dtype == ml_dtypes.bfloat16 else dtype
            outputs.append((DeviceArray.empty(shape, stored, self.device), dtype))
            return Tensor(outputs[-1][0].pointer, dtype.name, shape)

        def call() -> None:
            kernel.run([tensor for _, tensor in there], make_output, self.stream.handle)

        def fetch() -> np.ndarray:
            array, dtype = outputs[-1]
            return array.to_host(self.stream).view(dtype)

        return call, fetch

    def run(self, name: str, case: dict[str, np.ndarray], **attributes: float) -> np.ndarray:
        arrays = list(case.values())
        kernel = self.runtime.kernel(name, CUDA, arrays[0].dtype.name, **attributes)
        call, fetch = self.prepared(kernel, arrays)
        call()
        kernel.close()
        return fetch()


@pytest.fixture
def on_device(emulated_cuda, runtime) -> OnDevice:
    return OnDevice(runtime)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    largest = np.abs(expected).max() if expected.size else 0.0
    error = np.abs(found.astype(np.float64) - expected)
    assert np.all(error <= tolerance * (np.abs(expected) + largest))


@pytest.mark.parametrize(
    ("attributes", "directions"), [(0, 0), (1, 0), (3, 0), (4, 0), (4, 3), (6, 2)]
)
@pytest.mark.parametrize(("n", "k", "channels"), [(70, 7, 20), (40, 24, 33), (1, 5, 3), (0, 4, 8)])
def test_spse_gives_the_float64_answer(on_device, n, k, channels, attributes, directions):
    epsilon = 1.0001 if directions else 1e-8
    case = spse_case(1, n, k, channels, attributes, directions)
    found = on_device.run("SPSE", case, epsilon=epsilon, directions=directions)
    expected = np.zeros((0, channels))
    if n:
        expected = spse_reference(**case, epsilon=epsilon, directions=directions)
    assert_close(found, expected, 5e-5)


def test_spse_gives_a_thread_several_rows_of_a_large_cloud(on_device):
    case = spse_case(2, 9000, 2, 64)
    found = on_device.run("SPSE", case, epsilon=1e-8, directions=0)
    assert_close(found, spse_reference(**case, epsilon=1e-8), 5e-5)


@pytest.mark.parametrize("form", SPAMP_FORMS)
@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize(("n", "m", "k", "channels"), SIZES)
def test_spamp_gives_the_float64_answer(on_device, form, dtype, n, m, k, channels):
    make, reference = SPAMP_FORMS[form]
    case = make(3, n, m, k, channels, NUMPY[dtype])
    found = on_device.run(form, case)
    assert found.dtype == NUMPY[dtype]
    assert_close(found, reference(**case) if m else np.zeros((0, channels)), ROUNDING[dtype])


@pytest.mark.parametrize("value", [-1, 70, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("form", SPAMP_FORMS)
def test_an_index_outside_the_points_reads_nothing_outside(on_device, form, value):
    make, reference = SPAMP_FORMS[form]
    case = make(4, 70, 30, 7, 20)
    meant = {name: array.copy() for name, array in case.items()}
    case["neighbors"][3, 2], meant["neighbors"][3, 2] = value, case["centers"][3]
    case["centers"][5], meant["centers"][5] = value, 0
    assert_close(on_device.run(form, case), reference(**meant), 1e-5)


def test_a_neighbor_that_is_not_a_number_never_wins(on_device):
    case = residual_case(5, 30, 20, 4, 8)
    case["features"][7] = np.nan
    case["neighbors"][case["neighbors"] == 7] = 8
    case["centers"][case["centers"] == 7] = 9
    case["neighbors"][:, 1] = 7
    found = on_device.run("SPAMPResidual", case)
    others = {**case, "neighbors": case["neighbors"][:, [0, 2, 3]]}
    assert_close(found, residual_reference(**others), 1e-5)


def test_a_call_queues_one_kernel_and_waits_for_nothing(on_device, emulated_cuda):
    case = residual_case(6, 70, 30, 7, 20)
    kernel = on_device.runtime.kernel("SPAMPResidual", CUDA, "float32")
    call, fetch = on_device.prepared(kernel, list(case.values()))
    call()
    on_device.stream.synchronize()
    emulated_cuda.defer = True
    names = ("allocations", "host_allocations", "copies", "synchronisations")
    before = [emulated_cuda.count(name) for name in names]
    launches = emulated_cuda.launches()
    call()
    spent = [emulated_cuda.count(name) - was for name, was in zip(names, before, strict=True)]
    assert spent == [1, 0, 0, 0]  # the output, which this test allocates
    assert emulated_cuda.launches() == launches  # deferred: nobody has waited
    assert_close(fetch(), residual_reference(**case), 1e-5)
    assert emulated_cuda.launches() - launches == {"dela_spamp_residual_f32": 1}


def test_calls_are_captured_into_a_graph(on_device):
    from dela.plugins.cuda.driver import Graph

    case = spse_case(7, 70, 7, 20)
    expected = on_device.run("SPSE", case, epsilon=1e-8, directions=0)  # loads the kernels
    kernel = on_device.runtime.kernel("SPSE", CUDA, "float32", epsilon=1e-8, directions=0)
    inputs = [on_device.up(array) for array in case.values()]
    out, target = on_device.up(np.zeros((70, 20), np.float32))
    on_device.stream.synchronize()
    with Graph.capture(on_device.stream) as graph:
        tensors = [tensor for _, tensor in inputs]
        kernel.run(tensors, lambda shape: target, on_device.stream.handle)
    assert not out.to_host(on_device.stream).any()
    graph.launch(on_device.stream)
    np.testing.assert_array_equal(out.to_host(on_device.stream), expected)


def test_a_call_runs_in_the_context_of_its_stream(on_device):
    """With several GPUs the calling thread may stand on another than the session's."""
    from dela.plugins.cuda.driver import call

    case = spamp_case(8, 70, 30, 7, 20)
    kernel = on_device.runtime.kernel("SPAMP", CUDA, "float32")
    tensors = [on_device.up(array) for array in case.values()]
    out, target = on_device.up(np.zeros((30, 20), np.float32))
    other = call("cuCtxCreate", None, 0, call("cuDeviceGet", 0))
    try:
        arguments = [tensor for _, tensor in tensors]
        kernel.run(arguments, lambda shape: target, on_device.stream.handle)
        assert int(call("cuCtxGetCurrent")) == int(other)
    finally:
        call("cuCtxDestroy", other)
    assert_close(out.to_host(on_device.stream), spamp_reference(**case), 1e-5)


def test_a_thread_without_a_context_is_refused(on_device):
    case = spamp_case(8, 7, 3, 2, 4)
    kernel = on_device.runtime.kernel("SPAMP", CUDA, "float32")
    tensors = [on_device.up(array) for array in case.values()]
    _, target = on_device.up(np.zeros((3, 4), np.float32))
    arguments = [tensor for _, tensor in tensors]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        run = pool.submit(kernel.run, arguments, lambda shape: target, on_device.stream.handle)
        with pytest.raises(OperatorError, match="SPAMP: the thread has no CUDA context"):
            run.result()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((0, 8), np.float32), "points": np.zeros((0, 3), np.float32)},
         "5 rows of neighbors, but there are no points"),
        ({"base": np.zeros((4, 8), np.float32)}, r"base is \[4, 8\]; expected \[5, 8\]"),
        ({"scale": np.zeros(6, np.float32)}, "scale has 6 values; 8 channels"),
        ({"features": np.zeros((9, 6), np.float32)}, "features has 6 channels"),
        ({"neighbors": np.zeros((5, 0), np.int32)}, "neighbors has 0 columns"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(on_device, change, message):
    case = {**residual_case(9, 9, 5, 4, 8), **change}
    with pytest.raises(OperatorError, match=f"SPAMPResidual: {message}"):
        on_device.run("SPAMPResidual", case)


@pytest.mark.parametrize(
    ("index", "name"), [(0, "features"), (1, "points"), (4, "weight"), (5, "base"), (6, "scale")]
)
def test_an_address_that_the_kernels_cannot_load_from_is_refused(on_device, index, name):
    case = residual_case(10, 9, 5, 4, 8)
    there = [on_device.up(array) for array in case.values()]
    tensors = [tensor for _, tensor in there]
    tensors[index].address += 4
    kernel = on_device.runtime.kernel("SPAMPResidual", CUDA, "float32")
    out, target = on_device.up(np.zeros((5, 8), np.float32))
    with pytest.raises(OperatorError, match=f"{name} starts at 0x.*a multiple of 16"):
        kernel.run(tensors, lambda shape: target, on_device.stream.handle)
    assert not out.to_host(on_device.stream).any()


def copy_of_library(folder: Path, *images: Path) -> Path:
    """The library elsewhere, with nothing loaded yet, and some images beside it."""
    (folder / "cuda" / "images").mkdir(parents=True)
    for image in images:
        shutil.copy(image, folder / "cuda" / "images")
    return Path(shutil.copy(native.library_path(), folder))


def images(*patterns: str) -> list[Path]:
    from dela.plugins.cuda.kernels import IMAGES

    return [path for pattern in patterns for path in IMAGES.glob(f"operators.{pattern}")]


def test_a_gpu_without_kernels_is_refused_before_the_session_runs(emulated_cuda, tmp_path):
    from dela.plugins.cuda.driver import Device

    emulated_cuda.capability = (7, 5)
    Device().make_current()
    runtime = OnnxRuntime(copy_of_library(tmp_path, *images("*")))
    with pytest.raises(OperatorError, match=r"SPAMP: the GPU has compute capability 7\.5; .* 8\.0"):
        runtime.kernel("SPAMP", CUDA, "float32")


def test_missing_images_are_told_with_their_place(emulated_cuda, tmp_path):
    from dela.plugins.cuda.driver import Device

    Device().make_current()
    runtime = OnnxRuntime(copy_of_library(tmp_path))
    with pytest.raises(OperatorError, match=rf"SPSE: {tmp_path}/cuda/images has no kernels.*reins"):
        runtime.kernel("SPSE", CUDA, "float32", epsilon=1e-8, directions=0)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 1)])
def test_every_gpu_from_ampere_on_has_an_image(emulated_cuda, tmp_path, capability):
    emulated_cuda.capability = capability
    on_device = OnDevice(OnnxRuntime(copy_of_library(tmp_path, *images("*"))))
    case = spamp_case(11, 20, 10, 3, 8)
    assert_close(on_device.run("SPAMP", case), spamp_reference(**case), 1e-5)


def test_a_damaged_binary_leaves_the_choice_to_the_next_image(emulated_cuda, tmp_path):
    emulated_cuda.capability = (8, 9)
    library = copy_of_library(tmp_path, *images("sm_8*.cubin", "*.ptx"))
    for name in ("operators.sm_89.cubin", "operators.sm_86.cubin", "operators.sm_80.cubin"):
        path = tmp_path / "cuda" / "images" / name
        assert path.exists()
        path.write_bytes(b"this is no image")
    on_device = OnDevice(OnnxRuntime(library))
    case = spamp_case(12, 20, 10, 3, 8)
    assert_close(on_device.run("SPAMP", case), spamp_reference(**case), 1e-5)


def test_without_a_driver_the_operators_are_refused_in_words(runtime):
    """In a process of its own, whose library path has no driver."""
    program = (
        "import ctypes, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from standin_onnxruntime import OnnxRuntime\n"
        "try:\n"
        "    ctypes.CDLL('libcuda.so.1')\n"
        "    print('there is a driver')\n"
        "except OSError:\n"
        "    runtime = OnnxRuntime(sys.argv[2])\n"
        "    runtime.kernel('SPAMP', None, 'float32').close()\n"
        "    try:\n"
        "        runtime.kernel('SPAMP', 'CUDAExecutionProvider', 'float32')\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
    )
    helpers = Path(sys.modules["standin_onnxruntime"].__file__ or "").parent
    done = subprocess.run(
        [sys.executable, "-c", program, str(helpers), str(native.library_path())],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if "there is a driver" in done.stdout:
        pytest.skip("this machine has a CUDA driver")
    assert done.stdout.startswith("SPAMP: no NVIDIA driver found (libcuda.so.1)")


def test_both_providers_are_offered_the_same_operators(runtime):
    for name, types in (("SPSE", ["float32"]), ("SPAMP", list(NUMPY)), ("SPAMPResidual", NUMPY)):
        for dtype in types:
            attributes = {"epsilon": 1e-8, "directions": 0} if name == "SPSE" else {}
            runtime.kernel(name, None, dtype, **attributes).close()
    assert len(runtime.operators) == 2 * 7


GEOMETRY = r"""
#include <cstdio>
#include "cuda/launch.h"
int main() {
  using namespace dela::cuda;
  long long n, c, e, l, type, residual;
  while (std::scanf("%lld %lld %lld %lld %lld %lld", &n, &c, &e, &l, &type, &residual) == 6) {
    const int rows = spse_rows(n, c);
    const auto spamp = spamp_kernel(int(type), c, residual != 0);
    std::printf("%s %d %lld %s %d\n", kKernelNames[spse_kernel(int(e), int(l))], rows,
                static_cast<long long>(divide_up(spse_threads(n, c, rows), kThreads)),
                kKernelNames[spamp.number], spamp.width);
  }
}
"""


def test_the_geometry_in_c_is_that_of_python(tmp_path):
    from dela.plugins.cuda import launch

    if shutil.which("g++") is None:
        pytest.skip("no g++")
    source = tmp_path / "geometry.cpp"
    source.write_text(GEOMETRY)
    plugins = Path(__file__).parents[2] / "plugins"
    subprocess.run(["g++", "-std=c++17", "-I", plugins, source, "-o", tmp_path / "run"], check=True)
    rng = np.random.default_rng(0)
    lines, expected = [], []
    for shape in [(0, 0), (1, 0), (4, 0), (4, 3), (5, 0), (0, 3), (3, 3), (4, 1)]:
        for dtype_number, dtype in enumerate(NUMPY):
            n, c = int(rng.integers(1, 200_000)), 4 * int(rng.integers(1, 160))
            for residual in (0, 1):
                lines.append(f"{n} {c} {shape[0]} {shape[1]} {dtype_number} {residual}")
                rows = launch.spse_rows(n, c)
                vector, width = launch.spamp_vector(dtype, c)
                name = f"dela_spamp_{'residual_' * residual}{vector}"
                expected.append(
                    f"dela_spse_{launch.spse_shape(*shape)} {rows} {launch.spse_grid(n, c, rows)} "
                    f"{name} {width}"
                )
    done = subprocess.run(
        [tmp_path / "run"], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == expected


@pytest.mark.gpu
def test_onnxruntime_gives_no_operator_to_the_cpu():
    """On a real GPU: a session without the CPU as a way out."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime is built without CUDA")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    spse = {"epsilon": 1e-8, "directions": 0}
    for model, case, expected in (
        (spse_model(**spse), spse_case(1, 900, 24, 64), spse_reference),
        (spamp_model(), spamp_case(1, 900, 300, 24, 64), spamp_reference),
        (residual_model(), residual_case(1, 900, 300, 24, 64), residual_reference),
    ):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.register_custom_ops_library(str(native.library_path()))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CUDA])
        (found,) = session.run(None, case)
        if expected is spse_reference:
            assert_close(found, spse_reference(**case, epsilon=1e-8), 5e-5)
        else:
            assert_close(found, expected(**case), 1e-5)
