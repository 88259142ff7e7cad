"""The operators on CUDA tensors: registration without a device, kernels on the emulated driver, and
everything again on a real GPU (marker ``gpu``)."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager

import numpy as np
import pytest

from dela.errors import InputError, MissingDependencyError
from onnx_operators import (
    residual_case,
    residual_reference,
    spamp_case,
    spamp_reference,
    spse_case,
    spse_reference,
)

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402  (needs torch)
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from dela import ops  # noqa: E402
from dela.ops import _cuda  # noqa: E402
from dela.plugins.cuda.arrays import DeviceArray  # noqa: E402
from dela.plugins.cuda.driver import CudaUnavailable, Device, Graph, Stream  # noqa: E402
from dela.plugins.cuda.kernels import Kernels  # noqa: E402

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
]

EPSILON = 1e-8
SPSE_SHAPES = [
    # n, k, channels, attributes, directions
    (70, 7, 20, 0, 0),
    (70, 24, 33, 4, 0),
    (40, 5, 16, 4, 3),
    (40, 5, 17, 6, 2),
    (20, 300, 8, 1, 0),
    (1, 1, 1, 0, 0),
    (0, 3, 8, 0, 0),
]
SPAMP_SHAPES = [
    # n, m, k, channels
    (70, 30, 7, 20),
    (70, 30, 7, 32),
    (40, 20, 300, 8),
    (1, 1, 1, 4),
    (10, 0, 3, 8),
    (0, 0, 3, 8),
]
RESIDUAL_ORDER = ("features", "points", "neighbors", "weight", "base", "scale", "centers")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def spse_tensors(shape, seed: int = 0) -> tuple[dict, float, int]:
    n, k, channels, attributes, directions = shape
    case = spse_case(seed, n, k, channels, attributes, directions)
    call = {name: torch.from_numpy(array) for name, array in case.items()}
    return call, 1.0001 if directions else EPSILON, directions


def spamp_tensors(shape, dtype=torch.float32, centers: bool = True, seed: int = 0) -> dict:
    n, m, k, channels = shape
    case = spamp_case(seed, n, m if centers else n, k, channels)
    call = {name: torch.from_numpy(array) for name, array in case.items()}
    call["features"] = call["features"].to(dtype)
    if not centers:
        call["centers"] = None
    return call


def assert_close(found, expected, tolerance: float) -> None:
    found, expected = found.detach().double().cpu(), torch.as_tensor(expected).double().cpu()
    assert found.shape == expected.shape
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


# ------------------------------------------------------------------------ no device needed


@contextmanager
def autocast_on_cuda(dtype):
    """``torch.autocast("cuda", dtype)``, which switches itself off where there is no GPU."""
    torch.set_autocast_dtype("cuda", dtype or torch.float16)
    torch.set_autocast_enabled("cuda", dtype is not None)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_and_dtypes_on_cuda(dtype, autocast):
    with FakeTensorMode(), torch.no_grad():
        features = torch.empty(10, 8, device="cuda", dtype=dtype)
        points = torch.empty(10, 3, device="cuda")
        neighbors = torch.empty(6, 4, device="cuda", dtype=torch.int32)
        centers = torch.empty(6, device="cuda", dtype=torch.int32)
        weight = torch.empty(4, 2, device="cuda")
        with autocast_on_cuda(autocast):
            if autocast is not None:
                points, weight = points.to(autocast), weight.to(autocast)
            out = ops.spamp(features, points, neighbors, weight, centers)
            base, scale = torch.empty_like(out), torch.empty(8, device="cuda")
            if autocast is not None:
                scale = scale.to(autocast)
            sum_ = ops.spamp_residual(features, points, neighbors, weight, base, scale, centers)
        for result in (out, sum_):
            assert (result.device.type, result.dtype) == ("cuda", dtype)
            assert result.shape == (6, 8)
        rows = torch.empty(10, 5, device="cuda", dtype=torch.int32)
        metrics = torch.empty(12, 20, device="cuda")
        with autocast_on_cuda(autocast):
            out = ops.spse(points, rows, metrics, EPSILON)
        assert (out.device.type, out.dtype, out.shape) == ("cuda", torch.float32, (10, 20))
        out, winner = torch.ops.dela.spse_training(points.float(), rows, metrics, EPSILON)
        gradient = torch.ops.dela.spse_backward(out, points.float(), rows, metrics, out, winner, 0)
        assert (winner.dtype, gradient.shape) == (torch.uint8, (12, 20))


def test_without_autocast_other_dtypes_are_refused():
    with FakeTensorMode(), pytest.raises(InputError, match=r"points is torch\.float16"):
        points = torch.empty(10, 3, device="cuda", dtype=torch.float16)
        neighbors = torch.empty(10, 4, device="cuda", dtype=torch.int32)
        ops.spse(points, neighbors, torch.empty(12, 8, device="cuda"), EPSILON)


def test_autocast_keeps_coordinates_and_gradients_in_float32():
    call = spamp_tensors(SPAMP_SHAPES[0], torch.bfloat16)
    weight = call.pop("weight").requires_grad_()
    points = call.pop("points").bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.spamp(points=points, weight=weight.bfloat16(), **call)
    expected = ops.spamp(points=points.float(), weight=weight.bfloat16().float(), **call)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    out.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_autocast_compiles():
    call = spamp_tensors(SPAMP_SHAPES[0], torch.bfloat16)
    call["points"] = call["points"].bfloat16()

    def run(call):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ops.spamp(**call)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(call), run(call), rtol=0, atol=0)


def test_a_missing_driver_is_told_in_one_line(monkeypatch):
    def unavailable(ordinal):
        raise CudaUnavailable("no NVIDIA driver found (libcuda.so.1)")

    monkeypatch.setattr(_cuda, "Device", unavailable)
    with pytest.raises(MissingDependencyError, match="no NVIDIA driver found"):
        _cuda._kernels.__wrapped__(0)


def test_tensors_on_several_devices_are_refused():
    call, epsilon, directions = spse_tensors(SPSE_SHAPES[0])
    call["weight"] = call["weight"].to("meta")
    with pytest.raises(InputError, match=r"weight is on meta, points on cpu.*weight.to\('cpu'\)"):
        _cuda.spse_forward(**call, epsilon=epsilon, directions=directions, with_winner=False)


def test_rows_around_no_points_are_refused():
    with pytest.raises(InputError, match="3 rows of neighbors, but there are no points"):
        _cuda.spamp_forward(
            torch.empty(0, 4),
            torch.empty(0, 3),
            torch.zeros(3, 2, dtype=torch.int32),
            torch.empty(4, 1),
            torch.zeros(3, dtype=torch.int32),
            False,
        )


# ------------------------------------------------------------------------ emulated driver


class OnDevice(TorchDispatchMode):
    """Every tensor that torch makes lies in memory of the (emulated) device."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self.kept: dict[int, DeviceArray] = {}

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        result = operator(*arguments, **(keywords or {}))
        return self.move(result) if isinstance(result, torch.Tensor) else result

    def move(self, tensor):
        storage = tensor.untyped_storage()
        if not storage.nbytes() or storage.data_ptr() in self.kept:
            return tensor
        memory = DeviceArray.empty((storage.nbytes(),), np.uint8, stream=self.stream)
        self.kept[memory.pointer] = memory
        raw = np.frombuffer((ctypes.c_char * memory.nbytes).from_address(memory.pointer), np.uint8)
        with torch.utils._python_dispatch._disable_current_modes():
            moved = torch.from_numpy(raw).view(tensor.dtype)
            moved = moved.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            return moved.copy_(tensor)


@pytest.fixture
def on_device(emulated_cuda, monkeypatch):
    """Runs CUDA functions on the emulated driver; CPU tensors over its memory stand for CUDA's."""
    emulated_cuda.hide_device_memory = False  # from torch, which takes it for the CPU's
    stream = Stream(Device())

    @contextmanager
    def queue(tensor):
        yield Kernels.of(stream.device), stream.handle

    monkeypatch.setattr(_cuda, "_queue", queue)

    def run(function, *arguments):
        mode = OnDevice(stream)
        arguments = [mode.move(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        with mode:
            result = function(*arguments)
        stream.synchronize()
        single = isinstance(result, torch.Tensor)
        copies = [None if r is None else r.clone() for r in ([result] if single else result)]
        return copies[0] if single else copies

    run.stream = stream
    return run


@pytest.mark.parametrize("shape", SPSE_SHAPES)
def test_spse_on_the_emulated_driver(on_device, shape):
    call, epsilon, directions = spse_tensors(shape)
    arguments = (call["points"], call["neighbors"], call["weight"], epsilon, directions)
    out, none = on_device(_cuda.spse_forward, *arguments, False)
    assert none is None
    if shape[0]:
        case = {name: tensor.numpy() for name, tensor in call.items()}
        assert_close(out, spse_reference(**case, epsilon=epsilon, directions=directions), 1e-5)
    again, winner = on_device(_cuda.spse_forward, *arguments, True)
    expected, expected_winner = torch.ops.dela.spse_training(*arguments)
    torch.testing.assert_close(again, out, rtol=0, atol=0)
    torch.testing.assert_close(winner, expected_winner, rtol=0, atol=0)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    saved = (call["points"], call["neighbors"], call["weight"], expected, winner, directions)
    found = on_device(_cuda.spse_backward, gradient, *saved)
    assert_close(found, torch.ops.dela.spse_backward(gradient, *saved), 1e-5)


@pytest.mark.parametrize("centers", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SPAMP_SHAPES)
def test_spamp_on_the_emulated_driver(on_device, shape, dtype, centers):
    call = spamp_tensors(shape, dtype, centers)
    arguments = tuple(
        call[name] for name in ("features", "points", "neighbors", "weight", "centers")
    )
    out, _ = on_device(_cuda.spamp_forward, *arguments, False)
    assert out.dtype == dtype
    if centers and shape[1]:
        case = {name: tensor.float().numpy() for name, tensor in call.items()}
        for name in ("neighbors", "centers"):
            case[name] = call[name].numpy()
        assert_close(out, spamp_reference(**case), ROUNDING[dtype])
    again, winner = on_device(_cuda.spamp_forward, *arguments, True)
    expected, expected_winner = torch.ops.dela.spamp_training(*arguments)
    torch.testing.assert_close(again, out, rtol=0, atol=0)
    torch.testing.assert_close(winner, expected_winner, rtol=0, atol=0)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    saved = (*arguments[1:], expected, winner)
    found = on_device(_cuda.spamp_backward, gradient, *saved)
    for one, other in zip(found, torch.ops.dela.spamp_backward(gradient, *saved), strict=True):
        assert one.dtype == other.dtype
        assert_close(one, other, ROUNDING[one.dtype])
    for one, other in zip(found, on_device(_cuda.spamp_backward, gradient, *saved), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SPAMP_SHAPES)
def test_the_residual_form_on_the_emulated_driver(on_device, shape, dtype):
    case = residual_case(0, *shape)
    call = {name: torch.from_numpy(array) for name, array in case.items()}
    for name in ("features", "base"):
        call[name] = call[name].to(dtype)
        case[name] = call[name].double().numpy()
    out = on_device(_cuda.spamp_residual, *(call[name] for name in RESIDUAL_ORDER))
    assert out.dtype == dtype
    if shape[1]:
        assert_close(out, residual_reference(**case), ROUNDING[dtype])
    odd = torch.zeros(1 + call["base"].numel(), dtype=dtype)
    odd[1:] = call["base"].reshape(-1)
    call["base"] = odd[1:].view(out.shape)  # past an aligned address
    again = on_device(_cuda.spamp_residual, *(call[name] for name in RESIDUAL_ORDER))
    torch.testing.assert_close(again, out, rtol=0, atol=0)


def test_strided_and_misaligned_arguments(on_device):
    call = spamp_tensors((70, 30, 7, 20))
    expected = ops.spamp(**call)
    odd = torch.zeros(1 + call["features"].numel())
    odd[1:] = call["features"].reshape(-1)
    arguments = (
        odd[1:].view(70, 20),  # 4 bytes past an aligned address
        call["points"].t().contiguous().t(),
        torch.stack([call["neighbors"]] * 2, 2)[:, :, 1],
        call["weight"].t().contiguous().t(),
        call["centers"].repeat_interleave(2)[::2],
    )
    out, _ = on_device(_cuda.spamp_forward, *arguments, False)
    assert_close(out, expected, 1e-6)


@pytest.mark.parametrize("value", [-1, 70, 2**31 - 1, -(2**31)])
def test_bad_indices_read_nothing_outside(on_device, value):
    call = spamp_tensors((70, 30, 7, 20))
    call["neighbors"][3, 2] = value
    call["centers"][5] = value
    order = ("features", "points", "neighbors", "weight", "centers")
    out, _ = on_device(_cuda.spamp_forward, *(call[name] for name in order), False)
    call["neighbors"][3, 2] = call["centers"][3]
    call["centers"][5] = 0
    assert_close(out, ops.spamp(**call), 1e-6)
    call, epsilon, directions = spse_tensors(SPSE_SHAPES[0])
    call["neighbors"][3, 2] = value
    out, _ = on_device(_cuda.spse_forward, *call.values(), epsilon, directions, False)
    call["neighbors"][3, 2] = 3
    assert_close(out, ops.spse(**call, epsilon=epsilon), 1e-6)


def test_calls_wait_for_nothing(on_device, emulated_cuda):
    emulated_cuda.defer = True
    call = spamp_tensors((70, 30, 7, 20))
    out, winner = torch.ops.dela.spamp_training(**call)
    before = emulated_cuda.count("synchronisations")
    on_device(
        _cuda.spamp_backward,
        torch.ones_like(out),
        *(call[name] for name in ("points", "neighbors", "weight", "centers")),
        out,
        winner,
    )
    assert emulated_cuda.count("synchronisations") == before + 1  # the fixture's own


def test_calls_are_captured_and_replayed(on_device, emulated_cuda):
    emulated_cuda.allow_capture_allocation = True  # torch takes them from a pool of its own
    call, epsilon, directions = spse_tensors(SPSE_SHAPES[1])
    mode = OnDevice(on_device.stream)
    points, neighbors, weight = (mode.move(tensor) for tensor in call.values())
    with mode, Graph.capture(on_device.stream) as graph:
        out, winner = _cuda.spse_forward(points, neighbors, weight, epsilon, directions, True)
        gradient = _cuda.spse_backward(out, points, neighbors, weight, out, winner, directions)
    for scale in (1.0, 0.5):
        points.copy_(call["points"] * scale)
        graph.launch(on_device.stream)
        on_device.stream.synchronize()
        expected, winner = torch.ops.dela.spse_training(points, neighbors, weight, epsilon)
        assert_close(out, expected, 1e-5)
        expected = torch.ops.dela.spse_backward(
            expected, points, neighbors, weight, expected, winner, directions
        )
        assert_close(gradient, expected, 1e-5)


# ------------------------------------------------------------------------ a real GPU


def to_cuda(call: dict) -> dict:
    return {name: None if t is None else t.cuda() for name, t in call.items()}


class TestGpu:
    pytestmark = gpu

    @pytest.mark.parametrize("shape", SPSE_SHAPES)
    def test_spse_agrees_with_the_cpu(self, shape):
        call, epsilon, directions = spse_tensors(shape)
        results = []
        for here in (call, to_cuda(call)):
            weight = here["weight"].requires_grad_()
            out = ops.spse(here["points"], here["neighbors"], weight, epsilon, directions)
            out.square().sum().backward()
            results.append((out, weight.grad))
        for found, expected in zip(results[1], results[0], strict=True):
            assert found.is_cuda
            assert_close(found, expected.detach(), 1e-5)

    @pytest.mark.parametrize("centers", [True, False])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", SPAMP_SHAPES)
    def test_spamp_agrees_with_the_cpu(self, shape, dtype, centers):
        call = spamp_tensors(shape, dtype, centers)
        results = []
        for here in (call, to_cuda(call)):
            here["features"].requires_grad_()
            here["weight"].requires_grad_()
            out = ops.spamp(**here)
            out.float().square().sum().backward()
            results.append((out, here["features"].grad, here["weight"].grad))
        for found, expected in zip(results[1], results[0], strict=True):
            assert found.is_cuda and found.dtype == expected.dtype
            assert_close(found, expected.detach(), 2 * ROUNDING[dtype])

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", SPAMP_SHAPES)
    def test_the_residual_form_agrees_with_the_cpu(self, shape, dtype):
        names = ("features", "weight", "base", "scale")
        results = []
        for device in ("cpu", "cuda"):
            case = residual_case(0, *shape)
            call = {name: torch.from_numpy(array).to(device) for name, array in case.items()}
            for name in ("features", "base"):
                call[name] = call[name].to(dtype)
            for name in names:
                call[name].requires_grad_()
            out = ops.spamp_residual(**call)
            out.float().square().sum().backward()
            results.append((out, *(call[name].grad for name in names)))
        for found, expected in zip(results[1], results[0], strict=True):
            assert found.is_cuda and found.dtype == expected.dtype
            assert_close(found, expected.detach(), 4 * ROUNDING[dtype])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_operators_are_well_registered(self, dtype):
        call = to_cuda(spamp_tensors(SPAMP_SHAPES[0], dtype))
        call["features"].requires_grad_()
        order = ("features", "points", "neighbors", "weight", "centers")
        for operator in (torch.ops.dela.spamp, torch.ops.dela.spamp_training):
            torch.library.opcheck(operator.default, tuple(call[name] for name in order))
        call, epsilon, directions = spse_tensors(SPSE_SHAPES[2])
        call = to_cuda(call)
        call["weight"].requires_grad_()
        for operator in (torch.ops.dela.spse, torch.ops.dela.spse_training):
            torch.library.opcheck(operator.default, (*call.values(), epsilon, directions))

    def test_gradients_agree_with_the_reference(self):
        call = to_cuda(spamp_tensors(SPAMP_SHAPES[0]))
        gradients = []
        for name in ("native", "reference"):
            features = call["features"].double() if name == "reference" else call["features"]
            wide = {
                key: value.double() if name == "reference" and value.is_floating_point() else value
                for key, value in call.items()
            } | {"features": features}
            wide["features"] = wide["features"].detach().requires_grad_()
            wide["weight"] = wide["weight"].detach().requires_grad_()
            with ops.implementation(name):
                ops.spamp(**wide).square().sum().backward()
            gradients.append((wide["features"].grad, wide["weight"].grad))
        for found, expected in zip(*gradients, strict=True):
            assert_close(found, expected, 1e-5)

    def test_autocast_leaves_coordinates_alone(self):
        call = to_cuda(spamp_tensors(SPAMP_SHAPES[1], torch.float16))
        expected = ops.spamp(**call)
        with torch.autocast("cuda", dtype=torch.float16):
            assert torch.equal(ops.spamp(**call), expected)

    def test_a_training_step_is_captured_in_a_cuda_graph(self):
        call = to_cuda(spamp_tensors((3000, 3000, 24, 64), torch.float16, centers=False))
        features = call["features"].requires_grad_()
        call["weight"].requires_grad_()

        def step():
            features.grad = call["weight"].grad = None
            out = ops.spamp(**call)
            out.float().square().sum().backward()
            return out, features.grad, call["weight"].grad

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(2):
                expected = [tensor.clone() for tensor in step()]
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step()
        for _ in range(2):
            graph.replay()
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)

    def test_work_runs_on_the_current_stream(self):
        call = to_cuda(spamp_tensors((20000, 20000, 24, 64), centers=False))
        expected = ops.spamp(**call)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call["features"] = call["features"] * 2  # made on that stream
            out = ops.spamp(**call)
        side.synchronize()
        assert_close(out, 2 * expected, 1e-6)

    def test_compiled(self):
        call = to_cuda(spamp_tensors(SPAMP_SHAPES[1]))
        compiled = torch.compile(lambda call: ops.spamp(**call) * 2, fullgraph=True)
        assert_close(compiled(call), 2 * ops.spamp(**call), 1e-6)

    def test_a_network_on_a_pyramid_built_on_the_device(self):
        from dela.families import create_model
        from dela.pyramid.cpu import build_pyramid
        from dela.pyramid.gpu import build_device_pyramid

        model = create_model("s3dis", seed=0, attributes=(), depths=(1, 1, 1, 1)).eval()
        points = np.random.default_rng(0).random((4000, 3), dtype=np.float32) * 2
        stream = Stream.borrowed(torch.cuda.current_stream().cuda_stream)
        on_device = DeviceArray.from_host(points, stream)
        with torch.inference_mode():
            expected = model(build_pyramid(points, None, model.config).to_tensors())
            pyramid = build_device_pyramid(on_device, None, model.config, stream)
            found = model.cuda()(pyramid.to_tensors("cuda"))
        assert_close(found, expected, 1e-4)
