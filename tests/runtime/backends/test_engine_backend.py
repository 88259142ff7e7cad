"""The engine backends on the emulated CUDA driver, with a stand-in for TensorRT alone.

The stand-in's contexts read and write the emulated device memory and run the network in ONNX
Runtime, so wrong addresses, shapes, padding, order or a missing wait show in the logits.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable

import numpy as np
import pytest

import standin_tensorrt
from dela.artifacts.sidecar import digest_of, sidecar_path
from dela.cli import main as cli
from dela.cloud.formats import read_cloud, write_cloud
from dela.cloud.point_cloud import PointCloud
from dela.errors import DelaError, EngineError, InputError
from dela.export.engine import BuildRequest, build_engine
from dela.plugins.cuda import kernels
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.driver import Device, Stream, call
from dela.plugins.tensorrt import bindings, launched, native
from dela.pyramid.cpu import Pyramid, build_pyramid
from dela.pyramid.gpu import PyramidBuilder
from dela.runtime import Predictor, doctor, load_backend
from dela.runtime.backends import graphs
from dela.runtime.bench import MeasureOptions, made_up_clouds, measure
from dela.runtime.verify import tolerance_of, verify
from dela.scan.attributes import compute_attributes
from dela.scan.gpu_votes import GpuScan
from dela.scan.voxels import Voxels
from small_networks import cloud_pyramid, make_cloud, scene_pyramid
from standin_tensorrt import StandInTensorRT, write_engine

SIZES = "100:1000:6000"


@pytest.fixture
def tensorrt(emulated_cuda, monkeypatch):
    trt = StandInTensorRT()
    monkeypatch.setattr(bindings, "load", lambda flavour: trt)
    yield trt
    assert not trt.problems


@pytest.fixture
def engine(tensorrt, network, tmp_path):
    return write_engine(tmp_path, network.onnx, SIZES)


def on_gpu(pyramid: Pyramid, stream: Stream, wrap=lambda array: array) -> Pyramid:
    def up(array):
        return wrap(DeviceArray.from_host(np.asarray(array), stream))

    return pyramid.each(up)


def surface_pyramid(config, size: int) -> Pyramid:
    """The input for a surface of about so many voxels, whose stages keep the usual shares."""
    (cloud,) = made_up_clouds(config, size, seed=size)
    voxels = Voxels.of(cloud, compute_attributes(cloud, config.input_columns), config)
    (part,) = voxels.tiles(config, 100_000)
    return part.inputs


def assert_same(found, expected) -> None:
    """The same sums in another order: larger matrices are multiplied in other blocks."""
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("graphs_on", [True, False])
@pytest.mark.parametrize("defer", [False, True], ids=["at once", "deferred"])
def test_logits_are_onnxruntimes_at_every_size(emulated_cuda, engine, network, defer, graphs_on):
    emulated_cuda.defer = defer
    backend, reference = load_backend(engine, graphs=graphs_on), load_backend(network.onnx)
    pyramids = [scene_pyramid(network.config, count, count) for count in (1500, 300, 2500, 40)]
    expected = [reference.run(pyramid) for pyramid in pyramids]
    for _ in range(4):
        for pyramid, logits in zip(pyramids, expected, strict=True):
            assert_same(backend.run(pyramid), logits)
    assert backend.graphs == (len(pyramids) if graphs_on else 0)


@pytest.mark.parametrize("graphs_on", [True, False])
def test_whole_clouds_are_added_to_a_batch(tensorrt, classifier, tmp_path, graphs_on):
    path = write_engine(tmp_path, classifier.onnx, "2:4:16")
    backend, reference = load_backend(path, graphs=graphs_on), load_backend(classifier.onnx)
    for clouds in (1, 3, 9, 16):
        pyramid = cloud_pyramid(classifier.config, clouds)
        assert_same(backend.run(pyramid), reference.run(pyramid))
    rows = [run["points"] // classifier.config.points[0] for run in tensorrt.runs]
    assert rows == [2, 3, 9, 16]
    assert backend.max_points is None


def test_scans_of_like_sizes_share_a_graph(emulated_cuda, tensorrt, engine, network):
    backend, reference = load_backend(engine), load_backend(network.onnx)
    plain = scene_pyramid(network.config, 1500)
    kinds, sizes = [], set()
    for fewer in (0, 7, 20, 3, 40, 11):
        count = len(plain.points) - fewer
        part = build_pyramid(plain.points[:count], plain.attributes[:count], network.config)
        assert_same(backend.run(part), reference.run(part))
        kinds.append(backend.latest_run)
        sizes.add(tuple(map(len, part.neighbors)))
    assert kinds == ["first", "captured", *["replayed"] * 4] and len(sizes) == 6
    # One context for sizes met once, one for the rows that all of them share.
    assert backend.graphs == 1 and len(tensorrt.engines[0].contexts) == 2
    assert len({(run["points"], run["neighbors_1"]) for run in tensorrt.runs}) == 1


@pytest.mark.parametrize("defer", [False, True], ids=["at once", "deferred"])
def test_after_a_warm_up_no_scan_waits_for_a_capture(
    emulated_cuda, tensorrt, engine, network, defer
):
    emulated_cuda.defer = defer
    backend, reference = load_backend(engine), load_backend(network.onnx)
    pyramids = [surface_pyramid(network.config, size) for size in (400, 900, 1700, 3000)]
    steps = []
    sizes = [len(pyramid.points) + 10 for pyramid in pyramids]
    captured = backend.warm_up(sizes, lambda done, total: steps.append((done, total)))
    assert captured == backend.graphs >= len(pyramids)
    assert steps == [(done, captured) for done in range(1, captured + 1)]
    contexts = len(tensorrt.engines[0].contexts)
    launches = emulated_cuda.count("graph_launches")
    for pyramid in pyramids:
        assert_same(backend.run(pyramid), reference.run(pyramid))
        assert backend.latest_run == "replayed"
    assert emulated_cuda.count("graph_launches") == launches + len(pyramids)
    assert len(tensorrt.engines[0].contexts) == contexts
    assert backend.warm_up([140]) == captured + 2  # the others stay


def test_batches_are_warmed_up_by_clouds(tensorrt, classifier, tmp_path):
    backend = load_backend(write_engine(tmp_path, classifier.onnx, "2:4:16"))
    reference = load_backend(classifier.onnx)
    assert backend.warm_up([4, 16]) == 2
    for clouds in (4, 16, 3):
        pyramid = cloud_pyramid(classifier.config, clouds)
        assert_same(backend.run(pyramid), reference.run(pyramid))
        assert backend.latest_run == "replayed" or clouds == 3


def test_what_cannot_be_warmed_up_is_told(tensorrt, engine, capsys):
    with pytest.raises(InputError, match=r"model\.engine runs without CUDA graphs"):
        load_backend(engine, graphs=False).warm_up([500])
    with pytest.raises(EngineError, match="9000 points at stage 0 are more than its range"):
        load_backend(engine).warm_up([9000])
    with pytest.raises(InputError, match="4 CUDA graphs would be captured, 3 are kept"):
        load_backend(engine, max_graphs=3).warm_up([500, 1000])
    tensorrt.refuse_capture = True
    backend = load_backend(engine)
    assert backend.warm_up([500]) == 0
    assert "running without CUDA graphs" in capsys.readouterr().err


def test_a_graph_is_captured_when_a_size_comes_back_and_replayed_from_then_on(
    emulated_cuda, tensorrt, engine, network
):
    backend, pyramid = load_backend(engine), scene_pyramid(network.config)
    launches = emulated_cuda.count("graph_launches")
    graphs_at_hand, calls = [], []
    for _ in range(5):
        backend.run(pyramid)
        graphs_at_hand.append(backend.graphs)
        calls.append([context.calls["execute"] for context in tensorrt.engines[0].contexts])
    assert graphs_at_hand == [0, 1, 1, 1, 1]
    assert emulated_cuda.count("graph_launches") == launches + 3
    # The second run is queued once plainly and once into the graph; then TensorRT is left alone.
    assert calls == [[1], [1, 2], [1, 2], [1, 2], [1, 2]]
    assert len(tensorrt.runs) == 5


def test_shapes_and_addresses_are_set_only_when_they_change(tensorrt, engine, network):
    backend, pyramid = load_backend(engine, graphs=False), scene_pyramid(network.config)
    backend.run(pyramid)
    (context,) = tensorrt.engines[0].contexts
    first = dict(context.calls)
    assert first["shape"] == 6 and first["address"] == 7
    backend.run(pyramid)
    assert (context.calls["shape"], context.calls["address"]) == (6, 7)
    backend.run(scene_pyramid(network.config, 1000))
    assert context.calls["shape"] == 12


def test_memory_that_moves_voids_the_graphs(tensorrt, engine, network):
    """A larger scan makes the buffers move: what was captured before has stale addresses."""
    backend, reference = load_backend(engine), load_backend(network.onnx)
    small, large = scene_pyramid(network.config, 400), scene_pyramid(network.config, 4000)
    expected = reference.run(small)
    for _ in range(3):
        assert_same(backend.run(small), expected)
    assert backend.graphs == 1
    backend.run(large)
    for _ in range(3):
        assert_same(backend.run(small), expected)
    assert backend.graphs == 1


def test_the_size_unused_for_longest_gives_way(tensorrt, engine, network):
    backend, reference = load_backend(engine, max_graphs=2), load_backend(network.onnx)
    pyramids = [scene_pyramid(network.config, count) for count in (400, 1200, 3000)]
    for index in (0, 0, 1, 1, 2, 0, 0, 2, 2, 1, 1):
        assert_same(backend.run(pyramids[index]), reference.run(pyramids[index]))
    assert backend.graphs == 2 == len(tensorrt.engines[0].contexts) - 1


def test_the_number_of_graphs_may_be_none_but_not_less(tensorrt, engine, network):
    backend, reference = load_backend(engine, max_graphs=0), load_backend(network.onnx)
    pyramid = scene_pyramid(network.config)
    for _ in range(3):
        assert_same(backend.run(pyramid), reference.run(pyramid))
    # Without graphs nothing is padded either.
    assert backend.graphs == 0 and tensorrt.runs[-1]["points"] == len(pyramid.points)
    with pytest.raises(InputError, match="max_graphs is -1; give 1 or more, or 0"):
        load_backend(engine, max_graphs=-1)


def test_several_profiles_share_one_engine(tensorrt, network, tmp_path):
    path = write_engine(tmp_path, network.onnx, "1:200:400", "400:2000:6000")
    for graphs_on in (True, False):
        backend, reference = load_backend(path, graphs=graphs_on), load_backend(network.onnx)
        for count in (200, 2500, 250, 2500, 200):
            pyramid = scene_pyramid(network.config, count)
            assert_same(backend.run(pyramid), reference.run(pyramid))
    assert load_backend(path).max_points == 6000


def warnings_of(capsys) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if line.startswith("warning")]


@pytest.mark.parametrize("defer", [False, True], ids=["at once", "deferred"])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("refuse_capture", "TensorRT could not run the engine: not while the stream is captured"),
        ("wait_in_capture", ".*CUDA_ERROR_STREAM_CAPTURE_INVALIDATED.*"),
    ],
)
def test_a_network_that_cannot_be_captured_runs_without_graphs(
    emulated_cuda, tensorrt, engine, network, capsys, defer, fault, reason
):
    """And what TensorRT's CUDA runtime remembers of the attempt spoils no later run."""
    emulated_cuda.defer = defer
    setattr(tensorrt, fault, True)
    backend, reference = load_backend(engine), load_backend(network.onnx)
    pyramid = scene_pyramid(network.config)
    for _ in range(4):
        assert_same(backend.run(pyramid), reference.run(pyramid))
        with backend.device.current():
            assert int(call("cuStreamIsCapturing", backend.stream.handle)) == 0
    assert backend.graphs == 0
    (warning,) = warnings_of(capsys)
    assert re.fullmatch(f"warning: running without CUDA graphs: {reason}", warning)


def test_an_engine_that_fails_for_good_after_a_failed_capture_says_so(tensorrt, engine, network):
    tensorrt.refuse_capture = True
    backend, pyramid = load_backend(engine), scene_pyramid(network.config)
    for _ in range(2):
        backend.run(pyramid)
    tensorrt.refuse_to_run = True
    with pytest.raises(DelaError, match="could not run the engine"):
        backend.run(pyramid)
    tensorrt.refuse_to_run = False
    assert_same(backend.run(pyramid), load_backend(network.onnx).run(pyramid))


def test_tensorrt_for_rtx_is_asked_before_a_capture(tensorrt, network, tmp_path, capsys):
    tensorrt.has_loops = tensorrt.refuse_capture = True
    path = write_engine(tmp_path, network.onnx, SIZES, flavour="tensorrt-rtx")
    backend, reference = load_backend(path), load_backend(network.onnx)
    pyramid = scene_pyramid(network.config)
    for _ in range(3):
        assert_same(backend.run(pyramid), reference.run(pyramid))
    assert warnings_of(capsys) == [
        "warning: running without CUDA graphs: TensorRT says that this engine cannot be captured"
    ]
    assert not tensorrt.noted_error  # nothing was tried


def test_the_first_run_is_over_before_a_graph_is_captured(emulated_cuda, engine, network):
    """It prepares the shapes; the stand-in notices one that is under way."""
    emulated_cuda.defer = True
    backend, pyramid = load_backend(engine), scene_pyramid(network.config)
    for _ in range(3):
        backend.run(pyramid, "device")
    assert backend.graphs == 1


def test_a_profile_that_tensorrt_refuses_is_told(tensorrt, network, tmp_path):
    """The bindings raise where every other call answers False."""
    path = write_engine(tmp_path, network.onnx, "1:200:400", "400:2000:6000")
    backend, reference = load_backend(path), load_backend(network.onnx)
    small, large = (scene_pyramid(network.config, count) for count in (200, 2500))
    backend.run(small)
    profiles = tensorrt.engines[0].profiles
    last = profiles.pop()
    with pytest.raises(DelaError, match="TensorRT refuses profile 1: there is no profile 1"):
        backend.run(large)
    profiles.append(last)
    for pyramid in (large, small, large):
        assert_same(backend.run(pyramid), reference.run(pyramid))


def test_a_shape_that_tensorrt_refuses_leaves_no_other_behind(tensorrt, engine, network):
    backend, reference = load_backend(engine, graphs=False), load_backend(network.onnx)
    small, large = (scene_pyramid(network.config, count) for count in (300, 2500))
    backend.run(small)
    limits = tensorrt.engines[0].profiles[0]
    allowed = limits["nearest_1"]
    limits["nearest_1"] = (allowed[0], allowed[1], (400,))
    with pytest.raises(DelaError, match="TensorRT refuses input nearest_1 of shape"):
        backend.run(large)
    limits["nearest_1"] = allowed
    for pyramid in (large, small):
        assert_same(backend.run(pyramid), reference.run(pyramid))


class OnlyInterface:
    """An array of a library that has ``__cuda_array_interface__`` and nothing else."""

    def __init__(self, array: DeviceArray, writable: bool = True) -> None:
        self.shape, self.array = array.shape, array
        self.__cuda_array_interface__ = {
            **array.__cuda_array_interface__,
            "data": (array.pointer, not writable),
        }


@pytest.mark.parametrize("wrap", [lambda array: array, OnlyInterface])
def test_device_arrays_are_read_where_they_lie(emulated_cuda, tensorrt, engine, network, wrap):
    emulated_cuda.defer = True
    backend = load_backend(engine, graphs=False)
    host = scene_pyramid(network.config)
    pyramid = on_gpu(host, backend.stream, wrap)
    before = emulated_cuda.count("copies")
    logits = backend.run(pyramid)
    assert emulated_cuda.count("copies") == before + 1  # the logits
    assert_same(logits, load_backend(network.onnx).run(host))
    addresses = tensorrt.engines[0].contexts[0].addresses
    for name, array in pyramid.inputs():
        pointer = array.__cuda_array_interface__["data"][0]
        assert addresses[name] == pointer, name


def test_device_arrays_amid_an_allocation_are_copied_to_where_tensorrt_takes_them(engine, network):
    backend = load_backend(engine, graphs=False)
    host = scene_pyramid(network.config)

    def moved(array):
        """As a slice of another library's array: a row's bytes past the start of its memory."""
        memory = DeviceArray.empty((array.nbytes + 12,), np.uint8, stream=backend.stream)
        part = memory.view(array.shape, array.dtype, 12)
        part.copy_from(array, backend.stream)
        return part

    pyramid = on_gpu(host, backend.stream, moved)
    assert_same(backend.run(pyramid), load_backend(network.onnx).run(host))


def test_device_arrays_are_gathered_for_a_graph(emulated_cuda, engine, network):
    emulated_cuda.defer = True
    backend, reference = load_backend(engine), load_backend(network.onnx)
    pageable = emulated_cuda.count("pageable_copies")
    for seed in (0, 0, 0, 1, 2):
        host = scene_pyramid(network.config, 1500, seed)
        pyramid = on_gpu(host, backend.stream)
        uploaded = emulated_cuda.count("pageable_copies")
        logits = backend.run(pyramid, "pinned")
        assert emulated_cuda.count("pageable_copies") == uploaded >= pageable
        assert_same(logits, reference.run(host))
    assert backend.graphs >= 1


def test_too_few_points_on_the_device_are_padded_to_the_profile(tensorrt, engine, network):
    backend = load_backend(engine, graphs=False)
    host = scene_pyramid(network.config, 40)
    assert len(host.points) < 100
    assert_same(backend.run(on_gpu(host, backend.stream)), load_backend(network.onnx).run(host))
    assert tensorrt.runs[-1]["points"] == 100


def test_logits_stay_on_the_device_or_in_pinned_memory_when_asked(emulated_cuda, engine, network):
    emulated_cuda.defer = True
    backend, pyramid = load_backend(engine), scene_pyramid(network.config)
    expected = load_backend(network.onnx).run(pyramid)
    own = backend.run(pyramid)
    pinned = backend.run(pyramid, "pinned")
    assert_same(pinned, expected)
    copies = emulated_cuda.count("copies")
    there = backend.run(pyramid, "device")
    assert emulated_cuda.count("copies") == copies + 1  # the inputs
    assert there.shape == expected.shape
    # Complete when returned: a stream that waits for nothing reads them.
    assert_same(there.to_host(Stream(Device())), expected)
    backend.run(scene_pyramid(network.config, 300), "pinned")
    assert_same(own, expected)
    assert not np.array_equal(pinned, expected)


@pytest.mark.parametrize("output", ["host", "device"])
def test_without_the_last_wait_the_logits_would_be_missing(
    emulated_cuda, engine, network, monkeypatch, output
):
    emulated_cuda.defer = True
    backend, pyramid = load_backend(engine), scene_pyramid(network.config)
    expected = load_backend(network.onnx).run(pyramid)
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "synchronize", lambda stream: None)
        found = backend.run(pyramid, output)
    if output == "device":
        other = Stream(Device())
        found = found.to_host(other)
        backend.stream.synchronize()
    assert not np.allclose(found, expected)


def in_two_threads(work: Callable[[int], None]) -> None:
    """``work(0)`` and ``work(1)`` at the same time."""
    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_take_turns(engine, network):
    backend, reference = load_backend(engine), load_backend(network.onnx)
    pyramids = [scene_pyramid(network.config, count) for count in (500, 1500)]
    expected = [reference.run(pyramid) for pyramid in pyramids]
    found: list[list[np.ndarray]] = [[], []]

    def work(index: int) -> None:
        found[index] = [backend.run(pyramids[index]) for _ in range(5)]

    in_two_threads(work)
    for index in range(2):
        assert len(found[index]) == 5
        for logits in found[index]:
            assert_same(logits, expected[index])


def test_predictor_cuts_tiles_that_the_engine_takes(tensorrt, network, tmp_path):
    path = write_engine(tmp_path, network.onnx, "1:400:800,1:300:700")
    cloud = make_cloud(4000)
    found = Predictor(load_backend(path)).predict(cloud)
    expected = Predictor(load_backend(network.onnx)).predict(cloud, max_points=800)
    assert found.tiles == expected.tiles > 1
    assert np.array_equal(found.classes, expected.classes)
    assert max(run["points"] for run in tensorrt.runs) <= 800


def test_verify_holds_an_engine_to_its_files_tolerance(tensorrt, network, tmp_path):
    path = write_engine(tmp_path, network.onnx, SIZES)
    candidates = {"tensorrt": load_backend(path)}
    reference = load_backend(network.checkpoint)
    (parity,) = verify(reference, candidates, make_cloud(1500), max_points=100_000)
    assert parity.passed and parity.tolerance.error == 1e-4
    write_engine(tmp_path, network.onnx, SIZES, tf32=True)
    assert tolerance_of(load_backend(path)).error == 2e-2


def test_the_sidecar_chooses_the_backend(engine, network):
    backend = load_backend(engine)
    assert backend.name == "tensorrt" and backend.config == network.config
    assert backend.sha256 == load_backend(network.checkpoint).sha256
    assert backend.max_points == 6000


def test_too_many_points_name_range_and_rebuild(tensorrt, network, tmp_path):
    backend = load_backend(write_engine(tmp_path, network.onnx, "100:200:300"))
    with pytest.raises(EngineError, match=r"model\.engine: \d+ points .*--points 100:200:\d+"):
        backend.run(scene_pyramid(network.config))


def replaced(pyramid: Pyramid, **changes) -> Pyramid:
    return Pyramid(**{**vars(pyramid), **changes})


def test_pyramids_that_do_not_fit_are_refused(emulated_cuda, engine, network):
    backend, good = load_backend(engine), scene_pyramid(network.config)
    names = np.zeros((len(good.points), 0), np.float32)
    with pytest.raises(InputError, match="lacks attributes"):
        backend.run(replaced(good, attributes=names))
    with pytest.raises(InputError, match=r"attributes has shape .* expected"):
        backend.run(replaced(good, attributes=good.attributes[:, :2]))
    narrow = (good.neighbors[0][:, :5], good.neighbors[1])
    with pytest.raises(InputError, match=r"neighbors_0 has shape .*, 5\]; expected .*, 8\]"):
        backend.run(replaced(good, neighbors=narrow))
    wrong = good.neighbors[1].copy()
    wrong[3, 2] = len(wrong)
    with pytest.raises(InputError, match=f"neighbors_1 row 3 holds {len(wrong)}"):
        backend.run(replaced(good, neighbors=(good.neighbors[0], wrong)))
    there = on_gpu(good, backend.stream)
    with pytest.raises(InputError, match="points lies in host memory"):
        backend.run(replaced(there, points=good.points))
    with pytest.raises(InputError, match="kept_1 has shape"):
        backend.run(replaced(there, kept=(there.kept[0].view((2,)),)))


def test_parts_of_clouds_are_refused(tensorrt, classifier, tmp_path):
    backend = load_backend(write_engine(tmp_path, classifier.onnx, "1:4:16"))
    good = cloud_pyramid(classifier.config, 2)
    tables = (good.neighbors[0], good.neighbors[1][:40] % 40)
    with pytest.raises(InputError, match=r"256, 40\] points; clouds of \[128, 32\]"):
        backend.run(
            replaced(good, neighbors=tables, kept=(good.kept[0][:40],), lengths=((256,), (40,)))
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flavour": "tensorrt-rtx"}, "is an engine of tensorrt-rtx, not tensorrt"),
        ({"tensorrt_version": "10.12.0.1"}, r"built by tensorrt 10\.12\.0\.1, installed is 10\.13"),
        ({"compute_capabilities": ("8.6",)}, r"capability 8\.6, this GPU has 9\.0.*dela build"),
        ({"plugins": "python", "kernels_sha256": "f00d" * 16}, "f00df00df00d.*dela build"),
        ({"plugins": "native", "kernels_sha256": "f00d" * 16}, "f00df00df00d.*dela build"),
        ({"engine_sha256": "0" * 64}, "not the engine that model.engine.json describes"),
        ({"profiles": ()}, "has 1 profiles, .* speaks of 0.*dela build"),
    ],
)
def test_a_sidecar_that_does_not_fit_says_what_differs(
    tensorrt, network, tmp_path, changes, message
):
    path = write_engine(tmp_path, network.onnx, SIZES, **changes)
    with pytest.raises(EngineError, match=message):
        load_backend(path, "tensorrt")


def test_an_engine_of_another_network_is_refused(tensorrt, network, classifier, tmp_path):
    properties = json.loads(
        sidecar_path(write_engine(tmp_path, classifier.onnx, "1:2:3")).read_text()
    )["properties"]
    path = write_engine(tmp_path, network.onnx, SIZES, properties=properties)
    with pytest.raises(DelaError, match="its inputs do not fit its metadata"):
        load_backend(path)


def test_an_engine_that_does_not_load_gives_tensorrts_reason(tensorrt, engine):
    values = json.loads(sidecar_path(engine).read_text())
    engine.write_bytes(b"no pickle")
    sidecar_path(engine).write_text(json.dumps({**values, "engine_sha256": digest_of(engine)}))
    with pytest.raises(EngineError, match=r"does not load: the file is no engine; .*dela build"):
        load_backend(engine)


def test_plugins_are_registered_only_for_engines_that_need_them(
    tensorrt, network, tmp_path, monkeypatch
):
    registered = []
    monkeypatch.setattr(launched, "register", lambda trt: registered.append(("python", trt)))
    monkeypatch.setattr(native, "register", lambda trt: registered.append(("native", trt)))
    load_backend(write_engine(tmp_path, network.onnx, SIZES))
    load_backend(write_engine(tmp_path, network.onnx, SIZES, plugins="ahead-of-time"))
    assert registered == []
    for form, digest in (("python", kernels.digest()), ("native", native.digest())):
        load_backend(
            write_engine(tmp_path, network.onnx, SIZES, plugins=form, kernels_sha256=digest)
        )
    assert registered == [("python", tensorrt), ("native", tensorrt)]


def test_plugins_that_cannot_be_had_are_told(tensorrt, network, tmp_path, monkeypatch):
    def refuse(trt=None):
        raise RuntimeError("there is no plugin library; install dela")

    digest = native.digest()
    path = write_engine(tmp_path, network.onnx, SIZES, plugins="native", kernels_sha256=digest)
    for name in ("register", "digest"):
        monkeypatch.setattr(native, name, refuse)
        with pytest.raises(EngineError, match=r"engine needs .*: there is no plugin library"):
            load_backend(path)


def test_failures_of_tensorrt_are_told_with_its_reason(tensorrt, engine, network):
    backend, pyramid = load_backend(engine), scene_pyramid(network.config)
    tensorrt.refuse_contexts = True
    with pytest.raises(DelaError, match="no execution context: out of contexts"):
        backend.run(pyramid)
    tensorrt.refuse_contexts, tensorrt.refuse_to_run = False, True
    with pytest.raises(DelaError, match="could not run the engine: out of luck"):
        backend.run(pyramid)
    tensorrt.refuse_to_run = False
    assert_same(backend.run(pyramid), load_backend(network.onnx).run(pyramid))


def test_too_little_memory_is_told_in_words(emulated_cuda, engine, network):
    backend = load_backend(engine)
    emulated_cuda.memory = emulated_cuda.count("device_bytes") + 1000
    with pytest.raises(DelaError, match="too little free memory; use a smaller --max-points"):
        backend.run(scene_pyramid(network.config))


def test_an_empty_part_of_the_cloud_is_no_error(engine, network):
    """A pyramid without points has no logits, whatever the profile's least."""
    good = scene_pyramid(network.config)
    empty = Pyramid(
        good.points[:0],
        good.attributes[:0],
        tuple(table[:0] for table in good.neighbors),
        tuple(rows[:0] for rows in good.kept),
        tuple(rows[:0] for rows in good.nearest),
        ((0,), (0,)),
    )
    assert load_backend(engine).run(empty).shape == (0, 3)


def test_a_whole_scan_is_labelled_as_by_onnxruntime(emulated_cuda, engine, network):
    emulated_cuda.defer = True
    cloud: PointCloud = make_cloud(3000, (2.0, 2.0, 1.0))
    found = Predictor(load_backend(engine)).predict(cloud, votes=3)
    expected = Predictor(load_backend(network.onnx)).predict(cloud, votes=3)
    assert np.mean(found.classes == expected.classes) > 0.9999
    assert np.allclose(found.confidence, expected.confidence, atol=1e-5)


def run_command(*words: object):
    return cli.run_command([str(word) for word in words])


def test_commands_run_an_engine(tensorrt, engine, network, tmp_path, capsys):
    scan = write_cloud(tmp_path / "scan.ply", make_cloud(1000))
    run_command("predict", scan, "-m", engine, "--backend", "tensorrt", "-o", tmp_path / "a.ply")
    run_command("predict", scan, "-m", network.onnx, "-o", tmp_path / "b.ply")
    run_command("predict", scan, "-m", engine, "--no-gpu-pyramid", "-o", tmp_path / "c.ply")
    clouds = [read_cloud(tmp_path / name) for name in ("a.ply", "b.ply", "c.ply")]
    for cloud in clouds[1:]:
        assert np.array_equal(cloud.columns["label"], clouds[0].columns["label"])
        confidence = cloud.columns["confidence"], clouds[0].columns["confidence"]
        np.testing.assert_allclose(*confidence, atol=1e-5)
    words = ("verify", engine, "--checkpoint", network.checkpoint, "-i", scan, "--no-cuda-graphs")
    (report,) = run_command(*words, "--device", "cuda:0")
    assert report["backend"] == "tensorrt on cuda:0" and report["passed"]
    warm = ("--warm-up", "400:900", "--graphs", 4, "--overwrite")
    run_command("predict", scan, "-m", engine, "-o", tmp_path / "a.ply", *warm)
    assert len(tensorrt.engines[-1].contexts) == 1 + 4
    again = read_cloud(tmp_path / "a.ply")
    assert np.array_equal(again.columns["label"], clouds[0].columns["label"])
    for wrong, message in (("900", "900 is not MIN:MAX"), ("9:5", "9:5 must ascend")):
        with pytest.raises(InputError, match=message):
            run_command("bench", engine, "--warm-up", wrong)
    with pytest.raises(InputError, match="--warm-up is for engines; onnxruntime captures no CUDA"):
        run_command("predict", scan, "-m", network.onnx, "--warm-up", "100:900", "--overwrite")
    capsys.readouterr()
    tensorrt.layers = {"spse": ("PluginV3", 0.5)}
    words = ("bench", engine, "--backend", "tensorrt", "--points", 300, "--repeat", 3, "--json")
    for extra in (
        (),
        ("--no-gpu-pyramid",),
        ("--graphs", 3),
        ("--warm-up", "100:900"),
        ("--layers",),
    ):
        (result,) = run_command(*words, *extra)
        assert result["backend"] == "tensorrt"
        assert min(phase["median"] for phase in result["seconds"].values()) > 0
    with pytest.raises(DelaError, match="no GPU 3"):
        run_command("predict", scan, "-m", engine, "--device", "cuda:3", "--overwrite")


def test_doctor_describes_the_gpu(emulated_cuda):
    findings = {finding.subject: finding for finding in doctor.examine()}
    assert findings["GPU 0"].status == doctor.OK
    assert "compute capability 9.0" in findings["GPU 0"].detail
    assert "operators.sm_90.cubin" in findings["GPU 0"].detail
    emulated_cuda.capability = (7, 5)
    (old,) = (finding for finding in doctor.examine() if finding.subject == "GPU 0")
    assert old.status == doctor.WARNING and "8.0 (Ampere) or newer" in old.detail


def test_a_pyramid_built_on_the_device_stays_there(emulated_cuda, engine, network):
    emulated_cuda.defer = True
    for graphs_on in (False, True):
        backend = load_backend(engine, graphs=graphs_on)
        host = scene_pyramid(network.config, 600)
        points, attributes = np.asarray(host.points), np.asarray(host.attributes)
        builder = PyramidBuilder(network.config, backend.stream)
        there = builder.pyramid(
            DeviceArray.from_host(points, backend.stream),
            DeviceArray.from_host(attributes, backend.stream),
        )
        expected = build_pyramid(points, attributes, network.config)
        assert_same(backend.run(there), load_backend(network.onnx).run(expected))


@pytest.mark.parametrize("graphs_on", [True, False])
def test_logits_go_where_they_are_wanted(emulated_cuda, engine, network, graphs_on):
    emulated_cuda.defer = True
    backend, pyramid = load_backend(engine, graphs=graphs_on), scene_pyramid(network.config, 300)
    mine, other = Stream(backend.device), Stream(backend.device)
    expected = backend.run(pyramid)
    output = DeviceArray.empty(expected.shape, np.float32, stream=mine)
    later = DeviceArray.from_host(np.zeros_like(expected), other)
    for _ in range(3):
        output.fill_zero(mine)  # still under way when the network takes the array
        assert backend.run(pyramid, output) is output
        later.copy_from(output, other)
        assert_same(later.to_host(other), expected)
        assert_same(output.to_host(mine), expected)
    output.fill_zero(mine)
    backend.run(pyramid, OnlyInterface(output))
    assert_same(output.to_host(mine), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: array.to_host(array.stream), "the output lies in host memory"),
        (
            lambda array: array.view((len(array) - 1, 3)),
            r"the output has shape \[\d+, 3\]; expected",
        ),
        (lambda array: array.view(dtype=np.int32), "the output is int32 on the device"),
        (lambda array: OnlyInterface(array, writable=False), "the output is read-only"),
        (lambda array: "gpu", "output is 'gpu'; give host, pinned, device or an array on the GPU"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(engine, network, change, message):
    backend, pyramid = load_backend(engine), scene_pyramid(network.config, 300)
    shape = (len(pyramid.points), network.config.num_classes)
    output = DeviceArray.empty(shape, np.float32, stream=Stream(backend.device))
    with pytest.raises(InputError, match=message):
        backend.run(pyramid, change(output))


def test_the_threads_device_stays_what_it_was(engine, network):
    def current() -> int:
        return int(call("cuCtxGetCurrent"))

    while current():
        call("cuCtxPopCurrent")
    backend = load_backend(engine)
    assert not current()
    predictor = Predictor(backend, gpu_pyramid=True)
    assert not current()
    pyramid = scene_pyramid(network.config, 300)
    for _ in range(3):
        backend.run(pyramid)
        assert not current()
    predictor.predict(make_cloud(300), votes=2)
    assert not current()
    with pytest.raises(InputError):
        backend.run(pyramid, np.zeros(3))
    assert not current()


def test_a_pyramid_of_another_thread_stays_out_of_a_graph(
    emulated_cuda, tensorrt, engine, network, monkeypatch
):
    cloud, other = make_cloud(1200), make_cloud(700)
    backend = load_backend(engine)
    attributes = compute_attributes(other, network.config.input_columns)
    builder, found = PyramidBuilder(network.config, Stream(backend.device)), []
    enqueue = graphs.Execution._enqueue

    def enqueue_beside_another_thread(execution):
        def build():
            scan = GpuScan.of(builder, other.points, attributes)
            found.append(scan.voxels.points.to_host(builder.stream))

        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
        enqueue(execution)

    monkeypatch.setattr(graphs.Execution, "_enqueue", enqueue_beside_another_thread)
    predictor = Predictor(backend, gpu_pyramid=True)
    answers = [predictor.predict(cloud) for _ in range(3)]
    expected = Predictor(load_backend(network.onnx)).predict(cloud)
    assert backend.graphs == 1 and len(found) == 3  # run, run and capture, replay
    for points in found:
        assert np.array_equal(points, Voxels.of(other, attributes, network.config).points)
    for answer in answers:
        assert np.array_equal(answer.classes, expected.classes)


@pytest.mark.parametrize("shared", [True, False], ids=["one predictor", "a predictor each"])
def test_threads_predict_with_pyramids_from_the_gpu(emulated_cuda, engine, network, shared):
    emulated_cuda.defer = True
    backend, reference = load_backend(engine), Predictor(load_backend(network.onnx))
    clouds = [make_cloud(700), make_cloud(1500)]
    expected = [reference.predict(cloud) for cloud in clouds]
    predictors = [Predictor(backend, gpu_pyramid=True)] * 2
    if not shared:
        predictors[1] = Predictor(backend, gpu_pyramid=True)
    found: list[list[np.ndarray]] = [[], []]

    def work(index: int) -> None:
        for _ in range(4):
            found[index].append(predictors[index].predict(clouds[index]).classes)

    in_two_threads(work)
    for index in range(2):
        assert len(found[index]) == 4
        for classes in found[index]:
            assert np.array_equal(classes, expected[index].classes)


def test_latency_with_everything_on_the_gpu(emulated_cuda, engine, network):
    backend = load_backend(engine)
    latency = measure(
        backend, [make_cloud(500)], MeasureOptions(gpu_pyramid=True), repeats=2, warmups=0
    )
    assert min(latency.seconds["preprocess"]) > 0 and latency.runs == 1


def test_first_captured_and_replayed_runs_are_timed_apart(tensorrt, engine):
    backend = load_backend(engine)
    result = measure(backend, [make_cloud(3000)], MeasureOptions(crops=3), repeats=11, warmups=1)
    kinds = {kind: len(seconds) for kind, seconds in result.kinds.items()}
    sets = len({(run["points"], run["neighbors_1"]) for run in tensorrt.runs})
    assert kinds == {"first": sets, "captured": sets, "replayed": 12 - 2 * sets} and sets > 1
    plain = measure(load_backend(engine, graphs=False), [make_cloud(600)], repeats=2, warmups=0)
    assert {kind: len(seconds) for kind, seconds in plain.kinds.items()} == {"first": 1, "again": 1}


@pytest.mark.parametrize("defer", [False, True], ids=["at once", "deferred"])
def test_layers_of_an_engine_come_from_its_profile_and_inspector(
    emulated_cuda, tensorrt, engine, network, defer
):
    emulated_cuda.defer = defer
    backend, reference = load_backend(engine), load_backend(network.onnx)
    pyramid = scene_pyramid(network.config)
    for _ in range(2):
        backend.run(pyramid)
    tensorrt.layers = {"spse": ("PluginV3", 0.5), "mlp + gelu": ("gemm", 1.25), "new": ("", 0.25)}
    layers = backend.time_layers(pyramid, 4)
    found = [(layer.name, layer.operator, layer.seconds, layer.share) for layer in layers]
    assert found == [
        ("mlp + gelu", "gemm", pytest.approx(1.25e-3), pytest.approx(0.625)),
        ("spse", "PluginV3", pytest.approx(0.5e-3), pytest.approx(0.25)),
        ("new", "", pytest.approx(0.25e-3), pytest.approx(0.125)),
    ]
    assert tensorrt.runs[-1]["points"] == len(pyramid.points)  # not padded
    # Graphs captured before are still good.
    assert_same(backend.run(pyramid), reference.run(pyramid))
    assert backend.latest_run == "replayed"
    tensorrt.layers = {}
    with pytest.raises(DelaError, match="no layer reported its time"):
        backend.time_layers(pyramid, 2)


def test_pyramids_on_the_gpu_are_for_engines_of_segmentation(
    tensorrt, classifier, network, tmp_path
):
    with pytest.raises(InputError, match="onnxruntime takes its input from the host"):
        Predictor(load_backend(network.onnx), gpu_pyramid=True)
    engine = load_backend(write_engine(tmp_path, classifier.onnx, "1:4:16"))
    with pytest.raises(InputError, match="classification are built on the CPU"):
        Predictor(engine, gpu_pyramid=True)
    cloud = make_cloud(300)
    found, expected = (
        Predictor(backend).predict(cloud) for backend in (engine, load_backend(classifier.onnx))
    )
    assert np.array_equal(found.classes, expected.classes)


@pytest.mark.parametrize("graphs_on", [True, False])
def test_tensorrt_for_rtx_compiles_once_for_all_sizes(tensorrt, network, tmp_path, graphs_on):
    path = write_engine(tmp_path, network.onnx, SIZES, flavour="tensorrt-rtx")
    backend, reference = load_backend(path, graphs=graphs_on), load_backend(network.onnx)
    assert backend.name == "tensorrt-rtx"
    for count in (400, 2000, 400, 2000):
        pyramid = scene_pyramid(network.config, count)
        assert_same(backend.run(pyramid), reference.run(pyramid))
    lazy, eager = tensorrt.engines[0].configs
    assert lazy.cache is eager.cache is not None
    kinds = tensorrt.DynamicShapesKernelSpecializationStrategy
    assert lazy.dynamic_shapes_kernel_specialization_strategy == kinds.LAZY
    assert eager.dynamic_shapes_kernel_specialization_strategy == kinds.EAGER
    # A stand-in kernel in a graph would stay there for good.
    made_with = [context.config for context in tensorrt.engines[0].contexts]
    assert made_with == ([lazy, eager, eager] if graphs_on else [lazy])


def test_the_stand_in_has_no_name_that_tensorrt_lacks():
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    for ours, theirs in (
        (standin_tensorrt.Engine, trt.ICudaEngine),
        (standin_tensorrt.Context, trt.IExecutionContext),
        (standin_tensorrt.RtxContext, trt.IExecutionContext),
        (standin_tensorrt.RuntimeConfig, trt.IRuntimeConfig),
        (standin_tensorrt.RuntimeCache, trt.IRuntimeCache),
        (standin_tensorrt.Runtime, trt.Runtime),
        (standin_tensorrt.EngineInspector, trt.EngineInspector),
        (StandInTensorRT, trt),
    ):
        names = {name for name in vars(ours) if not name.startswith("_")} - {"error"}
        assert names and names <= set(dir(theirs)), ours
    for kind in ("ExecutionContextAllocationStrategy", "DynamicShapesKernelSpecializationStrategy"):
        assert set(getattr(StandInTensorRT, kind).__members__) <= set(
            getattr(trt, kind).__members__
        )


def test_a_real_engine_goes_as_far_as_the_driver_lets_it(emulated_cuda, network, tmp_path):
    """TensorRT for RTX itself wants a GPU; all before it passes, and its reason is told."""
    pytest.importorskip("tensorrt_rtx_bindings")
    emulated_cuda.capability = (8, 9)
    path = tmp_path / "real.engine"
    request = BuildRequest(
        backend="tensorrt-rtx", profiles=["1:500:2000"], compute_capabilities=["8.9"]
    )
    assert build_engine(network.onnx, path, request).plugin_layers
    with pytest.raises(EngineError, match=r"real\.engine does not load: .*[Cc]uda"):
        load_backend(path)
    emulated_cuda.capability = (8, 6)
    with pytest.raises(EngineError, match=r"capability 8\.9, this GPU has 8\.6"):
        load_backend(path)
