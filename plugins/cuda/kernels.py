"""The CUDA kernels: what each takes, how it is launched; finds their image and launches them.

Nothing is compiled here: the image that fits the device comes from plugins/cuda/images/.

Every kernel is `extern "C"`, takes pointers to its inputs, then int32 sizes by value, then pointers
to its outputs, all arrays contiguous and row-major. One thread block has 128 threads along x and
no dynamic shared memory; `threads` below means a grid of ceil(threads / 128) blocks, `blocks` a grid
of exactly so many. Nothing is launched when that number is 0. T is the dtype of the features:
`f32`, `f16` or `bf16`; everything else is float32 or int32.

==================================  =====================================  ===========================
kernel                              arguments                              grid
==================================  =====================================  ===========================
dela_spse_S                         points[n, 3+e+l], neighbors[n, k],     threads
                                    weight[12+e+l, c];                     ceil(n / rows) * ceil(c / 4)
                                    n, k, c, e, l, rows, epsilon_bits;
                                    out[n, c]
dela_spse_winner_S                  the same; out, winner[n, c]            the same
dela_spse_backward                  points, neighbors, weight, out,        threads ceil(n / rows) * c
                                    winner, grad[n, c];
                                    n, k, c, e, l, rows;
                                    moments[ceil(n / rows), 9+e+l, c]
dela_spse_weight_gradient           weight, moments;                       blocks ceil(c / 8)
                                    chunks, c, e, l;
                                    grad_weight[12+e+l, c]
dela_spamp_V                        features[n, c] T, points[n, 3],        threads m * c / width
                                    neighbors[m, k], centers[m] or null,
                                    weight[4, c/4];
                                    n, m, k, c;
                                    out[m, c] T
dela_spamp_winner_V                 the same; out, winner[m, c]            the same
dela_spamp_backward_T               points, neighbors, centers, weight,    threads ceil(m / rows) * c
                                    out[m, c] T, winner, grad[m, c] T;
                                    n, m, k, c, rows;
                                    passed[m, c], sums[ceil(m / rows), 4, c]
dela_spamp_weight_gradient          weight, sums;                          blocks ceil(c / 8)
                                    chunks, c;
                                    grad_weight[4, c/4]
dela_spamp_feature_gradient_T       passed, winner, counts, ends, entries; threads n * c / 4
                                    n, m, k, c;
                                    grad_features[n, c] T
dela_reverse_count                  neighbors[m, k], centers or null;      threads m * (k + 1)
                                    n, m, k;
                                    counts[n], zeroed before
dela_reverse_place                  counts;                                threads n
                                    n;
                                    ends[n], total[1], total zeroed before
dela_reverse_fill                   neighbors, centers;                    threads m * (k + 1)
                                    n, m, k;
                                    ends, entries[m * (k + 1)]
dela_reverse_sort                   counts, ends;                          threads n
                                    n;
                                    entries
==================================  =====================================  ===========================

- S, the shape of SPSE: `0` to `4` (so many attributes, no directions), `4_3` (four attributes, three
  directions), `any` (whatever e and l say). `any` is right for every shape, only slower.
- V, SPAMP's vector: `f32`, `f16`, `bf16` take 4 channels a thread (width 4), any c divisible by 4;
  `f16_8` and `bf16_8` take 8 (width 8, 16-byte loads) and need c divisible by 8.
- rows: consecutive rows per thread. SPSE's forward pass factors its metrics once per thread, so 4 on
  large clouds, fewer on small ones; every value >= 1 gives the same result bit for bit. Backward: rows
  per partial sum, max(32, ceil(n / 1024)), which fixes the order of additions.
- chunks = ceil(n / rows), or ceil(m / rows), of the partial sums.
- winner: uint8 when k <= 256, else uint16; k at most 65535.
- epsilon_bits: the float32 epsilon's bits as int32.
- centers null: row m belongs to point m, m = n. A neighbor outside [0, n) counts as the row's own
  center, a center outside as point 0.
- SPAMP's feature gradient gathers: the four reverse kernels, run in this order once per neighbor
  table, list for every point the rows that name it, as center (entry m * (k + 1)) or as neighbor in
  slot s (entry m * (k + 1) + 1 + s), in ascending order: entries[ends[i] - counts[i] : ends[i]]. So it
  needs no atomic additions of floats and is the same on every run. The lists depend on neighbors and
  centers only and may be reused.
- Limits: n, m, c, k and every thread count below 2^31; m * (k + 1) below 2^32.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np

from dela.plugins.cuda.arrays import DeviceArray
from dela.plugins.cuda.driver import CudaError, CudaUnavailable, Device, Stream, driver

IMAGES = Path(__file__).parent / "images"
BLOCK = 128
LOWEST_CAPABILITY = (8, 0)
# Of the features' dtype, in the names of SPAMP's kernels.
SUFFIXES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}

_UNSUPPORTED_PTX, _NO_BINARY = 222, 209
_C_TYPES = {
    np.dtype(np.int32): ctypes.c_int32,
    np.dtype(np.uint32): ctypes.c_uint32,
    np.dtype(np.int64): ctypes.c_int64,
    np.dtype(np.uint64): ctypes.c_uint64,
    np.dtype(np.float64): ctypes.c_double,
}


def blocks(threads: int) -> int:
    """Blocks of :data:`BLOCK` threads that hold ``threads``."""
    return -(-threads // BLOCK)


def operator_blocks(rows: int, channels: int) -> int:
    """Blocks of an operator kernel: a thread per row and four channels."""
    return blocks(rows * -(-channels // 4))


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
        sizes = (*map(np.int32, (n, k, c, e, l)), float_bits(epsilon))
        name = "dela_spse_f32" if winner is None else f"dela_spse_winner{_winner_suffix(k)}"
        outputs = (out,) if winner is None else (out, winner)
        self.launch(
            name,
            operator_blocks(n, c),
            BLOCK,
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
        kind = "" if winner is None else f"winner{_winner_suffix(k)}_"
        name = f"dela_spamp_{kind}{SUFFIXES[dtype]}"
        outputs = (out,) if winner is None else (out, winner)
        self.launch(
            name,
            operator_blocks(m, c),
            BLOCK,
            (features, points, neighbors, centers, weight, *sizes, *outputs),
            stream,
        )


def _winner_suffix(k: int) -> str:
    return "" if k <= 256 else "_u16"


@functools.cache
def _loaded(device: Device, name: str) -> Kernels:
    return Kernels(device, name)


def _three(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    return (*sizes, 1, 1)[:3]
