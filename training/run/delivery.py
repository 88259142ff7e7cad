"""How a batch's pyramid reaches the device that trains: copied there, or built there.

``train.gpu_pyramid`` builds it on the GPU, on a stream of its own, one step ahead of the training.
The driver API's memory for this lies beside what torch's allocator holds; the finished pyramid is
torch's.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from dela.errors import ConfigError, MissingDependencyError
from dela.families import family_of
from dela.model.inputs import Inputs
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.driver import OUT_OF_MEMORY, CudaError, CudaUnavailable, Device, Stream
from dela.pyramid.cpu import Pyramid
from dela.pyramid.gpu_stages import StageBuilder
from dela.training.data.clouds import Clouds
from dela.training.data.prefetch import on_device, pinned
from dela.training.data.samples import Batch
from dela.training.run.devices import explain_out_of_memory, smaller_steps
from dela.training.settings.train import TrainConfig

# A step's batches, with the names of the scans in each.
Step: TypeAlias = list[tuple[Batch, list[str]]]
Steps: TypeAlias = Generator[Step, None, None]


class Delivery:
    """Copies pyramids to the training's device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, pyramid: Inputs | Clouds) -> Inputs:
        """The pyramid for the network, whose work on the current stream waits for it.

        One that is on the device already stays as it is.
        """
        assert not isinstance(pyramid, Clouds)
        if self.device.type != "cuda" or _on_gpu(pyramid):
            return pyramid
        return on_device(pinned(pyramid), self.device)

    def ahead(self, steps: Steps) -> Steps:
        """The same steps, with what can be done before a step begins done early."""
        with closing(steps):
            yield from steps


class GpuPyramids(Delivery):
    """Builds pyramids on the training's GPU, and one step ahead.

    Raises:
        MissingDependencyError: the driver or its Python package is missing.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        super().__init__(device)
        model: Any = config.model
        if not family_of(model).on_gpu:
            raise ConfigError(
                f"train.gpu_pyramid is on, but input of the family {model.family} is prepared on "
                "the CPU; leave it out"
            )
        self._advice = smaller_steps(config, device)
        # The loop builds what it wants at once while the next step's pyramids are under way.
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream(device)
        ordinal = torch.cuda.current_device() if device.index is None else device.index
        try:
            own = Stream.borrowed(self._stream.cuda_stream, Device(ordinal))
            self._builder = StageBuilder(model, own)
        except CudaUnavailable as error:
            raise MissingDependencyError(str(error)) from error

    def __call__(self, pyramid: Inputs | Clouds) -> Inputs:
        if isinstance(pyramid, Clouds):
            return self._handed_over(*self._build(pyramid))
        return super().__call__(pyramid)

    def ahead(self, steps: Steps) -> Steps:
        """The same steps with their pyramids, built while the step before computes.

        Raises:
            InputError: voxels too small for the extent.
            DelaError: out of memory.
        """

        def build_next() -> list[tuple[Batch, list[str], Pyramid, Any]] | None:
            step = next(steps, None)
            if step is None:
                return None
            return [(batch, names, *self._build(batch.pyramid)) for batch, names in step]

        with ThreadPoolExecutor(1, "dela-pyramids") as pool:
            try:
                coming = pool.submit(build_next)
                while (built := coming.result()) is not None:
                    coming = pool.submit(build_next)
                    yield [
                        (replace(batch, pyramid=self._handed_over(pyramid, ready)), names)
                        for batch, names, pyramid, ready in built
                    ]
            finally:
                # By the thread that may be taking a step from them: a second Ctrl-C does not wait.
                pool.submit(steps.close)

    def _build(self, clouds: Inputs | Clouds) -> tuple[Pyramid, torch.cuda.Event]:
        """Queues building a pyramid, waiting for the sizes of its stages; the mark of its end."""
        assert isinstance(clouds, Clouds)
        what = f"the pyramids of a batch of {clouds.rows:,} points"
        with (
            self._lock,
            explain_out_of_memory(what, self._advice, self.device),
            torch.cuda.stream(self._stream),
        ):
            there = on_device(pinned(clouds), self.device)
            try:
                lent = self._packed(there)
            except CudaError as error:
                if error.code != OUT_OF_MEMORY:
                    raise
                torch.cuda.empty_cache()  # what torch holds for later
                lent = self._packed(there)
            pyramid = replace(
                lent,
                points=there.points,
                attributes=there.attributes,
                neighbors=tuple(map(_copied, lent.neighbors)),
                kept=tuple(map(_copied, lent.kept)),
                nearest=tuple(map(_copied, lent.nearest)),
            )
            return pyramid, self._stream.record_event()

    def _packed(self, clouds: Clouds) -> Pyramid:
        return self._builder.packed(
            clouds.points, clouds.attributes, clouds.lengths, clouds.bounds, clouds.seeds
        )

    def _handed_over(self, pyramid: Pyramid, ready: torch.cuda.Event) -> Pyramid:
        """The pyramid, for which the current stream waits from now on."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(ready)
        for _, tensor in pyramid.inputs():
            # The other stream's memory: not to be used again there before this one is done with it.
            tensor.record_stream(stream)
        return pyramid


def open_delivery(config: TrainConfig, device: torch.device) -> Delivery:
    """What brings this run's pyramids to its device.

    Raises:
        ConfigError: ``train.gpu_pyramid`` without a GPU, or for classification.
        MissingDependencyError: it misses the CUDA driver or its Python package.
    """
    if not config.train.gpu_pyramid:
        return Delivery(device)
    if config.model.task == "classification":
        raise ConfigError(
            "train.gpu_pyramid is for segmentation; the few points of objects are sampled on the "
            "CPU: set train.gpu_pyramid = false"
        )
    if device.type != "cuda":
        raise ConfigError(
            f"train.gpu_pyramid needs --device cuda, this run computes on {device}; set "
            "train.gpu_pyramid = false, which trains the same"
        )
    return GpuPyramids(config, device)


def _on_gpu(pyramid: Inputs) -> bool:
    return all(isinstance(value, torch.Tensor) and value.is_cuda for _, value in pyramid.inputs())


def _copied(array: DeviceArray) -> torch.Tensor:
    """A tensor of its own: the builder writes over the array at its next use."""
    return torch.from_dlpack(array).clone()
