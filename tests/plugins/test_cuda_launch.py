"""Launch geometry of the operator kernels: enough threads, no block for nothing, bounded sums."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dela.plugins.cuda import launch

rows = st.integers(0, 5_000_000)
channels = st.integers(1, 640)


def holds(grid: int, threads: int) -> bool:
    return grid * launch.BLOCK >= threads > (grid - 1) * launch.BLOCK


@given(rows, channels)
def test_spse_has_a_thread_for_every_four_channels_of_its_rows(n, c):
    each = launch.spse_rows(n, c)
    pieces = -(-n // each)
    assert 1 <= each <= 4
    assert pieces * each >= n
    assert holds(launch.spse_grid(n, c, each), pieces * -(-c // 4))


def test_large_clouds_take_more_rows_per_thread_than_small_ones():
    assert [launch.spse_rows(n, 64) for n in (0, 500, 7_500, 15_000, 30_000, 10**6)] == [
        1, 1, 1, 3, 4, 4,
    ]  # fmt: skip


@given(rows, st.integers(1, 160), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_spamp_has_a_thread_for_every_vector_of_channels(m, groups, dtype):
    c = 4 * groups
    name, width = launch.spamp_vector(dtype, c)
    assert c % width == 0
    assert (width == 8) == name.endswith("_8") == (dtype != "float32" and c % 8 == 0)
    assert holds(launch.spamp_grid(m, c, width), m * c // width)
    assert holds(launch.feature_gradient_grid(m, c), m * groups)


@given(rows, channels)
def test_partial_sums_cover_all_rows_and_stay_few(n, c):
    each, chunks = launch.chunk_rows(n), launch.chunks(n)
    assert chunks * each >= n > (chunks - 1) * each
    assert chunks <= 1024
    assert each >= 32
    assert holds(launch.backward_grid(n, c), chunks * c)
    assert launch.weight_gradient_grid(c) * launch.GRADIENT_CHANNELS >= c


@pytest.mark.parametrize(
    ("attributes", "directions", "shape"),
    [(0, 0, "0"), (4, 0, "4"), (4, 3, "4_3"), (5, 0, "any"), (0, 3, "any"), (3, 3, "any")],
)
def test_shapes_without_a_kernel_of_their_own_take_the_one_for_any(attributes, directions, shape):
    assert launch.spse_shape(attributes, directions) == shape


def test_more_threads_than_32_bits_can_number_are_refused():
    most = 2**32 - launch.BLOCK
    assert launch.blocks(most) * launch.BLOCK == most
    with pytest.raises(OverflowError, match="run fewer points at a time"):
        launch.blocks(most + 1)
    # 100 million points of 64 channels are fine, of 512 too many for one launch.
    assert launch.spamp_grid(10**8, 64, 4) == 12_500_000
    with pytest.raises(OverflowError, match="12800000000 values"):
        launch.spamp_grid(10**8, 512, 4)
