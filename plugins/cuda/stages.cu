// The coarser stages of a scene's pyramid: of each voxel the first point stays, in the order of the points.
//
// The voxels count from a fixed corner, so all that matters is which points share one. Cells are looked
// up in a hash table that holds rows: a slot belongs to the cell of the point in it, so cells of any
// number fit and are compared by themselves. Sizes are read on the device: a stage's kernels may be
// queued before anybody knows how many points the stage before it has.
#include "cuda/geometry.cuh"

namespace dela {
namespace {

// A point of the stage, by way of the row of stage 0 that it is; null `rows` are the same rows.
DELA_DEVICE uint32_t first_row(const int32_t* rows, int64_t row) {
  return rows == nullptr ? static_cast<uint32_t>(row) : static_cast<uint32_t>(rows[row]);
}

DELA_DEVICE int64_t rows_there(const uint32_t* count, int32_t most) {
  return count == nullptr ? most : *count;
}

DELA_DEVICE uint64_t stirred(uint64_t value) {
  value = (value ^ (value >> 32)) * 0xd6e8feb86659fd93ull;
  return value ^ (value >> 32);
}

DELA_DEVICE uint32_t slot_of(const Cell& cell, uint32_t slots) {
  const uint64_t key = stirred(stirred(stirred(static_cast<uint64_t>(cell.x)) +
                                       static_cast<uint64_t>(cell.y)) +
                               static_cast<uint64_t>(cell.z));
  return static_cast<uint32_t>((key >> 32) * slots >> 32);
}

}  // namespace
}  // namespace dela

// Finds the slot of every point's voxel and leaves the lowest row there, as its complement. `table`, zero
// before: more slots than points. `rows`: of `points` that are the stage's, null for all. Of n rows at
// most; where `count` is given, of so many. Voxels count from x y z.
DELA_KERNEL(8)
dela_claim_voxels(const float* points, const int32_t* rows, const uint32_t* count, int32_t n,
                  int32_t slots, double x, double y, double z, double size, uint32_t* table,
                  uint32_t* slot_of_row) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= dela::rows_there(count, n)) return;
  const dela::Grid grid{{x, y, z}, {0.0, 0.0, 0.0}, size};
  const dela::Cell cell = dela::cell_at(grid, points, 0, dela::first_row(rows, row));
  const uint32_t own = ~static_cast<uint32_t>(row);
  uint32_t slot = dela::slot_of(cell, static_cast<uint32_t>(slots));
  for (;;) {
    const uint32_t found = atomicCAS(table + slot, 0u, own);
    if (found == 0) break;
    const dela::Cell other = dela::cell_at(grid, points, 0, dela::first_row(rows, ~found));
    if (other.x == cell.x && other.y == cell.y && other.z == cell.z) {
      atomicMax(table + slot, own);
      break;
    }
    slot = slot + 1 < static_cast<uint32_t>(slots) ? slot + 1 : 0;
  }
  slot_of_row[row] = slot;
}

// Lists the rows that were left in the table, ascending, which rows of stage 0 they are, and how many.
// `states`, zero before: a ticket, then a word for every tile; blocks past the last tile are of no use.
DELA_KERNEL(8)
dela_list_voxels(const uint32_t* table, const uint32_t* slot_of_row, const int32_t* rows,
                 const uint32_t* count, int32_t most, uint64_t* states, int32_t* kept,
                 int32_t* kept_rows, uint32_t* kept_count) {
  __shared__ uint32_t sums[dela::kBlock];
  __shared__ uint32_t listed;
  const uint32_t tile = dela::next_tile(states, sums);
  const int64_t n = dela::rows_there(count, most), first = dela::first_item(tile);
  if (static_cast<int64_t>(tile) * dela::kTile >= n) return;
  uint32_t own = 0, stays = 0;  // bit i: item i is kept
  for (int i = 0; i < dela::kTileItems; ++i) {
    const int64_t row = first + i;
    if (row >= n) break;
    if (table[slot_of_row[row]] == ~static_cast<uint32_t>(row)) {
      stays |= 1u << i;
      ++own;
    }
  }
  uint32_t all;
  const uint32_t before = dela::sum_before(own, sums, &all);
  if (threadIdx.x == 0) {
    listed = dela::sum_of_tiles_before(states + 1, 1, tile, all);
    if ((static_cast<int64_t>(tile) + 1) * dela::kTile >= n) *kept_count = listed + all;
  }
  __syncthreads();
  uint32_t to = listed + before;
  for (int i = 0; i < dela::kTileItems; ++i) {
    if ((stays >> i & 1u) == 0) continue;
    kept[to] = static_cast<int32_t>(first + i);
    kept_rows[to++] = static_cast<int32_t>(dela::first_row(rows, first + i));
  }
}
