"""The operators as PyTorch sees them: registration, autograd, errors, the reference."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dela.errors import InputError
from onnx_operators import (
    residual_case,
    residual_reference,
    spamp_case,
    spamp_reference,
    spse_case,
    spse_reference,
)

torch = pytest.importorskip("torch")

from dela import ops  # noqa: E402  (needs torch)
from dela.ops import reference  # noqa: E402

EPSILON = 1e-8


def tensors(case: dict, *with_gradient: str) -> dict:
    call = {name: torch.from_numpy(array) for name, array in case.items()}
    for name in with_gradient:
        call[name].requires_grad_()
    return call


def spse_call(*with_gradient: str, n=13, k=5, attributes=0, directions=0) -> dict:
    call = tensors(spse_case(0, n, k, 20, attributes, directions), *with_gradient)
    return call | {"epsilon": 1.0001 if directions else EPSILON, "directions": directions}


def spamp_call(*with_gradient: str, n=13, rows=7, k=5) -> dict:
    return tensors(spamp_case(0, n, rows, k, 20), *with_gradient)


def residual_call(*with_gradient: str, n=13, rows=7, k=5) -> dict:
    return tensors(residual_case(0, n, rows, k, 20), *with_gradient)


@pytest.mark.parametrize("k", [5, 300])
@pytest.mark.parametrize("gradient", [(), ("weight",)])
@pytest.mark.parametrize("attributes,directions", [(0, 0), (4, 3)])
def test_spse_is_a_well_registered_operator(k, gradient, attributes, directions):
    call = spse_call(*gradient, k=k, attributes=attributes, directions=directions)
    for operator in (torch.ops.dela.spse, torch.ops.dela.spse_training):
        torch.library.opcheck(operator.default, tuple(call.values()))


@pytest.mark.parametrize("k", [5, 300])
@pytest.mark.parametrize("gradient", [(), ("features",), ("features", "weight")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_spamp_is_a_well_registered_operator(k, gradient, dtype):
    call = spamp_call(k=k)
    call["features"] = call["features"].to(getattr(torch, dtype))
    for name in gradient:
        call[name].requires_grad_()
    order = ("features", "points", "neighbors", "weight", "centers")
    for operator in (torch.ops.dela.spamp, torch.ops.dela.spamp_training):
        torch.library.opcheck(operator.default, tuple(call[name] for name in order))


@pytest.mark.parametrize(
    "gradient", [(), ("base",), ("scale",), ("features", "weight", "base", "scale")]
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_residual_form_is_a_well_registered_operator(gradient, dtype):
    call = residual_call()
    for name in ("features", "base"):
        call[name] = call[name].to(getattr(torch, dtype))
    for name in gradient:
        call[name].requires_grad_()
    order = ("features", "points", "neighbors", "weight", "base", "scale", "centers")
    operator = torch.ops.dela.spamp_residual.default
    torch.library.opcheck(operator, tuple(call[name] for name in order))


def test_the_backward_operators_are_well_registered():
    call = spse_call()
    del call["epsilon"], call["directions"]
    out, winner = torch.ops.dela.spse_training(**call, epsilon=EPSILON)
    arguments = (torch.ones_like(out), *call.values(), out, winner, 0)
    torch.library.opcheck(torch.ops.dela.spse_backward.default, arguments)
    call = spamp_call()
    out, winner = torch.ops.dela.spamp_training(**call)
    names = ("points", "neighbors", "weight", "centers")
    arguments = (torch.ones_like(out), *(call[name] for name in names), out, winner)
    torch.library.opcheck(torch.ops.dela.spamp_backward.default, arguments)


@pytest.mark.parametrize("attributes,directions", [(0, 0), (3, 0), (4, 3)])
def test_the_reference_is_the_definition(attributes, directions):
    call = spse_call(attributes=attributes, directions=directions)
    wide = {key: v.double() if key in ("points", "weight") else v for key, v in call.items()}
    arrays = {key: call[key].numpy() for key in ("points", "neighbors", "weight")}
    expected = spse_reference(**arrays, epsilon=call["epsilon"], directions=directions)
    np.testing.assert_allclose(reference.spse(**wide), expected, rtol=1e-12)
    call = spamp_call()
    arrays = {key: value.numpy() for key, value in call.items()}
    wide = {key: v.double() if v.is_floating_point() else v for key, v in call.items()}
    np.testing.assert_allclose(reference.spamp(**wide), spamp_reference(**arrays), rtol=1e-12)
    call = residual_call()
    arrays = {key: value.numpy() for key, value in call.items()}
    wide = {key: v.double() if v.is_floating_point() else v for key, v in call.items()}
    found = reference.spamp_residual(**wide)
    np.testing.assert_allclose(found, residual_reference(**arrays), rtol=1e-12)


def test_the_reference_passes_gradcheck():
    call = spse_call(n=6, k=3, attributes=1)
    points, weight = call["points"].double(), call["weight"][:, :4].double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: reference.spse(points, call["neighbors"], w, EPSILON), (weight,)
    )
    call = spamp_call(n=6, rows=4, k=3)
    features = call["features"][:, :8].double().requires_grad_()
    weight = call["weight"][:, :2].double().requires_grad_()
    points = call["points"].double()
    assert torch.autograd.gradcheck(
        lambda f, w: reference.spamp(f, points, call["neighbors"], w, call["centers"]),
        (features, weight),
    )


def test_native_and_reference_gradients_agree():
    results = []
    for name in ("native", "reference"):
        with ops.implementation(name):
            spse = spse_call("weight", n=200, k=9, attributes=4, directions=3)
            ops.spse(**spse).square().sum().backward()
            spamp = spamp_call("features", "weight", n=200, rows=90, k=9)
            ops.spamp(**spamp).square().sum().backward()
            names = ("features", "weight", "base", "scale")
            residual = residual_call(*names, n=200, rows=90, k=9)
            ops.spamp_residual(**residual).square().sum().backward()
        spent = [residual[name].grad for name in names]
        results.append((spse["weight"].grad, spamp["features"].grad, spamp["weight"].grad, *spent))
    for native, plain in zip(*results, strict=True):
        assert (native - plain).abs().max() < 1e-4 * plain.abs().max()


def test_both_implementations_agree_on_neighbors_that_are_no_numbers():
    call = spamp_call()
    call["features"][3] = torch.nan
    native = ops.spamp(**call)
    with ops.implementation("reference"):
        assert torch.allclose(ops.spamp(**call), native, equal_nan=True)
    call = residual_call()
    call["features"][3] = call["base"][2, 1] = torch.nan
    native = ops.spamp_residual(**call)
    assert torch.isnan(native[2, 1])
    with ops.implementation("reference"):
        assert torch.allclose(ops.spamp_residual(**call), native, equal_nan=True)
    call = spse_call()
    call["points"][3] = torch.nan
    native = ops.spse(**call)
    with ops.implementation("reference"):
        assert torch.allclose(ops.spse(**call), native, equal_nan=True)


def test_implementation_is_restored_and_rejects_other_names():
    with pytest.raises(KeyError), ops.implementation("reference"):
        raise KeyError
    # Only the native kernels' gradient comes from an operator of ours.
    assert "dela" in ops.spse(**spse_call("weight")).grad_fn.name()
    with pytest.raises(ValueError, match="'cuda'"), ops.implementation("cuda"):
        pass


def test_gradients_through_the_registered_operator_itself():
    call = spse_call("weight")
    torch.ops.dela.spse(**call).sum().backward()
    kept = spse_call("weight")
    ops.spse(**kept).sum().backward()
    assert torch.equal(call["weight"].grad, kept["weight"].grad)
    call, kept = (spamp_call("features", "weight") for _ in range(2))
    torch.ops.dela.spamp(**call).sum().backward()
    ops.spamp(**kept).sum().backward()
    assert torch.equal(call["features"].grad, kept["features"].grad)
    assert torch.equal(call["weight"].grad, kept["weight"].grad)


def test_no_winner_is_kept_without_a_gradient(monkeypatch):
    def fail(*_):
        raise AssertionError("winners were computed")

    monkeypatch.setattr(torch.ops.dela, "spse_training", fail)
    monkeypatch.setattr(torch.ops.dela, "spamp_training", fail)
    ops.spse(**spse_call())
    ops.spamp(**spamp_call())
    with torch.no_grad():
        ops.spse(**spse_call("weight"))
        ops.spamp(**spamp_call("features", "weight"))


def test_points_get_no_gradient():
    call = spamp_call("features", "points")
    ops.spamp(**call).sum().backward()
    assert call["features"].grad is not None and call["points"].grad is None


@pytest.mark.parametrize("trained", ["features", "weight"])
def test_only_what_needs_a_gradient_gets_one(trained):
    call = spamp_call(trained)
    ops.spamp(**call).sum().backward()
    assert call[trained].grad is not None
    other = {"features": "weight", "weight": "features"}[trained]
    assert call[other].grad is None


def test_strided_and_expanded_arguments():
    call = spse_call("weight", attributes=4)
    wide = torch.randn(13, 12)
    wide[:, 2:9] = call["points"]
    strided = call | {
        "points": wide[:, 2:9],
        "neighbors": call["neighbors"].t().contiguous().t(),
        "weight": call["weight"].detach().t().contiguous().t().requires_grad_(),
    }
    assert torch.equal(ops.spse(**strided), ops.spse(**call))
    ops.spse(**strided).sum().backward()  # an expanded gradient
    ops.spse(**call).sum().backward()
    assert torch.equal(strided["weight"].grad, call["weight"].grad)
    call = spamp_call()
    wide = torch.randn(13, 40)
    wide[:, ::2] = call["features"]
    strided = call | {"features": wide[:, ::2], "points": call["points"].t().contiguous().t()}
    assert torch.equal(ops.spamp(**strided), ops.spamp(**call))
    call = residual_call()
    strided = call | {"base": call["base"].t().contiguous().t(), "scale": torch.ones(1).expand(20)}
    call["scale"] = torch.ones(20)
    assert torch.equal(ops.spamp_residual(**strided), ops.spamp_residual(**call))


SPSE_ERRORS = {
    "points is torch.float64; expected torch.float32": lambda c: (
        c | {"points": c["points"].double()}
    ),
    r"points has shape \[39\]": lambda c: c | {"points": c["points"].reshape(-1)},
    "neighbors is torch.int64; expected torch.int32": lambda c: (
        c | {"neighbors": c["neighbors"].long()}
    ),
    r"neighbors has shape \[13, 0\]; k must lie": lambda c: (
        c | {"neighbors": c["neighbors"][:, :0]}
    ),
    "one row for each of the 13 points": lambda c: c | {"neighbors": c["neighbors"][:5]},
    r"points of 3 columns need \[12, C\]": lambda c: c | {"weight": c["weight"][:11]},
    "weight is torch.float16": lambda c: c | {"weight": c["weight"].half()},
    "with 1 directions; expected at least 4 columns": lambda c: c | {"directions": 1},
}


@pytest.mark.parametrize("message", SPSE_ERRORS)
def test_spse_says_what_is_wrong(message):
    with pytest.raises(InputError, match=message):
        ops.spse(**SPSE_ERRORS[message](spse_call()))


SPAMP_ERRORS = {
    r"features has shape \[13, 18\]; expected \[N, C\], C a multiple of 4": lambda c: (
        c | {"features": c["features"][:, :18]}
    ),
    "features is torch.float64; expected float32, float16 or bfloat16": lambda c: (
        c | {"features": c["features"].double()}
    ),
    r"points has shape \[12, 3\]; expected \[13, 3\]": lambda c: c | {"points": c["points"][:12]},
    r"need \[4, 5\]": lambda c: c | {"weight": c["weight"][:, :3]},
    "or give centers": lambda c: c | {"centers": None},
    r"centers has shape \[3\]; expected \[7\]": lambda c: c | {"centers": c["centers"][:3]},
    "centers is torch.int64": lambda c: c | {"centers": c["centers"].long()},
}


@pytest.mark.parametrize("message", SPAMP_ERRORS)
def test_spamp_says_what_is_wrong(message):
    with pytest.raises(InputError, match=message):
        ops.spamp(**SPAMP_ERRORS[message](spamp_call()))


RESIDUAL_ERRORS = {
    r"base has shape \[6, 20\]; expected \[7, 20\]": lambda c: c | {"base": c["base"][:6]},
    r"base has shape \[7\]; expected \[7, 20\]": lambda c: c | {"base": c["base"][:, 0]},
    "base is torch.float16, features torch.float32": lambda c: c | {"base": c["base"].half()},
    r"scale has shape \[19\]; expected \[20\]": lambda c: c | {"scale": c["scale"][:19]},
    "scale is torch.float64; expected torch.float32": lambda c: c | {"scale": c["scale"].double()},
    r"need \[4, 5\]": lambda c: c | {"weight": c["weight"][:, :3]},
}


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("message", RESIDUAL_ERRORS)
def test_the_residual_form_says_what_is_wrong(message, implementation):
    with ops.implementation(implementation), pytest.raises(InputError, match=message):
        ops.spamp_residual(**RESIDUAL_ERRORS[message](residual_call()))


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("value", [-1, 13, 2**31 - 1, -(2**31)])
def test_an_index_out_of_range_is_named_with_its_row(value, implementation):
    with ops.implementation(implementation):
        call = spse_call()
        call["neighbors"][9, 4] = value
        with pytest.raises(InputError, match=f"neighbors: row 9 holds {value}, .*13 points"):
            ops.spse(**call)
        call = spamp_call()
        call["neighbors"][2, 1] = value
        with pytest.raises(InputError, match=f"neighbors: row 2 holds {value}, "):
            ops.spamp(**call)
        call = spamp_call()
        call["centers"][6] = value
        with pytest.raises(InputError, match=f"centers: row 6 holds {value}, "):
            ops.spamp(**call)
        call = residual_call()
        call["neighbors"][2, 1] = value
        with pytest.raises(InputError, match=f"neighbors: row 2 holds {value}, "):
            ops.spamp_residual(**call)


def test_arrays_that_are_no_tensors_are_refused_with_the_conversion():
    case = spse_case(4, 9, 3, 8)
    with pytest.raises(InputError, match=r"spse was given a ndarray; .*torch.from_numpy"):
        ops.spse(case["points"], case["neighbors"], case["weight"], epsilon=1e-8)


def test_other_devices_are_refused_with_a_way_out():
    call = {
        key: value.to("meta") if isinstance(value, torch.Tensor) else value
        for key, value in spse_call().items()
    }
    with pytest.raises(InputError, match=r"no kernel for meta tensors.*implementation"):
        ops.spse(**call)


def test_shapes_pass_through_torch_compile():
    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    def both(points, neighbors, features, weight, metric):
        encoded = ops.spse(points, neighbors, metric, EPSILON)
        return ops.spamp(features * 2, points, neighbors, weight).sum() + encoded.sum()

    for n in (13, 29):
        spse = spse_call("weight", n=n)
        spamp = spamp_call("features", "weight", n=n, rows=n)
        arguments = (spse["points"], spse["neighbors"], spamp["features"], spamp["weight"])
        compiled = both(*arguments, spse["weight"])
        compiled.backward()
        found = [t.grad.clone() for t in (spse["weight"], spamp["features"], spamp["weight"])]
        for tensor in (spse["weight"], spamp["features"], spamp["weight"]):
            tensor.grad = None
        plain = (
            ops.spamp(arguments[2] * 2, arguments[0], arguments[1], arguments[3]).sum()
            + ops.spse(arguments[0], arguments[1], spse["weight"], EPSILON).sum()
        )
        plain.backward()
        assert torch.allclose(compiled, plain)
        expected = [spse["weight"].grad, spamp["features"].grad, spamp["weight"].grad]
        assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def test_neither_compiler_nor_exporter_is_imported_to_call_the_operators():
    script = (
        "import sys, torch\n"
        "from dela import ops\n"
        "points = torch.rand(9, 3)\n"
        "near = torch.zeros(9, 4, dtype=torch.int32)\n"
        "metric, weight = torch.rand(12, 8, requires_grad=True), torch.rand(4, 2)\n"
        "features = ops.spse(points, near, metric, 1e-8)\n"
        "ops.spamp(features, points, near, weight).sum().backward()\n"
        "assert metric.grad.shape == (12, 8)\n"
        "unasked = ('torch._dynamo', 'torch.onnx', 'sympy', 'onnx')\n"
        "print([name for name in unasked if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("operator", ["spse", "spamp"])
def test_second_derivatives_are_refused(operator):
    call = (spse_call if operator == "spse" else spamp_call)("weight")
    out = getattr(ops, operator)(**call)
    (gradient,) = torch.autograd.grad(out.square().sum(), call["weight"], create_graph=True)
    with pytest.raises(RuntimeError, match=f"{operator}_backward has no backward pass"):
        gradient.sum().backward()


def test_vmap_over_metrics_is_one_call_for_each():
    call = spse_call()
    metrics = torch.stack([call["weight"], 2 * call["weight"]])
    found = torch.vmap(lambda weight: ops.spse(**call | {"weight": weight}))(metrics)
    each = [ops.spse(**call | {"weight": weight}) for weight in metrics]
    assert torch.equal(found, torch.stack(each))


def test_kernels_are_left_alone_where_compilation_breaks_off():
    """Around a graph break Python runs with torch.compile listening: our kernels are not traced."""
    from torch._dynamo.testing import CompileCounter

    call = spse_call()
    expected = ops.spse(**call)

    @torch.compiler.disable(recursive=False)  # this frame alone
    def eager():
        return torch.ops.dela.spse(**call)

    graphs = CompileCounter()
    found = torch.compile(lambda: eager() + 1, backend=graphs)()
    assert torch.equal(found, expected + 1)
    assert graphs.frame_count == 1  # the addition


def test_peak_memory_is_little_more_than_the_outputs():
    n, channels = 4000, 64
    spse = tensors(spse_case(1, n, 24, channels), "weight")
    spamp = tensors(spamp_case(1, n, n, 24, channels), "features", "weight")
    given = torch.ones(n, channels)
    with torch.profiler.profile(profile_memory=True) as profile:
        spse_out = ops.spse(**spse, epsilon=EPSILON)
        spamp_out = ops.spamp(**spamp)
        spse_out.backward(given)
        spamp_out.backward(given)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    outputs = 3 * 4 * n * channels  # two outputs and one gradient of features
    assert outputs < peak < 1.3 * outputs
