"""dela bench: what is timed, on which input, and what the command says about it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from dela.cli import main as cli
from dela.cloud.formats import write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import DelaError, InputError
from dela.model.contract import AttributeInfo, CategoryInfo
from dela.runtime import load_backend
from dela.runtime.bench import (
    PHASES,
    Latency,
    MeasureOptions,
    crops_of,
    made_up_clouds,
    measure,
    time_layers,
)
from dela.scan.attributes import compute_attributes
from dela.scan.voxels import Voxels
from small_networks import CLASSIFICATION, CONFIG, make_cloud


class Slow:
    """A backend that takes a known time and keeps what it saw."""

    name, path, metadata, sha256, max_points = "slow", "slow.file", None, "", None

    def __init__(self, config, seconds=0.0) -> None:
        self.config, self.seconds, self.sizes = config, seconds, []

    def run(self, pyramid) -> np.ndarray:
        time.sleep(self.seconds)
        self.sizes.append(len(pyramid.points))
        rows = pyramid.clouds if self.config.task == "classification" else len(pyramid.points)
        return np.zeros((rows, self.config.num_classes), dtype=np.float32)


def test_the_networks_time_is_the_networks_alone():
    backend = Slow(CONFIG, seconds=0.02)
    result = measure(backend, [make_cloud(1000)], repeats=3, warmups=2)
    assert len(backend.sizes) == 5
    assert all(len(result.seconds[phase]) == 3 for phase in PHASES)
    assert min(result.seconds["network"]) >= 0.02
    assert result.points == backend.sizes[0] and result.runs == 1
    assert result.points_per_second <= result.points / 0.02
    assert sum(result.total) == pytest.approx(sum(map(sum, result.seconds.values())))


def test_percentiles_of_known_times():
    times = tuple(float(value) for value in range(1, 12))
    result = Latency("b", "m", "i", 60, 1, dict.fromkeys(PHASES, times), {"again": (2.0, 4.0)})
    assert result.median("network") == 6 and result.p90("network") == 10
    assert result.points_per_second == 10
    values = result.to_dict()
    total = {"median": 18, "p90": 30, "p99": pytest.approx(32.7), "max": 33}
    assert values["seconds"]["total"] == total
    kind = {"runs": 2, "median": 3, "p90": pytest.approx(3.8), "p99": pytest.approx(3.98), "max": 4}
    assert values["kinds"] == {"again": kind}
    assert json.loads(json.dumps(values)) == values


def test_sizes_met_for_the_first_time_are_told_apart():
    class Forgetful(Slow):
        """Slow at each size's first run."""

        def run(self, pyramid):
            self.seconds = 0.0 if len(pyramid.points) in self.sizes else 0.02
            return super().run(pyramid)

    backend = Forgetful(CONFIG)
    options = MeasureOptions(crops=4)
    result = measure(backend, [make_cloud(3000)], options, repeats=10, warmups=2)
    first, again = result.kinds["first"], result.kinds["again"]
    assert len(set(backend.sizes)) == len(first) == 4 and len(again) == 8
    assert min(first) >= 0.02 > max(again)
    assert result.points == round(sum(backend.sizes[2:]) / 10) and result.runs == 1
    assert backend.sizes[:4] * 3 == backend.sizes


@pytest.mark.parametrize("count", [1, 2, 7])
def test_crops_range_from_a_quarter_of_a_scan_to_all_of_it(count):
    cloud = make_cloud(4000)
    parts = crops_of(cloud, count)
    sizes = sorted(len(part) for part in parts)
    assert len(parts) == count and sizes[-1] == len(cloud)
    assert count == 1 or 0.2 * len(cloud) <= sizes[0] <= 0.3 * len(cloud)
    there = {tuple(point) for point in cloud.points}
    for part in parts:
        assert {tuple(point) for point in part.points} <= there
        assert set(part.columns) == set(cloud.columns)
    again = crops_of(cloud, count)
    assert all(np.array_equal(a.points, b.points) for a, b in zip(parts, again, strict=True))


def test_crops_of_points_in_one_place_or_on_a_line_are_not_empty():
    for points in (np.zeros((5, 3)), np.outer(np.arange(30.0), [0, 1, 0]), np.zeros((1, 3))):
        assert all(len(part) for part in crops_of(PointCloud(points), 6))


def test_clouds_are_not_cropped():
    clouds = made_up_clouds(CLASSIFICATION, 2)
    with pytest.raises(InputError, match="crops are parts of a scan"):
        measure(Slow(CLASSIFICATION), clouds, MeasureOptions(crops=3))


def test_a_large_scan_is_timed_in_tiles_that_the_backend_takes():
    backend = Slow(CONFIG)
    backend.max_points = 500
    result = measure(backend, [make_cloud(3000)], repeats=1, warmups=0)
    assert result.runs == len(backend.sizes) > 1
    assert max(backend.sizes) <= 500 and result.points == sum(backend.sizes)


def test_clouds_are_timed_in_one_batch():
    backend = Slow(CLASSIFICATION)
    result = measure(backend, made_up_clouds(CLASSIFICATION, 3), repeats=1, warmups=0)
    assert backend.sizes == [3 * CLASSIFICATION.points[0]] and result.runs == 1


def test_segmentation_is_timed_on_one_scan():
    with pytest.raises(InputError, match="one scan; 2 were given"):
        measure(Slow(CONFIG), [make_cloud(), make_cloud()])


@pytest.mark.parametrize("size", [1, 500, 20_000])
def test_made_up_scans_have_about_the_voxels_asked_for(size):
    (cloud,) = made_up_clouds(CONFIG, size)
    attributes = compute_attributes(cloud, CONFIG.input_columns)
    found = len(Voxels.of(cloud, attributes, CONFIG).points)
    assert 0.9 * size - 20 <= found <= 1.1 * size + 20
    assert attributes[:, :3].min() >= 0 and attributes[:, :3].max() <= 1


def test_made_up_scans_have_the_columns_a_network_wants():
    config = dataclasses.replace(
        CONFIG,
        attributes=(AttributeInfo("intensity", 100.0, 50.0), AttributeInfo("height", 3.0)),
        directions=tuple(AttributeInfo(f"normal_{axis}") for axis in "xyz"),
        categories=(CategoryInfo("thing", (0, 1)), CategoryInfo("other", (2,))),
    )
    (cloud,) = made_up_clouds(config, 300)
    attributes = compute_attributes(cloud, config.input_columns)
    assert attributes[:, 0].min() >= 0 and attributes[:, 0].max() <= 1
    assert np.allclose(np.linalg.norm(attributes[:, 2:5], axis=1), 1, atol=1e-6)
    assert np.array_equal(np.unique(attributes[:, 5:], axis=0), [[1, 0]])
    assert measure(Slow(config), [cloud], repeats=1, warmups=0).points > 100


def test_command_compares_backends_on_sizes_and_scans(network, tmp_path, capsys):
    scan = write_cloud(tmp_path / "scan.ply", make_cloud(800))
    words = ["bench", str(network.onnx), "--backend", "torch", "--backend", "onnxruntime"]
    words += ["--points", "300", "-i", str(scan), "--repeat", "2", "--warmup", "0"]
    values = cli.run_command([*words, "--json"])
    assert json.loads(capsys.readouterr().out) == values
    expected = [("torch", network.checkpoint), ("onnxruntime", network.onnx)]
    assert [(value["backend"], value["input"]) for value in values] == [
        (name, shown) for name, _ in expected for shown in ("300 voxels", str(scan))
    ]
    assert [value["model"] for value in values[::2]] == [str(path) for _, path in expected]
    assert all(value["repetitions"] == 2 and value["points_per_second"] > 0 for value in values)
    cli.run_command(words)
    table = capsys.readouterr().out
    for word in ("torch", "onnxruntime", "300 voxels", "scan.ply", "points/s", "p90", " ms"):
        assert word in table


def test_command_runs_every_model_on_its_own_backend(classifier, capsys):
    words = ["bench", str(classifier.checkpoint), str(classifier.onnx), "--repeat", "1"]
    values = cli.run_command([*words, "--warmup", "0", "--no-kernels", "--json"])
    assert [value["backend"] for value in values] == ["torch", "onnxruntime, bodies"]
    assert [value["input"] for value in values] == ["8 clouds", "8 clouds"]
    assert values[0]["points"] == 8 * load_backend(classifier.onnx).config.points[0]


@pytest.mark.parametrize("kernels", [True, False])
def test_layers_of_onnx_runtime_are_its_operators(network, kernels):
    backend = load_backend(network.onnx, kernels=kernels)
    layers = time_layers(backend, [make_cloud(800)], repeats=3)
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    assert [layer.seconds for layer in layers] == sorted(
        (layer.seconds for layer in layers), reverse=True
    )
    operators = [layer.operator for layer in layers]
    # As many as the file has; without kernels they are the loops of their bodies.
    graph = onnx.load(network.onnx).graph
    for name in ("SPSE", "SPAMPResidual"):
        assert operators.count(name) == kernels * sum(node.op_type == name for node in graph.node)
    assert ("Scan" in operators) == (not kernels)


def test_layers_of_a_batch_of_clouds(classifier):
    backend = load_backend(classifier.onnx)
    layers = time_layers(backend, made_up_clouds(backend.config, 2), repeats=1)
    assert {"SPSE", "SPAMPResidual", "Gemm"} <= {layer.operator for layer in layers}


def test_pytorch_does_not_tell_its_layers(network):
    with pytest.raises(InputError, match=r"torch does not tell the time of its layers; .*exported"):
        time_layers(load_backend(network.checkpoint), [make_cloud(500)])


def test_command_shows_crops_percentiles_and_layers(network, tmp_path, capsys):
    scan = write_cloud(tmp_path / "scan.ply", make_cloud(1200))
    words = ["bench", str(network.onnx), "-i", str(scan), "--crops", "3", "--layers"]
    words += ["--repeat", "6", "--warmup", "0", "--percentiles"]
    (value,) = cli.run_command([*words, "--json"])
    assert json.loads(capsys.readouterr().out) == [value]
    assert {kind: found["runs"] for kind, found in value["kinds"].items()} == {
        "first": 3,
        "again": 3,
    }
    assert value["points"] < 1200 and value["layers"][0]["share"] > 0
    cli.run_command(words)
    shown = capsys.readouterr().out
    for word in ("p99", "max", "first", "again", "postprocess", "SPSE", "others"):
        assert word in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "torch", "--layers"], "--layers is for ONNX Runtime and engines"),
        (["--backend", "tensorrt"], r"no file for --backend tensorrt.*model\.engine; `dela build"),
        (["-i", "missing.ply"], r"missing\.ply"),
        (["--device", "gpu"], "device 'gpu' is unknown"),
    ],
)
def test_command_says_what_is_wrong(network, words, message):
    with pytest.raises(DelaError, match=message):
        cli.run_command(["bench", str(network.onnx), *words])


def test_the_gpu_table_outlives_a_row_that_runs_out_of_memory(monkeypatch, capsys):
    path = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_table", path)
    table = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, table)
    spec.loader.exec_module(table)

    class OutOfMemory(Slow):
        def run(self, pyramid):
            if len(pyramid.points) > 400:
                raise RuntimeError("CUDA out of memory.\nDetails")
            return expected(pyramid)

    def expected(pyramid):
        return np.ones((len(pyramid.points), CONFIG.num_classes), dtype=np.float32)

    class Same(Slow):
        def run(self, pyramid):
            return expected(pyramid)

    def too_large_to_load():
        raise RuntimeError("CUDA out of memory.")

    def candidates(*_):
        yield "no room", "fp32", too_large_to_load
        yield "small", "fp32", lambda: OutOfMemory(CONFIG)
        yield "good", "fp32", lambda: Same(CONFIG)

    monkeypatch.setattr(table, "CONFIG", CONFIG)
    monkeypatch.setattr(table, "write_network", lambda *_: {"checkpoint": None})
    monkeypatch.setattr(table, "load_backend", lambda _: Same(CONFIG))
    monkeypatch.setattr(table, "candidates", candidates)
    words = ["gpu.py", "--points", "300", "900", "--repeats", "1", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"^not measured: small, fp32, \d+ points$"):
        table.main()
    found = json.loads(capsys.readouterr().out)
    assert [row["backend"] for row in found["rows"]] == ["small", "good", "good"]
    ((what, reason),) = found["failed"].items()
    assert what.startswith("small, fp32, ") and reason == "CUDA out of memory."
    assert found["missing"] == {"no room, fp32": "CUDA out of memory."}
    monkeypatch.setattr(sys, "argv", words[:-1])
    with pytest.raises(SystemExit):
        table.main()
    assert f"not measured: {what}: CUDA out of memory." in capsys.readouterr().out
