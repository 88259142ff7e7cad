"""Logits that are no numbers are refused, with the layer they come from."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dela.cloud.formats import write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import DelaError
from dela.runtime import Predictor, load_backend
from dela.runtime.backends.finite import finite_run
from dela.runtime.verify import verify
from small_networks import make_cloud

torch = pytest.importorskip("torch")


@pytest.fixture
def overflowing(network, tmp_path):
    """An exported file of which the weights of the last product but one are far too large."""
    model = onnx.load(network.onnx)
    products = [node for node in model.graph.node if node.op_type in ("Gemm", "MatMul")]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    node = products[-2]
    (name,) = (name for name in node.input[:2] if name in weights)
    values = numpy_helper.to_array(weights[name])
    # Infinite, and not a number where two of them meet: every sum after it is either.
    weights[name].CopyFrom(numpy_helper.from_array(values * np.float32(np.inf), name))
    path = tmp_path / "overflowing.onnx"
    onnx.save(model, path)
    return path, node


def test_onnx_runtime_names_the_layer(overflowing):
    path, node = overflowing
    with pytest.raises(DelaError, match=r"rows of its logits are NaN or infinite") as caught:
        Predictor(load_backend(path)).predict(make_cloud(500))
    assert f"first after the layer {node.name or node.op_type};" in str(caught.value)


def test_without_the_package_onnx_the_layer_stays_unsaid(overflowing, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DelaError, match=r"NaN or infinite; its weights are damaged"):
        Predictor(load_backend(overflowing[0])).predict(make_cloud(500))


def test_pytorch_names_the_layer(network):
    backend = load_backend(network.checkpoint)
    layers = dict(backend._model.named_modules())
    with torch.no_grad():
        layers["head.norm"].running_var.fill_(torch.nan)
    with pytest.raises(DelaError, match=r"first after the layer head\.norm;"):
        Predictor(backend).predict(make_cloud(500))


def test_a_float16_file_is_told_about_wider_numbers(overflowing):
    backend = load_backend(overflowing[0])
    backend.metadata = dataclasses.replace(backend.metadata, dtype="fp16")
    with pytest.raises(DelaError, match="export with --dtype bf16 or fp32"):
        Predictor(backend).predict(make_cloud(500))


def test_the_proof_of_parity_refuses_them_too(network, overflowing):
    reference = load_backend(network.checkpoint)
    with pytest.raises(DelaError, match="NaN or infinite"):
        verify(reference, {"x": load_backend(overflowing[0])}, make_cloud(500), max_points=10_000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_is_enough_and_large_ones_are_none(value):
    class Fixed:
        path, metadata = "model.onnx", None
        logits = np.full((3, 2), 3e38, dtype=np.float32)

        def run(self, inputs):
            return self.logits

    backend = Fixed()
    assert finite_run(backend)(None) is backend.logits
    backend.logits = backend.logits.copy()
    backend.logits[1, 0] = value
    with pytest.raises(DelaError, match="1 of 3 rows"):
        finite_run(backend)(None)


def test_predict_and_eval_write_nothing(overflowing, tmp_path, capsys):
    from dela.cli import main as cli

    cloud = make_cloud(500)
    codes = np.full(len(cloud), 2, np.int32)
    scan = write_cloud(
        tmp_path / "scan.ply", PointCloud(cloud.points, {**cloud.columns, "label": codes})
    )
    output = tmp_path / "out.ply"
    model = overflowing[0]
    for words in (["predict", scan, "-m", model, "-o", output], ["eval", model, scan]):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        assert ended.value.code == 1
        assert "NaN or infinite" in capsys.readouterr().err
    assert not output.exists()
