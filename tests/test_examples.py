"""Every example runs on small data and gives the answer that dela gives another way."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import dela
from dela.cloud import formats
from dela.errors import InputError
from dela.families import FAMILIES
from dela.runtime import Predictor, load_backend
from small_networks import CONFIG, make_cloud, scene_pyramid, write_network

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return write_network(tmp_path_factory.mktemp("network"), CONFIG)


@pytest.fixture
def example(monkeypatch):
    """Imports an example under its own name, and forgets it and what it registered."""
    monkeypatch.setattr("dela.families.FAMILIES", dict(FAMILIES))
    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_operators_learn_in_a_network_of_ones_own(example):
    losses = example("operators_in_your_network").main(steps=40)
    assert losses[0] > 0.5
    assert losses[-1] < 0.2


def test_gradients_through_the_operators_are_those_of_plain_pytorch(example):
    import torch

    from dela.ops import implementation

    network = example("operators_in_your_network").Network(8, 2)
    generator = np.random.default_rng(1)
    points = generator.uniform(0, 1, (60, 3)).astype(np.float32)
    neighbors = torch.from_numpy(generator.integers(0, 60, (60, 5)).astype(np.int32))
    found = []
    for name in ("native", "reference"):
        network.zero_grad()
        with implementation(name):
            network(torch.from_numpy(points), neighbors).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in network.parameters()])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


def test_a_format_of_ones_own_is_read_wherever_a_path_is_given(example, tmp_path, network):
    toy = example("your_own_format")
    toy.main(tmp_path / "scan.toy")

    scan = make_cloud(500, (1.0, 1.0, 1.0))
    dela.write_cloud(tmp_path / "scene.toy", scan)
    dela.write_cloud(tmp_path / "scene.npz", scan)
    found = [
        Predictor(load_backend(network.onnx)).predict(dela.read_cloud(tmp_path / name)).labels
        for name in ("scene.toy", "scene.npz")
    ]
    np.testing.assert_array_equal(*found)
    assert tmp_path / "scene.toy" in formats.find_scans([tmp_path])

    short = (tmp_path / "scene.toy").read_bytes()[:-3]
    (tmp_path / "short.toy").write_bytes(short)
    with pytest.raises(InputError, match=r"short\.toy is cut short"):
        dela.read_cloud(tmp_path / "short.toy")


def test_a_family_of_ones_own_is_trained_exported_and_run(example, tmp_path):
    assert example("your_own_family").main(tmp_path) > 0.95
    model = load_backend(tmp_path / "mean.onnx")
    assert model.config.family == "mean"
    assert [info.name for info in model.config.classes] == ["floor", "wall"]


def test_plain_onnx_runtime_gives_the_answer_of_dela(network, tmp_path):
    inputs = scene_pyramid(CONFIG, 400)
    np.savez(tmp_path / "inputs.npz", **dict(inputs.inputs()))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy, plain_onnxruntime\n"
        "logits, names = plain_onnxruntime.main(*sys.argv[2:4])\n"
        "assert names == ['low', 'middle', 'high'], names\n"
        "assert not any(name.split('.')[0] == 'dela' for name in sys.modules)\n"
        "numpy.save(sys.argv[4], logits)"
    )
    arguments = [EXAMPLES, network.onnx, tmp_path / "inputs.npz", tmp_path / "logits.npy"]
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True)
    expected = load_backend(network.checkpoint).run(inputs)
    found = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_an_engine_takes_arrays_that_lie_on_the_gpu(
    emulated_cuda, example, network, tmp_path, monkeypatch
):
    from dela.plugins.tensorrt import bindings
    from standin_tensorrt import StandInTensorRT, write_engine

    trt = StandInTensorRT()
    monkeypatch.setattr(bindings, "load", lambda flavour: trt)
    engine = write_engine(tmp_path, network.onnx, "100:1000:6000")
    dela.write_cloud(tmp_path / "scan.npz", make_cloud(1500, (1.5, 1.5, 1.0)))
    found = example("zero_copy_gpu").main(engine, tmp_path / "scan.npz")
    scan = dela.read_cloud(tmp_path / "scan.npz")
    expected = Predictor(load_backend(network.checkpoint)).predict(scan).classes
    np.testing.assert_array_equal(found, expected)
    assert len(set(expected)) > 1
    assert not trt.problems


def test_scans_of_a_folder_are_scored_one_by_one(example, network, tmp_path):
    for seed in range(3):
        dela.write_cloud(tmp_path / f"{seed}.npz", make_cloud(800, (2.0, 2.0, 1.0), seed))
    found = example("score_a_folder").main(network.onnx, tmp_path, "classification")
    scores = {}
    for path in tmp_path.glob("*.npz"):
        scan = dela.read_cloud(path)
        labels = Predictor(load_backend(network.onnx)).predict(scan).labels
        truth = scan.columns["classification"]
        shares = [
            np.sum((labels == code) & (truth == code)) / np.sum((labels == code) | (truth == code))
            for code in (2, 5, 6)
        ]
        scores[str(path)] = np.mean(shares)
    assert {path: pytest.approx(miou) for miou, path in found} == scores
    assert [miou for miou, _ in found] == sorted(scores.values())


def test_the_table_of_examples_names_each_once():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| [`")]
    assert sorted(rows) == [f"{name}.py" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_tells_how_it_is_run(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert 20 <= len(text.splitlines()) <= 120
    assert f"python examples/{name}.py" in (ast.get_docstring(ast.parse(text)) or "")
