"""Scans labelled on the GPU that runs the network.

A scan's points and columns go up once, its labels come down once. Voxels, neighbors and
downsampling are those of the CPU, value for value; labels are those of the same definition.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from dela.cloud.point_cloud import PointCloud
from dela.errors import InputError
from dela.families import family_of
from dela.geometry.gpu_queue import Workspace
from dela.model.inputs import Inputs
from dela.pyramid.gpu import PyramidBuilder
from dela.runtime.backends.finite import non_finite_error
from dela.runtime.backends.gpu_buffers import explain_cuda_errors
from dela.runtime.predict.labeller import Labels
from dela.scan.gpu_attributes import scan_columns
from dela.scan.gpu_votes import GpuScan, GpuTally
from dela.scan.votes import VoteOptions, take_votes

if TYPE_CHECKING:
    from dela.plugins.cuda.driver import Event, Stream
    from dela.runtime.backends.base import Backend
    from dela.runtime.backends.engine import EngineBackend


def serves(backend: Backend | EngineBackend) -> bool:
    """Whether a backend's scans can be labelled on its GPU: an engine's, for scenes."""
    config = backend.config
    scenes = config.task == "segmentation" and family_of(config).on_gpu
    return scenes and getattr(backend, "device", None) is not None


class GpuLabeller:
    """:class:`dela.runtime.predict.labeller.Labeller` on the GPU of an engine.

    It has a stream of its own: the backend's belongs to whichever thread is running the network,
    and what another one queued there would become part of a graph that is being captured. The
    backend waits for the pyramids it is given, and its logits are copied before it takes the next.
    Threads take turns; with a labeller each, over one backend, only in the network.

    Args:
        backend: that takes and leaves arrays on its device.

    Raises:
        InputError: a backend that takes arrays on the host, or a classification network.
    """

    def __init__(self, backend: Backend | EngineBackend) -> None:
        device = getattr(backend, "device", None)
        if device is None:
            raise InputError(
                f"{backend.name} takes its input from the host; pyramids on the GPU are for "
                "engines (--backend tensorrt or tensorrt-rtx)"
            )
        config: Any = backend.config
        if not family_of(config).on_gpu:
            raise InputError(
                f"input of the family {config.family} is prepared on the CPU; leave out "
                "--gpu-pyramid"
            )
        self._backend: Any = backend
        self._device = device
        # Pyramids and labels are valid until the next ones are made.
        self._turn = threading.Lock()
        with explain_cuda_errors(), device.current():
            from dela.plugins.cuda.driver import Stream

            self._stream: Stream = Stream(device)
            self._builder = PyramidBuilder(config, self._stream)
            self._memory = Workspace(self._stream)
        self._marks: list[Event] = []

    def wait(self) -> None:
        """Waits until the pyramid made last is there."""
        self._stream.synchronize()

    def run(self, pyramid: Inputs) -> Any:
        """Logits on the device, in the order of this labeller's stream."""
        shape = (pyramid.rows, self._backend.config.num_classes)
        logits = self._memory.array("logits", shape, np.float32)
        return self._backend.run(pyramid, logits, stream=self._stream)

    def label(
        self,
        forward: Callable[[Inputs], Any],
        cloud: PointCloud,
        points: int,
        options: VoteOptions,
        probabilities: bool = False,
    ) -> Labels:
        """As :meth:`dela.runtime.predict.labeller.Labeller.label`."""
        columns = scan_columns(cloud, self._backend.config.input_columns)
        with self._turn, explain_cuda_errors(), self._device.current():
            scan = GpuScan.of(self._builder, cloud.points, columns)
            tally = GpuTally(scan, self._memory, points, options.votes)
            clock = _Clock(self._stream, self._marks)

            def timed(pyramid: Inputs) -> Any:
                with clock.running():
                    return forward(pyramid)

            runs = take_votes(timed, scan, scan.look, self._backend.config, tally, options)
            labels = Labels(*tally.labels(probabilities), len(scan), runs, clock.seconds())
        # What is no number makes no confidence either.
        bad = int(np.count_nonzero(~np.isfinite(labels.confidence)))
        if bad:
            raise non_finite_error(self._backend, bad, points)
        return labels


class _Clock:
    """What blocks take of the device's time, without a wait.

    Args:
        stream: that waits for what the blocks do.
        marks: two for each block, used again; more are added as they are needed.
    """

    def __init__(self, stream: Stream, marks: list[Event]) -> None:
        self._stream = stream
        self._marks = marks
        self._used = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Times a block."""
        self._mark()
        yield
        self._mark()

    def seconds(self) -> float:
        """Of all blocks so far, once the stream has passed them."""
        spans = zip(self._marks[: self._used : 2], self._marks[1 : self._used : 2], strict=True)
        return 1e-3 * sum(end.milliseconds_since(begin) for begin, end in spans)

    def _mark(self) -> None:
        if self._used == len(self._marks):
            from dela.plugins.cuda.driver import Event

            self._marks.append(Event(self._stream.device, timing=True))
        self._marks[self._used].record(self._stream)
        self._used += 1
