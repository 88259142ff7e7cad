"""The pyramid in device memory, and the scan that it is built from.

Every array equals that of :func:`dela.pyramid.cpu.build_pyramid`, value for value. For a scan the
host waits for the stream once, for bounds and sizes; for any other cloud once for the bounds and
once per stage. Segmentation only: classification samples its few points on the CPU. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dela.errors import InputError
from dela.geometry.bounds import Bounds
from dela.geometry.gpu import Cells, Members
from dela.geometry.gpu_queue import BOUNDS_WORDS, WORD, Workspace, bounds_of, is_wide
from dela.plugins.cuda.arrays import DeviceArray, as_device_array
from dela.plugins.cuda.driver import Stream
from dela.plugins.cuda.launch import BLOCK, divide_up
from dela.pyramid.cpu import Pyramid, PyramidConfig
from dela.pyramid.gpu_columns import ScanColumns
from dela.pyramid.gpu_ground import GroundHeights
from dela.pyramid.gpu_scene import SceneStages
from dela.pyramid.gpu_stages import StageBuilder, StagePlan

# As in plugins/cuda: votes.cu.
MIDDLE_BLOCK = 512

# For 1,024 cells along each axis: 40 m at 0.04 m.
FIRST_PASSES = 5


@dataclass(frozen=True)
class GpuVoxels:
    """A scan at the resolution of stage 0, in device memory; as :class:`dela.scan.voxels.Voxels`.

    Attributes:
        points: [V, 3] float32 meters, counted from the scan's lowest corner.
        attributes: [V, F] float32.
        kept: [V] int32: the scan's row behind each voxel.
        voxel_of_point: [N] int32: the voxel of each point of the scan.
        members: the scan's rows in each voxel.
        scan: [N, 3] float64 (or float32): the scan's points as they were given.
        scan_attributes: [N, F] float32.
        origin: [3] float64, on the host: what was taken off the coordinates.
        bounds: of the scan's ``points`` as they were taken up, on the host.
        sizes: points of every stage of the whole scan, where they are known.
    """

    points: DeviceArray
    attributes: DeviceArray
    kept: DeviceArray
    voxel_of_point: DeviceArray
    members: Members
    scan: DeviceArray
    scan_attributes: DeviceArray
    origin: np.ndarray
    bounds: Bounds
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.points)


class PyramidBuilder:
    """Builds pyramids on one stream, in memory that is used again for the next one.

    For a scan: :meth:`voxels` takes it up once, :meth:`look` and :meth:`turned` show it otherwise,
    :meth:`tile` gives the network's input for all or some of it, :meth:`spread` gives every point
    the answer of its voxel. A pyramid is valid until the next one, other results until the next
    call of the same method; whoever needs two at a time takes two builders.

    Raises:
        CudaUnavailable: no driver, no GPU, or one that is too old.
        InputError: a classification network.
    """

    def __init__(self, config: PyramidConfig, stream: Stream) -> None:
        self._stages = StageBuilder(config, stream)
        self.config: Any = config
        self.stream = stream
        self.geometry = self._stages.geometry
        self._results = Workspace(stream)
        self._scene = SceneStages(config, self.geometry, self._results)
        self._ground = GroundHeights(self.geometry)
        # Digits that the cells of the largest scan so far needed, in a sort.
        self._passes = FIRST_PASSES
        # The points whose stages are listed at present, and are the next pyramid's.
        self._listed = 0

    def pyramid(
        self,
        points: Any,
        attributes: Any = None,
        *,
        pick: int = 0,
        origin: Sequence[float] | np.ndarray | None = None,
        ordered: bool = False,
    ) -> Pyramid:
        """The pyramid of one cloud; see :func:`build_device_pyramid`."""
        geometry = self.geometry
        points = geometry.points(self._uploaded(points, "cloud points"))
        if not len(points):
            raise InputError("the cloud is empty; a pyramid needs at least one point")
        attributes = self._attributes(self._uploaded(attributes, "cloud attributes"), len(points))
        bounds = geometry.bounds(points, attributes)
        _check_pick(pick)
        plan = StagePlan([bounds], pick, None, origin, ordered)
        return self._stages.build(points, attributes, [len(points)], plan)

    def voxels(self, points: Any, attributes: Any = None) -> GpuVoxels:
        """A scan's voxels, the first point of each standing for it; waits once, for the bounds and
        all sizes; twice for a scan that is wider or has more cells than any before.

        Args:
            points: [N, 3] float64 (or float32) meters of any origin, on the host or on the device.
            attributes: [N, F] float32, computed on the whole scan; or the scan's columns that they
                are to be made of; None when F is 0.

        Raises:
            InputError: an empty scan, values that are not finite, or a scan that falls into one
                voxel.
        """
        scan = self.geometry.points(self._uploaded(points, "scan points"), wide=True)
        if not len(scan):
            raise InputError("the scan is empty; it needs at least one point")
        of_scan: DeviceArray | ScanColumns
        if isinstance(attributes, ScanColumns):
            of_scan = attributes
        else:
            of_scan = self._attributes(self._uploaded(attributes, "scan attributes"), len(scan))
        self.stream.device.make_current()
        size = self.config.grid[0]
        bounds, sizes, queued = self._queue_scan(scan, of_scan, Cells.of_device(size, self._passes))
        cells = Cells.of(bounds, size, None)
        again = not cells.fits_one_sort or cells.passes > self._passes
        if again and cells.fits_one_sort:
            self._passes = cells.passes
        if isinstance(of_scan, ScanColumns) and of_scan.need_ground:
            again |= not self._ground.fits(bounds)
            if not self._ground.can(bounds):
                of_scan = of_scan.with_heights()
        if again:
            bounds, sizes, queued = self._queue_scan(scan, of_scan, cells)
        if sizes[0] == 1 and len(scan) > 1:
            raise InputError(
                f"all {len(scan):,} points fall into one voxel of {size} m (extent "
                f"{bounds.extent:.3g}); the model wants coordinates in metres"
            )
        return self._seen(queued, sizes, bounds)

    def _queue_scan(
        self, scan: DeviceArray, columns: DeviceArray | ScanColumns, cells: Cells
    ) -> tuple[Bounds, tuple[int, ...], GpuVoxels]:
        """Queues a scan's voxels and the rows of its later stages, and waits for them.

        Returns:
            Bounds of the scan, points of each stage, and the voxels in arrays that are as long as
            the scan.
        """
        geometry, results, n = self.geometry, self._results, len(scan)
        unknown = BOUNDS_WORDS + self._size_words
        width = len(self.config.input_columns)
        answer = results.array("answer", (unknown + width,), np.uint64)
        answer.fill_zero(self.stream)
        words, counts = answer.pointer, answer.pointer + WORD * BOUNDS_WORDS
        if isinstance(columns, ScanColumns):
            geometry.queue_bounds(scan, None, words)
            attributes = results.array("scan attributes", (n, width), np.float32)
            heights = self._ground.queue(scan, words) if columns.need_ground else 0
            places = (words, answer.pointer + WORD * unknown, heights)
            columns.queue(geometry, scan, self._uploaded, places, attributes)
        else:
            attributes = columns
            geometry.queue_bounds(scan, attributes, words)
        voxel_of_point = results.array("voxel_of_point", (n,), np.int32)
        members = geometry.queue_voxels(
            *(scan, cells, words),
            voxel_of_point=voxel_of_point.pointer,
            count=counts,
            name="scan",
        )
        voxels = GpuVoxels(
            *self._picked(scan, attributes, members, 0, n, "voxel"),
            voxel_of_point,
            members,
            scan,
            attributes,
            np.zeros(3),
            Bounds(np.zeros(3), np.zeros(3)),
            (),
        )
        self._scene.queue(voxels.points.pointer, n, counts, counted=True)
        self._listed = voxels.points.pointer
        found = geometry.read(answer)
        bounds = bounds_of(found, n)
        if isinstance(columns, ScanColumns):
            columns.check(found[unknown:], n)
        return bounds, self._sizes(found[BOUNDS_WORDS:unknown]), voxels

    def _seen(self, queued: GpuVoxels, sizes: tuple[int, ...], bounds: Bounds) -> GpuVoxels:
        """The voxels of a scan, now that their number is known."""
        rows = sizes[0]
        # Rounding to float32 keeps the order of numbers, so it also keeps the bounds.
        extent = (bounds.high - bounds.low).astype(np.float32).astype(np.float64)
        return replace(
            queued,
            points=queued.points.view((rows, 3)),
            attributes=queued.attributes.view((rows, *queued.attributes.shape[1:])),
            kept=queued.kept.view((rows,)),
            origin=bounds.low,
            bounds=Bounds(np.zeros(3), extent),
            sizes=sizes,
        )

    def look(self, voxels: GpuVoxels, pick: int) -> GpuVoxels:
        """The same voxels with the n-th point standing for each, as in voting; waits for nothing.

        Raises:
            InputError: a pick below 0.
        """
        _check_pick(pick)
        self.stream.device.make_current()
        points, attributes, kept = self._picked(
            voxels.scan, voxels.scan_attributes, voxels.members, pick, len(voxels), "look"
        )
        return replace(voxels, points=points, attributes=attributes, kept=kept, sizes=())

    def turned(self, voxels: GpuVoxels, matrix: np.ndarray) -> GpuVoxels:
        """A scan turned or mirrored about its middle by an orthogonal matrix [3, 3]; waits for
        nothing.

        As :meth:`dela.scan.voxels.Voxels.turned`, but for the last bits: the middle is added up in
        another order.
        """
        geometry, points, rows = self.geometry, voxels.points, len(voxels)
        self.stream.device.make_current()
        middle = geometry.scratch.address("middle", 3 * WORD)
        geometry.queue("dela_middle", 1, points.pointer, rows, middle, block=MIDDLE_BLOCK)
        turn = np.asarray(matrix, dtype=np.float64).reshape(9).tolist()
        out = self._results.array("turned points", points.shape, np.float32)
        blocks = divide_up(rows, BLOCK)
        geometry.queue("dela_turn_points", blocks, points.pointer, middle, rows, *turn, out.pointer)
        attributes = voxels.attributes
        if self.config.vector_columns:
            attributes = self._results.array("turned attributes", attributes.shape, np.float32)
            attributes.copy_from(voxels.attributes, self.stream)
            sizes = (*attributes.shape, self.config.vector_columns[0])
            geometry.queue("dela_turn_vectors", blocks, *sizes, *turn, attributes.pointer)
        return replace(voxels, points=out, attributes=attributes, sizes=())

    def tile(self, voxels: GpuVoxels, rows: np.ndarray | None = None) -> Pyramid:
        """The network's input for some rows of a scan's voxels, ascending; None takes them all.

        Its voxels are the whole scan's at every stage, as for
        :meth:`dela.scan.voxels.Voxels.inputs`. Waits once for the sizes of its stages; for the
        whole scan as :meth:`voxels` gave it, for nothing.

        Raises:
            InputError: no rows, or coordinates beyond 1e18.
        """
        voxels.bounds.check_range()
        points, attributes, sizes = voxels.points, voxels.attributes, voxels.sizes
        if rows is not None:
            chosen = self._uploaded(np.asarray(rows, dtype=np.int32), "tile rows")
            points = self._rows(points, chosen, "tile points")
            attributes = self._rows(attributes, chosen, "tile attributes")
            sizes = ()
        if not len(points):
            raise InputError("the tile is empty; a pyramid needs at least one point")
        self.stream.device.make_current()
        if not sizes or self._listed != points.pointer:
            counts = self._results.array("counts", (self._size_words,), np.uint64)
            self._scene.queue(points.pointer, len(points), counts.pointer, counted=False)
            self._listed = 0
            sizes = (len(points), *self._sizes(self.geometry.read(counts))[1:])
        return self._scene.pyramid(points, attributes, sizes)

    def spread(self, values: DeviceArray, voxels: GpuVoxels, out: DeviceArray) -> None:
        """Values of the voxels [V, ...], 4 bytes each, for the scan's first points.

        Args:
            values: of the voxels.
            voxels: of the scan.
            out: [M, ...], written; M is at most the number of points.
        """
        self.geometry.gather(values, voxels.voxel_of_point.view((len(out),)), out=out)

    @property
    def _size_words(self) -> int:
        """Words of 8 bytes that hold a uint32 for each stage."""
        return divide_up(self.config.stages, 2)

    def _sizes(self, words: np.ndarray) -> tuple[int, ...]:
        """Points of every stage."""
        return tuple(words.view(np.uint32)[: self.config.stages].tolist())

    def _uploaded(self, array: Any, name: str) -> Any:
        """A host array in device memory; anything else as it is."""
        if not isinstance(array, np.ndarray):
            return array
        array = np.ascontiguousarray(array)
        copy = self._results.array(name, array.shape, array.dtype)
        copy.copy_from_host(array, self.stream)
        return copy

    def _picked(
        self,
        scan: DeviceArray,
        attributes: DeviceArray,
        members: Members,
        pick: int,
        most: int,
        name: str,
    ) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
        """Points and attributes of the voxels' n-th points, and those points' rows, in arrays for
        ``most`` voxels."""
        results, columns = self._results, attributes.shape[1]
        kept = results.array(f"{name} kept", (most,), np.int32)
        points = results.array(f"{name} points", (most, 3), np.float32)
        values = results.array(f"{name} attributes", (most, columns), np.float32)
        self.geometry.queue(
            "dela_take_voxels",
            divide_up(most, BLOCK),
            *(scan.pointer, attributes.pointer, members.bounds, members.rows, members.first),
            *(members.count, is_wide(scan), len(scan), columns, pick),
            *(kept.pointer, points.pointer, values.pointer),
        )
        return points, values, kept

    def _attributes(self, attributes: Any, rows: int) -> DeviceArray:
        columns = len(self.config.input_columns)
        if attributes is None:
            attributes = DeviceArray(0, (rows, 0), np.float32, None, self.stream.device)
        attributes = as_device_array(attributes, self.stream)
        if attributes.shape != (rows, columns) or attributes.dtype != np.float32:
            raise InputError(
                f"attributes have shape {list(attributes.shape)} and dtype {attributes.dtype}; "
                f"expected [{rows}, {columns}] float32"
            )
        return attributes

    def _rows(self, values: DeviceArray, rows: DeviceArray, name: str) -> DeviceArray:
        out = self._results.array(name, (len(rows), *values.shape[1:]), values.dtype)
        return self.geometry.gather(values, rows, out=out)


def build_device_pyramid(
    points: Any,
    attributes: Any,
    config: PyramidConfig,
    stream: Stream,
    *,
    pick: int = 0,
    origin: Sequence[float] | np.ndarray | None = None,
) -> Pyramid:
    """The pyramid of one cloud for segmentation, of :class:`DeviceArray`.

    For many clouds keep a :class:`PyramidBuilder`: it allocates nothing once it has seen the
    largest.

    Args:
        points: [N, 3] float32 meters, near the origin, N >= 1: a numpy array, or an array on the
            device with DLPack or ``__cuda_array_interface__``, which is not copied.
        attributes: [N, F] float32 likewise, F = ``len(config.input_columns)``; None when F is 0.
        config: stages, neighbors and grid sizes.
        stream: that does the work; results are there for whatever follows on it.
        pick: n takes the n-th point of every voxel.
        origin: [3] where the voxels of later stages are counted from, as for
            :func:`dela.pyramid.cpu.build_pyramid`.

    Raises:
        CudaUnavailable: no driver, no GPU, or one that is too old.
        InputError: no points, shapes that do not fit, values that are not finite, or a
            classification network.
    """
    builder = PyramidBuilder(config, stream)
    return builder.pyramid(points, attributes, pick=pick, origin=origin)


def _check_pick(pick: int) -> None:
    if pick < 0:
        raise InputError(f"pick is {pick}; give 0 or more")
