// What the geometry kernels share: sums over a block and over blocks, cells of a voxel grid, Morton
// keys.
#pragma once

#include "cuda/device.cuh"

namespace dela {

constexpr int kTileItems = 16;                  // consecutive items of one thread
constexpr int kTile = kBlock * kTileItems;      // items of one block
constexpr int kAxisBits = 21;                   // three axes in one 63-bit key

// Sum of the values of all threads of the block before this one, and of all. `sums`: shared memory.
template <int kThreads>
DELA_DEVICE uint32_t sum_before(uint32_t value, uint32_t (&sums)[kThreads], uint32_t* all) {
  const int thread = threadIdx.x;
  sums[thread] = value;
  __syncthreads();
  for (int step = 1; step < kThreads; step *= 2) {
    const uint32_t before = thread >= step ? sums[thread - step] : 0u;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  const uint32_t inclusive = sums[thread];
  *all = sums[kThreads - 1];
  __syncthreads();
  return inclusive - value;
}

// Tiles are taken in order, whatever the order of the blocks: who waits for an earlier tile waits for
// a block that is running. `ticket`: zero before the launch. `sums`: shared memory.
template <int kThreads>
DELA_DEVICE uint32_t next_tile(uint64_t* ticket, uint32_t (&sums)[kThreads]) {
  if (threadIdx.x == 0) sums[0] = atomicAdd(reinterpret_cast<unsigned int*>(ticket), 1u);
  __syncthreads();
  const uint32_t tile = sums[0];
  __syncthreads();
  return tile;
}

// Number of the first item of this thread in its block's tile; the tile may reach past the end.
DELA_DEVICE int64_t first_item(uint32_t tile) {
  return static_cast<int64_t>(tile) * kTile + static_cast<int64_t>(threadIdx.x) * kTileItems;
}

// The sum over all tiles before this one: each publishes its own sum, then the sum up to its end, and
// adds up what those before it have published (Merrill and Garland 2016). A state is one word, so it is
// never seen half written. `states`: one per tile, `stride` apart, zero before the launch.
DELA_DEVICE uint32_t sum_of_tiles_before(uint64_t* states, int64_t stride, uint32_t tile,
                                         uint32_t own) {
  constexpr unsigned long long kOwn = 1ull << 62, kWhole = 1ull << 63;
  auto* words = reinterpret_cast<unsigned long long*>(states);
  uint32_t before = 0;
  if (tile > 0) {
    atomicExch(words + tile * stride, kOwn | own);
    for (int64_t at = static_cast<int64_t>(tile) - 1;;) {
      const unsigned long long seen = *static_cast<volatile unsigned long long*>(words + at * stride);
      if (seen == 0) continue;
      before += static_cast<uint32_t>(seen);
      if ((seen & kWhole) != 0) break;
      --at;
    }
  }
  atomicExch(words + tile * stride, kWhole | (before + own));
  return before;
}

DELA_DEVICE double coordinate(const void* points, int32_t is_double, int64_t at) {
  return is_double ? static_cast<const double*>(points)[at]
                   : static_cast<double>(static_cast<const float*>(points)[at]);
}

// Doubles as numbers that compare alike.
DELA_DEVICE uint64_t ordered_bits(double value) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(value));
  return (bits >> 63) != 0 ? ~bits : bits | (uint64_t{1} << 63);
}

DELA_DEVICE double from_ordered_bits(uint64_t bits) {
  bits = (bits >> 63) != 0 ? bits & ~(uint64_t{1} << 63) : ~bits;
  return __longlong_as_double(static_cast<int64_t>(bits));
}

// Bounds of a cloud, all words 0 before: 0-2 the complement of the lowest values, 3-5 the highest
// values, both as ordered_bits, 6 the number of points that are not finite, 7 that of rows of attributes.
constexpr int kBoundsWords = 8;

DELA_DEVICE double lowest(const uint64_t* bounds, int axis) {
  return from_ordered_bits(~bounds[axis]);
}
DELA_DEVICE double highest(const uint64_t* bounds, int axis) {
  return from_ordered_bits(bounds[3 + axis]);
}

// A grid of cubic cells: floor((value - origin) / size) - base. Double as on the CPU, and no product
// that could be fused with a sum: the same cells.
struct Grid {
  double origin[3], base[3], size;
};

DELA_DEVICE int64_t cell_of(const Grid& grid, int axis, double value) {
  return static_cast<int64_t>(floor((value - grid.origin[axis]) / grid.size) - grid.base[axis]);
}

struct Cell {
  int64_t x, y, z;
};

DELA_DEVICE Cell cell_at(const Grid& grid, const void* points, int32_t is_double, uint32_t row) {
  const int64_t at = 3 * static_cast<int64_t>(row);
  return {cell_of(grid, 0, coordinate(points, is_double, at)),
          cell_of(grid, 1, coordinate(points, is_double, at + 1)),
          cell_of(grid, 2, coordinate(points, is_double, at + 2))};
}

// Bits of three numbers interleaved from the lowest up, x first; an axis out of bits is left out.
DELA_DEVICE uint64_t interleaved(uint64_t x, uint64_t y, uint64_t z, int32_t bits_x, int32_t bits_y,
                                 int32_t bits_z) {
  uint64_t key = 0;
  int place = 0;
  for (int bit = 0; bit < kAxisBits; ++bit) {
    if (bit < bits_x) key |= ((x >> bit) & 1) << place++;
    if (bit < bits_y) key |= ((y >> bit) & 1) << place++;
    if (bit < bits_z) key |= ((z >> bit) & 1) << place++;
  }
  return key;
}

// What one launch works at. Parameters are picked by constant numbers, so they stay where they are.
constexpr int kMostJobs = 8;
template <class Job>
struct Jobs {
  Job of[kMostJobs];  // those behind the last one begin past the grid

  DELA_DEVICE Job of_block(int32_t* number) const {
    Job found = of[0];
    *number = 0;
    for (int i = 1; i < kMostJobs; ++i) {
      if (static_cast<int32_t>(blockIdx.x) >= of[i].first_block) {
        found = of[i];
        *number = i;
      }
    }
    return found;
  }
};

}  // namespace dela
