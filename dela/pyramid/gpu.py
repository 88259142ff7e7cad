"""The pyramid in device memory, and the scan that it is built from.

Every array equals that of :func:`dela.pyramid.cpu.build_pyramid`, value for value. The host waits
for the stream once for the bounds and once per stage for its size; neighbors are searched
meanwhile. Segmentation only: classification samples its few points on the CPU. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dela.errors import InputError
from dela.geometry.bounds import Bounds
from dela.geometry.gpu import Cells, Members
from dela.geometry.gpu_queue import Workspace
from dela.plugins.cuda.arrays import DeviceArray, as_device_array
from dela.plugins.cuda.driver import Stream
from dela.pyramid.cpu import CORNER, Pyramid, PyramidConfig
from dela.pyramid.gpu_stages import StageBuilder, StagePlan

# As in plugins/cuda: votes.cu.
MIDDLE_BLOCK = 512


@dataclass(frozen=True)
class GpuVoxels:
    """A scan at the resolution of stage 0, in device memory; as :class:`dela.scan.voxels.Voxels`.

    Attributes:
        points: [V, 3] float32 meters, counted from the scan's lowest corner.
        attributes: [V, F] float32.
        voxel_of_point: [N] int32: the voxel of each point of the scan.
        kept: [V] int32: the scan's row behind each voxel.
        members: the scan's rows in each voxel.
        scan: [N, 3] float64 (or float32): the scan's points as they were given.
        scan_attributes: [N, F] float32.
        origin: [3] float64, on the host: what was taken off the coordinates.
        bounds: that hold ``points``, on the host.
    """

    points: DeviceArray
    attributes: DeviceArray
    voxel_of_point: DeviceArray
    kept: DeviceArray
    members: Members
    scan: DeviceArray
    scan_attributes: DeviceArray
    origin: np.ndarray
    bounds: Bounds

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
        """A scan's voxels, the first point of each standing for it; waits for the bounds and for
        the number of voxels.

        Args:
            points: [N, 3] float64 (or float32) meters of any origin, on the host or on the device.
            attributes: [N, F] float32, computed on the whole scan; None when F is 0.

        Raises:
            InputError: an empty scan, values that are not finite, or a scan that falls into one
                voxel.
        """
        geometry, results = self.geometry, self._results
        scan = geometry.points(self._uploaded(points, "scan points"), wide=True)
        if not len(scan):
            raise InputError("the scan is empty; it needs at least one point")
        of_scan = self._attributes(self._uploaded(attributes, "scan attributes"), len(scan))
        bounds = geometry.bounds(scan, of_scan)
        voxel_of_point = results.array("voxel_of_point", (len(scan),), np.int32)
        size = self.config.grid[0]
        members = geometry.queue_voxels(
            scan, Cells.of(bounds, size, None), None, voxel_of_point=voxel_of_point
        )
        voxels = geometry.read_count(members.count)
        if voxels == 1 and len(scan) > 1:
            raise InputError(
                f"all {len(scan):,} points fall into one voxel of {size} m (extent "
                f"{bounds.extent:.3g}); the model wants coordinates in metres"
            )
        # Rounding to float32 keeps the order of numbers, so it also keeps the bounds.
        extent = (bounds.high - bounds.low).astype(np.float32).astype(np.float64)
        members = Members(
            self._copied(members.rows, "members"),
            self._copied(members.first.view((voxels,)), "first members"),
            self._copied(members.count, "voxels"),
        )
        points, of_voxels, kept = self._picked(scan, of_scan, members, 0, bounds.low, "voxel")
        return GpuVoxels(
            points,
            of_voxels,
            voxel_of_point,
            kept,
            members,
            scan,
            of_scan,
            bounds.low,
            Bounds(np.zeros(3), extent),
        )

    def look(self, voxels: GpuVoxels, pick: int) -> GpuVoxels:
        """The same voxels with the n-th point standing for each, as in voting; waits for nothing.

        Raises:
            InputError: a pick below 0.
        """
        _check_pick(pick)
        points, attributes, kept = self._picked(
            voxels.scan, voxels.scan_attributes, voxels.members, pick, voxels.origin, "look"
        )
        return replace(voxels, points=points, attributes=attributes, kept=kept)

    def turned(self, voxels: GpuVoxels, matrix: np.ndarray) -> GpuVoxels:
        """A scan turned or mirrored about its middle by an orthogonal matrix [3, 3]; waits for the
        bounds.

        As :meth:`dela.scan.voxels.Voxels.turned`, but for the last bits: the middle is added up in
        another order.
        """
        geometry, points = self.geometry, voxels.points
        middle = geometry.scratch.array("middle", (3,), np.float64)
        geometry.kernels.launch(
            "dela_middle", 1, MIDDLE_BLOCK, (points, np.int32(len(points)), middle), self.stream
        )
        turn = tuple(np.asarray(matrix, dtype=np.float64).reshape(9))
        out = self._results.array("turned points", points.shape, np.float32)
        geometry.launch(
            "dela_turn_points", len(points), points, middle, np.int32(len(points)), *turn, out
        )
        attributes = voxels.attributes
        if self.config.vector_columns:
            attributes = self._copied(attributes, "turned attributes")
            sizes = (*attributes.shape, self.config.vector_columns[0])
            geometry.launch(
                "dela_turn_vectors", len(points), *map(np.int32, sizes), *turn, attributes
            )
        return replace(voxels, points=out, attributes=attributes, bounds=geometry.bounds(out))

    def tile(self, voxels: GpuVoxels, rows: np.ndarray | None = None) -> Pyramid:
        """The network's input for some rows of a scan's voxels, ascending; None takes them all.

        Its voxels are the whole scan's at every stage, as for
        :meth:`dela.scan.voxels.Voxels.inputs`.
        """
        points, attributes = voxels.points, voxels.attributes
        if rows is not None:
            chosen = self._uploaded(np.asarray(rows, dtype=np.int32), "tile rows")
            points = self._rows(points, chosen, "tile points")
            attributes = self._rows(attributes, chosen, "tile attributes")
        if not len(points):
            raise InputError("the tile is empty; a pyramid needs at least one point")
        plan = StagePlan([voxels.bounds], origin=CORNER, ordered=True)
        return self._stages.build(points, attributes, [len(points)], plan)

    def spread(self, values: DeviceArray, voxels: GpuVoxels, out: DeviceArray) -> None:
        """Values of the voxels [V, ...], 4 bytes each, for the scan's first points.

        Args:
            values: of the voxels.
            voxels: of the scan.
            out: [M, ...], written; M is at most the number of points.
        """
        self.geometry.gather(values, voxels.voxel_of_point.view((len(out),)), out=out)

    def _uploaded(self, array: Any, name: str) -> Any:
        """A host array in device memory; anything else as it is."""
        if not isinstance(array, np.ndarray):
            return array
        array = np.ascontiguousarray(array)
        copy = self._results.array(name, array.shape, array.dtype)
        copy.copy_from_host(array, self.stream)
        return copy

    def _copied(self, array: DeviceArray, name: str) -> DeviceArray:
        copy = self._results.array(name, array.shape, array.dtype)
        copy.copy_from(array, self.stream)
        return copy

    def _picked(
        self,
        scan: DeviceArray,
        attributes: DeviceArray,
        members: Members,
        pick: int,
        origin: np.ndarray,
        name: str,
    ) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
        """Points and attributes of the voxels' n-th points, and those points' rows."""
        voxels = len(members.first)
        kept = self._results.array(f"{name} kept", (voxels,), np.int32)
        self.geometry.queue_pick(members, pick, kept=kept)
        points = self._results.array(f"{name} points", (voxels, 3), np.float32)
        self._take(scan, kept, origin, points)
        return points, self._rows(attributes, kept, f"{name} attributes"), kept

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

    def _take(self, points: DeviceArray, rows: Any, origin: np.ndarray, out: DeviceArray) -> None:
        self.geometry.launch(
            "dela_take_points",
            len(out),
            points,
            rows,
            np.int32(points.dtype == np.float64),
            np.int32(len(out)),
            *map(np.float64, origin),
            out,
        )


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
