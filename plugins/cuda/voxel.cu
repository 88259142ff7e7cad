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

// Bits of the number of the last cell along an axis, 21 at most: what is more shows in the bounds.
DELA_DEVICE int32_t bits_of_axis(const Grid& grid, const uint64_t* bounds, int axis) {
  const double last = floor((highest(bounds, axis) - grid.origin[axis]) / grid.size);
  if (!(last > 0.0)) return 0;
  const double most = (1 << kAxisBits) - 1;
  return 64 - __clzll(static_cast<int64_t>(fmin(last, most)));
}

// The points of each cell of a grid: one cell after the other, in ascending order within it.
struct Members {
  const uint32_t *rows, *first;
  int64_t voxels, n;

  DELA_DEVICE int64_t size(int64_t voxel) const {
    return (voxel + 1 < voxels ? first[voxel + 1] : n) - first[voxel];
  }
  DELA_DEVICE uint32_t row(int64_t voxel, int64_t number) const {
    return rows[first[voxel] + number];
  }
};

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

// See kBoundsWords; of `values` [n, columns] the finite rows are told from the others only. A grid-stride
// loop: any number of blocks.
DELA_KERNEL(8)
dela_bounds(const void* points, const float* values, int32_t is_double, int32_t n, int32_t columns,
            uint64_t* bounds) {
  __shared__ unsigned long long words[dela::kBoundsWords];
  if (threadIdx.x < dela::kBoundsWords) words[threadIdx.x] = 0;
  __syncthreads();
  uint64_t best[6] = {};
  uint64_t bad = 0, bad_values = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; row < n;
       row += step) {
    float of_values = 0.0f;
    for (int32_t column = 0; column < columns; ++column) {
      of_values += values[row * columns + column] * 0.0f;
    }
    bad_values += of_values != 0.0f;
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
  if (bad_values > 0) atomicAdd(words + 7, static_cast<unsigned long long>(bad_values));
  __syncthreads();
  auto* to = reinterpret_cast<unsigned long long*>(bounds);
  if (threadIdx.x < 6) atomicMax(to + threadIdx.x, words[threadIdx.x]);
  if ((threadIdx.x == 6 || threadIdx.x == 7) && words[threadIdx.x] > 0) {
    atomicAdd(to + threadIdx.x, words[threadIdx.x]);
  }
}

// Morton keys of 21 levels of the cells, from `level` up, for the points in the order of `given`, null
// for 0, 1, 2 ... Where `bounds` is given, cells count from its lowest corner, else from the origin x y z
// and the cell base_x y z. bits_x below 0: as many bits as the bounds ask for, 21 at most.
DELA_KERNEL(6)
dela_cell_keys(const void* points, const uint32_t* given, const uint64_t* bounds, int32_t is_double,
               int32_t n, double x, double y, double z, double base_x, double base_y,
               double base_z, double size, int32_t level, int32_t bits_x, int32_t bits_y,
               int32_t bits_z, uint64_t* keys) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= n) return;
  const dela::Grid grid = dela::make_grid(bounds, x, y, z, base_x, base_y, base_z, size);
  const uint32_t row = given == nullptr ? static_cast<uint32_t>(at) : given[at];
  const dela::Cell cell = dela::cell_at(grid, points, is_double, row);
  if (bits_x < 0) {
    bits_x = dela::bits_of_axis(grid, bounds, 0);
    bits_y = dela::bits_of_axis(grid, bounds, 1);
    bits_z = dela::bits_of_axis(grid, bounds, 2);
  }
  keys[at] = dela::interleaved(static_cast<uint64_t>(cell.x) >> level,
                               static_cast<uint64_t>(cell.y) >> level,
                               static_cast<uint64_t>(cell.z) >> level, bits_x - level,
                               bits_y - level, bits_z - level);
}

// Numbers the cells of points in sorted order: the cell of every point, the place in the order where
// each cell begins, and how many there are. `states`, zero before: a ticket, then a word for every tile.
DELA_KERNEL(6)
dela_number_cells(const void* points, const uint32_t* rows, const uint64_t* bounds,
                  int32_t is_double, int32_t n, double x, double y, double z, double base_x,
                  double base_y, double base_z, double size, uint64_t* states,
                  int32_t* voxel_of_point, uint32_t* first_of_voxel, uint32_t* count) {
  __shared__ uint32_t sums[dela::kBlock];
  __shared__ uint32_t numbered;
  const dela::Grid grid = dela::make_grid(bounds, x, y, z, base_x, base_y, base_z, size);
  const uint32_t tile = dela::next_tile(states, sums);
  const int64_t first = dela::first_item(tile);
  uint32_t own = 0, starts = 0;  // bit i: item i begins a cell
  dela::Cell before{0, 0, 0};
  if (first > 0 && first < n) {
    before = dela::cell_at(grid, points, is_double, rows[first - 1]);
  }
  for (int i = 0; i < dela::kTileItems; ++i) {
    const int64_t at = first + i;
    if (at >= n) break;
    const dela::Cell cell = dela::cell_at(grid, points, is_double, rows[at]);
    if (at == 0 || cell.x != before.x || cell.y != before.y || cell.z != before.z) {
      starts |= 1u << i;
      ++own;
    }
    before = cell;
  }
  uint32_t all;
  const uint32_t of_block = dela::sum_before(own, sums, &all);
  if (threadIdx.x == 0) {
    numbered = dela::sum_of_tiles_before(states + 1, 1, tile, all);
    if (tile + 1 == gridDim.x) *count = numbered + all;
  }
  __syncthreads();
  uint32_t begun = numbered + of_block;
  for (int i = 0; i < dela::kTileItems; ++i) {
    const int64_t at = first + i;
    if (at >= n) break;
    if ((starts >> i & 1u) != 0) first_of_voxel[begun++] = static_cast<uint32_t>(at);
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
  const dela::Members members{rows, first_of_voxel, *count, n};
  if (voxel >= members.voxels) return;
  const int64_t size = members.size(voxel);
  const int64_t pick =
      number >= 0 ? number % size
                  : static_cast<int64_t>(dela::scaled(dela::mixed(seed, voxel),
                                                      static_cast<uint32_t>(size)));
  const uint32_t row = members.row(voxel, pick);
  if (kept != nullptr) kept[voxel] = static_cast<int32_t>(row);
  if (is_kept != nullptr) is_kept[row] = 1;
}

// The voxels of a scan: of each cell the point `number` modulo its size, counted from the lowest corner,
// with its row of `values` [n, columns], and which row that is.
DELA_KERNEL(8)
dela_take_voxels(const void* points, const float* values, const uint64_t* bounds,
                 const uint32_t* rows, const uint32_t* first_of_voxel, const uint32_t* count,
                 int32_t is_double, int32_t n, int32_t columns, int64_t number, int32_t* kept,
                 float* taken, float* taken_values) {
  const int64_t voxel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const dela::Members members{rows, first_of_voxel, *count, n};
  if (voxel >= members.voxels) return;
  const int64_t row = members.row(voxel, number % members.size(voxel));
  kept[voxel] = static_cast<int32_t>(row);
  for (int axis = 0; axis < 3; ++axis) {
    const double value = dela::coordinate(points, is_double, 3 * row + axis);
    taken[3 * voxel + axis] = static_cast<float>(value - dela::lowest(bounds, axis));
  }
  for (int32_t column = 0; column < columns; ++column) {
    taken_values[voxel * columns + column] = values[row * columns + column];
  }
}
