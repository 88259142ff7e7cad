"""The custom operators inside ONNX Runtime: values, errors, edges and threads."""

from __future__ import annotations

import concurrent.futures
import ctypes

import numpy as np
import pytest

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

pytest.importorskip("onnxruntime")

EPSILON = {0: 1e-8, 3: 1.0001}


@pytest.fixture(scope="module")
def library():
    return native.library_path()


def run(model, feed, library, threads=2):
    return session(model, library, threads).run(None, feed)[0]


@pytest.mark.parametrize("directions", [0, 3])
@pytest.mark.parametrize("attributes", [0, 1, 4])
@pytest.mark.parametrize(
    ("n", "k", "channels"), [(700, 24, 64), (300, 1, 20), (1, 5, 3), (0, 4, 8)]
)
def test_spse_gives_the_float64_answer(library, n, k, channels, attributes, directions):
    case = spse_case(1, n, k, channels, attributes, directions)
    found = run(spse_model(EPSILON[directions], directions), case, library)
    assert found.shape == (n, channels)
    assert found.dtype == np.float32
    if n:
        expected = spse_reference(**case, epsilon=EPSILON[directions], directions=directions)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("element", "dtype", "tolerance"),
    [("float", np.float32, 1e-5), ("float16", np.float16, 2e-3), ("bfloat16", np.float32, 2e-2)],
)
@pytest.mark.parametrize(
    ("n", "m", "k", "channels"), [(600, 200, 24, 64), (300, 300, 1, 20), (5, 0, 3, 8), (0, 0, 3, 8)]
)
def test_spamp_gives_the_float64_answer(library, element, dtype, tolerance, n, m, k, channels):
    case = spamp_case(2, n, m, k, channels, dtype)
    found = run(spamp_model(element), case, library)
    assert found.shape == (m, channels)
    assert found.dtype == dtype
    if m:
        expected = spamp_reference(**case)
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    ("element", "dtype", "tolerance"),
    [("float", np.float32, 1e-5), ("float16", np.float16, 2e-3), ("bfloat16", np.float32, 2e-2)],
)
@pytest.mark.parametrize(
    ("n", "m", "k", "channels"), [(600, 200, 24, 64), (300, 300, 1, 20), (5, 0, 3, 8), (0, 0, 3, 8)]
)
def test_the_residual_form_gives_the_float64_answer(
    library, element, dtype, tolerance, n, m, k, channels
):
    case = residual_case(2, n, m, k, channels, dtype)
    found = run(residual_model(element), case, library)
    assert found.shape == (m, channels)
    assert found.dtype == dtype
    if m:
        expected = residual_reference(**case)
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_epsilon_is_read_from_the_node(library):
    case = spse_case(3, 50, 4, 8)
    found = run(spse_model(2.5, 0), case, library)
    np.testing.assert_allclose(found, spse_reference(**case, epsilon=2.5), rtol=1e-4)


@pytest.mark.parametrize("value", [-1, 500, 2**31 - 1, -(2**31)])
def test_a_bad_neighbor_names_row_and_value(library, value):
    case = spse_case(4, 500, 6, 16)
    case["neighbors"][317, 2] = value
    case["neighbors"][400, 0] = -5
    with pytest.raises(Exception, match=rf"SPSE: neighbors row 317 holds {value};.*\[0, 500\)"):
        run(spse_model(1e-8, 0), case, library)
    case = spamp_case(5, 500, 450, 6, 16)
    case["neighbors"][317, 2] = value
    with pytest.raises(Exception, match=rf"SPAMP: neighbors row 317 holds {value};"):
        run(spamp_model(), case, library)


def test_a_bad_center_names_row_and_value(library):
    case = spamp_case(6, 90, 40, 3, 8)
    case["centers"][39] = 90
    with pytest.raises(Exception, match=r"SPAMP: centers row 39 holds 90;.*\[0, 90\)"):
        run(spamp_model(), case, library)


def test_a_session_goes_on_after_a_bad_call(library):
    model = session(spse_model(1e-8, 0), library)
    case = spse_case(7, 300, 4, 8)
    before = model.run(None, case)[0]
    broken = {**case, "neighbors": case["neighbors"] + 300}
    with pytest.raises(Exception, match="row 0 holds"):
        model.run(None, broken)
    np.testing.assert_array_equal(model.run(None, case)[0], before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weight": np.zeros((15, 8), np.float32)},
            "weight has 15 rows; points with 3 columns need 12",
        ),
        ({"points": np.zeros((9, 2), np.float32)}, "points has 2 columns"),
        ({"neighbors": np.zeros((8, 4), np.int32)}, "neighbors has 8 rows, points 9"),
        ({"neighbors": np.zeros((9, 0), np.int32)}, "neighbors has 0 columns"),
        ({"weight": np.zeros((12, 0), np.float32)}, "weight has 0 columns"),
    ],
)
def test_spse_refuses_shapes_that_do_not_fit(library, change, message):
    case = {**spse_case(8, 9, 4, 8), **change}
    with pytest.raises(Exception, match=message):
        run(spse_model(1e-8, 0), case, library)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((8, 3), np.float32)}, r"points is \[8, 3\], features has 9 rows"),
        ({"features": np.zeros((9, 6), np.float32)}, "6 channels; expected a multiple of 4"),
        ({"weight": np.zeros((4, 3), np.float32)}, r"weight is \[4, 3\]; 8 channels need \[4, 2\]"),
        ({"centers": np.zeros(8, np.int32)}, "neighbors has 5 rows, centers 8"),
        ({"neighbors": np.zeros((5, 0), np.int32)}, "neighbors has 0 columns"),
    ],
)
def test_spamp_refuses_shapes_that_do_not_fit(library, change, message):
    case = {**spamp_case(9, 9, 5, 4, 8), **change}
    with pytest.raises(Exception, match=message):
        run(spamp_model(), case, library)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": np.zeros((5, 4), np.float32)}, r"base is \[5, 4\]; expected \[5, 8\]"),
        ({"base": np.zeros((9, 8), np.float32)}, r"base is \[9, 8\]; expected \[5, 8\]"),
        ({"scale": np.zeros(4, np.float32)}, "scale has 4 values; 8 channels"),
        ({"neighbors": np.full((5, 4), 9, np.int32)}, "neighbors row 0 holds 9"),
    ],
)
def test_the_residual_form_refuses_what_does_not_fit(library, change, message):
    case = {**residual_case(9, 9, 5, 4, 8), **change}
    with pytest.raises(Exception, match=f"SPAMPResidual: {message}"):
        run(residual_model(), case, library)


def test_a_missing_or_senseless_attribute_stops_the_session(library):
    model = spse_model(1e-8, 0)
    (node,) = (node for node in model.graph.node if node.op_type == "SPSE")
    (directions,) = (entry for entry in node.attribute if entry.name == "directions")
    directions.i = -1
    with pytest.raises(Exception, match="directions is -1"):
        session(model, library)
    node.attribute.remove(directions)
    with pytest.raises(Exception, match="directions"):
        session(model, library)


def test_the_number_of_threads_changes_no_bit(library):
    spse, spamp = spse_case(10, 5000, 12, 32, 4), spamp_case(11, 5000, 4000, 12, 32)
    one = run(spse_model(1e-8, 0), spse, library, 1), run(spamp_model(), spamp, library, 1)
    for threads in (2, 5):
        np.testing.assert_array_equal(run(spse_model(1e-8, 0), spse, library, threads), one[0])
        np.testing.assert_array_equal(run(spamp_model(), spamp, library, threads), one[1])


def test_one_session_serves_concurrent_runs(library):
    model = session(spse_model(1e-8, 0), library)
    cases = [spse_case(seed, 2000, 8, 32, 2) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda case: model.run(None, case)[0], cases * 3))
    for case, found in zip(cases * 3, answers, strict=True):
        np.testing.assert_allclose(found, spse_reference(**case, epsilon=1e-8), rtol=1e-4)


def test_shapes_are_known_before_the_run(library):
    model = spamp_model("float16")
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (output,) = session(model, library).get_outputs()
    assert (output.type, output.shape) == ("tensor(float16)", ["M", "C"])


def test_an_older_runtime_is_refused_in_words(library):
    """A runtime that knows API version 16 at most, imitated: GetApi(17) gives null."""
    said = []
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda code, message: said.append((code, message.decode())) or 1
    )
    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))

    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(table) if version <= 16 else None
    )
    version = ctypes.create_string_buffer(b"1.16.3")
    get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(version))

    class ApiBase(ctypes.Structure):
        _fields_ = (("get_api", ctypes.c_void_p), ("get_version", ctypes.c_void_p))

    base = ApiBase(*(ctypes.cast(f, ctypes.c_void_p) for f in (get_api, get_version)))
    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base))
    ((code, message),) = said
    assert code == 1
    assert "needs ONNX Runtime 1.17 or newer, this is 1.16.3" in message
