// Height of a scan's points above the ground, as dela/scan/attributes.py defines it: the lowest points of
// cells of 1 m, opened with growing windows, then corrected by the mean of the points near the ground in
// cells half as wide.
//
// Double, with each operation rounded once and in the order of numpy. Only the means of the correction are
// added up in another way: in whole numbers of 2^-36 m, so that the order of the points is of no matter.
// What is done to cells is done by one block: a scan has thousands of times fewer cells than work for
// several. Its sizes are those of the bounds; with more cells than there is memory for, nothing is done
// and every height is 0.
#include "cuda/geometry.cuh"

namespace dela {
namespace {

constexpr int kGroundThreads = 1024;
constexpr double kMaxWindow = 20.0, kSlope = 0.15, kLeastStep = 0.2, kPit = 1.0;
constexpr double kGroundBand = 0.1, kHighestGround = 0.35, kMostCounted = 5.0;
constexpr double kFixed = 68719476736.0;  // 2^36
constexpr int kFiner = 2;

DELA_DEVICE double add(double a, double b) { return __dadd_rn(a, b); }
DELA_DEVICE double subtract(double a, double b) { return __dsub_rn(a, b); }
DELA_DEVICE double multiply(double a, double b) { return __dmul_rn(a, b); }

// Cells along x and y, `finer` to a meter.
struct Plan {
  int32_t rows, columns, finer;

  DELA_DEVICE int32_t cells() const { return rows * columns; }
};

// None where there are more cells of 1 m than `capacity`.
DELA_DEVICE Plan plan_of(const uint64_t* bounds, int32_t capacity, int32_t finer) {
  const double x = subtract(highest(bounds, 0), lowest(bounds, 0));
  const double y = subtract(highest(bounds, 1), lowest(bounds, 1));
  if (!((floor(x) + 1.0) * (floor(y) + 1.0) <= capacity)) return {0, 0, finer};
  return {static_cast<int32_t>(multiply(x, finer)) + 1, static_cast<int32_t>(multiply(y, finer)) + 1,
          finer};
}

// Where a point stands, in cells of the plan.
struct Place {
  double x, y;

  DELA_DEVICE int32_t cell(const Plan& plan) const {
    return static_cast<int32_t>(x) * plan.columns + static_cast<int32_t>(y);
  }
};

DELA_DEVICE Place place_of(const Plan& plan, const void* points, int32_t is_double,
                           const uint64_t* bounds, int64_t row) {
  const double x = subtract(coordinate(points, is_double, 3 * row), lowest(bounds, 0));
  const double y = subtract(coordinate(points, is_double, 3 * row + 1), lowest(bounds, 1));
  return {multiply(x, plan.finer), multiply(y, plan.finer)};
}

// The values of a grid at a fractional position, constant beyond the edge.
DELA_DEVICE double bilinear(const double* values, int32_t rows, int32_t columns, double x, double y) {
  x = fmin(fmax(x, 0.0), rows - 1.0);
  y = fmin(fmax(y, 0.0), columns - 1.0);
  const int32_t last_row = rows > 2 ? rows - 2 : 0, last_column = columns > 2 ? columns - 2 : 0;
  const int32_t i = static_cast<int32_t>(x) < last_row ? static_cast<int32_t>(x) : last_row;
  const int32_t j = static_cast<int32_t>(y) < last_column ? static_cast<int32_t>(y) : last_column;
  const int32_t below = rows > 1 ? columns : 0, beside = columns > 1 ? 1 : 0;
  const double* corner = values + i * columns + j;
  const double u = subtract(x, i), v = subtract(y, j);
  const double one_u = subtract(1.0, u), one_v = subtract(1.0, v);
  const double first = add(multiply(one_v, corner[0]), multiply(v, corner[beside]));
  const double second = add(multiply(one_v, corner[below]), multiply(v, corner[below + beside]));
  return add(multiply(one_u, first), multiply(u, second));
}

// A grid with values in some of its cells.
struct Grid2 {
  double* values;
  uint8_t* known;
  int32_t rows, columns;

  DELA_DEVICE double value(int32_t i, int32_t j) const {
    const bool inside = i >= 0 && i < rows && j >= 0 && j < columns;
    return inside && known[i * columns + j] ? values[i * columns + j] : 0.0;
  }
  DELA_DEVICE double is_known(int32_t i, int32_t j) const {
    const bool inside = i >= 0 && i < rows && j >= 0 && j < columns;
    return inside ? known[i * columns + j] : 0.0;
  }
  // The grid of half as many rows and columns, in the memory behind this one.
  DELA_DEVICE Grid2 coarser() const {
    return {values + rows * columns, known + rows * columns, (rows + 1) / 2, (columns + 1) / 2};
  }
};

// Each cell with its eight neighbors: columns first, as numpy adds them up.
template <class Value>
DELA_DEVICE double sum_of_nine(int32_t i, int32_t j, Value value) {
  double sums[3];
  for (int side = 0; side < 3; ++side) {
    const int32_t column = j + side - 1;
    sums[side] = add(add(value(i - 1, column), value(i, column)), value(i + 1, column));
  }
  return add(add(sums[0], sums[1]), sums[2]);
}

// Known cells stay as they are; beside them goes their mean, farther off coarser and coarser averages. By
// a whole block. Behind the grid there is room for its coarser ones; `flag`: shared memory.
DELA_DEVICE void fill(Grid2 grid, int32_t* flag) {
  const int32_t thread = threadIdx.x, threads = blockDim.x;
  Grid2 level = grid;
  int32_t depth = 0;
  for (; level.rows > 1 || level.columns > 1; ++depth) {
    __syncthreads();
    if (thread == 0) *flag = 0;
    __syncthreads();
    for (int32_t cell = thread; cell < level.rows * level.columns; cell += threads) {
      const int32_t i = cell / level.columns, j = cell - i * level.columns;
      const double around =
          sum_of_nine(i, j, [&](int32_t a, int32_t b) { return level.is_known(a, b); });
      if (around == 0.0) *flag = 1;
    }
    __syncthreads();
    if (*flag == 0) break;
    const Grid2 next = level.coarser();
    for (int32_t cell = thread; cell < next.rows * next.columns; cell += threads) {
      const int32_t i = 2 * (cell / next.columns), j = 2 * (cell % next.columns);
      const double count = level.is_known(i, j) + level.is_known(i, j + 1) +
                           level.is_known(i + 1, j) + level.is_known(i + 1, j + 1);
      const double total = add(add(level.value(i, j), level.value(i, j + 1)),
                               add(level.value(i + 1, j), level.value(i + 1, j + 1)));
      next.values[cell] = total / fmax(count, 1.0);
      next.known[cell] = count > 0.0;
    }
    level = next;
  }
  // The coarsest grid has no cell that is far from a known one, or is a single cell.
  for (; depth >= 0; --depth) {
    Grid2 own = grid;
    for (int32_t step = 0; step < depth; ++step) own = own.coarser();
    const Grid2 next = own.coarser();
    __syncthreads();
    for (int32_t cell = thread; cell < own.rows * own.columns; cell += threads) {
      if (own.known[cell] || (own.rows == 1 && own.columns == 1)) continue;
      const int32_t i = cell / own.columns, j = cell - i * own.columns;
      const double around =
          sum_of_nine(i, j, [&](int32_t a, int32_t b) { return own.is_known(a, b); });
      own.values[cell] =
          around > 0.0
              ? sum_of_nine(i, j, [&](int32_t a, int32_t b) { return own.value(a, b); }) / around
              : bilinear(next.values, next.rows, next.columns, subtract(i * 0.5, 0.25),
                         subtract(j * 0.5, 0.25));
    }
  }
  __syncthreads();
}

// Lowest or highest of a window of cells along one axis, by a whole block; beyond the edge nothing counts.
template <bool kLowest>
DELA_DEVICE void run_window(const Plan& plan, const double* from, int32_t radius, bool along_rows,
                            double* to) {
  for (int32_t cell = threadIdx.x; cell < plan.cells(); cell += blockDim.x) {
    const int32_t i = cell / plan.columns, j = cell - i * plan.columns;
    const int32_t at = along_rows ? i : j, size = along_rows ? plan.rows : plan.columns;
    const int32_t step = along_rows ? plan.columns : 1;
    const int32_t begin = at < radius ? -at : -radius;
    const int32_t end = at + radius < size ? radius : size - 1 - at;
    double best = from[cell];
    for (int32_t away = begin; away <= end; ++away) {
      const double value = from[cell + away * step];
      best = kLowest ? fmin(best, value) : fmax(best, value);
    }
    to[cell] = best;
  }
  __syncthreads();
}

// Opening (closing, where not kOpening) with a square window; the answer lies in `to`.
template <bool kOpening>
DELA_DEVICE void open(const Plan& plan, const double* from, int32_t radius, double* between,
                      double* to) {
  run_window<kOpening>(plan, from, radius, true, between);
  run_window<kOpening>(plan, between, radius, false, to);
  run_window<!kOpening>(plan, to, radius, true, between);
  run_window<!kOpening>(plan, between, radius, false, to);
}

}  // namespace
}  // namespace dela

// The lowest height in every cell, as the complement of its ordered bits; `lowest` zero before.
DELA_KERNEL(8)
dela_lowest_points(const void* points, const uint64_t* bounds, int32_t is_double, int32_t n,
                   int32_t capacity, uint64_t* lowest) {
  const int64_t row = dela::thread_number();
  const dela::Plan plan = dela::plan_of(bounds, capacity, 1);
  if (row >= n || plan.rows == 0) return;
  const double z =
      dela::subtract(dela::coordinate(points, is_double, 3 * row + 2), dela::lowest(bounds, 2));
  const int32_t cell = dela::place_of(plan, points, is_double, bounds, row).cell(plan);
  atomicMax(reinterpret_cast<unsigned long long*>(lowest) + cell,
            static_cast<unsigned long long>(~dela::ordered_bits(z)));
}

// The ground's height in every cell from the lowest heights; in `values`. One block. `values` and `known`
// have room for the coarser grids; `work`: four times as many doubles as there are cells at most.
extern "C" __global__ void __launch_bounds__(dela::kGroundThreads, 1)
dela_ground_surface(const uint64_t* bounds, const uint64_t* lowest, int32_t capacity, double* values,
                    uint8_t* known, double* work, uint8_t* is_ground) {
  __shared__ int32_t flag;
  const dela::Plan plan = dela::plan_of(bounds, capacity, 1);
  const int32_t cells = plan.cells(), thread = threadIdx.x;
  if (cells == 0) return;
  double *surface = work, *opened = work + capacity, *between = opened + capacity,
         *next = between + capacity;
  const dela::Grid2 grid{values, known, plan.rows, plan.columns};
  for (int32_t cell = thread; cell < cells; cell += dela::kGroundThreads) {
    const uint64_t bits = lowest[cell];
    known[cell] = is_ground[cell] = bits != 0;
    values[cell] = bits != 0 ? dela::from_ordered_bits(~bits) : 0.0;
  }
  dela::fill(grid, &flag);
  for (int32_t cell = thread; cell < cells; cell += dela::kGroundThreads) {
    surface[cell] = opened[cell] = values[cell];
  }
  __syncthreads();
  const int32_t longest = plan.rows > plan.columns ? plan.rows : plan.columns;
  for (int32_t radius = 1;;) {
    dela::open<true>(plan, opened, radius, between, next);
    const double step = fmax(dela::multiply(dela::kSlope, radius), dela::kLeastStep);
    for (int32_t cell = thread; cell < cells; cell += dela::kGroundThreads) {
      if (!(dela::subtract(opened[cell], next[cell]) <= step)) is_ground[cell] = 0;
      opened[cell] = next[cell];
    }
    __syncthreads();
    if (2.0 * radius >= dela::kMaxWindow || radius >= longest) break;
    radius = radius + 1 > radius * 3 / 2 ? radius + 1 : radius * 3 / 2;
  }
  if (thread == 0) flag = 0;
  __syncthreads();
  for (int32_t cell = thread; cell < cells; cell += dela::kGroundThreads) {
    if (is_ground[cell]) flag = 1;
  }
  __syncthreads();
  const bool any = flag != 0;
  for (int32_t cell = thread; cell < cells; cell += dela::kGroundThreads) {
    values[cell] = !any ? opened[cell] : is_ground[cell] ? surface[cell] : 0.0;
    known[cell] = is_ground[cell];
  }
  if (!any) return;
  dela::fill(grid, &flag);
  // A lone return from below the ground must not lift its neighbors.
  dela::open<false>(plan, values, 1, between, next);
  for (int32_t cell = thread; cell < cells; cell += dela::kGroundThreads) {
    if (dela::subtract(next[cell], values[cell]) > dela::kPit) values[cell] = next[cell];
  }
}

// Heights above the ground as it is so far, and the lowest of those near it in every finer cell: as
// `lowest` of dela_lowest_points.
DELA_KERNEL(6)
dela_heights(const void* points, const uint64_t* bounds, const double* ground, int32_t is_double,
             int32_t n, int32_t capacity, double* heights, uint64_t* lowest) {
  const int64_t row = dela::thread_number();
  if (row >= n) return;
  const dela::Plan plan = dela::plan_of(bounds, capacity, 1);
  if (plan.rows == 0) {
    heights[row] = 0.0;
    return;
  }
  const dela::Place place = dela::place_of(plan, points, is_double, bounds, row);
  const double z =
      dela::subtract(dela::coordinate(points, is_double, 3 * row + 2), dela::lowest(bounds, 2));
  const double height = dela::subtract(
      z, dela::bilinear(ground, plan.rows, plan.columns, dela::subtract(place.x, 0.5),
                        dela::subtract(place.y, 0.5)));
  heights[row] = height;
  if (!(fabs(height) < dela::kHighestGround)) return;
  const dela::Plan fine = dela::plan_of(bounds, capacity, dela::kFiner);
  const int32_t cell = dela::place_of(fine, points, is_double, bounds, row).cell(fine);
  atomicMax(reinterpret_cast<unsigned long long*>(lowest) + cell,
            static_cast<unsigned long long>(~dela::ordered_bits(height)));
}

// How many points near the ground each finer cell has, and the sum of their heights.
DELA_KERNEL(6)
dela_count_ground(const void* points, const uint64_t* bounds, const double* heights,
                  const uint64_t* lowest, int32_t is_double, int32_t n, int32_t capacity,
                  uint32_t* counts, uint64_t* sums) {
  const int64_t row = dela::thread_number();
  const dela::Plan fine = dela::plan_of(bounds, capacity, dela::kFiner);
  if (row >= n || fine.rows == 0) return;
  const double height = heights[row];
  if (!(fabs(height) < dela::kHighestGround)) return;
  const int32_t cell = dela::place_of(fine, points, is_double, bounds, row).cell(fine);
  const double least = dela::from_ordered_bits(~lowest[cell]);
  if (!(height <= dela::add(least, dela::kGroundBand))) return;
  atomicAdd(counts + cell, 1u);
  const int64_t parts = static_cast<int64_t>(floor(height * dela::kFixed + 0.5));
  atomicAdd(reinterpret_cast<unsigned long long*>(sums) + cell,
            static_cast<unsigned long long>(parts));
}

// How far the ground is above the one so far, in every finer cell; in `values`. One block. `shares`: a
// double for every finer cell.
extern "C" __global__ void __launch_bounds__(dela::kGroundThreads, 1)
dela_ground_correction(const uint64_t* bounds, const uint32_t* counts, const uint64_t* sums,
                       int32_t capacity, double* shares, double* values, uint8_t* known) {
  __shared__ int32_t flag;
  const dela::Plan fine = dela::plan_of(bounds, capacity, dela::kFiner);
  const int32_t cells = fine.cells(), thread = threadIdx.x;
  if (cells == 0) return;
  const auto weight_of = [&](int32_t i, int32_t j) {
    const bool inside = i >= 0 && i < fine.rows && j >= 0 && j < fine.columns;
    return inside ? fmin(counts[i * fine.columns + j], dela::kMostCounted) : 0.0;
  };
  for (int32_t cell = thread; cell < cells; cell += dela::kGroundThreads) {
    const double total = static_cast<double>(static_cast<int64_t>(sums[cell])) / dela::kFixed;
    const double count = counts[cell];
    shares[cell] = dela::multiply(total / fmax(count, 1.0), fmin(count, dela::kMostCounted));
  }
  __syncthreads();
  for (int32_t cell = thread; cell < cells; cell += dela::kGroundThreads) {
    const int32_t i = cell / fine.columns, j = cell - i * fine.columns;
    const double around = dela::sum_of_nine(i, j, weight_of);
    const double sum = dela::sum_of_nine(i, j, [&](int32_t a, int32_t b) {
      const bool inside = a >= 0 && a < fine.rows && b >= 0 && b < fine.columns;
      return inside ? shares[a * fine.columns + b] : 0.0;
    });
    values[cell] = sum / fmax(around, 1.0);
    known[cell] = around > 0.0;
  }
  dela::fill({values, known, fine.rows, fine.columns}, &flag);
}

// Heights above the ground as it is corrected.
DELA_KERNEL(6)
dela_correct_heights(const void* points, const uint64_t* bounds, const double* correction,
                     int32_t is_double, int32_t n, int32_t capacity, double* heights) {
  const int64_t row = dela::thread_number();
  const dela::Plan fine = dela::plan_of(bounds, capacity, dela::kFiner);
  if (row >= n || fine.rows == 0) return;
  const dela::Place place = dela::place_of(fine, points, is_double, bounds, row);
  heights[row] = dela::subtract(
      heights[row], dela::bilinear(correction, fine.rows, fine.columns,
                                   dela::subtract(place.x, 0.5), dela::subtract(place.y, 0.5)));
}
