"""Parity: measured against hand-made numbers, passed by a true export, missed by a broken one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from dela.errors import InputError
from dela.model.parity import TOLERANCES, Tolerance
from dela.runtime import load_backend
from dela.runtime.verify import compare_logits, verify
from small_networks import CONFIG, make_cloud, write_network


def test_measures_of_known_logits():
    expected = np.array([[1.0, -4.0], [0.0, 2.0], [3.0, 1.0]], dtype=np.float32)
    found = expected + np.array([[0.0, 0.0], [0.0, -0.5], [-2.5, 0.0]], dtype=np.float32)
    report = compare_logits("x", expected, found, ["a", "b"], Tolerance(0.1, 0.5))
    assert report.largest_logit == 4
    assert report.max_error == pytest.approx(2.5)
    assert report.mean_error == pytest.approx(0.5)
    assert report.max_relative == pytest.approx(2.5 / 4)
    assert report.agreement == pytest.approx(2 / 3)
    cosine = (expected * found).sum() / np.linalg.norm(expected) / np.linalg.norm(found)
    assert report.cosine == pytest.approx(cosine)
    first, second = report.classes
    assert (first.points, first.agreement, first.max_error) == (2, 0.5, 2.5)
    assert (second.points, second.agreement, second.max_error) == (1, 1.0, 0.5)
    assert not report.passed


def test_each_limit_alone_can_fail():
    expected = np.array([[10.0, 0.0], [0.0, 1e-7]])
    swapped = np.array([[10.0, 0.0], [1e-7, 0.0]])
    names = ["a", "b"]
    assert compare_logits("x", expected, expected, names, TOLERANCES["fp32"]).passed
    assert not compare_logits("x", expected, swapped, names, TOLERANCES["fp32"]).passed
    shifted = expected + 0.002
    assert not compare_logits("x", expected, shifted, names, TOLERANCES["fp32"]).passed
    assert compare_logits("x", expected, shifted, names, TOLERANCES["fp16"]).passed


def test_nan_never_passes():
    expected = np.ones((4, 2))
    found = expected.copy()
    found[2, 1] = np.nan
    assert not compare_logits("x", expected, found, ["a", "b"], Tolerance(1.0, 0.0)).passed


def run_verify(network, onnx_path: Path, **arguments):
    candidates = {
        "our kernels": load_backend(onnx_path),
        "function bodies": load_backend(onnx_path, kernels=False),
    }
    return verify(load_backend(network.checkpoint), candidates, make_cloud(), **arguments)


def test_a_true_export_passes_whole_and_in_tiles(network):
    for max_points in (100_000, 2000):
        reports = run_verify(network, network.onnx, max_points=max_points)
        assert [report.passed for report in reports] == [True, True]
        assert reports[0].max_relative < 1e-4 and reports[0].agreement >= 0.9999
        assert sum(item.points for item in reports[0].classes) == reports[0].points


def test_a_broken_weight_fails(network, tmp_path):
    model = onnx.load(network.onnx)
    weight = max(
        (tensor for tensor in model.graph.initializer if len(tensor.dims) == 2),
        key=lambda tensor: np.prod(tensor.dims),
    )
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[np.argmax(np.abs(values))] *= -3
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    path = tmp_path / "broken.onnx"
    onnx.save(model, path)
    assert not any(report.passed for report in run_verify(network, path, max_points=100_000))


def test_a_broken_index_fails(network, tmp_path):
    """The graph reads another stage's rows: same shapes, other values."""
    model = onnx.load(network.onnx)
    renamed = 0
    for node in model.graph.node:
        if node.op_type == "SPAMPResidual":
            centers = list(node.input)
            if "kept_1" in centers:
                continue
            constant = onnx.numpy_helper.from_array(np.array([0], np.int32), f"first_{renamed}")
            model.graph.initializer.append(constant)
            # Neighbors of row 0 for everybody: gathered by a constant index.
            table = node.input[2]
            shape = onnx.helper.make_node("Shape", [table], [f"shape_{renamed}"])
            row = onnx.helper.make_node(
                "Gather", [table, constant.name], [f"row_{renamed}"], axis=0
            )
            wide = onnx.helper.make_node(
                "Expand", [f"row_{renamed}", f"shape_{renamed}"], [f"table_{renamed}"]
            )
            at = list(model.graph.node).index(node)
            for offset, extra in enumerate((shape, row, wide)):
                model.graph.node.insert(at + offset, extra)
            target = model.graph.node[at + 3]
            target.input[2] = f"table_{renamed}"
            renamed += 1
            break
    assert renamed == 1
    path = tmp_path / "index.onnx"
    onnx.save(model, path)
    assert not any(report.passed for report in run_verify(network, path, max_points=100_000))


def test_another_network_is_refused(network, tmp_path):
    import dataclasses

    other = write_network(tmp_path, dataclasses.replace(CONFIG, head_dim=20))
    with pytest.raises(InputError, match="head_dim is 20"):
        run_verify(network, other.onnx, max_points=100_000)
