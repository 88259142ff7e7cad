"""The bodies in standard ONNX against the float64 definition, and beside registered kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from dela.export import function_bodies
from dela.plugins import native
from onnx_operators import (
    residual_case,
    residual_model,
    residual_reference,
    session,
    spamp_case,
    spamp_model,
    spamp_reference,
    spse_case,
    spse_model,
    spse_reference,
)

SIZES = [(60, 7), (40, 1), (1, 3), (0, 4)]


def with_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    function_bodies.attach(model)
    return model


def both_runtimes(model: onnx.ModelProto, feed) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    return {
        "onnxruntime": session(model).run(None, feed)[0],
        "reference": ReferenceEvaluator(model).run(None, feed)[0],
    }


@pytest.mark.parametrize("directions", [0, 3])
@pytest.mark.parametrize("attributes", [0, 1, 4])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_spse_gives_the_float64_answer(n, k, attributes, directions):
    epsilon = 1.0001 if directions else 1e-8
    case = spse_case(1, n, k, 20, attributes, directions)
    answers = both_runtimes(with_bodies(spse_model(epsilon, directions)), case)
    for name, found in answers.items():
        assert found.shape == (n, 20), name
        if n:
            expected = spse_reference(**case, epsilon=epsilon, directions=directions)
            np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("element", "dtype", "tolerance"),
    [("float", np.float32, 1e-5), ("float16", np.float16, 2e-3), ("bfloat16", np.float32, 2e-2)],
)
@pytest.mark.parametrize(("n", "m", "k"), [(60, 25, 7), (40, 40, 1), (5, 0, 3), (0, 0, 3)])
def test_spamp_gives_the_float64_answer(element, dtype, tolerance, n, m, k):
    case = spamp_case(2, n, m, k, 16, dtype)
    for name, found in both_runtimes(with_bodies(spamp_model(element)), case).items():
        assert found.shape == (m, 16), name
        assert found.dtype == dtype, name
        if m:
            expected = spamp_reference(**case)
            limit = tolerance * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, atol=limit, err_msg=name)


@pytest.mark.parametrize(
    ("element", "dtype", "tolerance"),
    [("float", np.float32, 1e-5), ("float16", np.float16, 2e-3), ("bfloat16", np.float32, 2e-2)],
)
@pytest.mark.parametrize(("n", "m", "k"), [(60, 25, 7), (40, 40, 1), (5, 0, 3), (0, 0, 3)])
def test_the_residual_form_gives_the_float64_answer(element, dtype, tolerance, n, m, k):
    case = residual_case(2, n, m, k, 16, dtype)
    for name, found in both_runtimes(with_bodies(residual_model(element)), case).items():
        assert found.shape == (m, 16), name
        assert found.dtype == dtype, name
        if m:
            expected = residual_reference(**case)
            limit = tolerance * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, atol=limit, err_msg=name)


def test_the_residual_form_is_spelled_out_around_spamp():
    """Kernels of before, which know SPAMP alone, run inside the body."""
    model = with_bodies(residual_model())
    body = next(function for function in model.functions if function.name == "SPAMPResidual")
    assert [node.op_type for node in body.node if node.domain == "dela"] == ["SPAMP"]
    poison = next(function for function in model.functions if function.name == "SPAMP")
    next(node for node in poison.node if node.op_type == "Neg").op_type = "Abs"
    case = residual_case(6, 30, 20, 4, 8)
    expected = residual_reference(**case)
    assert np.abs(session(model).run(None, case)[0] - expected).max() > 0.1
    found = session(model, native.library_path()).run(None, case)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_small_distances_do_not_cancel():
    """Neighbors that all but coincide with an ellipsoid's center, far from the origin."""
    case = spse_case(3, 50, 4, 8)
    case["points"] = (1000 + np.round(case["points"] * 64) / 64).astype(np.float32)
    case["weight"][9:] = 1e-3
    (found, _) = both_runtimes(with_bodies(spse_model(1e-8, 0)), case).values()
    np.testing.assert_allclose(found, spse_reference(**case, epsilon=1e-8), rtol=1e-4)


def test_kernels_and_bodies_agree():
    library = native.library_path()
    for model, case in (
        (spse_model(1.0001, 3), spse_case(4, 3000, 16, 32, 4, 3)),
        (spamp_model(), spamp_case(5, 3000, 900, 16, 32)),
        (residual_model(), residual_case(5, 3000, 900, 16, 32)),
    ):
        kernel = session(model, library).run(None, case)[0]
        body = session(with_bodies(model)).run(None, case)[0]
        np.testing.assert_allclose(body, kernel, atol=1e-5 * np.abs(kernel).max())


def test_a_registered_kernel_wins_over_the_body():
    case = spse_case(6, 30, 4, 8)
    model = spse_model(1e-8, 0)
    poison = (
        '<domain: "dela", opset_import: ["" : 20]>\n'
        "SPSE <epsilon, directions> (points, neighbors, weight) => (out) {\n"
        "  shape = Constant <value_ints = [30, 8]> ()\n"
        "  poison = Constant <value_float = -7.0> ()\n"
        "  out = Expand (poison, shape)\n}"
    )
    model.functions.append(onnx.parser.parse_function(poison))
    assert (session(model).run(None, case)[0] == -7).all()
    found = session(model, native.library_path()).run(None, case)[0]
    np.testing.assert_allclose(found, spse_reference(**case, epsilon=1e-8), rtol=1e-4)


def test_without_bodies_only_kernels_run():
    model = with_bodies(spamp_model())
    function_bodies.detach(model)
    with pytest.raises(Exception, match="SPAMP"):
        session(model)
    case = spamp_case(7, 20, 9, 3, 8)
    found = session(model, native.library_path()).run(None, case)[0]
    np.testing.assert_allclose(found, spamp_reference(**case), atol=1e-5)


def test_attaching_twice_keeps_one_body_each():
    model = with_bodies(with_bodies(spse_model(1e-8, 0)))
    assert sorted(function.name for function in model.functions) == [
        "SPAMP",
        "SPAMPResidual",
        "SPSE",
    ]
    assert [entry.domain for entry in model.opset_import].count("dela") == 1


def test_an_index_beyond_the_points_is_refused_by_the_runtime():
    case = spse_case(8, 20, 4, 8)
    case["neighbors"][3, 1] = 20
    with pytest.raises(Exception, match="idx=20"):
        session(with_bodies(spse_model(1e-8, 0))).run(None, case)
