"""The table of whole scans a second: its scans, what it times, and what it shows."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dela.plugins.tensorrt import bindings
from dela.runtime import Predictor, load_backend
from standin_tensorrt import StandInTensorRT, write_engine


@pytest.fixture
def script(monkeypatch):
    path = Path(__file__).parents[2] / "benchmarks" / "end_to_end.py"
    spec = importlib.util.spec_from_file_location("end_to_end", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def coarse(script, monkeypatch):
    """The script with sensors of few beams."""
    sensors = {
        name: script.Sensor(beams, 60, -30, 5, 1.8, 40.0)
        for name, beams in (("nuScenes", 6), ("SemanticKITTI", 12))
    }
    monkeypatch.setattr(script, "SENSORS", sensors)
    return script


def test_sensors_see_about_as_many_points_as_the_real_ones(script):
    sensors = script.SENSORS
    assert len(sensors["nuScenes"].directions()) == pytest.approx(34_880)
    assert len(sensors["SemanticKITTI"].directions()) == pytest.approx(128_000)
    points = script.seen_from(sensors["nuScenes"], 10.0, script.street(), 0)
    assert 25_000 < len(points) < 34_880


def test_points_lie_where_their_ray_meets_the_first_surface(script, monkeypatch):
    """Against a march along some rays in steps of 4 mm."""
    sensor = script.Sensor(5, 24, -25, 8, 1.8, 20.0)
    boxes = script.street(3)
    found = script.seen_from(sensor, 4.0, boxes, 0)
    origin = np.array([4.0, 0.0, sensor.height])
    steps = np.arange(0.004, sensor.reach, 0.004)
    expected = []
    for ray in sensor.directions():
        way = origin + steps[:, None] * ray
        inside = way[:, 2] <= 0
        for low, high in boxes[np.abs(boxes[:, :, 0] - 4).min(axis=1) < 50]:
            inside |= ((way >= low) & (way <= high)).all(axis=1)
        if inside.any():
            expected.append(steps[inside.argmax()])
    distance = np.linalg.norm(found - origin, axis=1)
    assert len(found) == len(expected) > 50
    # Five times the noise of 2 cm, and a step.
    np.testing.assert_allclose(distance, expected, atol=0.12)


def test_scans_are_labelled_whole_and_the_first_do_not_count(coarse, network):
    backend = load_backend(network.onnx)
    scans = coarse.drive(coarse.SENSORS["nuScenes"], 4, backend.config)
    rate = coarse.label("mine", backend, "nuScenes", scans, 1)
    counted = [Predictor(backend).predict(scan) for scan in scans[1:]]
    assert rate.points == round(np.mean([len(found.labels) for found in counted]))
    assert rate.voxels == round(np.mean([found.voxels for found in counted]))
    assert rate.p99 >= rate.median > 0 and 0 < rate.rate <= 3000 / rate.median * 3
    assert rate.replayed is None
    assert not np.array_equal(scans[0].points, scans[1].points)


def test_an_engine_labels_scans_on_its_gpu(emulated_cuda, coarse, network, tmp_path, monkeypatch):
    trt = StandInTensorRT()
    monkeypatch.setattr(bindings, "load", lambda flavour: trt)
    backend = load_backend(write_engine(tmp_path, network.onnx, "1:500:4000"))
    scans = coarse.drive(coarse.SENSORS["nuScenes"], 4, backend.config)
    monkeypatch.delattr("dela.families.dela.family.build_pyramid")  # nothing is made on the CPU
    rate = coarse.label("engine", backend, "nuScenes", scans, 2)
    assert rate.replayed == 1.0 and len(trt.runs) == 4 and not trt.problems


def test_the_table_stands_beside_published_rates(coarse, network, classifier, monkeypatch, capsys):
    model, words = str(network.onnx), ["--scans", "2", "--warmup", "1"]
    monkeypatch.setattr(sys, "argv", ["end_to_end.py", model, *words])
    coarse.main()
    shown = capsys.readouterr().out
    (own,) = (line for line in shown.splitlines() if line.startswith("| dela, model.onnx |"))
    assert all(float(cell) > 0 for cell in own.split("|")[3:5])
    assert "| PTv3, published | RTX 4090 | 4.1 | - |" in shown
    assert "| HARP-NeXt, published | RTX 4090 | 100.0 | 76.9 |" in shown
    models = [model, str(classifier.checkpoint)]
    monkeypatch.setattr(sys, "argv", ["end_to_end.py", *models, *words, "--json"])
    with pytest.raises(SystemExit, match=r"^not measured: model\.pt$"):
        coarse.main()
    found = json.loads(capsys.readouterr().out)
    assert [rate["sensor"] for rate in found["rates"]] == list(coarse.SENSORS)
    assert found["missing"] == {"model.pt": "it names whole clouds; give a segmentation network"}


def test_what_cannot_run_here_is_listed_and_the_rest_is_measured(coarse, network, monkeypatch):
    files = {"fp32": network.onnx}
    monkeypatch.setattr(coarse, "build", lambda path, flavour: network.checkpoint)
    named = dict(coarse.candidates(files, cpu=True))
    assert list(named) == [
        "ONNX Runtime, cpu, fp32",
        "ONNX Runtime, cuda, fp32",
        "tensorrt, fp32",
        "tensorrt-rtx, fp32",
    ]
    rates, missing = coarse.measure(iter(list(named.items())[:2]), 1, 0)
    assert {rate.backend for rate in rates} == {"ONNX Runtime, cpu, fp32"} and len(rates) == 2
    assert list(missing) == ["ONNX Runtime, cuda, fp32"]
    assert named["tensorrt, fp32"]().name == "torch"  # what was built is what is loaded
