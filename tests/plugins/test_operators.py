"""The native kernels of the operators on every instruction set this machine has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dela.plugins import native
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

torch = pytest.importorskip("torch")

from dela import ops  # noqa: E402  (needs torch)

REPOSITORY = Path(__file__).resolve().parents[2]


def available_isas() -> list[str]:
    names = []
    for name in native.ISA_NAMES:
        try:
            native.set_isa(name)
        except native.NativeLibraryError:
            continue
        names.append(name)
    native.set_isa("auto")
    return names


@pytest.fixture(params=available_isas(), autouse=True)
def isa(request):
    native.set_isa(request.param)
    yield request.param
    native.set_isa("auto")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def tensors(case: dict) -> dict:
    return {name: torch.from_numpy(array) for name, array in case.items()}


@pytest.mark.parametrize("attributes,directions", [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (6, 0),
                                                   (0, 3), (4, 3), (1, 1)])  # fmt: skip
@pytest.mark.parametrize("n,k,channels", [(50, 24, 64), (31, 7, 20), (9, 1, 3), (40, 140, 17)])
def test_spse_gives_the_distance_in_float64(n, k, channels, attributes, directions):
    case = spse_case(1, n, k, channels, attributes, directions)
    epsilon = epsilon_for(directions)
    out = ops.spse(**tensors(case), epsilon=epsilon, directions=directions)
    # Near zero the root magnifies float32's rounding of what stands under it.
    expected = spse_reference(**case, epsilon=epsilon, directions=directions)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5 if not directions else 5e-4)


def test_spse_keeps_its_precision_far_from_the_origin():
    case = spse_case(2, 200, 24, 32)
    case["points"] = (case["points"].round(2) + np.float32(512.0)).astype(np.float32)
    out = ops.spse(**tensors(case), epsilon=1e-8)
    np.testing.assert_allclose(out, spse_reference(**case, epsilon=1e-8), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("flattened", ["axis", "plane", "zero"])
def test_spse_with_singular_metrics(flattened):
    case = spse_case(3, 60, 9, 16)
    rows = {"axis": slice(0, 6), "plane": slice(0, 3), "zero": slice(0, 9)}[flattened]
    case["weight"][rows] = 0
    out = ops.spse(**tensors(case), epsilon=1e-8)
    np.testing.assert_allclose(out, spse_reference(**case, epsilon=1e-8), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("attributes,directions", [(0, 0), (4, 0), (4, 3), (2, 1)])
@pytest.mark.parametrize("k", [5, 300])
def test_spse_weight_gradient_is_the_slope(attributes, directions, k):
    case = spse_case(4, 11, k, 5, attributes, directions)
    epsilon = epsilon_for(directions)
    given = np.random.default_rng(0).normal(size=(11, 5))

    def loss(weight):
        moved = case | {"weight": weight}
        return float(
            (given * spse_reference(**moved, epsilon=epsilon, directions=directions)).sum()
        )

    call = tensors(case)
    call["weight"].requires_grad_()
    out = ops.spse(**call, epsilon=epsilon, directions=directions)
    out.backward(torch.from_numpy(given).float())
    slope = central_differences(loss, case["weight"].astype(np.float64))
    np.testing.assert_allclose(call["weight"].grad, slope, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("n,rows,k,channels", [(50, 50, 24, 64), (31, 12, 7, 20), (9, 30, 1, 4),
                                               (40, 17, 140, 76), (20, 20, 5, 96)])  # fmt: skip
@pytest.mark.parametrize(
    "dtype,tolerance", [("float32", 2e-6), ("float16", 1e-3), ("bfloat16", 8e-3)]
)
def test_spamp_gives_the_maximum_in_float64(n, rows, k, channels, dtype, tolerance):
    case = spamp_case(5, n, rows, k, channels)
    call = tensors(case)
    call["features"] = call["features"].to(getattr(torch, dtype))
    case["features"] = call["features"].double().numpy()
    out = ops.spamp(**call)
    assert out.dtype == call["features"].dtype
    np.testing.assert_allclose(
        out.double(), spamp_reference(**case), rtol=tolerance, atol=tolerance / 4
    )


def test_spamp_without_centers_takes_every_row():
    case = spamp_case(6, 33, 33, 6, 20)
    case["centers"] = np.arange(33, dtype=np.int32)
    call = tensors(case)
    with_centers = ops.spamp(**call)
    del call["centers"]
    assert torch.equal(ops.spamp(**call), with_centers)


@pytest.mark.parametrize("n,rows,k,channels", [(50, 50, 24, 64), (31, 12, 7, 20), (9, 30, 1, 4),
                                               (40, 17, 140, 76), (20, 20, 5, 96), (9, 0, 3, 8),
                                               (0, 0, 3, 8)])  # fmt: skip
@pytest.mark.parametrize(
    "dtype,tolerance", [("float32", 2e-6), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)]
)
def test_the_residual_form_is_rounded_once(n, rows, k, channels, dtype, tolerance):
    case = residual_case(5, n, rows, k, channels)
    call = tensors(case)
    for name in ("features", "base"):
        call[name] = call[name].to(getattr(torch, dtype))
        case[name] = call[name].double().numpy()
    out = ops.spamp_residual(**call)
    assert out.dtype == call["features"].dtype and out.shape == (rows, channels)
    if rows:
        expected = residual_reference(**case)
        np.testing.assert_allclose(out.double(), expected, rtol=tolerance, atol=4e-6)


def test_the_residual_form_without_centers_takes_every_row():
    case = residual_case(6, 33, 33, 6, 20)
    case["centers"] = np.arange(33, dtype=np.int32)
    call = tensors(case)
    with_centers = ops.spamp_residual(**call)
    del call["centers"]
    assert torch.equal(ops.spamp_residual(**call), with_centers)


def test_a_scale_of_zero_leaves_the_base():
    call = tensors(residual_case(7, 20, 20, 5, 8))
    call["scale"].zero_()
    assert torch.equal(ops.spamp_residual(**call), call["base"])


def test_the_residual_form_gives_the_same_bits_for_every_number_of_threads(threads):
    call = tensors(residual_case(8, 3001, 1700, 9, 36))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(ops.spamp_residual(**call))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_spamp_weight_of_zero_leaves_plain_differences():
    case = spamp_case(7, 20, 20, 5, 8)
    case["weight"][3] = 0
    features, rows = case["features"], case["centers"]
    expected = (features[case["neighbors"]] - features[rows][:, None]).max(axis=1)
    assert np.array_equal(ops.spamp(**tensors(case)).numpy(), expected)


@pytest.mark.parametrize("k", [4, 300])
def test_spamp_gradients_are_the_slopes(k):
    case = spamp_case(8, 9, 7, k, 8)
    given = np.random.default_rng(0).normal(size=(7, 8))

    def loss(name):
        return lambda value: float((given * spamp_reference(**(case | {name: value}))).sum())

    call = tensors(case)
    for name in ("features", "weight"):
        call[name].requires_grad_()
    ops.spamp(**call).backward(torch.from_numpy(given).float())
    for name in ("features", "weight"):
        slope = central_differences(loss(name), case[name].astype(np.float64))
        np.testing.assert_allclose(call[name].grad, slope, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype,tolerance", [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_spamp_gradients_of_16_bit_features(dtype, tolerance):
    call = tensors(spamp_case(9, 60, 40, 9, 20))
    given = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    wide = {name: value.clone() for name, value in call.items()}
    call["features"] = call["features"].to(getattr(torch, dtype))
    wide["features"] = call["features"].float()
    gradients = []
    for version in (call, wide):
        for name in ("features", "weight"):
            version[name].requires_grad_()
        out = ops.spamp(**version)
        out.backward(given.to(out.dtype))
        gradients.append((version["features"].grad, version["weight"].grad))
    assert gradients[0][0].dtype == call["features"].dtype
    for found, expected in zip(*gradients, strict=True):
        scale = expected.abs().max()
        assert (found.float() - expected).abs().max() < tolerance * scale


@pytest.mark.parametrize("k", [24, 256, 257])
def test_the_first_of_equal_neighbors_wins(k):
    points = torch.zeros(k + 1, 3)
    neighbors = torch.arange(k, dtype=torch.int32).flip(0).expand(k + 1, k).contiguous()
    weight = torch.ones(12, 20)
    _, winner = torch.ops.dela.spse_training(points, neighbors, weight, 1e-8, 0)
    assert winner.dtype == (torch.uint8 if k <= 256 else torch.uint16)
    assert not winner.int().any()
    features = torch.zeros(k + 1, 20)
    features[k // 2 :] = 1  # the first half of each list: equal and largest
    _, winner = torch.ops.dela.spamp_training(features, points, neighbors, torch.ones(4, 5), None)
    assert not winner[: k // 2].int().any()
    # The last slot can win too.
    features = torch.zeros(k + 1, 20)
    features[0] = 1
    _, winner = torch.ops.dela.spamp_training(features, points, neighbors, torch.ones(4, 5), None)
    assert (winner[1:].int() == k - 1).all()


def test_the_same_bits_for_every_number_of_threads(threads):
    spse_call = tensors(spse_case(10, 3001, 9, 36, 1))
    spamp_call = tensors(spamp_case(11, 3001, 1700, 9, 36))
    given = torch.randn(3001, 36, generator=torch.Generator().manual_seed(0))
    results = []
    for count in (1, 2, 3, 2):
        threads(count)
        for tensor in (spse_call["weight"], spamp_call["features"], spamp_call["weight"]):
            tensor.grad = None
            tensor.requires_grad_()
        spse, spamp = ops.spse(**spse_call, epsilon=1e-8), ops.spamp(**spamp_call)
        spse.backward(given)
        spamp.backward(given[:1700])
        results.append(
            [
                spse.detach(),
                spamp.detach(),
                spse_call["weight"].grad,
                spamp_call["features"].grad,
                spamp_call["weight"].grad,
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_inference_gives_the_bits_of_training():
    spse_call, spamp_call = (
        tensors(spse_case(12, 70, 9, 36)),
        tensors(spamp_case(13, 70, 50, 9, 36)),
    )
    assert torch.equal(
        ops.spse(**spse_call, epsilon=1e-8),
        torch.ops.dela.spse_training(**spse_call, epsilon=1e-8)[0],
    )
    assert torch.equal(ops.spamp(**spamp_call), torch.ops.dela.spamp_training(**spamp_call)[0])


def test_empty_clouds_and_empty_selections():
    call = tensors(spse_case(14, 0, 4, 20))
    call["weight"].requires_grad_()
    out = ops.spse(**call, epsilon=1e-8)
    out.sum().backward()
    assert out.shape == (0, 20) and not call["weight"].grad.any()
    for n in (0, 6):
        call = tensors(spamp_case(15, n, 0, 4, 20))
        for name in ("features", "weight"):
            call[name].requires_grad_()
        out = ops.spamp(**call)
        out.sum().backward()
        assert out.shape == (0, 20)
        assert call["features"].grad.shape == (n, 20) and not call["features"].grad.any()
        assert not call["weight"].grad.any()


def test_a_root_of_zero_has_no_slope():
    points = torch.zeros(5, 3)
    weight = torch.ones(12, 4)
    weight[9:] = 0
    weight.requires_grad_()
    out = ops.spse(points, torch.zeros(5, 2, dtype=torch.int32), weight, 0.0)
    out.sum().backward()
    assert not out.any() and not weight.grad.any()


def test_opposite_directions_never_give_the_root_of_a_negative_number():
    rng = np.random.default_rng(16)
    normals = rng.normal(size=(200, 3))
    normals = (normals / np.linalg.norm(normals, axis=1)[:, None]).astype(np.float32)
    points = torch.from_numpy(np.concatenate([np.zeros((200, 3), np.float32), normals], axis=1))
    weight = torch.zeros(15, 200)
    weight[12:] = -torch.from_numpy(normals).t()
    weight.requires_grad_()
    neighbors = torch.arange(200, dtype=torch.int32)[:, None]
    out = ops.spse(points, neighbors, weight, 1.0, directions=3)
    out.sum().backward()
    assert (out.diagonal() < 1e-3).all()
    assert torch.isfinite(out).all() and torch.isfinite(weight.grad).all()


def test_a_neighbor_that_is_not_a_number_never_wins():
    case = spamp_case(17, 30, 30, 6, 20)
    case["centers"] = np.arange(30, dtype=np.int32)
    case["neighbors"] %= 29
    expected = spamp_reference(**case)
    # One more neighbor, row 29, first in some lists and last in others.
    lists = np.insert(case["neighbors"], 0, 29, axis=1)
    lists[::2] = lists[::2, ::-1]
    call = tensors(case | {"neighbors": lists})
    call["features"][29] = torch.nan
    out = ops.spamp(**call)
    np.testing.assert_allclose(out[:29], expected[:29], rtol=1e-5, atol=1e-6)
    assert torch.isnan(out[29]).all()  # its own features are not numbers
    points = torch.zeros(3, 3)
    points[2] = torch.nan
    neighbors = torch.tensor([[2, 0], [2, 2], [0, 1]], dtype=torch.int32)
    out = ops.spse(points, neighbors, torch.ones(12, 5), 1e-8)
    assert torch.isfinite(out[0]).all() and torch.isnan(out[1:]).all()


def test_16_bit_features_keep_infinities_subnormals_and_rounding():
    values = [0.0, -0.0, 1.0, 65504.0, 6e-8, 6.1e-5, 1e-3, 2049.0, float("inf"), 3e-39, 1.1, 7.0]
    for dtype in (torch.float16, torch.bfloat16):
        features = torch.tensor([[0.0] * 12, values], dtype=dtype)
        weight = torch.zeros(4, 3)
        out = ops.spamp(
            features,
            torch.zeros(2, 3),
            torch.tensor([[1]], dtype=torch.int32),
            weight,
            torch.tensor([0], dtype=torch.int32),
        )
        assert torch.equal(out[0], features[1])


def test_results_are_rounded_to_the_nearest_16_bit_value():
    difference = torch.linspace(-3, 3, 4000)
    for dtype in (torch.float16, torch.bfloat16):
        # exp(-s 1e-8) and the scale 1/3 make values that the 16-bit format must round.
        weight = torch.zeros(4, 1000)
        weight[0], weight[3] = 1.0, 0.3
        features = torch.stack([torch.zeros(4000), difference]).to(dtype)
        arguments = (torch.zeros(2, 3), torch.tensor([[1]], dtype=torch.int32), weight)
        centers = torch.tensor([0], dtype=torch.int32)
        narrow = ops.spamp(features, *arguments, centers)
        wide = ops.spamp(features.float(), *arguments, centers)
        assert torch.equal(narrow, wide.to(dtype))


def test_kernels_share_no_code_with_other_instruction_sets(isa):
    """A weak symbol outside its namespace could be an AVX-512 copy that every caller gets."""
    objects = sorted(REPOSITORY.glob(f"build/*/CMakeFiles/dela_isa_{isa}.dir/**/*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("no build tree, or no nm")
    listed = subprocess.run(
        ["nm", "-C", "--defined-only", *objects], capture_output=True, text=True, check=True
    ).stdout
    weak = [
        line.split(" ", 2)[2]
        for line in listed.splitlines()
        if len(line.split(" ", 2)) == 3 and line.split(" ", 2)[1] in "WVu"
    ]
    assert [name for name in weak if f"dela::{isa}::" not in name] == []
