"""Every operator kernel for CUDA, run on the emulated driver and compared with float64.

Arrays have exactly the promised sizes, and the emulator faults at the first byte read or written
outside them, or read before it was written.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from onnx_operators import (
    central_differences,
    epsilon_for,
    residual_case,
    residual_reference,
    spamp_case,
    spamp_reference,
    spse_case,
    spse_reference,
)

SHAPES = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 3), (6, 0), (0, 3), (1, 1)]
DTYPES = ["float32", "float16", "bfloat16"]
# float32 arithmetic; 16-bit results are rounded once, to half a unit in the last place.
ROUNDING = {"float32": 1e-5, "float16": 2.0**-11 + 1e-5, "bfloat16": 2.0**-8 + 1e-5}
GRADIENT_ROUNDING = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even, as uint16; not a number stays one."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values in the form in which they are copied to the device."""
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def widened(values: np.ndarray, dtype: str) -> np.ndarray:
    wide = from_bfloat16(values) if dtype == "bfloat16" else values
    return wide.astype(np.float64)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Relative to the value, and near zero to the root mean square of all."""
    assert found.shape == expected.shape
    scale = np.sqrt(np.mean(np.square(expected))) if expected.size else 0.0
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


def kernel_ptx() -> str:
    from dela.plugins.cuda.kernels import IMAGES

    return (IMAGES / "operators.compute_80.ptx").read_text()


class Operators:
    """Both operators on numpy arrays, through the kernels."""

    def __init__(self) -> None:
        from dela.plugins.cuda.driver import Device, Stream
        from dela.plugins.cuda.kernels import Kernels

        self.device = Device()
        self.stream = Stream(self.device)
        self.kernels = Kernels.of(self.device)

    def up(self, array: np.ndarray | None, dtype: str | None = None) -> Any:
        from dela.plugins.cuda.arrays import DeviceArray

        return None if array is None else DeviceArray.from_host(array, self.stream, dtype)

    def new(self, shape: tuple[int, ...], dtype: Any, zero: bool = False) -> Any:
        from dela.plugins.cuda.arrays import DeviceArray

        array = DeviceArray.empty(shape, dtype, self.device)
        if zero:
            array.fill_zero(self.stream)
        return array

    def down(self, *arrays: Any) -> list[np.ndarray]:
        return [array.to_host(self.stream) for array in arrays]

    @staticmethod
    def slots(k: int) -> type:
        return np.uint8 if k <= 256 else np.uint16

    def spse(
        self,
        points: np.ndarray,
        neighbors: np.ndarray,
        weight: np.ndarray,
        epsilon: float,
        directions: int = 0,
        gradient: np.ndarray | None = None,
        winners: bool = False,
    ) -> list[np.ndarray]:
        """out; with ``winners`` or ``gradient`` the winner too, and then the weight's gradient."""
        from dela.plugins.cuda.launch import chunks

        (n, k), c = neighbors.shape, weight.shape[1]
        sizes = (n, k, c, points.shape[1] - 3 - directions, directions)
        inputs = [self.up(array) for array in (points, neighbors, weight)]
        out = self.new((n, c), np.float32)
        if gradient is None and not winners:
            self.kernels.spse(*inputs, out, sizes=sizes, epsilon=epsilon, stream=self.stream)
            return self.down(out)
        winner = self.new((n, c), self.slots(k))
        self.kernels.spse(*inputs, out, winner, sizes=sizes, epsilon=epsilon, stream=self.stream)
        if gradient is None:
            return self.down(out, winner)
        moments = self.new((chunks(n), weight.shape[0] - 3, c), np.float32)
        grad_weight = self.new(weight.shape, np.float32)
        self.kernels.spse_backward(
            *inputs, out, winner, self.up(gradient), moments, grad_weight,
            sizes=sizes, stream=self.stream,
        )  # fmt: skip
        return self.down(out, winner, grad_weight)

    def spamp(
        self,
        features: np.ndarray,
        points: np.ndarray,
        neighbors: np.ndarray,
        weight: np.ndarray,
        centers: np.ndarray | None = None,
        dtype: str = "float32",
        gradient: np.ndarray | None = None,
        winners: bool = False,
    ) -> list[np.ndarray]:
        """out; with ``winners`` or ``gradient`` the winner too, and then the features' and the
        weight's gradients. Features, gradient and results are in stored form."""
        from dela.plugins.cuda.launch import chunks

        (m, k), (n, c) = neighbors.shape, features.shape
        sizes, name = (n, m, k, c), "bfloat16" if dtype == "bfloat16" else None
        device_type = name or dtype
        at, lists, rows = self.up(points), self.up(neighbors), self.up(centers)
        weights = self.up(weight)
        out = self.new((m, c), device_type)
        inputs = [self.up(features, name), at, lists, rows, weights, out]
        call: dict[str, Any] = {"sizes": sizes, "dtype": dtype, "stream": self.stream}
        if gradient is None and not winners:
            self.kernels.spamp(*inputs, **call)
            return self.down(out)
        winner = self.new((m, c), self.slots(k))
        self.kernels.spamp(*inputs, winner, **call)
        if gradient is None:
            return self.down(out, winner)
        passed = self.new((m, c), np.float32)
        sums = self.new((chunks(m), 4, c), np.float32)
        grad_weight = self.new(weight.shape, np.float32)
        self.kernels.spamp_backward(
            at, lists, rows, weights, out, winner, self.up(gradient, name), passed, sums,
            grad_weight, **call,
        )  # fmt: skip
        counts, total = self.new((n,), np.uint32, True), self.new((1,), np.uint32, True)
        ends, entries = self.new((n,), np.uint32), self.new((m * (k + 1),), np.uint32)
        self.kernels.reverse_lists(
            lists, rows, counts, total, ends, entries, sizes=sizes, stream=self.stream
        )
        grad_features = self.new((n, c), device_type)
        self.kernels.spamp_feature_gradient(
            passed, winner, counts, ends, entries, grad_features, **call
        )
        return self.down(out, winner, grad_features, grad_weight)

    def spamp_residual(
        self, dtype: str, centers: np.ndarray | None = None, **case: np.ndarray
    ) -> np.ndarray:
        """out; features, base and it are in stored form."""
        (m, k), (n, c) = case["neighbors"].shape, case["features"].shape
        name = "bfloat16" if dtype == "bfloat16" else None
        out = self.new((m, c), dtype)
        self.kernels.spamp_residual(
            self.up(case["features"], name), self.up(case["points"]), self.up(case["neighbors"]),
            self.up(centers), self.up(case["weight"]), self.up(case["base"], name),
            self.up(case["scale"]), out,
            sizes=(n, m, k, c), dtype=dtype, stream=self.stream,
        )  # fmt: skip
        return self.down(out)[0]


@pytest.fixture
def operators(emulated_cuda):
    emulated_cuda.check_initialised = True
    emulated_cuda.junk = 0xFF  # as floats, not a number
    return Operators()


# ---- forward ----


@pytest.mark.parametrize("attributes,directions", SHAPES)
@pytest.mark.parametrize("n,k,channels", [(50, 24, 64), (31, 7, 20), (9, 1, 3), (10, 40, 17),
                                          (3, 300, 1)])  # fmt: skip
def test_spse_is_the_distance_in_float64(operators, n, k, channels, attributes, directions):
    case = spse_case(1, n, k, channels, attributes, directions)
    call = case | {"epsilon": epsilon_for(directions), "directions": directions}
    expected = spse_reference(**call)
    (out,) = operators.spse(**call)
    assert_close(out, expected, 1e-5)
    again, winner = operators.spse(**call, winners=True)
    assert np.array_equal(out, again)
    # The winner's own value is the smallest.
    rows = np.arange(n)[:, None]
    chosen = case["neighbors"][rows, winner]
    for c in range(channels):
        one = call | {"neighbors": chosen[:, c : c + 1], "weight": case["weight"][:, c : c + 1]}
        assert_close(spse_reference(**one)[:, 0], expected[:, c], 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centers", [True, False])
@pytest.mark.parametrize("n,m,k,channels", [(50, 50, 24, 64), (60, 21, 7, 20), (9, 4, 1, 4),
                                            (10, 10, 40, 24), (3, 2, 300, 12)])  # fmt: skip
def test_spamp_is_the_maximum_in_float64(operators, n, m, k, channels, centers, dtype):
    case = spamp_case(2, n, m if centers else n, k, channels)
    case["features"] = stored(case["features"], dtype)
    call = case if centers else {key: case[key] for key in case if key != "centers"}
    rows = case["centers"] if centers else np.arange(n)
    exact = case | {"features": widened(case["features"], dtype), "centers": rows}
    expected = spamp_reference(**exact)
    (out,) = operators.spamp(**call, dtype=dtype)
    assert_close(widened(out, dtype), expected, ROUNDING[dtype])
    again, winner = operators.spamp(**call, dtype=dtype, winners=True)
    assert np.array_equal(out, again)
    chosen = case["neighbors"][np.arange(len(rows))[:, None], winner]
    for c in range(channels):
        one = exact | {
            "neighbors": chosen[:, c : c + 1],
            "features": np.repeat(exact["features"][:, c : c + 1], 4, axis=1),
            "weight": case["weight"][:, c // 4 : c // 4 + 1],
        }
        assert_close(spamp_reference(**one)[:, 0], expected[:, c], 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centers", [True, False])
@pytest.mark.parametrize("n,m,k,channels", [(50, 50, 24, 64), (60, 21, 7, 20), (9, 4, 1, 4),
                                            (10, 10, 40, 24), (5, 0, 3, 8)])  # fmt: skip
def test_the_residual_form_is_rounded_once(operators, n, m, k, channels, centers, dtype):
    case = residual_case(3, n, m if centers else n, k, channels)
    for name in ("features", "base"):
        case[name] = stored(case[name], dtype)
    call = case if centers else {key: case[key] for key in case if key != "centers"}
    wide = {name: widened(case[name], dtype) for name in ("features", "base")}
    rows = case["centers"] if centers else np.arange(n)
    out = operators.spamp_residual(dtype, **call)
    expected = np.zeros((0, channels))
    if len(rows):
        expected = residual_reference(**(case | wide | {"centers": rows}))
    assert_close(widened(out, dtype), expected, ROUNDING[dtype])


def test_many_rows_per_thread_give_the_same_bits(operators):
    from dela.plugins.cuda import launch

    case = spse_case(3, 41, 5, 20)
    (one_row,) = operators.spse(**case, epsilon=1e-8)
    arrays = [operators.up(case[name]) for name in ("points", "neighbors", "weight")]
    for rows in (2, 3, 4):
        out = operators.new((41, 20), np.float32)
        sizes = [np.int32(v) for v in (41, 5, 20, 0, 0, rows, np.float32(1e-8).view(np.int32))]
        operators.kernels.launch(
            "dela_spse_0", launch.spse_grid(41, 20, rows), launch.BLOCK, (*arrays, *sizes, out),
            operators.stream,
        )  # fmt: skip
        assert np.array_equal(operators.down(out)[0], one_row)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_downsampling_layer_touches_only_what_it_keeps(operators, dtype):
    from dela.plugins.cuda import launch

    n, m, k, channels = 400, 7, 6, 16
    case = spamp_case(4, n, m, k, channels)
    used = np.unique(np.concatenate([case["centers"], case["neighbors"].reshape(-1)]))
    assert len(used) < n / 4
    # Only rows that a kept row names are ever written, so reading any other is a fault; the output
    # has room for m rows, so writing any other is one too.
    features = operators.new((n, channels), dtype)
    points = operators.new((n, 3), np.float32)
    given = stored(case["features"], dtype)
    for row in used:
        for array, values in ((features, given), (points, case["points"])):
            size = values[row].nbytes
            part = array.view((values.shape[1],), array.dtype, int(row) * size)
            part.copy_from_host(np.ascontiguousarray(values[row]), operators.stream)
    out = operators.new((m, channels), dtype)
    operators.kernels.spamp(
        features, points, operators.up(case["neighbors"]), operators.up(case["centers"]),
        operators.up(case["weight"]), out,
        sizes=(n, m, k, channels), dtype=dtype, stream=operators.stream,
    )  # fmt: skip
    expected = spamp_reference(**(case | {"features": widened(given, dtype)}))
    assert_close(widened(operators.down(out)[0], dtype), expected, ROUNDING[dtype])
    width = launch.spamp_vector(dtype, channels)[1]
    assert launch.spamp_grid(m, channels, width) == -(-m * channels // width // launch.BLOCK)


def test_the_calls_of_these_tests_run_every_operator_kernel(emulated_cuda, operators):
    before = emulated_cuda.launches()
    for attributes, directions in SHAPES:
        call = spse_case(0, 5, 2, 4, attributes, directions)
        call |= {"epsilon": 1.5, "directions": directions}
        operators.spse(**call)
        operators.spse(**call, gradient=np.ones((5, 4), np.float32))
    for dtype in DTYPES:
        for channels in (4, 8):
            call = spamp_case(0, 5, 5, 2, channels)
            call["features"] = stored(call["features"], dtype)
            operators.spamp(**call, dtype=dtype)
            operators.spamp(**call, dtype=dtype, gradient=call["features"])
            call = residual_case(0, 5, 5, 2, channels)
            for name in ("features", "base"):
                call[name] = stored(call[name], dtype)
            operators.spamp_residual(dtype, **call)
    ran = set(emulated_cuda.launches() - before)
    assert ran == set(re.findall(r"\.entry (\w+)\(", kernel_ptx()))


# ---- backward ----


@pytest.mark.parametrize("attributes,directions", SHAPES)
@pytest.mark.parametrize("n,k", [(11, 5), (70, 3), (4, 300)])
def test_spse_weight_gradient_is_the_slope(operators, n, k, attributes, directions):
    case = spse_case(5, n, k, 9, attributes, directions)
    call = case | {"epsilon": epsilon_for(directions), "directions": directions}
    given = np.random.default_rng(0).normal(size=(n, 9)).astype(np.float32)
    *_, found = operators.spse(**call, gradient=given)

    def loss(weight):
        return float((given * spse_reference(**(call | {"weight": weight}))).sum())

    assert_close(found, central_differences(loss, case["weight"].astype(np.float64)), 2e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centers", [True, False])
@pytest.mark.parametrize("n,m,k,channels", [(9, 7, 4, 8), (40, 70, 3, 4), (5, 3, 300, 8)])
def test_spamp_gradients_are_the_slopes(operators, n, m, k, channels, centers, dtype):
    case = spamp_case(6, n, m if centers else n, k, channels)
    rows = case["centers"] if centers else np.arange(n)
    call = case | {"features": stored(case["features"], dtype)}
    if not centers:
        del call["centers"]
    given = np.random.default_rng(0).normal(size=(len(rows), channels))
    given = stored(given, dtype)
    _, _, grad_features, grad_weight = operators.spamp(**call, dtype=dtype, gradient=given)
    exact = case | {"features": widened(call["features"], dtype), "centers": rows}

    def loss(name):
        upstream = widened(given, dtype)
        return lambda value: float((upstream * spamp_reference(**(exact | {name: value}))).sum())

    slope = central_differences(loss("features"), exact["features"])
    assert_close(widened(grad_features, dtype), slope, max(GRADIENT_ROUNDING[dtype], 2e-5))
    slope = central_differences(loss("weight"), case["weight"].astype(np.float64))
    # The weight's gradient takes the rounded output, so a 16-bit one shows in every term.
    assert_close(grad_weight, slope, max(GRADIENT_ROUNDING[dtype], 2e-5))


@pytest.mark.parametrize("order", ["backward", "shuffled"])
def test_no_result_depends_on_the_order_of_threads(emulated_cuda, operators, order):
    spse_call = spse_case(7, 90, 6, 12, 1) | {"epsilon": 1e-8}
    spamp_call = spamp_case(8, 50, 70, 6, 12)
    given = np.random.default_rng(0).normal(size=(90, 12)).astype(np.float32)

    def results():
        return [
            *operators.spse(**spse_call, gradient=given),
            *operators.spamp(**spamp_call, gradient=given[:70]),
        ]

    forward = results()
    emulated_cuda.order = order
    for one, other in zip(forward, results(), strict=True):
        assert np.array_equal(one, other)


# ---- edges ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_clouds_and_empty_selections_run_nothing(emulated_cuda, operators, dtype):
    before = emulated_cuda.count("launches")
    (out,) = operators.spse(**spse_case(9, 0, 4, 20), epsilon=1e-8)
    assert out.shape == (0, 20)
    for n in (0, 6):
        case = spamp_case(10, n, 0, 4, 20)
        case["features"] = stored(case["features"], dtype)
        (out,) = operators.spamp(**case, dtype=dtype)
        assert out.shape == (0, 20)
    assert emulated_cuda.count("launches") == before


def test_gradients_of_empty_calls_are_zero(operators):
    empty = np.empty((0, 20), np.float32)
    *_, grad_weight = operators.spse(**spse_case(9, 0, 4, 20), epsilon=1e-8, gradient=empty)
    assert not grad_weight.any()
    for n in (0, 6):
        *_, grad_features, grad_weight = operators.spamp(
            **spamp_case(10, n, 0, 4, 20), gradient=empty
        )
        assert grad_features.shape == (n, 20) and not grad_features.any()
        assert not grad_weight.any()


def test_one_point_that_is_its_own_neighbor(operators):
    case = spse_case(11, 1, 1, 5)
    (out,) = operators.spse(**case, epsilon=1e-8)
    assert_close(out, spse_reference(**case, epsilon=1e-8), 1e-5)
    (out,) = operators.spamp(**spamp_case(12, 1, 1, 1, 4))
    assert not out.any()


BAD = (-1, -(2**31), 2**31 - 1)


def test_a_neighbor_outside_the_cloud_is_the_center_itself(operators):
    case, n = spse_case(13, 12, 6, 20), 12
    lists = case["neighbors"].copy()
    lists[3, 2:5], lists[7, 0], lists[11] = BAD, n, n
    meant = np.where((lists < 0) | (lists >= n), np.arange(n)[:, None], lists).astype(np.int32)
    given = np.random.default_rng(0).normal(size=(n, 20)).astype(np.float32)
    found = operators.spse(**(case | {"neighbors": lists}), epsilon=1e-8, gradient=given)
    expected = operators.spse(**(case | {"neighbors": meant}), epsilon=1e-8, gradient=given)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_outside_the_cloud_are_the_center_or_point_0(operators, dtype):
    n, m = 12, 9
    case = spamp_case(14, n, m, 6, 16)
    case["features"] = stored(case["features"], dtype)
    lists, rows = case["neighbors"].copy(), case["centers"].copy()
    rows[:4] = (*BAD, n)
    lists[1, 2:5], lists[3, 0], lists[8] = BAD, n, n
    meant_rows = np.where((rows < 0) | (rows >= n), 0, rows)
    meant = np.where((lists < 0) | (lists >= n), meant_rows[:, None], lists)
    given = stored(np.random.default_rng(0).normal(size=(m, 16)), dtype)
    call = {"dtype": dtype, "gradient": given}
    found = operators.spamp(**(case | {"neighbors": lists, "centers": rows}), **call)
    expected = operators.spamp(**(case | {"neighbors": meant, "centers": meant_rows}), **call)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("k", [24, 256, 257])
def test_the_first_of_equal_neighbors_wins(operators, k):
    points = np.zeros((k + 1, 3), np.float32)
    lists = np.ascontiguousarray(np.broadcast_to(np.arange(k, dtype=np.int32)[::-1], (k + 1, k)))
    _, winner = operators.spse(points, lists, np.ones((12, 5), np.float32), 1e-8, winners=True)
    assert not winner.any()
    features, weight = np.zeros((k + 1, 4), np.float32), np.ones((4, 1), np.float32)
    features[k // 2 :] = 1  # the first half of each list: equal and largest
    _, winner = operators.spamp(features, points, lists, weight, winners=True)
    assert not winner[: k // 2].any()
    features[1:] = 0
    features[0] = 1  # the last slot can win too
    _, winner = operators.spamp(features, points, lists, weight, winners=True)
    assert (winner[1:] == k - 1).all()


def test_coordinates_far_from_the_origin(operators):
    rng = np.random.default_rng(15)
    # A quarter of a meter is what float32 resolves at four million.
    points = (rng.integers(0, 40, (30, 3)) * 0.25 + 1e6).astype(np.float32)
    case = spse_case(16, 30, 8, 12) | {"points": points}
    (out,) = operators.spse(**case, epsilon=1e-8)
    assert_close(out, spse_reference(**case, epsilon=1e-8), 1e-5)
    case = spamp_case(17, 30, 20, 8, 12) | {"points": points}
    (out,) = operators.spamp(**case)
    assert_close(out, spamp_reference(**case), 1e-5)


@pytest.mark.parametrize("flattened", [slice(0, 6), slice(0, 3), slice(0, 9)])
def test_spse_with_singular_metrics(operators, flattened):
    case = spse_case(18, 30, 9, 16)
    case["weight"][flattened] = 0
    (out,) = operators.spse(**case, epsilon=1e-8)
    assert_close(out, spse_reference(**case, epsilon=1e-8), 2e-5)


def test_a_root_of_zero_has_no_slope(operators):
    weight = np.ones((12, 4), np.float32)
    weight[9:] = 0
    out, _, gradient = operators.spse(
        np.zeros((5, 3), np.float32), np.zeros((5, 2), np.int32), weight, 0.0,
        gradient=np.ones((5, 4), np.float32),
    )  # fmt: skip
    assert not out.any() and not gradient.any()


def test_opposite_directions_never_give_the_root_of_a_negative_number(operators):
    rng = np.random.default_rng(19)
    normals = rng.normal(size=(60, 3))
    normals = (normals / np.linalg.norm(normals, axis=1)[:, None]).astype(np.float32)
    points = np.concatenate([np.zeros((60, 3), np.float32), normals], axis=1)
    weight = np.zeros((15, 60), np.float32)
    weight[12:] = -normals.T
    out, _, gradient = operators.spse(
        points, np.arange(60, dtype=np.int32)[:, None], weight, 1.0, directions=3,
        gradient=np.ones((60, 60), np.float32),
    )  # fmt: skip
    assert (out.diagonal() < 1e-3).all()
    assert np.isfinite(out).all() and np.isfinite(gradient).all()


def test_a_neighbor_that_is_not_a_number_never_wins(operators):
    case = spamp_case(20, 30, 30, 6, 20)
    case["centers"] = np.arange(30, dtype=np.int32)
    case["neighbors"] %= 29
    expected = spamp_reference(**case)
    # One more neighbor, row 29, first in some lists and last in others.
    lists = np.insert(case["neighbors"], 0, 29, axis=1)
    lists[::2] = lists[::2, ::-1]
    case["features"][29] = np.nan
    (out,) = operators.spamp(**(case | {"neighbors": lists}))
    assert_close(out[:29], expected[:29], 1e-5)
    assert np.isnan(out[29]).all()  # its own features are not numbers
    points = np.zeros((3, 3), np.float32)
    points[2] = np.nan
    lists = np.array([[2, 0], [2, 2], [0, 1]], np.int32)
    (out,) = operators.spse(points, lists, np.ones((12, 5), np.float32), 1e-8)
    assert np.isfinite(out[0]).all() and np.isnan(out[1:]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_finite_number_becomes_what_the_cpu_kernels_make_of_it(operators, bad):
    torch = pytest.importorskip("torch")
    from dela import ops

    def tensors(case):
        return {name: torch.from_numpy(array) for name, array in case.items()}

    rng = np.random.default_rng(21)
    case = spse_case(22, 40, 6, 8, 2)
    case["points"][rng.random(case["points"].shape) < 0.05] = bad
    (out,) = operators.spse(**case, epsilon=1e-8)
    cpu = ops.spse(**tensors(case), epsilon=1e-8).numpy()
    np.testing.assert_allclose(out, cpu, rtol=2e-5, atol=2e-5)
    case = spamp_case(23, 40, 30, 6, 8)
    case["features"][rng.random((40, 8)) < 0.05] = bad
    case["points"][rng.random((40, 3)) < 0.05] = bad
    (out,) = operators.spamp(**case)
    np.testing.assert_allclose(out, ops.spamp(**tensors(case)).numpy(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("channels", [12, 16])  # 4 and 8 channels per thread
def test_16_bit_features_keep_infinities_subnormals_and_rounding(operators, dtype, channels):
    values = [0.0, -0.0, 1.0, 65504.0, 6e-8, 6.1e-5, 1e-3, 2049.0, np.inf, 3e-39, 1.1, 7.0]
    features = stored(np.array([[0.0] * channels, (values * 2)[:channels]]), dtype)
    (out,) = operators.spamp(
        features, np.zeros((2, 3), np.float32), np.array([[1]], np.int32),
        np.zeros((4, channels // 4), np.float32), np.array([0], np.int32), dtype=dtype,
    )  # fmt: skip
    assert np.array_equal(widened(out, dtype)[0], widened(features, dtype)[1])


@pytest.mark.parametrize("capability,suffix", [
    ((8, 0), "sm_80.cubin"), ((8, 6), "sm_86.cubin"), ((8, 7), "sm_87.cubin"),
    ((8, 9), "sm_89.cubin"), ((9, 0), "sm_90.cubin"), ((10, 0), "sm_100.cubin"),
    ((11, 0), "sm_110.cubin"), ((12, 0), "sm_120.cubin"), ((12, 1), "sm_120.cubin"),
])  # fmt: skip
def test_each_device_runs_the_image_made_for_it(emulated_cuda, capability, suffix):
    emulated_cuda.capability = capability
    from dela.plugins.cuda.kernels import Kernels

    operators = Operators()
    # The cache is per device, and this one has just changed.
    operators.kernels = Kernels(operators.device, "operators")
    assert operators.kernels.image.name == f"operators.{suffix}"
    case = spse_case(24, 20, 5, 8)
    (out,) = operators.spse(**case, epsilon=1e-8)
    assert_close(out, spse_reference(**case, epsilon=1e-8), 1e-5)
