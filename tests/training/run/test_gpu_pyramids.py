"""Batches whose pyramids are built on the GPU are those of the CPU, and train the same."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dela.errors import ConfigError, DelaError, InputError
from dela.families import resolve_config
from dela.families.dela.config import DelaConfig
from dela.model.contract import AttributeInfo
from dela.pyramid.cpu import Pyramid, build_pyramid, pack
from dela.training.data.batches import BatchMaker, StepBatches
from dela.training.data.clouds import Clouds, pack_clouds
from dela.training.data.dataset import Dataset
from dela.training.data.kinds import open_dataset
from dela.training.settings.augment import AugmentConfig
from dela.training.settings.train import ScheduleConfig, load_config
from train_hooks import silent

torch = pytest.importorskip("torch")

from dela.training.run import delivery, loop  # noqa: E402  (needs torch)
from dela.training.run.delivery import GpuPyramids, open_delivery  # noqa: E402
from dela.training.run.loop import train  # noqa: E402

ROOMS = Path(__file__).parents[3] / "configs" / "rooms.toml"
CPU = torch.device("cpu")
rng = np.random.default_rng(3)


@pytest.fixture
def builder(emulated_cuda):
    """Of the network in use: a StageBuilder on a device that shows what is not waited for."""
    from dela.plugins.cuda.driver import Device, Stream
    from dela.pyramid.gpu_stages import StageBuilder

    emulated_cuda.check_initialised = True
    emulated_cuda.defer = True
    emulated_cuda.order = "shuffled"
    return lambda config: StageBuilder(config, Stream(Device()))


@pytest.fixture(scope="module")
def rooms() -> Dataset:
    """Two small rooms, and the network of the rooms' recipe."""
    config = load_config(ROOMS, ["data.train_rooms=2", "data.room_points=6000", "data.points=700"])
    return open_dataset(config.data, config.model, "train", config.augment)


def built(stages, clouds: Clouds) -> Pyramid:
    """The device's pyramid, on the host."""
    from dela.plugins.cuda.arrays import DeviceArray

    up = clouds.each(lambda array: DeviceArray.from_host(array, stages.stream))
    found = stages.packed(up.points, up.attributes, up.lengths, up.bounds, up.seeds)

    def down(arrays):
        return tuple(array.to_host(stages.stream) for array in arrays)

    return Pyramid(
        *down((found.points, found.attributes)),
        down(found.neighbors),
        down(found.kept),
        down(found.nearest),
        found.lengths,
    )


def assert_same(found: Pyramid, expected: Pyramid) -> None:
    assert found.lengths == expected.lengths
    for (name, theirs), (expected_name, ours) in zip(
        found.inputs(), expected.inputs(), strict=True
    ):
        assert name == expected_name
        assert theirs.dtype == ours.dtype
        np.testing.assert_array_equal(theirs, ours, err_msg=name)


def assert_same_steps(
    dataset: Dataset, stages, steps: range, rank: int = 0, processes: int = 1, **schedule
) -> list[int]:
    """Compares batches of these steps with those of the CPU; their numbers of points."""
    plain = ScheduleConfig(seed=5, **schedule)
    moved = dataclasses.replace(plain, gpu_pyramid=True)
    per_step = processes * plain.accumulate * plain.batch_size
    sizes = []
    for step in steps:
        expected, found = (
            StepBatches(BatchMaker(dataset, each, 4, 8, per_step), rank, processes)(step)
            for each in (plain, moved)
        )
        found = pickle.loads(pickle.dumps(found))  # as from a worker process
        for (ours, ours_names), (theirs, theirs_names) in zip(expected, found, strict=True):
            assert theirs_names == ours_names
            np.testing.assert_array_equal(theirs.labels, ours.labels)
            assert isinstance(theirs.pyramid, Clouds)
            assert_same(built(stages, theirs.pyramid), ours.pyramid.validate())
            sizes.append(len(ours.labels))
    return sizes


def network(attributes: int = 1, stages: int = 3) -> DelaConfig:
    return resolve_config(
        "s3dis",
        dims=(8, 16, 16)[:stages],
        depths=(1, 1, 1)[:stages],
        neighbors=(6, 8, 40)[:stages],
        spread=(1.0, 2.0, 3.0)[:stages],
        grid=(0.25, 0.5, 1.0)[:stages],
        head_dim=8,
        attributes=tuple(AttributeInfo(f"column {n}") for n in range(attributes)),
    )


def test_batches_of_rooms_are_those_of_the_cpu(builder, rooms):
    stages = builder(rooms.model)
    sizes = assert_same_steps(rooms, stages, range(3), batch_size=3)
    # Larger and smaller batches after one another in the same memory.
    sizes += assert_same_steps(rooms, stages, range(3, 5), batch_size=3, batch_points=800)
    sizes += assert_same_steps(rooms, stages, range(5, 6), batch_size=4)
    assert len(set(sizes)) > 2


def test_mixed_and_distorted_scenes_in_accumulated_batches(builder, rooms):
    augmentation = AugmentConfig(
        tilt=5,
        elastic=((0.2, 0.05),),
        jitter=0.02,
        drop_points=0.4,
        cutout=3,
        mix=0.7,
        color_drop=0.3,
    )
    dataset = Dataset(rooms.scans, rooms.data, rooms.model, augmentation)
    stages = builder(rooms.model)
    assert_same_steps(dataset, stages, range(2), 1, 2, batch_size=2, accumulate=2)


def test_the_largest_batch_is_that_of_the_cpu(builder, rooms):
    makers = [
        BatchMaker(rooms, ScheduleConfig(batch_size=2, gpu_pyramid=there), 4, 8)
        for there in (False, True)
    ]
    (expected, names), (found, same) = (maker.largest() for maker in makers)
    assert same == names
    assert_same(built(builder(rooms.model), found.pyramid), expected.pyramid)


@pytest.mark.parametrize("columns,stage_count", [(0, 1), (0, 3), (5, 2)])
def test_clouds_of_any_size_in_one_batch(builder, columns, stage_count):
    config = network(columns, stage_count)
    stages = builder(config)
    clouds = [
        rng.random((1, 3)) * 9,
        rng.random((300, 3)) * [6, 6, 2],
        np.repeat(rng.random((2, 3)), 40, axis=0),
        rng.random((5, 3)),
        np.linspace(0, 90, 150)[:, None] * [1, 0.5, 0],
        np.zeros((1, 3)),
    ]
    samples = [
        (points.astype(np.float32), rng.random((len(points), columns)).astype(np.float32))
        for points in clouds
    ]
    for order in ([0], [1, 0], [0, 1, 2, 3, 4, 5], [5, 4, 2], [1]):
        expected = [build_pyramid(*samples[n], config, seed=90 + n, pick=None) for n in order]
        waiting = [Clouds.of(*samples[n], config, 90 + n) for n in order]
        assert_same(built(stages, pack_clouds(waiting)), pack(expected))


def test_a_second_batch_of_no_more_points_allocates_nothing(builder, emulated_cuda):
    config = network(0)
    stages = builder(config)
    points = (rng.random((400, 3)) * 5).astype(np.float32)
    batches = [
        pack_clouds([Clouds.of(points[:size], None, config, seed) for size in sizes])
        for seed, sizes in enumerate([(400, 300, 200), (350, 300, 150), (200, 20)])
    ]
    from dela.plugins.cuda.arrays import DeviceArray

    up = [c.each(lambda array: DeviceArray.from_host(array, stages.stream)) for c in batches]
    counts = []
    for one in up:
        stages.packed(one.points, one.attributes, one.lengths, one.bounds, one.seeds)
        counts.append(emulated_cuda.count("allocations"))
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"lengths": (3, 1)}, r"lengths is \[3, 1\]; .* all of them 5"),
        ({"lengths": (5, 0)}, "every cloud needs a point"),
        ({"seeds": (1,)}, "2 clouds have 2 bounds and 1 seeds"),
    ],
)
def test_batches_that_do_not_fit_are_refused(builder, change, message):
    config = network(0)
    points = rng.random((5, 3)).astype(np.float32)
    whole = pack_clouds(
        [Clouds.of(points[:3], None, config, 0), Clouds.of(points[3:], None, config, 1)]
    )
    with pytest.raises(InputError, match=message):
        built(builder(config), dataclasses.replace(whole, **change))


@pytest.mark.parametrize(
    "points,attributes,message",
    [
        (np.zeros((0, 3)), np.zeros((0, 1)), "the cloud is empty"),
        (np.full((2, 3), np.nan), np.zeros((2, 1)), "2 of 2 points have NaN"),
        (np.full((2, 3), 2e18), np.zeros((2, 1)), "a coordinate is 2e"),
        (np.zeros((2, 3)), np.full((2, 1), np.inf), "2 of 2 points have NaN or infinite attr"),
        (np.zeros((2, 3)), np.zeros((2, 2)), r"shape \[2, 2\]; expected \[2, 1\]"),
    ],
)
def test_samples_that_cannot_be_used_are_refused_before_they_go_up(points, attributes, message):
    with pytest.raises(InputError, match=message):
        Clouds.of(points, attributes, network(1), 0)
    with pytest.raises(InputError, match=message):
        build_pyramid(points, attributes, network(1), 0)


# ------------------------------------------------------------------------ in the loop


def test_the_option_needs_a_gpu_and_scenes(with_schedule, tmp_path):
    config = with_schedule(gpu_pyramid=True)
    with pytest.raises(ConfigError, match="needs --device cuda, this run computes on cpu"):
        train(config, tmp_path, log=silent)
    assert not list(tmp_path.glob("*.pt"))
    objects = dataclasses.replace(config, model=resolve_config("scanobjectnn"))
    with pytest.raises(ConfigError, match=r"train\.gpu_pyramid is for segmentation"):
        open_delivery(objects, torch.device("cuda"))
    assert type(open_delivery(with_schedule(), CPU)) is delivery.Delivery


class StandinStream:
    """What the delivery uses of ``torch.cuda.Stream``, over a stream of ours."""

    def __init__(self, device=None) -> None:
        from dela.plugins.cuda.driver import Device, Stream

        self.own = Stream(Device())
        self.cuda_stream = self.own.handle
        self.waited: list = []

    def record_event(self):
        from dela.plugins.cuda.driver import Event

        return Event(self.own.device).record(self.own)

    def wait_event(self, event) -> None:
        self.waited.append(event)


@dataclasses.dataclass
class Emulated:
    """The training's delivery with the emulated device in place of torch's; tensors on the CPU.

    Attributes:
        open: in place of ``open_delivery``.
        stream: the current one.
        clouds: how many were built.
        recorded: the streams that tensors were kept for.
    """

    open: type[GpuPyramids]
    stream: StandinStream
    clouds: int = 0
    recorded: set = dataclasses.field(default_factory=set)


@pytest.fixture
def emulated(builder, monkeypatch) -> Emulated:
    from dela.plugins.cuda.arrays import DeviceArray

    class OnEmulator(GpuPyramids):
        def _packed(self, clouds: Clouds) -> Pyramid:
            state.clouds += len(clouds.lengths)
            stream = self._builder.stream
            return super()._packed(clouds.each(lambda t: DeviceArray.from_host(t.numpy(), stream)))

    state = Emulated(OnEmulator, StandinStream())
    monkeypatch.setattr(torch.cuda, "Stream", StandinStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: state.stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, s: state.recorded.add(s))
    monkeypatch.setattr(delivery, "pinned", lambda clouds: clouds.to_tensors())
    monkeypatch.setattr(delivery, "on_device", lambda clouds, device: clouds)
    monkeypatch.setattr(
        delivery, "_copied", lambda array: torch.from_numpy(array.to_host(array.stream))
    )
    return state


def test_a_run_trains_the_same(with_schedule, tmp_path, emulated, monkeypatch):
    changes = {"epochs": 2, "accumulate": 2, "norm_batches": 2, "weight_average": 0.9}
    train(with_schedule(**changes), tmp_path / "cpu", log=silent)
    monkeypatch.setattr(loop, "open_delivery", emulated.open)
    config = with_schedule(**changes, gpu_pyramid=True, workers=2)
    train(config, tmp_path / "gpu", log=silent)
    expected, found = _curve(tmp_path / "cpu"), _curve(tmp_path / "gpu")
    assert found == expected
    assert len(found) == 2
    # The largest batch; 2 epochs of 3 steps of 2 batches; 2 validations after 2 batches.
    batches = 1 + 2 * 3 * 2 + 2 * 2
    assert emulated.clouds == 2 * batches
    assert len(emulated.stream.waited) == batches
    assert emulated.recorded == {emulated.stream}
    # It changes no number, so a run may go on with it.
    train(config, tmp_path / "cpu", resume=True, log=silent)
    assert _curve(tmp_path / "cpu") == expected


def test_each_step_is_built_while_the_one_before_it_is_out(with_schedule, emulated):
    config = with_schedule(gpu_pyramid=True)
    dataset = open_dataset(config.data, config.model, "train", config.augment)
    make = StepBatches(BatchMaker(dataset, config.train, 3, 6))
    asked, closed = [], []

    def steps():
        try:
            for step in range(4):
                asked.append(step)
                yield make(step)
        finally:
            closed.append(True)

    prepared = steps()
    ahead = emulated.open(config, CPU).ahead(prepared)
    plain = StepBatches(BatchMaker(dataset, with_schedule().train, 3, 6))
    for step in range(2):
        ((batch, names),) = next(ahead)
        ((expected, expected_names),) = plain(step)
        assert names == expected_names
        assert_same(_on_host(batch.pyramid), expected.pyramid)
    ahead.close()
    assert asked == [0, 1, 2]
    assert closed == [True]


def test_a_second_ctrl_c_leaves_without_waiting_for_what_is_prepared(
    with_schedule, emulated, monkeypatch
):
    class Hurried(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            raise KeyboardInterrupt

    monkeypatch.setattr(delivery, "ThreadPoolExecutor", Hurried)
    config = with_schedule(gpu_pyramid=True)
    asked, goes_on, closed = threading.Event(), threading.Event(), threading.Event()

    def steps():
        try:
            yield []
            asked.set()
            goes_on.wait(30)
            yield []
        finally:
            closed.set()

    ahead = emulated.open(config, CPU).ahead(steps())
    next(ahead)
    assert asked.wait(30)
    with pytest.raises(KeyboardInterrupt):
        ahead.close()
    assert not closed.is_set()
    goes_on.set()
    assert closed.wait(30)


def test_what_fails_while_it_is_prepared_or_built_is_raised_in_its_turn(with_schedule, emulated):
    config = with_schedule(gpu_pyramid=True)
    dataset = open_dataset(config.data, config.model, "train", config.augment)
    make = StepBatches(BatchMaker(dataset, config.train, 3, 6))

    def steps():
        yield make(0)
        raise InputError("a file has gone")

    ahead = emulated.open(config, CPU).ahead(steps())
    next(ahead)
    with pytest.raises(InputError, match="a file has gone"):
        next(ahead)


def test_no_memory_is_said_in_words_after_torch_gave_back_its_own(
    with_schedule, emulated, emulated_cuda, monkeypatch
):
    config = with_schedule(gpu_pyramid=True)
    dataset = open_dataset(config.data, config.model, "train", config.augment)
    batch, _ = BatchMaker(dataset, config.train, 3, 6).largest()
    building = emulated.open(config, CPU)
    emulated_cuda.memory = 1 << 16
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    with pytest.raises(DelaError, match="out of memory in the pyramids of a batch of 600 points"):
        building(batch.pyramid)
    assert freed == [True]
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: setattr(emulated_cuda, "memory", 1 << 30)
    )
    assert building(batch.pyramid).clouds == 2


def _curve(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def _on_host(pyramid: Pyramid) -> Pyramid:
    def down(values):
        if isinstance(values, torch.Tensor):
            return values.cpu().numpy()
        return tuple(down(v) if isinstance(v, torch.Tensor) else v for v in values)

    return Pyramid(*(down(getattr(pyramid, f.name)) for f in dataclasses.fields(Pyramid)))


# ------------------------------------------------------------------------ a real GPU


gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
]


@pytest.mark.parametrize("size", [pytest.param(size, marks=gpu) for size in (700, 5000)])
def test_a_gpu_builds_the_batches_of_the_cpu(size):
    config = load_config(
        ROOMS,
        [
            f"data.points={size}",
            "data.train_rooms=2",
            "data.room_points=40000",
            "train.batch_size=3",
        ],
    )
    dataset = open_dataset(config.data, config.model, "train", config.augment)
    schedule = dataclasses.replace(config.train, gpu_pyramid=True)
    config = dataclasses.replace(config, train=schedule)
    plain = StepBatches(BatchMaker(dataset, dataclasses.replace(schedule, gpu_pyramid=False), 4, 8))
    make = StepBatches(BatchMaker(dataset, schedule, 4, 8), pin=True)
    ahead = open_delivery(config, torch.device("cuda")).ahead(make(step) for step in range(4))
    for step, built_ahead in enumerate(ahead):
        ((expected, _),), ((found, _),) = plain(step), built_ahead
        assert found.pyramid.points.is_cuda
        assert_same(_on_host(found.pyramid), expected.pyramid)


@pytest.mark.parametrize("workers", [pytest.param(workers, marks=gpu) for workers in (0, 2)])
def test_a_gpu_trains_the_same_with_its_own_pyramids(with_schedule, tmp_path, workers):
    curves = []
    for there in (False, True):
        losses: list[float] = []
        train(
            with_schedule(gpu_pyramid=there, workers=workers, norm_batches=2, accumulate=2),
            tmp_path / str(there),
            device="cuda",
            log=silent,
            after_step=lambda step, loss, losses=losses: losses.append(loss),
        )
        curves.append(losses)
    assert len(curves[0]) == 6
    assert curves[1][0] == pytest.approx(curves[0][0], rel=1e-5)
    assert curves[1] == pytest.approx(curves[0], rel=1e-2)
