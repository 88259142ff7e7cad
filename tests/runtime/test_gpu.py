"""Parity of every GPU backend with PyTorch on the CPU, on a real GPU (``pytest -m gpu``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dela.cli import main as cli
from dela.cloud.formats import write_cloud
from dela.errors import MissingDependencyError
from dela.model.parity import TOLERANCES
from dela.plugins.cuda.driver import CudaUnavailable, Device
from dela.plugins.tensorrt import bindings
from dela.pyramid.cpu import Pyramid, build_pyramid
from dela.runtime import Backend, Predictor, load_backend
from dela.runtime.backends.kernel_cache import cache_files
from small_networks import Trained, cloud_pyramid, make_cloud, scene_pyramid

pytestmark = pytest.mark.gpu

SEGMENTATION_SIZES, CLASSIFICATION_SIZES = "100:4000:20000", "1:4:16"
# flavour and how the operators run in it
ENGINES = [
    ("tensorrt", "native"),
    ("tensorrt", "python"),
    ("tensorrt", "ahead-of-time"),
    ("tensorrt", "none"),
    ("tensorrt-rtx", "native"),
    ("tensorrt-rtx", "python"),
    ("tensorrt-rtx", "none"),
]


@pytest.fixture(scope="module")
def device() -> Device:
    try:
        return Device()
    except CudaUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def exported(
    network: Trained, classifier: Trained, tmp_path_factory
) -> dict[tuple[str, str], Path]:
    """(task, dtype) -> exported file."""
    from dela.export.onnx_export import export_onnx

    folder = tmp_path_factory.mktemp("exported")
    files = {}
    for task, trained in (("segmentation", network), ("classification", classifier)):
        for dtype in TOLERANCES:
            path = folder / f"{task}_{dtype}.onnx"
            files[task, dtype] = export_onnx(trained.checkpoint, path, dtype, check=False)
    return files


@pytest.fixture(scope="module")
def build(device: Device, exported, tmp_path_factory) -> Any:
    """Builds an engine, each once."""
    from dela.export.engine import BuildRequest, build_engine, known_capabilities

    folder, built = tmp_path_factory.mktemp("built"), {}

    def engine(flavour: str, plugins: str, dtype: str, task: str = "segmentation") -> Path:
        try:
            trt = bindings.load(flavour)
        except bindings.TensorRTUnavailable as reason:
            pytest.skip(str(reason))
        capability = ".".join(map(str, device.compute_capability))
        if flavour == "tensorrt-rtx" and capability not in known_capabilities(trt):
            pytest.skip(f"TensorRT for RTX does not run on compute capability {capability}")
        key = (flavour, plugins, dtype, task)
        if key not in built:
            sizes = SEGMENTATION_SIZES if task == "segmentation" else CLASSIFICATION_SIZES
            request = BuildRequest(
                backend=flavour,
                profiles=[sizes],
                plugins=plugins,
                compute_capabilities=[capability] if flavour == "tensorrt-rtx" else [],
            )
            path = folder / f"{'_'.join(key)}.engine"
            build_engine(exported[task, dtype], path, request)
            built[key] = path
        return built[key]

    return engine


def assert_parity(backend: Backend, trained: Trained, pyramids: list[Pyramid], dtype: str) -> None:
    reference, limits = load_backend(trained.checkpoint), TOLERANCES[dtype]
    for pyramid in pyramids:
        expected = reference.run(pyramid)
        for _ in range(3):
            found = backend.run(pyramid)
            assert found.shape == expected.shape
            error = np.abs(found - expected).max() / np.abs(expected).max()
            assert error <= limits.error
        same = np.mean(found.argmax(axis=1) == expected.argmax(axis=1))
        # A few hundred rows cannot show a share of 99.99 %: one miss is allowed.
        assert same >= min(limits.agreement, 1 - 1 / len(expected))


def test_torch(device, network, classifier):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"PyTorch {torch.__version__} is built without CUDA")
    backend = load_backend(network.checkpoint, device="cuda")
    sizes = [scene_pyramid(network.config, count, side=5.0) for count in (300, 20_000)]
    assert_parity(backend, network, sizes, "fp32")
    backend = load_backend(classifier.checkpoint, device="cuda")
    assert_parity(backend, classifier, [cloud_pyramid(classifier.config, 5)], "fp32")


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "bodies"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])  # it has few layers in bf16
def test_onnxruntime(device, network, exported, dtype, kernels):
    path = exported["segmentation", dtype]
    try:
        backend = load_backend(path, device="cuda", kernels=kernels)
    except MissingDependencyError as reason:
        pytest.skip(str(reason))
    sizes = [scene_pyramid(network.config, count, side=5.0) for count in (300, 20_000)]
    assert_parity(backend, network, sizes, dtype)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("flavour", "plugins"), ENGINES)
def test_engine(build, network, flavour, plugins, dtype, graphs):
    backend = load_backend(build(flavour, plugins, dtype), graphs=graphs)
    assert backend.name == flavour
    sizes = [scene_pyramid(network.config, count, side=5.0) for count in (20_000, 40, 3000)]
    assert_parity(backend, network, sizes, dtype)
    if graphs and plugins == "none":
        # The bodies' loops: TensorRT may or may not let a graph hold them.
        assert backend.graphs in (0, len(sizes))
    else:
        assert backend.graphs == (len(sizes) if graphs else 0)


@pytest.mark.parametrize(("flavour", "plugins"), ENGINES)
def test_classification_engine(build, classifier, flavour, plugins):
    backend = load_backend(build(flavour, plugins, "fp32", "classification"))
    pyramids = [cloud_pyramid(classifier.config, clouds) for clouds in (1, 5, 16)]
    assert_parity(backend, classifier, pyramids, "fp32")


@pytest.mark.parametrize("flavour", bindings.MODULES)
def test_a_graph_gives_what_the_kernels_give(build, network, flavour):
    path = build(flavour, "python", "fp32")
    with_graphs, without = load_backend(path), load_backend(path, graphs=False)
    for seed in range(4):
        pyramid = scene_pyramid(network.config, 6000, seed, side=5.0)
        expected = without.run(pyramid)
        for _ in range(3):
            found = with_graphs.run(pyramid)
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert with_graphs.graphs > 0


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("flavour", bindings.MODULES)
def test_torchs_tensors_are_taken_and_given_on_the_gpu(build, network, flavour, graphs):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"PyTorch {torch.__version__} is built without CUDA")
    backend = load_backend(build(flavour, "python", "fp32"), graphs=graphs)
    pyramid = scene_pyramid(network.config, 20_000, side=5.0)
    expected = backend.run(pyramid)
    for _ in range(3):
        there = backend.run(pyramid.to_tensors("cuda"), "device")
        tensor = torch.from_dlpack(there)
        assert tensor.is_cuda and tensor.data_ptr() == there.pointer
        assert np.abs(tensor.cpu().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no graphs"])
@pytest.mark.parametrize("flavour", bindings.MODULES)
def test_runs_are_queued_in_the_order_of_torchs_stream(build, network, flavour, graphs):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"PyTorch {torch.__version__} is built without CUDA")
    backend = load_backend(build(flavour, "python", "fp32"), graphs=graphs)
    pyramids = [scene_pyramid(network.config, 20_000, seed, side=5.0) for seed in range(3)]
    expected = [backend.run(pyramid) for pyramid in pyramids]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensors = [pyramid.to_tensors("cuda") for pyramid in pyramids]
        for _ in range(3):
            logits = [torch.zeros(array.shape, device="cuda") for array in expected]
            for pyramid, output in zip(tensors, logits, strict=True):
                backend.run(pyramid, output, stream=stream)
            for found, wanted in zip(logits, expected, strict=True):
                error = np.abs(found.cpu().numpy() - wanted).max()
                assert error <= 1e-5 * np.abs(wanted).max()


def test_compiled_kernels_serve_the_next_start(build, network, capsys):
    path = build("tensorrt-rtx", "python", "fp32")
    pyramid = scene_pyramid(network.config, 3000, side=5.0)
    expected = None
    for _ in range(2):
        backend = load_backend(path)
        found = [backend.run(pyramid) for _ in range(3)][-1]
        assert expected is None or np.array_equal(found, expected)
        expected = found
        (file,) = cache_files(path)
        assert file.stat().st_size > 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("flavour", bindings.MODULES)
def test_a_pyramid_built_on_the_gpu_stays_there(build, network, flavour):
    from dela.plugins.cuda.arrays import DeviceArray
    from dela.pyramid.gpu import PyramidBuilder

    backend = load_backend(build(flavour, "python", "fp32"))
    host = scene_pyramid(network.config, 20_000, side=5.0)
    builder = PyramidBuilder(network.config, backend.stream)
    points, attributes = np.asarray(host.points), np.asarray(host.attributes)
    there = builder.pyramid(
        DeviceArray.from_host(points, backend.stream),
        DeviceArray.from_host(attributes, backend.stream),
    )
    expected = load_backend(network.checkpoint).run(
        build_pyramid(points, attributes, network.config)
    )
    found = backend.run(there)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("flavour", bindings.MODULES)
def test_labels_made_on_the_gpu(build, network, flavour):
    backend, cloud = load_backend(build(flavour, "python", "fp32")), make_cloud(20_000)
    predictor, reference = Predictor(backend), Predictor(backend, gpu_pyramid=False)
    for options in ({}, {"votes": 4}, {"votes": 2, "max_points": 1000}):
        found = predictor.predict(cloud, probabilities=True, **options)
        expected = reference.predict(cloud, probabilities=True, **options)
        assert np.mean(found.classes == expected.classes) >= 0.9995
        assert np.mean(np.abs(found.probabilities - expected.probabilities)) <= 1e-4


@pytest.mark.parametrize("flavour", bindings.MODULES)
def test_predict_and_verify_commands(build, network, tmp_path, capsys, flavour):
    path = build(flavour, "python", "fp32")
    cloud = make_cloud()
    scan = write_cloud(tmp_path / "scan.ply", cloud)
    words = ["verify", path, "--checkpoint", network.checkpoint, "-i", scan, "--json"]
    cli.run_command(list(map(str, words)))
    (report,) = json.loads(capsys.readouterr().out)["reports"]
    assert report["passed"] and report["backend"] == flavour
    found = Predictor(load_backend(path)).predict(cloud)
    expected = Predictor(load_backend(network.checkpoint)).predict(cloud)
    assert np.mean(found.classes == expected.classes) >= 0.9995


@pytest.mark.parametrize("flavour", bindings.MODULES)
def test_graphs_are_captured_ahead_and_layers_tell_their_time(build, network, flavour):
    backend = load_backend(build(flavour, "python", "fp32"))
    sizes = [4000, 20_000]
    assert backend.warm_up(sizes) >= len(sizes)
    pyramid = scene_pyramid(network.config, 3000, side=5.0)
    layers = backend.time_layers(pyramid, 5)
    assert len(layers) > 10 and min(layer.seconds for layer in layers) >= 0
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    assert_parity(backend, network, [pyramid], "fp32")
