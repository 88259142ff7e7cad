"""Exported files of every kind of network: parity, clean graphs, checks that bite."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch

from dela.artifacts.checkpoint import save_checkpoint
from dela.artifacts.metadata import ModelMetadata
from dela.errors import CheckpointError, ConfigError, InputError, ParityError
from dela.export import check_export, export_onnx, onnx_export
from dela.families.dela.example import example_pyramid
from dela.plugins import native
from onnx_operators import session, spelled_out

KINDS = ["one_stage", "four_stages", "directions", "parts", "parts_alone", "classification"]
CHECKS = [
    "onnx checker",
    "onnxruntime, our kernels",
    "onnxruntime, function bodies",
    "onnx reference evaluator",
]


def weights(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {weight.name: weight for weight in proto.graph.initializer}


def operator_nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.domain == "dela"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_passes(exported, kind):
    _, results = exported(kind)
    assert [result.name for result in results] == CHECKS
    assert all(result.skipped is None for result in results)
    assert all(result.error < 1e-5 for result in results[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 40, 3000])
def test_any_size_runs_and_gives_pytorch_logits(exported, network, kind, size):
    if kind == "classification":
        size = {1: 1, 40: 2, 3000: 9}[size]
    pyramid = example_pyramid(network(kind).config, size, seed=3)
    with torch.inference_mode():
        expected = network(kind)(pyramid).numpy()
    proto = onnx.load(exported(kind)[0])
    for library in (native.library_path(), None):
        (found,) = session(proto, library).run(["logits"], dict(pyramid.inputs()))
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_those_of_the_pyramid(exported, network, kind):
    proto = onnx.load(exported(kind)[0])
    config = network(kind).config
    names = [name for name, _ in example_pyramid(config, 2).inputs()]
    assert [value.name for value in proto.graph.input] == names
    assert [value.name for value in proto.graph.output] == ["logits"]
    if kind == "four_stages":
        shapes = {
            value.name: [
                size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim
            ]
            for value in (*proto.graph.input, *proto.graph.output)
        }
        assert shapes == {
            "points": ["n0", 3],
            "attributes": ["n0", 4],
            **{f"neighbors_{d}": [f"n{d}", k] for d, k in enumerate((6, 7, 4, 5))},
            **{f"kept_{d}": [f"n{d}"] for d in (1, 2, 3)},
            **{f"nearest_{d}": ["n0"] for d in (1, 2, 3)},
            "logits": ["n0", 5],
        }


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_is_clean(exported, network, kind):
    path, _ = exported(kind)
    proto = onnx.load(path)
    nodes = proto.graph.node
    assert not {node.op_type for node in nodes} & {"BatchNormalization", "GatherND", "Transpose"}
    wide = [
        node
        for node in nodes
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.INT64
    ]
    assert not wide
    operators = operator_nodes(proto)
    assert sum(node.op_type == "SPSE" for node in operators) == network(kind).config.stages
    for node in operators:
        attributes = {entry.name: entry for entry in node.attribute}
        assert attributes["plugin_namespace"].s == b"dela"
        assert node.input[-1] in weights(proto)
    bodies = sorted(function.name for function in proto.functions)
    assert bodies == ["SPAMP", "SPAMPResidual", "SPSE"]
    assert b"/" + __file__.encode().split(b"/")[1] not in path.read_bytes()
    assert all(not weight.external_data for weight in proto.graph.initializer)


@pytest.mark.parametrize("kind", ["four_stages", "classification"])
def test_scale_and_residual_of_every_aggregation_are_folded_into_its_node(exported, network, kind):
    proto, config = onnx.load(exported(kind)[0]), network(kind).config
    folded = [node for node in operator_nodes(proto) if node.op_type == "SPAMPResidual"]
    # one per aggregation and per step down
    assert len(folded) == sum(config.depths) + config.stages - 1
    assert not any(node.op_type == "SPAMP" for node in proto.graph.node)
    pooled = {node.output[0] for node in folded}
    readers = {node.op_type for node in proto.graph.node if pooled.intersection(node.input)}
    assert "Mul" not in readers
    assert all(weights(proto)[node.input[6]].data_type == 1 for node in folded)


@pytest.mark.parametrize("kernels", [True, False])
def test_a_file_of_before_the_residual_form_gives_the_same_answer(exported, network, kernels):
    proto = onnx.load(exported("four_stages")[0])
    old = spelled_out(proto)
    assert {node.op_type for node in operator_nodes(old)} == {"SPSE", "SPAMP"}
    onnx.checker.check_model(old, full_check=True)
    feeds = dict(example_pyramid(network("four_stages").config, 300, seed=4).inputs())
    library = native.library_path() if kernels else None
    expected = session(proto, library).run(["logits"], feeds)[0]
    found = session(old, library).run(["logits"], feeds)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "code"), [("fp16", 10), ("bf16", 16)])
def test_sixteen_bit_layers_between_float32_operators(exported, dtype, code):
    path, results = exported("directions", dtype)
    proto = onnx.load(path)
    held = weights(proto)
    gemms = [node for node in proto.graph.node if node.op_type == "Gemm"]
    assert gemms
    assert {held[name].data_type for node in gemms for name in node.input[1:]} == {code}
    assert {held[node.input[-1]].data_type for node in operator_nodes(proto)} == {1}
    floats = {
        value.type.tensor_type.elem_type
        for value in (*proto.graph.input, *proto.graph.output)
        if not value.name.startswith(("neighbors", "kept", "nearest"))
    }
    assert floats == {onnx.TensorProto.FLOAT}
    by_name = {result.name: result for result in results}
    reference = by_name["onnx reference evaluator"]
    assert 1e-6 < reference.error <= reference.tolerance
    if dtype == "fp16":
        assert all(result.skipped is None for result in results)


def test_what_onnxruntime_cannot_run_is_said(exported):
    """ONNX Runtime may learn bfloat16 on the CPU; until then both of its runs are left out."""
    _, results = exported("directions", "bf16")
    for result in results[1:3]:
        assert (result.error is None) == (result.skipped is not None)
        if result.skipped:
            assert "no CPU kernels" in result.skipped


def test_metadata_comes_back_from_the_session(exported, network):
    run = session(onnx.load(exported("four_stages")[0]))
    metadata = ModelMetadata.from_properties(run.get_modelmeta().custom_metadata_map)
    assert metadata.config == network("four_stages").config
    assert metadata.dtype == "fp32"
    inputs = {item.name: (item.type, item.shape) for item in run.get_inputs()}
    metadata.check_graph(inputs, {item.name: item.shape for item in run.get_outputs()})


def corrupt(proto: onnx.ModelProto, fraction: str) -> onnx.ModelProto:
    """Moves one number of one weight whose name contains ``fraction``."""
    weight = next(w for w in proto.graph.initializer if fraction in w.name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[values.size // 2] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    return proto


@pytest.mark.parametrize("fraction", ["spse_weight_0", "classify.weight", "project.weight"])
def test_one_wrong_weight_fails_the_check(exported, network, tmp_path, fraction):
    onnx.save(corrupt(onnx.load(exported("four_stages")[0]), fraction), tmp_path / "bad.onnx")
    with pytest.raises(ParityError, match=r"our kernels: the largest error is .* is allowed; row"):
        list(check_export(tmp_path / "bad.onnx", network("four_stages")))


def test_a_broken_body_fails_the_check_though_kernels_pass(exported, network, tmp_path):
    proto = onnx.load(exported("four_stages")[0])
    body = next(function for function in proto.functions if function.name == "SPAMP")
    next(node for node in body.node if node.op_type == "Neg").op_type = "Abs"
    onnx.save(proto, tmp_path / "bad.onnx")
    checks = check_export(tmp_path / "bad.onnx", network("four_stages"))
    assert [next(checks).name for _ in range(2)] == CHECKS[:2]
    with pytest.raises(ParityError, match="function bodies"):
        next(checks)


def test_a_file_that_does_not_fit_its_metadata_is_refused(exported, network, tmp_path):
    proto = onnx.load(exported("one_stage")[0])
    for entry in proto.metadata_props:
        if entry.key == "config":
            entry.value = entry.value.replace('"neighbors": [6]', '"neighbors": [9]')
    onnx.save(proto, tmp_path / "bad.onnx")
    with pytest.raises(CheckpointError, match=r"neighbors_0 is int32 \[n0, 6\].*int32 \[\?, 9\]"):
        list(check_export(tmp_path / "bad.onnx", network("one_stage")))


def test_without_onnxruntime_its_checks_are_left_out_in_words(exported, network, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    results = list(check_export(exported("one_stage")[0], network("one_stage")))
    assert [bool(result.skipped) for result in results] == [False, True, True, False]
    assert "pip install 'dela[onnxruntime]'" in results[1].skipped


def test_a_failed_check_leaves_no_file(exported, network, tmp_path, monkeypatch):
    bad = corrupt(onnx.load(exported("one_stage")[0]), "classify.weight")
    monkeypatch.setattr(onnx_export, "build_onnx", lambda model, metadata: bad)
    with pytest.raises(ParityError):
        export_onnx(network("one_stage"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_leaves_its_hash_and_measured_ratios(network, tmp_path, monkeypatch):
    ratios = [{"min": 1.0, "mean": 1.0, "max": 1.0}]
    save_checkpoint(tmp_path / "best.pt", network("one_stage"), {"stage_ratios": ratios})
    seen = []

    def stop(model, metadata):
        seen.append(metadata)
        raise ConfigError("far enough")

    monkeypatch.setattr(onnx_export, "build_onnx", stop)
    with pytest.raises(ConfigError, match="far enough"):
        export_onnx(tmp_path / "best.pt", tmp_path / "model.onnx")
    (metadata,) = seen
    assert len(metadata.checkpoint_sha256) == 64
    assert list(metadata.stage_ratios) == ratios


def test_an_existing_file_and_a_wrong_dtype_are_refused_before_any_work(network, tmp_path):
    (tmp_path / "model.onnx").write_text("precious")
    with pytest.raises(InputError, match="exists"):
        export_onnx(network("one_stage"), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "precious"
    with pytest.raises(ConfigError, match=r"int8.*fp32, fp16, bf16"):
        export_onnx(network("one_stage"), tmp_path / "other.onnx", "int8")
