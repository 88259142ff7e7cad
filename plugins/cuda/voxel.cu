// Voxel grid: bounds of a cloud, cells as sortable keys, and one point of each run of equal cells.
//
// Cells are computed in double with every operation rounded once, as on the CPU, so both group the
// same points. Sorting is by Morton key, so any extent and density holds; grids of more than 2^21
// cells along an axis sort twice, the upper levels after the lower ones.
#include "cuda/geometry.cuh"

namespace dela {
namespace {

DELA_DEVICE Grid make_grid(const uint64_t* bounds, double x, double y, double z, double base_x,
                           double base_y, double base_z, double size) {
  if (bounds == nullptr) return {{x, y, z}, {base_x, base_y, base_z}, size};
  return {{lowest(bounds, 0), lowest(bounds, 1), lowest(bounds, 2)}, {0.0, 0.0, 0.0}, size};
}

// SplitMix64's finaliser: a well-mixed number for each (seed, voxel).
DELA_DEVICE uint64_t mixed(uint64_t seed, uint64_t voxel) {
  uint64_t value = seed + (voxel + 1) * 0x9e3779b97f4a7c15ull;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
  return value ^ (value >> 31);
}

// The upper half of the product of a number and one below 2^32.
DELA_DEVICE uint64_t scaled(uint64_t value, uint32_t size) {
  return ((value >> 32) * size + ((value & 0xffffffffu) * size >> 32)) >> 32;
}

}  // namespace
}  // namespace dela

// See kBoundsWords. A grid-stride loop: any number of blocks.
DELA_KERNEL(8)
dela_bounds(const void* points, int32_t is_double, int32_t n, uint64_t* bounds) {
  __shared__ unsigned long long words[dela::kBoundsWords];
  if (threadIdx.x < dela::kBoundsWords) words[threadIdx.x] = 0;
  __syncthreads();
  uint64_t best[6] = {};
  uint64_t bad = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; row < n;
       row += step) {
    double value[3];
    for (int axis = 0; axis < 3; ++axis) {
      value[axis] = dela::coordinate(points, is_double, 3 * row + axis);
    }
    // Infinity and NaN times zero are NaN.
    const double probe = value[0] * 0.0 + value[1] * 0.0 + value[2] * 0.0;
    if (probe != 0.0) {
      ++bad;
      continue;
    }
    for (int axis = 0; axis < 3; ++axis) {
      const uint64_t bits = dela::ordered_bits(value[axis]);
      best[axis] = ~bits > best[axis] ? ~bits : best[axis];
      best[3 + axis] = bits > best[3 + axis] ? bits : best[3 + axis];
    }
  }
  for (int word = 0; word < 6; ++word) {
    atomicMax(words + word, static_cast<unsigned long long>(best[word]));
  }
  if (bad > 0) atomicAdd(words + 6, static_cast<unsigned long long>(bad));
  __syncthreads();
  auto* to = reinterpret_cast<unsigned long long*>(bounds);
  if (threadIdx.x < 6) atomicMax(to + threadIdx.x, words[threadIdx.x]);
  if (threadIdx.x == 6 && words[6] > 0) atomicAdd(to + 6, words[6]);
}

// Adds to `count` the rows of `values` [n, columns] that hold NaN or infinity.
DELA_KERNEL(8)
dela_count_invalid(const float* values, int32_t n, int32_t columns, uint64_t* count) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= n) return;
  float probe = 0.0f;
  for (int32_t column = 0; column < columns; ++column) probe += values[row * columns + column] * 0.0f;
  if (probe != 0.0f) atomicAdd(reinterpret_cast<unsigned long long*>(count), 1ull);
}

// float32 of (point - origin) for some rows, or for all where `rows` is null.
DELA_KERNEL(8)
dela_take_points(const void* points, const int32_t* rows, int32_t is_double, int32_t count, double x,
                 double y, double z, float* out) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (number >= count) return;
  const int64_t row = rows == nullptr ? number : rows[number];
  const double origin[3] = {x, y, z};
  for (int axis = 0; axis < 3; ++axis) {
    const double value = dela::coordinate(points, is_double, 3 * row + axis);
    out[3 * number + axis] = static_cast<float>(value - origin[axis]);
  }
}

// Morton keys of 21 levels of the cells, from `level` up, for the points in the order of `rows`;
// null `given` is the order 0, 1, 2 ..., which is then written to `rows`. Where `bounds` is given,
// cells count from its lowest corner, else from the origin x y z and the cell base_x y z.
DELA_KERNEL(6)
dela_cell_keys(const void* points, const uint32_t* given, const uint64_t* bounds, int32_t is_double,
               int32_t n, double x, double y, double z, double base_x, double base_y,
               double base_z, double size, int32_t level, int32_t bits_x, int32_t bits_y,
               int32_t bits_z, uint64_t* keys, uint32_t* rows) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= n) return;
  const dela::Grid grid = dela::make_grid(bounds, x, y, z, base_x, base_y, base_z, size);
  const uint32_t row = given == nullptr ? static_cast<uint32_t>(at) : given[at];
  const dela::Cell cell = dela::cell_at(grid, points, is_double, row);
  keys[at] = dela::interleaved(static_cast<uint64_t>(cell.x) >> level,
                               static_cast<uint64_t>(cell.y) >> level,
                               static_cast<uint64_t>(cell.z) >> level, bits_x - level,
                               bits_y - level, bits_z - level);
  if (given == nullptr) rows[at] = row;
}

// flags[i]: the i-th point in sorted order begins a cell; counts[tile]: how many of the tile do.
DELA_KERNEL(6)
dela_cell_starts(const void* points, const uint32_t* rows, const uint64_t* bounds, int32_t is_double,
                 int32_t n, double x, double y, double z, double base_x, double base_y,
                 double base_z, double size, uint8_t* flags, uint32_t* counts) {
  __shared__ uint32_t sums[dela::kBlock];
  const dela::Grid grid = dela::make_grid(bounds, x, y, z, base_x, base_y, base_z, size);
  const int64_t first = dela::first_item();
  uint32_t own = 0;
  dela::Cell before{0, 0, 0};
  if (first > 0 && first < n) {
    before = dela::cell_at(grid, points, is_double, rows[first - 1]);
  }
  for (int i = 0; i < dela::kTileItems; ++i) {
    const int64_t at = first + i;
    if (at >= n) break;
    const dela::Cell cell = dela::cell_at(grid, points, is_double, rows[at]);
    const bool starts =
        at == 0 || cell.x != before.x || cell.y != before.y || cell.z != before.z;
    flags[at] = starts;
    own += starts;
    before = cell;
  }
  uint32_t all;
  dela::sum_before(own, sums, &all);
  if (threadIdx.x == 0) counts[blockIdx.x] = all;
}

// Numbers the cells: the cell of every point, and the place in sorted order where each cell begins.
DELA_KERNEL(8)
dela_number_cells(const uint8_t* flags, const uint32_t* rows, const uint32_t* starts, int32_t n,
                  int32_t* voxel_of_point, uint32_t* first_of_voxel) {
  __shared__ uint32_t sums[dela::kBlock];
  const int64_t first = dela::first_item();
  uint32_t own = 0;
  for (int i = 0; i < dela::kTileItems; ++i) own += first + i < n ? flags[first + i] : 0u;
  uint32_t all;
  uint32_t begun = starts[blockIdx.x] + dela::sum_before(own, sums, &all);
  for (int i = 0; i < dela::kTileItems; ++i) {
    const int64_t at = first + i;
    if (at >= n) break;
    if (flags[at]) first_of_voxel[begun++] = static_cast<uint32_t>(at);
    voxel_of_point[rows[at]] = static_cast<int32_t>(begun) - 1;
  }
}

// Picks the point `number` modulo the size of each cell, or a random one where `number` is below 0.
// `count` holds the number of cells. Either output may be null: the rows picked, in the order of the
// cells; a flag for each point.
DELA_KERNEL(8)
dela_pick_points(const uint32_t* rows, const uint32_t* first_of_voxel, const uint32_t* count,
                 int32_t n, int64_t number, uint64_t seed, int32_t* kept, uint8_t* is_kept) {
  const int64_t voxel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t voxels = *count;
  if (voxel >= voxels) return;
  const int64_t begin = first_of_voxel[voxel];
  const int64_t size = (voxel + 1 < voxels ? first_of_voxel[voxel + 1] : n) - begin;
  const int64_t pick =
      number >= 0 ? number % size
                  : static_cast<int64_t>(dela::scaled(dela::mixed(seed, voxel),
                                                      static_cast<uint32_t>(size)));
  const uint32_t row = rows[begin + pick];
  if (kept != nullptr) kept[voxel] = static_cast<int32_t>(row);
  if (is_kept != nullptr) is_kept[row] = 1;
}
