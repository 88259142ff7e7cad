"""Scans labelled on the GPU: the CPU's labels, and nothing but labels comes down.

Everything runs on the emulated CUDA driver; the network is the stand-in for TensorRT, or one whose
logits are told by a point's columns alone, with any number of classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dela.cloud.point_cloud import PointCloud
from dela.errors import DelaError
from dela.families.dela.config import PRESETS, DelaConfig
from dela.model.contract import ClassInfo
from dela.plugins.cuda import driver
from dela.plugins.cuda.arrays import as_device_array
from dela.plugins.cuda.driver import CudaUnavailable, Device, Stream
from dela.plugins.tensorrt import bindings
from dela.pyramid.cpu import Pyramid
from dela.pyramid.gpu import PyramidBuilder
from dela.runtime import Predictor, load_backend
from dela.runtime.backends.gpu_buffers import on_device
from dela.scan.attributes import compute_attributes
from dela.scan.gpu_votes import GpuScan
from dela.scan.votes import vote_matrix
from dela.scan.voxels import Voxels
from small_networks import CONFIG, make_cloud
from standin_tensorrt import StandInTensorRT, write_engine

EVERYTHING = 100_000  # voxels in one run
BOUNDS, LABEL = 64, 8  # bytes
# Ties apart: probabilities differ in their last bits.
CLOSE = 2e-6


@pytest.fixture
def cuda(emulated_cuda):
    emulated_cuda.defer = True
    emulated_cuda.order = "shuffled"
    return emulated_cuda


@pytest.fixture
def engine(cuda, monkeypatch, network, tmp_path):
    trt = StandInTensorRT()
    monkeypatch.setattr(bindings, "load", lambda flavour: trt)
    yield load_backend(write_engine(tmp_path, network.onnx, "30:1000:6000"))
    assert not trt.problems


class ColumnsBackend:
    """Tells logits by a point's columns alone; takes and leaves arrays on either side."""

    name = "columns"
    path = Path("columns")
    metadata = None
    sha256 = ""
    max_points = None

    def __init__(self, classes: int, spoil: float = 0.0, columns: int = 4) -> None:
        infos = tuple(ClassInfo(f"class {index}", 3 * index) for index in range(classes))
        attributes = CONFIG.attributes[:columns]
        self.config = dataclasses.replace(CONFIG, classes=infos, attributes=attributes)
        self.spoil = spoil
        self.device = Device()
        self.stream = Stream(self.device)

    def logits(self, attributes: np.ndarray) -> np.ndarray:
        if not attributes.shape[1]:
            attributes = np.ones((len(attributes), 3))
        number = 10 * attributes[:, :1] + attributes[:, 1:2]
        logits = 4 * np.sin(number * np.arange(1, 1 + self.config.num_classes))
        logits[attributes[:, 2] < self.spoil] = np.nan
        return logits.astype(np.float32)

    def run(self, pyramid: Pyramid, output: Any = "host", *, stream: Any = None) -> Any:
        attributes, stream = pyramid.attributes, stream or self.stream
        if on_device(attributes):
            attributes = as_device_array(attributes, stream).to_host(stream)
        logits = self.logits(np.asarray(attributes))
        if isinstance(output, str):
            return logits
        as_device_array(output, stream).copy_from_host(logits, stream)
        stream.synchronize()
        return output


def with_gaps(cloud: PointCloud) -> PointCloud:
    """The same cloud, every ninth point without a coordinate."""
    points = cloud.points.copy()
    points[::9, 1] = np.nan
    return PointCloud(points, cloud.columns)


@pytest.mark.parametrize(
    ("votes", "max_points", "beside"),
    [
        (1, EVERYTHING, False),
        (1, EVERYTHING, True),
        (1, 120, False),
        (4, EVERYTHING, False),
        (4, EVERYTHING, True),
        (2, 200, True),
    ],
)
def test_labels_are_those_of_the_cpu(engine, votes, max_points, beside):
    cloud = with_gaps(make_cloud(450, (0.8, 0.8, 0.4)))
    options: dict[str, Any] = {"votes": votes, "max_points": max_points, "drop_invalid": True}
    if beside:
        around = with_gaps(make_cloud(200, (0.8, 0.4, 0.4), seed=1))
        around.points[:, 1] += 0.8
        options["around"] = around
    expected = Predictor(engine, gpu_pyramid=False).predict(cloud, probabilities=True, **options)
    predictor = Predictor(engine, gpu_pyramid=True)
    seen: list[tuple[int, int]] = []
    found = predictor.predict(
        cloud, probabilities=True, progress=lambda *call: seen.append(call), **options
    )
    assert (found.tiles > votes) == (max_points < EVERYTHING)
    assert found.invalid == expected.invalid == (found.labels == -1).sum() == 50
    for name in ("voxels", "tiles"):
        assert getattr(found, name) == getattr(expected, name)
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.classes, expected.classes)
    assert found.classes.dtype == np.int32 and found.confidence.dtype == np.float32
    assert np.abs(found.probabilities - expected.probabilities).max() <= 1e-5
    assert np.abs(found.confidence - expected.confidence).max() <= 1e-5
    assert len(seen) == found.tiles and seen[-1] == (votes * found.voxels,) * 2
    assert min(found.seconds.values()) > 0
    without = predictor.predict(cloud, **options)
    assert without.probabilities is None
    assert np.array_equal(without.confidence, found.confidence)


@pytest.mark.parametrize("votes", [1, 3])
@pytest.mark.parametrize("classes", [1, 2, 40, 1500])
def test_any_number_of_classes(cuda, classes, votes):
    cuda.check_initialised = True
    backend = ColumnsBackend(classes)
    cloud = make_cloud(200, (0.8, 0.8, 0.3))
    options: dict[str, Any] = {"votes": votes, "max_points": 70, "probabilities": True}
    found = Predictor(backend, gpu_pyramid=True).predict(cloud, **options)
    expected = Predictor(backend, gpu_pyramid=False).predict(cloud, **options)
    assert found.tiles > votes
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=CLOSE)
    assert np.array_equal(found.classes, found.probabilities.argmax(axis=1))
    assert np.array_equal(found.confidence, found.probabilities.max(axis=1))
    two_best = np.sort(expected.probabilities, axis=1)[:, -2:]
    clear = two_best[:, -1] - two_best[:, 0] > CLOSE if classes > 1 else slice(None)
    assert np.array_equal(found.classes[clear], expected.classes[clear])
    assert np.array_equal(found.labels, 3 * found.classes)


@pytest.mark.parametrize("votes", [1, 3])
def test_probabilities_are_those_of_float64(cuda, votes):
    cuda.check_initialised = True
    backend = ColumnsBackend(13)
    config, cloud = backend.config, make_cloud(500, (1.0, 1.0, 0.4))
    points = cloud.points - cloud.points.min(axis=0)
    attributes = compute_attributes(cloud, config.input_columns)
    total, weights = np.zeros((len(cloud), 13)), np.zeros((len(cloud), 1))
    for vote in range(votes):
        # The vote's point of every voxel, found by its coordinates alone.
        voxels = Voxels.of(cloud, attributes, config, vote)
        standing = voxels.points[voxels.voxel_of_point]
        logits = backend.logits(voxels.attributes)[voxels.voxel_of_point].astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        distance = np.linalg.norm(points - standing, axis=1, keepdims=True)
        weight = np.exp(-((distance / (0.2 * config.grid[0])) ** 2)) + 1e-3 if votes > 1 else 1.0
        total += weight * shares
        weights += weight
    found = Predictor(backend, gpu_pyramid=True).predict(cloud, votes=votes, probabilities=True)
    np.testing.assert_allclose(found.probabilities, total / weights, atol=CLOSE)


@pytest.mark.parametrize("votes", [1, 2])
def test_logits_that_are_no_numbers_are_refused(cuda, votes):
    backend = ColumnsBackend(5, spoil=0.2)
    cloud = make_cloud(300, (0.8, 0.8, 0.4))
    for on_gpu in (True, False):
        with pytest.raises(DelaError, match="rows of its logits are NaN or infinite"):
            Predictor(backend, gpu_pyramid=on_gpu).predict(cloud, votes=votes)


@pytest.mark.parametrize("votes", [1, 4])
def test_a_scan_goes_up_once_and_its_labels_come_down_once(cuda, engine, votes):
    cloud = make_cloud(1000, (1.0, 1.0, 0.6))
    colors = sum(cloud.columns[name].nbytes for name in ("red", "green", "blue"))
    predictor = Predictor(engine, gpu_pyramid=True)
    for _ in range(3):  # the network as it is, then captured, then as a graph
        up, down = cuda.count("bytes_up"), cuda.count("bytes_down")
        predictor.predict(cloud, votes=votes)
        assert cuda.count("bytes_up") - up == cloud.points.nbytes + colors
        # Bounds and unknown values of the scan; for each view a number for every stage; in words.
        sizes = BOUNDS + 8 * len(engine.config.input_columns)
        sizes += votes * 8 * math.ceil(engine.config.stages / 2)
        assert cuda.count("bytes_down") - down == LABEL * len(cloud) + sizes
    assert engine.graphs > 0


class CountedBackend(ColumnsBackend):
    """Knows what its own runs ask of the driver."""

    def __init__(self, cuda, config: DelaConfig) -> None:
        super().__init__(config.num_classes)
        self.cuda, self.config = cuda, config
        self.own: Counter[str] = Counter()

    def counts(self) -> Counter[str]:
        return Counter({name: self.cuda.count(name) for name in ("calls", "synchronisations")})

    def run(self, pyramid: Pyramid, output: Any = "host", *, stream: Any = None) -> Any:
        before = self.counts()
        answer = super().run(pyramid, output, stream=stream)
        self.own += self.counts() - before
        return answer


@pytest.mark.parametrize(("votes", "calls", "waits"), [(1, 60, 2), (4, 150, 5)])
def test_few_calls_and_two_waits_label_a_scan(cuda, votes, calls, waits):
    config = dataclasses.replace(PRESETS["s3dis"], attributes=CONFIG.attributes)
    backend, cloud = CountedBackend(cuda, config), make_cloud(2500, (6.0, 6.0, 0.6))
    predictor = Predictor(backend)
    for _ in range(2):
        before = backend.counts() - backend.own
        found = predictor.predict(cloud, votes=votes)
        spent = backend.counts() - backend.own - before
    print(f"{votes} votes: {dict(spent)}")
    # A vote waits for the sizes of its stages; the labels are waited for once.
    assert spent["synchronisations"] == waits
    assert spent["calls"] <= calls
    assert found.tiles == votes
    expected = Predictor(backend, gpu_pyramid=False).predict(cloud, votes=votes)
    assert np.array_equal(found.classes, expected.classes)


def test_who_hears_of_the_progress_may_change_the_device(cuda, engine):
    def leave(done: int, total: int) -> None:
        driver.call("cuCtxSetCurrent", 0)

    cloud = make_cloud(400, (0.8, 0.8, 0.4))
    for votes in (1, 2):
        options: dict[str, Any] = {"votes": votes, "max_points": 150}
        found = Predictor(engine).predict(cloud, progress=leave, **options)
        expected = Predictor(engine, gpu_pyramid=False).predict(cloud, **options)
        assert np.array_equal(found.classes, expected.classes)


def test_an_engine_labels_on_the_gpu_unless_told_otherwise(cuda, engine):
    cloud, found = make_cloud(300), []
    for asked in (None, True, False):
        before = cuda.launches()
        found.append(Predictor(engine, gpu_pyramid=asked).predict(cloud).classes)
        assert ("dela_label_rows" in cuda.launches() - before) == (asked is not False)
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[2])


def test_of_a_scan_in_tiles_the_voxels_come_down_once(cuda, engine):
    cloud = make_cloud(1000, (1.0, 1.0, 0.6))
    predictor = Predictor(engine, gpu_pyramid=True)
    before = cuda.count("bytes_down")
    found = predictor.predict(cloud, votes=2, max_points=250)
    down = cuda.count("bytes_down") - before
    assert found.tiles >= 6
    least = LABEL * len(cloud) + 12 * found.voxels
    assert least < down <= least + BOUNDS * (2 + found.tiles)


def test_surroundings_send_no_labels_down(cuda, engine):
    cloud, around = make_cloud(500, (1.0, 1.0, 0.5)), make_cloud(2000, (1.0, 1.0, 0.5), seed=1)
    around.points[:, 1] += 1.0
    predictor = Predictor(engine, gpu_pyramid=True)
    for votes in (1, 2):
        before = cuda.count("bytes_down")
        predictor.predict(cloud, around=around, votes=votes)
        assert cuda.count("bytes_down") - before < LABEL * len(cloud) + 2 * votes * BOUNDS


def test_a_second_scan_of_no_more_points_allocates_nothing(cuda, engine):
    large, small = make_cloud(1500, (1.0, 1.0, 0.6)), make_cloud(700, (1.0, 1.0, 0.4))
    predictor = Predictor(engine, gpu_pyramid=True)
    expected = Predictor(engine, gpu_pyramid=False).predict(small, votes=2)
    predictor.predict(large, votes=2)
    predictor.predict(large, votes=2)
    before = cuda.count("allocations")
    found = predictor.predict(small, votes=2)
    assert cuda.count("allocations") == before
    assert np.array_equal(found.classes, expected.classes)


@pytest.mark.parametrize("normals", [False, True])
def test_looks_are_those_of_the_cpu(cuda, normals):
    cuda.check_initialised = True
    cloud = make_cloud(800, (1.0, 1.0, 0.8))
    config = _with_normals(cloud) if normals else CONFIG
    attributes = compute_attributes(cloud, config.input_columns)
    builder = PyramidBuilder(config, Stream(Device()))
    scan = GpuScan.of(builder, cloud.points, attributes)
    for vote in (1, 2, 7):
        expected = Voxels.of(cloud, attributes, config, vote)
        seen = scan.look(vote)
        down = [array.to_host(builder.stream) for array in (seen.voxels.points, seen.voxels.kept)]
        assert np.array_equal(down[0], expected.points)
        assert np.array_equal(attributes[down[1]], expected.attributes)
        turned, moved = seen.turned(vote_matrix(vote, 8), config), expected.turned(
            vote_matrix(vote, 8), config
        )  # fmt: skip
        (tile,) = turned.cut(config, EVERYTHING)
        found = turned.inputs(tile, config)
        for (name, ours), (_, theirs) in zip(
            found.inputs(), moved.inputs(tile, config).inputs(), strict=True
        ):
            here = ours.to_host(builder.stream)
            tolerance = 1e-6 if name == "attributes" else 0
            np.testing.assert_allclose(here, theirs, atol=tolerance, rtol=0, err_msg=name)


def test_a_scan_without_a_usable_point_beside_one_with(cuda, engine):
    cloud = make_cloud(50, (0.5, 0.5, 0.4))
    cloud.points[:] = np.nan
    for gpu_pyramid in (False, True):
        found = Predictor(engine, gpu_pyramid=gpu_pyramid).predict(
            cloud, around=make_cloud(300), drop_invalid=True, votes=2, probabilities=True
        )
        assert found.invalid == 50 and np.all(found.labels == -1)
        assert not found.confidence.any() and not found.probabilities.any()


@pytest.mark.parametrize("votes", [1, 3])
@pytest.mark.parametrize(("points", "columns"), [(1, 4), (1, 0), (200, 0)])
def test_a_single_point_and_a_network_without_columns(cuda, points, columns, votes):
    cuda.check_initialised = True
    backend, cloud = ColumnsBackend(4, columns=columns), make_cloud(points, (0.8, 0.8, 0.3))
    options: dict[str, Any] = {"votes": votes, "max_points": 70}
    found = Predictor(backend, gpu_pyramid=True).predict(cloud, **options)
    expected = Predictor(backend, gpu_pyramid=False).predict(cloud, **options)
    assert (found.tiles > votes) == (points > 1)
    assert np.array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=CLOSE)


def test_after_too_little_memory_a_smaller_scan_is_labelled(cuda, engine):
    small, large = make_cloud(200, (0.8, 0.8, 0.4)), make_cloud(3000, (2.0, 2.0, 0.6))
    expected = Predictor(engine, gpu_pyramid=False).predict(small, votes=2)
    predictor = Predictor(engine, gpu_pyramid=True)
    for room in (1_000, 50_000, 100_000):
        cuda.memory = cuda.count("device_bytes") + room
        with pytest.raises(DelaError, match=r"too little free memory; .* add --no-gpu-pyramid"):
            predictor.predict(large, votes=2)
    cuda.memory = 1 << 30
    found = predictor.predict(small, votes=2)
    assert np.array_equal(found.classes, expected.classes)


@pytest.mark.gpu
@pytest.mark.parametrize("votes", [1, 4])
@pytest.mark.parametrize("classes", [1, 13, 300])
def test_labels_on_a_gpu(classes, votes):
    try:
        backend = ColumnsBackend(classes)
    except CudaUnavailable as error:
        pytest.skip(str(error))
    cloud = make_cloud(60_000, (8.0, 8.0, 1.0))
    for max_points in (EVERYTHING, 5000):
        options: dict[str, Any] = {"votes": votes, "max_points": max_points, "probabilities": True}
        found = Predictor(backend, gpu_pyramid=True).predict(cloud, **options)
        expected = Predictor(backend, gpu_pyramid=False).predict(cloud, **options)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=CLOSE)
        assert np.array_equal(found.classes, found.probabilities.argmax(axis=1))
        assert np.array_equal(found.confidence, found.probabilities.max(axis=1))
        assert np.mean(found.classes == expected.classes) > 0.9999


def _with_normals(cloud: PointCloud) -> DelaConfig:
    """A network that wants a normal beside a column; the cloud gets one at every point."""
    generator = np.random.default_rng(1)
    normals = generator.normal(size=(len(cloud), 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    infos = []
    for axis, name in enumerate("xyz"):
        cloud.columns[f"normal_{name}"] = normals[:, axis]
        infos.append(dataclasses.replace(CONFIG.attributes[0], name=f"normal_{name}", scale=1.0))
    return dataclasses.replace(CONFIG, directions=tuple(infos))
