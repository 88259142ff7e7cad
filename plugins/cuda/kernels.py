"""Finds the kernels' image for a device and launches them; nothing is compiled here.

Names, arguments and launch geometry of the operator kernels are the table in
:mod:`dela.plugins.cuda.launch`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np

from dela.plugins.cuda import launch
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.driver import CudaError, CudaUnavailable, Device, Stream, driver

IMAGES = Path(__file__).parent / "images"
LOWEST_CAPABILITY = (8, 0)

SpseSizes = tuple[int, int, int, int, int]  # n, k, c, e, l
SpampSizes = tuple[int, int, int, int]  # n, m, k, c

_UNSUPPORTED_PTX = 222
# Invalid image, no binary for the GPU, invalid PTX: another image may fit.
_MISFITS = (200, 209, 218, _UNSUPPORTED_PTX)
_C_TYPES = {
    np.dtype(np.int32): ctypes.c_int32,
    np.dtype(np.uint32): ctypes.c_uint32,
    np.dtype(np.int64): ctypes.c_int64,
    np.dtype(np.uint64): ctypes.c_uint64,
    np.dtype(np.float64): ctypes.c_double,
}


def float_bits(value: float) -> np.int32:
    """A float32 as the int32 of the same bits, which is how kernels take it."""
    return np.float32(value).view(np.int32)


def image_candidates(name: str, capability: tuple[int, int]) -> list[Path]:
    """Images of the set ``name`` that may run on a device, best first; PTX comes last.

    A cubin runs on devices of its own major version from its minor version on.

    Raises:
        CudaUnavailable: the device is older than any image.
    """
    if capability < LOWEST_CAPABILITY:
        raise CudaUnavailable(
            f"the GPU has compute capability {capability[0]}.{capability[1]}; dela's kernels need "
            f"{LOWEST_CAPABILITY[0]}.{LOWEST_CAPABILITY[1]} (Ampere) or newer"
        )
    fitting = []
    for path in IMAGES.glob(f"{name}.sm_*.cubin"):
        number = int(path.suffixes[-2].removeprefix(".sm_"))
        major, minor = divmod(number, 10)
        if major == capability[0] and minor <= capability[1]:
            fitting.append((minor, path))
    found = [path for _, path in sorted(fitting, reverse=True)]
    return found + sorted(IMAGES.glob(f"{name}.compute_*.ptx"))


def digest(name: str = "operators") -> str:
    """SHA-256 over the images of the set ``name``, "" where there are none: which kernels are
    installed."""
    images = sorted(IMAGES.glob(f"{name}.*"))
    found = hashlib.sha256()
    for image in images:
        found.update(image.name.encode() + image.read_bytes())
    return found.hexdigest() if images else ""


class Kernels:
    """The kernels of one image set on one device; get it with :meth:`of`.

    Every method queues work and returns: nothing is allocated on the device, nothing waited for.
    Arrays are :class:`DeviceArray` or addresses; their shapes stand in ``launch.py``.

    Attributes:
        device: where they run.
        image: the file in use.
    """

    _lock = threading.Lock()

    def __init__(self, device: Device, name: str) -> None:
        self.device = device
        self._functions: dict[str, Any] = {}
        candidates = image_candidates(name, device.compute_capability)
        if not candidates:
            raise CudaError(f"{IMAGES} has no {name} kernels; reinstall dela")
        device.make_current()
        for path in candidates:
            # cuModuleLoadData reads PTX to its terminating zero.
            self._data = path.read_bytes() + b"\0"
            status, module = driver().cuModuleLoadData(self._data)
            if int(status) == 0:
                self._module, self.image = module, path
                return
            if int(status) not in _MISFITS:
                break
        reason = (
            "the driver is older than the kernels; update it"
            if int(status) == _UNSUPPORTED_PTX
            else driver().cuGetErrorString(status)[1].decode()
        )
        raise CudaError(f"{path.name} does not load on {device.name}: {reason}", int(status))

    @classmethod
    def of(cls, device: Device | None = None, name: str = "operators") -> Kernels:
        """The kernels of ``name`` (``operators`` or ``geometry``) on a device, loaded once.

        Raises:
            CudaUnavailable: no driver, or a GPU that is too old.
            CudaError: no image that fits.
        """
        with cls._lock:
            return _loaded(device or Device(), name)

    def function(self, name: str) -> Any:
        """The driver's handle of a kernel.

        Raises:
            CudaError: there is none of that name.
        """
        found = self._functions.get(name)
        if found is None:
            status, found = driver().cuModuleGetFunction(self._module, name.encode())
            if int(status) != 0:
                raise CudaError(f"{self.image.name} has no kernel {name!r}", int(status))
            self._functions[name] = found
        return found

    def launch(
        self,
        name: str,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        arguments: tuple[Any, ...],
        stream: Stream | int,
        shared: int = 0,
    ) -> None:
        """Queues one kernel; allocates nothing on the device and waits for nothing.

        Args:
            name: of the kernel.
            grid: blocks, 1 to 3 sizes. With 0 blocks nothing is queued.
            block: threads of a block, 1 to 3 sizes.
            arguments: in the kernel's order: a :class:`DeviceArray`, an address as ``int`` or None
                for a pointer, a numpy scalar (int32, int64, float64 ...) for a value.
            stream: or its handle.
            shared: bytes of dynamic shared memory.

        Raises:
            CudaError: the launch failed, or an earlier one on this device did.
        """
        grid_sizes, block_sizes = _three(grid), _three(block)
        if 0 in grid_sizes:
            return
        values: list[Any] = []
        types: list[Any] = []
        for argument in arguments:
            if isinstance(argument, DeviceArray):
                values.append(argument.pointer)
                types.append(ctypes.c_void_p)
            elif isinstance(argument, np.generic):
                values.append(argument.item())
                types.append(_C_TYPES[argument.dtype])
            else:
                values.append(argument or 0)
                types.append(ctypes.c_void_p)
        function = self.function(name)
        self.device.make_current()
        (status,) = driver().cuLaunchKernel(
            function,
            *grid_sizes,
            *block_sizes,
            shared,
            stream if isinstance(stream, int) else stream.handle,
            (tuple(values), tuple(types)),
            0,
        )
        if int(status) != 0:
            _, text = driver().cuGetErrorString(status)
            raise CudaError(
                f"{name} with {grid} blocks of {block} threads failed: {(text or b'').decode()}",
                int(status),
            )

    def spse(
        self,
        points: Any,
        neighbors: Any,
        weight: Any,
        out: Any,
        winner: Any = None,
        *,
        sizes: SpseSizes,
        epsilon: float,
        stream: Stream | int,
    ) -> None:
        """SPSE, and its winners where ``winner`` is given."""
        n, k, c, e, l = sizes  # noqa: E741
        rows = launch.spse_rows(n, c)
        kind = "dela_spse_" if winner is None else "dela_spse_winner_"
        self.launch(
            kind + launch.spse_shape(e, l),
            launch.spse_grid(n, c, rows),
            launch.BLOCK,
            (points, neighbors, weight, *_int32(n, k, c, e, l, rows), float_bits(epsilon))
            + ((out,) if winner is None else (out, winner)),
            stream,
        )

    def spse_backward(
        self,
        points: Any,
        neighbors: Any,
        weight: Any,
        out: Any,
        winner: Any,
        gradient: Any,
        moments: Any,
        weight_gradient: Any,
        *,
        sizes: SpseSizes,
        stream: Stream | int,
    ) -> None:
        """Gradient of SPSE's weight; ``moments`` is workspace, [launch.chunks(n), 9 + e + l, c]."""
        n, k, c, e, l = sizes  # noqa: E741
        numbers = _int32(n, k, c, e, l, launch.chunk_rows(n))
        self.launch(
            "dela_spse_backward",
            launch.backward_grid(n, c),
            launch.BLOCK,
            (points, neighbors, weight, out, winner, gradient, *numbers, moments),
            stream,
        )
        self.launch(
            "dela_spse_weight_gradient",
            launch.weight_gradient_grid(c),
            launch.BLOCK,
            (weight, moments, *_int32(launch.chunks(n), c, e, l), weight_gradient),
            stream,
        )

    def spamp(
        self,
        features: Any,
        points: Any,
        neighbors: Any,
        centers: Any,
        weight: Any,
        out: Any,
        winner: Any = None,
        *,
        sizes: SpampSizes,
        dtype: str,
        stream: Stream | int,
    ) -> None:
        """SPAMP of ``dtype`` features, and its winners where ``winner`` is given."""
        n, m, k, c = sizes
        vector, width = launch.spamp_vector(dtype, c)
        kind = "dela_spamp_" if winner is None else "dela_spamp_winner_"
        self.launch(
            kind + vector,
            launch.spamp_grid(m, c, width),
            launch.BLOCK,
            (features, points, neighbors, centers, weight, *_int32(n, m, k, c))
            + ((out,) if winner is None else (out, winner)),
            stream,
        )

    def spamp_residual(
        self,
        features: Any,
        points: Any,
        neighbors: Any,
        centers: Any,
        weight: Any,
        base: Any,
        scale: Any,
        out: Any,
        *,
        sizes: SpampSizes,
        dtype: str,
        stream: Stream | int,
    ) -> None:
        """``base`` plus ``scale`` times SPAMP of ``dtype`` features."""
        n, m, k, c = sizes
        vector, width = launch.spamp_vector(dtype, c)
        self.launch(
            f"dela_spamp_residual_{vector}",
            launch.spamp_grid(m, c, width),
            launch.BLOCK,
            (features, points, neighbors, centers, weight, base, scale, *_int32(n, m, k, c), out),
            stream,
        )

    def spamp_backward(
        self,
        points: Any,
        neighbors: Any,
        centers: Any,
        weight: Any,
        out: Any,
        winner: Any,
        gradient: Any,
        passed: Any,
        sums: Any,
        weight_gradient: Any,
        *,
        sizes: SpampSizes,
        dtype: str,
        stream: Stream | int,
    ) -> None:
        """Gradient of SPAMP's weight, and in ``passed`` what each winner hands to its features.

        ``sums`` is workspace, [launch.chunks(m), 4, c].
        """
        n, m, k, c = sizes
        numbers = _int32(n, m, k, c, launch.chunk_rows(m))
        self.launch(
            f"dela_spamp_backward_{launch.spamp_suffix(dtype)}",
            launch.backward_grid(m, c),
            launch.BLOCK,
            (points, neighbors, centers, weight, out, winner, gradient, *numbers, passed, sums),
            stream,
        )
        self.launch(
            "dela_spamp_weight_gradient",
            launch.weight_gradient_grid(c),
            launch.BLOCK,
            (weight, sums, *_int32(launch.chunks(m), c), weight_gradient),
            stream,
        )

    def reverse_lists(
        self,
        neighbors: Any,
        centers: Any,
        counts: Any,
        total: Any,
        ends: Any,
        entries: Any,
        *,
        sizes: SpampSizes,
        stream: Stream | int,
    ) -> None:
        """For every point the rows that name it; ``counts`` and ``total`` come zeroed."""
        n, m, k, _ = sizes
        per_entry, per_point = launch.blocks(launch.reverse_entries(m, k)), launch.blocks(n)
        nmk, points = _int32(n, m, k), _int32(n)
        for name, grid, arguments in (
            ("dela_reverse_count", per_entry, (neighbors, centers, *nmk, counts)),
            ("dela_reverse_place", per_point, (counts, *points, ends, total)),
            ("dela_reverse_fill", per_entry, (neighbors, centers, *nmk, ends, entries)),
            ("dela_reverse_sort", per_point, (counts, ends, *points, entries)),
        ):
            self.launch(name, grid, launch.BLOCK, arguments, stream)

    def spamp_feature_gradient(
        self,
        passed: Any,
        winner: Any,
        counts: Any,
        ends: Any,
        entries: Any,
        feature_gradient: Any,
        *,
        sizes: SpampSizes,
        dtype: str,
        stream: Stream | int,
    ) -> None:
        """Gradient of SPAMP's features from ``passed`` and the reverse lists."""
        n, _, _, c = sizes
        self.launch(
            f"dela_spamp_feature_gradient_{launch.spamp_suffix(dtype)}",
            launch.feature_gradient_grid(n, c),
            launch.BLOCK,
            (passed, winner, counts, ends, entries, *_int32(*sizes), feature_gradient),
            stream,
        )


def _int32(*values: int) -> tuple[np.int32, ...]:
    # Larger values are refused by numpy, with an OverflowError that names them.
    return tuple(np.int32(value) for value in values)


@functools.cache
def _loaded(device: Device, name: str) -> Kernels:
    return Kernels(device, name)


def _three(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    return (*sizes, 1, 1)[:3]
