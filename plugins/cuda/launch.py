"""The operator kernels: names, arguments and launch geometry, in plain ints.

Every kernel is ``extern "C"`` and takes pointers to its inputs, then int32 sizes by value, then
pointers to its outputs; all arrays are contiguous and row-major, and those that do not hold indices
start at a multiple of 16 bytes. A block has :data:`BLOCK` threads
along x and no dynamic shared memory. In the table, "threads" means a grid of ceil(threads / 128)
blocks, "blocks" a grid of exactly so many; a grid of 0 is not launched. T is the features' dtype:
``f32``, ``f16`` or ``bf16``; all else is float32, int32, or the winner.

=============================  =========================================  =======================
kernel                         inputs; sizes; outputs                     grid
=============================  =========================================  =======================
dela_spse_S                    points[n, 3+e+l], neighbors[n, k],         threads ceil(n / rows)
                               weight[12+e+l, c];                         * ceil(c / 4)
                               n, k, c, e, l, rows, epsilon_bits;
                               out[n, c]
dela_spse_winner_S             the same; the same; out, winner[n, c]      the same
dela_spse_backward             points, neighbors, weight, out, winner,    threads ceil(n / rows)
                               grad[n, c];                                * c
                               n, k, c, e, l, rows;
                               moments[ceil(n / rows), 9+e+l, c]
dela_spse_weight_gradient      weight, moments;                           blocks ceil(c / 8)
                               chunks, c, e, l;
                               grad_weight[12+e+l, c]
dela_spamp_V                   features[n, c] T, points[n, 3],            threads m * c / width
                               neighbors[m, k], centers[m] or null,
                               weight[4, c/4];
                               n, m, k, c;
                               out[m, c] T
dela_spamp_winner_V            the same; the same; out, winner[m, c]      the same
dela_spamp_residual_V          the same, base[m, c] T, scale[c];          the same
                               the same; out
dela_spamp_backward_T          points, neighbors, centers, weight,        threads ceil(m / rows)
                               out[m, c] T, winner, grad[m, c] T;         * c
                               n, m, k, c, rows;
                               passed[m, c], sums[ceil(m / rows), 4, c]
dela_spamp_weight_gradient     weight, sums;                              blocks ceil(c / 8)
                               chunks, c;
                               grad_weight[4, c/4]
dela_spamp_feature_gradient_T  passed, winner, counts, ends, entries;     threads n * c / 4
                               n, m, k, c;
                               grad_features[n, c] T
dela_reverse_count             neighbors[m, k], centers or null;          threads m * (k + 1)
                               n, m, k;
                               counts[n], zeroed before
dela_reverse_place             counts;                                    threads n
                               n;
                               ends[n], total[1], total zeroed before
dela_reverse_fill              neighbors, centers;                        threads m * (k + 1)
                               n, m, k;
                               ends, entries[m * (k + 1)]
dela_reverse_sort              counts, ends;                              threads n
                               n;
                               entries
=============================  =========================================  =======================

- S, SPSE's shape: ``0`` to ``4`` (so many attributes, no directions), ``4_3`` (four attributes,
  three directions) or ``any``, which is right for every shape, only slower. See :func:`spse_shape`.
- V, SPAMP's vector: ``f32``, ``f16``, ``bf16`` take 4 channels a thread and any c divisible by 4;
  ``f16_8``, ``bf16_8`` take 8 (16-byte loads), c divisible by 8. See :func:`spamp_vector`.
- rows: consecutive rows per thread; forward, any value >= 1 gives the same result bit for bit
  (:func:`spse_rows`); backward, it fixes the order of additions (:func:`chunk_rows`).
- chunks: ceil(n / rows) or ceil(m / rows), the number of partial sums.
- winner: uint8 when k <= 256, else uint16; k is at most 65535.
- epsilon_bits: the bits of the float32 epsilon, as int32.
- centers null: row m belongs to point m. A center outside [0, n) counts as point 0, a neighbor
  outside as the row's own center.
- The four reverse kernels, run in the order of the table, list for every point the rows that name
  it: as center (entry m * (k + 1)) or as neighbor in slot s (entry m * (k + 1) + 1 + s), ascending,
  at ``entries[ends[i] - counts[i] : ends[i]]``. From these lists SPAMP's feature gradient gathers,
  so it adds no floats atomically and is the same on every run. They depend on neighbors and
  centers only and may serve every layer that uses the same table.
- n, m, c and k are below 2^31, thread counts and m * (k + 1) below 2^32; see :func:`blocks`.
"""

from __future__ import annotations

BLOCK = 128  # threads per block, of every operator kernel
GRADIENT_CHANNELS = 8  # channels per block of the two weight_gradient kernels

# Shapes (attributes, directions) with an SPSE kernel of their own.
_SPSE_SHAPES = {(0, 0): "0", (1, 0): "1", (2, 0): "2", (3, 0): "3", (4, 0): "4", (4, 3): "4_3"}
_SUFFIXES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# Threads that keep a large GPU busy: with fewer, a thread takes one row.
_BUSY_THREADS = 65536
_MAX_ROWS = 4
_MIN_CHUNK_ROWS = 32
_MAX_CHUNKS = 1024
_MOST_THREADS = 1 << 32


def divide_up(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def blocks(threads: int) -> int:
    """Blocks of an operator kernel of so many threads.

    Raises:
        OverflowError: more than the kernels can number in 32 bits.
    """
    if threads > _MOST_THREADS - BLOCK:
        raise OverflowError(
            f"{threads} values to compute are more than the kernels can number; run fewer points "
            "at a time"
        )
    return divide_up(threads, BLOCK)


def spse_shape(attributes: int, directions: int) -> str:
    """S in ``dela_spse_S``: the fastest kernel for so many attributes and directions."""
    return _SPSE_SHAPES.get((attributes, directions), "any")


def spse_rows(n: int, c: int) -> int:
    """Rows per thread of SPSE's forward pass for ``n`` points and ``c`` channels: 1 to 4.

    A thread factors its four metrics once, whatever the rows, so a large cloud wants more of them
    and a small one wants threads.
    """
    return max(1, min(_MAX_ROWS, n * divide_up(c, 4) // _BUSY_THREADS))


def spse_grid(n: int, c: int, rows: int) -> int:
    """Blocks of ``dela_spse_*`` for ``rows`` rows per thread."""
    return blocks(divide_up(n, rows) * divide_up(c, 4))


def spamp_vector(dtype: str, c: int) -> tuple[str, int]:
    """V in ``dela_spamp_V`` and its width, for features of ``dtype`` and ``c`` channels.

    Args:
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
    """
    suffix = _SUFFIXES[dtype]
    return (f"{suffix}_8", 8) if dtype != "float32" and c % 8 == 0 else (suffix, 4)


def spamp_suffix(dtype: str) -> str:
    """T in the names of SPAMP's backward kernels."""
    return _SUFFIXES[dtype]


def spamp_grid(m: int, c: int, width: int) -> int:
    """Blocks of ``dela_spamp_*`` for ``m`` rows."""
    return blocks(m * (c // width))


def chunk_rows(n: int) -> int:
    """Rows per partial sum of both backward passes: at least 32, at most 1024 chunks."""
    return max(_MIN_CHUNK_ROWS, divide_up(n, _MAX_CHUNKS))


def chunks(n: int) -> int:
    """Partial sums of a backward pass over ``n`` rows."""
    return divide_up(n, chunk_rows(n))


def backward_grid(n: int, c: int) -> int:
    """Blocks of ``dela_spse_backward`` and ``dela_spamp_backward_T``, :func:`chunk_rows` rows."""
    return blocks(chunks(n) * c)


def weight_gradient_grid(c: int) -> int:
    """Blocks of the two kernels that add up partial sums."""
    return divide_up(c, GRADIENT_CHANNELS)


def feature_gradient_grid(n: int, c: int) -> int:
    """Blocks of ``dela_spamp_feature_gradient_T``."""
    return blocks(n * (c // 4))


def reverse_entries(m: int, k: int) -> int:
    """Length of the reverse lists, and threads of the kernels that count and fill them."""
    return m * (k + 1)
