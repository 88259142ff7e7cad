"""Loading networks: which files are taken, which are refused and in which words."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from dela.errors import CheckpointError, EngineError, InputError
from dela.pyramid.cpu import Pyramid
from dela.runtime import load_backend
from dela.scan.attributes import compute_attributes
from dela.scan.voxels import Voxels


@pytest.fixture
def pyramid(network, cloud) -> Pyramid:
    attributes = compute_attributes(cloud, network.config.input_columns)
    (part,) = Voxels.of(cloud, attributes, network.config).tiles(network.config, 100_000)
    return part.inputs


def test_the_suffix_chooses_the_backend(network):
    assert load_backend(network.checkpoint).name == "torch"
    assert load_backend(network.onnx).name == "onnxruntime"


def test_both_carry_the_same_configuration_and_hash(network):
    ours, exported = load_backend(network.checkpoint), load_backend(network.onnx)
    assert ours.config == exported.config == network.config
    assert ours.sha256 == exported.sha256 != ""
    assert exported.metadata.dtype == "fp32"


@pytest.mark.parametrize("kernels", [True, False])
def test_onnxruntime_gives_pytorchs_logits(network, pyramid, kernels):
    expected = load_backend(network.checkpoint).run(pyramid)
    found = load_backend(network.onnx, kernels=kernels).run(pyramid)
    assert found.dtype == np.float32 and found.shape == (len(pyramid.points), 3)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kernels", [True, False])
def test_a_thread_count_changes_nothing(network, pyramid, kernels):
    one = load_backend(network.onnx, kernels=kernels, threads=1).run(pyramid)
    two = load_backend(network.onnx, kernels=kernels, threads=2).run(pyramid)
    assert np.allclose(one, two, rtol=0, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("name", ["checkpoint", "onnx"])
def test_an_index_out_of_range_is_named(network, pyramid, name):
    table = pyramid.neighbors[1].copy()
    table[3, 2] = len(table)
    broken = Pyramid(
        pyramid.points,
        pyramid.attributes,
        (pyramid.neighbors[0], table),
        pyramid.kept,
        pyramid.nearest,
        pyramid.lengths,
    )
    with pytest.raises(InputError, match=str(len(table))):
        load_backend(getattr(network, name)).run(broken)


def test_a_missing_file_and_an_unknown_suffix(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_backend(tmp_path / "none.onnx")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot tell the backend"):
        load_backend(tmp_path / "model.bin")


def test_a_file_that_is_no_onnx(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"this is no protocol buffer at all")
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        load_backend(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        load_backend(path)


def test_an_onnx_file_of_somebody_else(tmp_path):
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="no dela metadata"):
        load_backend(path)


def test_a_graph_that_does_not_fit_its_metadata(network, tmp_path):
    model = onnx.load(network.onnx)
    for entry in model.metadata_props:
        if entry.key == "config":
            assert '"neighbors": [8, 8]' in entry.value
            entry.value = entry.value.replace('"neighbors": [8, 8]', '"neighbors": [9, 8]')
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="neighbors_0"):
        load_backend(path)


def test_the_torch_backend_refuses_an_onnx_file(network):
    with pytest.raises(CheckpointError, match="takes the checkpoint"):
        load_backend(network.onnx, "torch")


def test_files_that_are_no_engines_name_the_way_to_one(network, tmp_path):
    with pytest.raises(EngineError, match=r"is no engine; .*`dela build .*model\.onnx --backend t"):
        load_backend(network.onnx, "tensorrt")
    with pytest.raises(EngineError, match=r"is no engine"):
        load_backend(network.checkpoint, "tensorrt-rtx")
    (tmp_path / "model.engine").write_bytes(b"x")
    with pytest.raises(EngineError, match=r"no model\.engine\.json beside it"):
        load_backend(tmp_path / "model.engine")
    with pytest.raises(InputError, match="runs on a GPU"):
        load_backend(tmp_path / "model.engine", "tensorrt", device="cpu")
