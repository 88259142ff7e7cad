"""Finds the kernels' image for a device and launches them; nothing is compiled here.

Names, arguments and launch geometry of the operator kernels are the table in
:mod:`dela.plugins.cuda.launch`.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np

from dela.plugins.cuda import launch
from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.driver import CudaError, CudaUnavailable, Device, Stream, driver

IMAGES = Path(__file__).parent / "images"
LOWEST_CAPABILITY = (8, 0)

_UNSUPPORTED_PTX, _NO_BINARY = 222, 209
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


class Kernels:
    """The kernels of one image set on one device; get it with :meth:`of`.

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
            if int(status) not in (_NO_BINARY, _UNSUPPORTED_PTX):
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
        *,
        n: int,
        k: int,
        c: int,
        e: int,
        l: int,  # noqa: E741
        epsilon: float,
        stream: Stream | int,
        winner: Any = None,
    ) -> None:
        """SPSE: points [n, 3 + e + l], neighbors [n, k] int32, weight [12 + e + l, c] float32.

        ``out``: [n, c] float32; ``winner``: [n, c] slot of the winning neighbor, uint8, or uint16
        where k > 256, or None.
        """
        rows = launch.spse_rows(n, c)
        sizes = (*map(np.int32, (n, k, c, e, l, rows)), float_bits(epsilon))
        kind = "" if winner is None else "winner_"
        outputs = (out,) if winner is None else (out, winner)
        self.launch(
            f"dela_spse_{kind}{launch.spse_shape(e, l)}",
            launch.spse_grid(n, c, rows),
            launch.BLOCK,
            (points, neighbors, weight, *sizes, *outputs),
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
        *,
        n: int,
        m: int,
        k: int,
        c: int,
        dtype: str,
        stream: Stream | int,
        winner: Any = None,
    ) -> None:
        """SPAMP: features [n, c] of ``dtype``, points [n, 3], neighbors [m, k] int32, centers [m]
        int32 or None (row m itself), weight [4, c / 4] float32.

        ``out``: [m, c] of ``dtype``; ``winner`` as for :meth:`spse`.
        """
        sizes = tuple(map(np.int32, (n, m, k, c)))
        vector, width = launch.spamp_vector(dtype, c)
        kind = "" if winner is None else "winner_"
        outputs = (out,) if winner is None else (out, winner)
        self.launch(
            f"dela_spamp_{kind}{vector}",
            launch.spamp_grid(m, c, width),
            launch.BLOCK,
            (features, points, neighbors, centers, weight, *sizes, *outputs),
            stream,
        )

    def spse_backward(
        self,
        points: Any,
        neighbors: Any,
        weight: Any,
        out: Any,
        winner: Any,
        grad: Any,
        moments: Any,
        grad_weight: Any,
        *,
        n: int,
        k: int,
        c: int,
        e: int,
        l: int,  # noqa: E741
        stream: Stream | int,
    ) -> None:
        """SPSE's gradient, of ``weight`` only: ``grad_weight`` [12 + e + l, c] float32.

        ``out``, ``winner`` as :meth:`spse` wrote them, ``grad`` [n, c] float32 of ``out``;
        ``moments``: scratch, :func:`launch.chunks` (n) * (9 + e + l) * c float32.
        """
        rows, chunks = launch.chunk_rows(n), launch.chunks(n)
        sizes = map(np.int32, (n, k, c, e, l, rows))
        self.launch(
            "dela_spse_backward",
            launch.backward_grid(n, c),
            launch.BLOCK,
            (points, neighbors, weight, out, winner, grad, *sizes, moments),
            stream,
        )
        self.launch(
            "dela_spse_weight_gradient",
            launch.weight_gradient_grid(c),
            launch.BLOCK,
            (weight, moments, *map(np.int32, (chunks, c, e, l)), grad_weight),
            stream,
        )

    def reverse_neighbors(
        self,
        neighbors: Any,
        centers: Any,
        counts: Any,
        ends: Any,
        entries: Any,
        *,
        n: int,
        m: int,
        k: int,
        stream: Stream | int,
    ) -> None:
        """Lists for every point the rows that name it; :meth:`spamp_backward` gathers by them.

        ``neighbors`` [m, k] and ``centers`` [m] or None, int32. Written, all int32: ``counts``
        [n + 1], zero before; ``ends`` [n]; ``entries`` [m * (k + 1)].
        """
        counts = counts.pointer if isinstance(counts, DeviceArray) else counts
        total = counts + 4 * n
        n32, *sizes = map(np.int32, (n, m, k))
        by_entry = launch.divide_up(launch.reverse_entries(m, k), launch.BLOCK)
        by_point = launch.divide_up(n, launch.BLOCK)
        for name, grid, arguments in (
            ("dela_reverse_count", by_entry, (neighbors, centers, n32, *sizes, counts)),
            ("dela_reverse_place", by_point, (counts, n32, ends, total)),
            ("dela_reverse_fill", by_entry, (neighbors, centers, n32, *sizes, ends, entries)),
            ("dela_reverse_sort", by_point, (counts, ends, n32, entries)),
        ):
            self.launch(name, grid, launch.BLOCK, arguments, stream)

    def spamp_backward(
        self,
        points: Any,
        neighbors: Any,
        centers: Any,
        weight: Any,
        out: Any,
        winner: Any,
        grad: Any,
        reverse: tuple[Any, Any, Any],
        passed: Any,
        sums: Any,
        grad_features: Any,
        grad_weight: Any,
        *,
        n: int,
        m: int,
        k: int,
        c: int,
        dtype: str,
        stream: Stream | int,
    ) -> None:
        """SPAMP's gradients: ``grad_features`` [n, c] of ``dtype``, ``grad_weight`` [4, c / 4].

        ``out``, ``winner`` as :meth:`spamp` wrote them, ``grad`` [m, c] of ``dtype``; ``reverse``:
        (counts, ends, entries) of :meth:`reverse_neighbors`; scratch of float32: ``passed``
        m * c, ``sums`` :func:`launch.chunks` (m) * 4 * c.
        """
        suffix = launch.spamp_suffix(dtype)
        rows, chunks = launch.chunk_rows(m), launch.chunks(m)
        sizes = tuple(map(np.int32, (n, m, k, c)))
        self.launch(
            f"dela_spamp_backward_{suffix}",
            launch.backward_grid(m, c),
            launch.BLOCK,
            (points, neighbors, centers, weight, out, winner, grad)
            + (*sizes, np.int32(rows), passed, sums),
            stream,
        )
        self.launch(
            "dela_spamp_weight_gradient",
            launch.weight_gradient_grid(c),
            launch.BLOCK,
            (weight, sums, np.int32(chunks), np.int32(c), grad_weight),
            stream,
        )
        self.launch(
            f"dela_spamp_feature_gradient_{suffix}",
            launch.feature_gradient_grid(n, c),
            launch.BLOCK,
            (passed, winner, *reverse, *sizes, grad_features),
            stream,
        )


@functools.cache
def _loaded(device: Device, name: str) -> Kernels:
    return Kernels(device, name)


def _three(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    return (*sizes, 1, 1)[:3]
