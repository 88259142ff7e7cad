#include "capi/ground.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace dela::capi {
namespace {

// The constants of dela/scan/attributes.py, where they are explained; meters.
constexpr double kCell = 1.0, kMaxWindow = 20.0, kSlope = 0.15, kLeastStep = 0.2, kPit = 1.0;
constexpr double kGroundBand = 0.1, kHighestGround = 0.35;
constexpr int64_t kMostCounted = 5;
constexpr int64_t kMaxCells = 4'000'000;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Grid {
  int64_t rows, columns;
  std::vector<double> values;

  Grid(int64_t rows, int64_t columns, double fill = 0.0)
      : rows(rows), columns(columns), values(rows * columns, fill) {}
  int64_t size() const { return rows * columns; }
  double& operator()(int64_t row, int64_t column) { return values[row * columns + column]; }
  double operator()(int64_t row, int64_t column) const { return values[row * columns + column]; }
};
using Mask = std::vector<char>;
using Place = std::array<double, 2>;  // of a point, in cells

// Cell positions along one axis with empty stretches cut to the largest window.
void cut_gaps(std::vector<Place>* places, int axis) {
  std::vector<double> occupied(places->size());
  for (size_t i = 0; i < places->size(); ++i) occupied[i] = std::floor((*places)[i][axis]);
  std::sort(occupied.begin(), occupied.end());
  occupied.erase(std::unique(occupied.begin(), occupied.end()), occupied.end());
  std::vector<double> moved(occupied.size(), 0.0);
  for (size_t i = 1; i < occupied.size(); ++i) {
    moved[i] = moved[i - 1] + std::min(occupied[i] - occupied[i - 1], kMaxWindow / kCell);
  }
  for (Place& place : *places) {
    const double whole = std::floor(place[axis]);
    const auto at = std::lower_bound(occupied.begin(), occupied.end(), whole);
    place[axis] = moved[at - occupied.begin()] + (place[axis] - whole);
  }
}

Place highest(const std::vector<Place>& places) {
  Place high = places[0];
  for (const Place& place : places) {
    for (int axis = 0; axis < 2; ++axis) high[axis] = std::max(high[axis], place[axis]);
  }
  return high;
}

Grid empty_cells(const std::vector<Place>& places) {
  const Place high = highest(places);
  return Grid(static_cast<int64_t>(high[0]) + 1, static_cast<int64_t>(high[1]) + 1, kInfinity);
}

int64_t cell_of(const Place& place, const Grid& grid) {
  return static_cast<int64_t>(place[0]) * grid.columns + static_cast<int64_t>(place[1]);
}

// Value at a fractional cell position, constant beyond the edge.
double bilinear(const Grid& grid, double row, double column) {
  const double x = std::min(std::max(row, 0.0), static_cast<double>(grid.rows - 1));
  const double y = std::min(std::max(column, 0.0), static_cast<double>(grid.columns - 1));
  const int64_t i = std::min(static_cast<int64_t>(x), std::max<int64_t>(grid.rows - 2, 0));
  const int64_t j = std::min(static_cast<int64_t>(y), std::max<int64_t>(grid.columns - 2, 0));
  const int64_t below = grid.rows > 1 ? grid.columns : 0, beside = grid.columns > 1 ? 1 : 0;
  const double* corner = grid.values.data() + i * grid.columns + j;
  const double u = x - static_cast<double>(i), v = y - static_cast<double>(j);
  return (1 - u) * ((1 - v) * corner[0] + v * corner[beside]) +
         u * ((1 - v) * corner[below] + v * corner[below + beside]);
}

// Each cell with its eight neighbors.
Grid sum_of_nine(const Grid& grid) {
  Grid down(grid.rows, grid.columns), out(grid.rows, grid.columns);
  const auto row_or_zero = [&](int64_t row, int64_t column) {
    return row < 0 || row >= grid.rows ? 0.0 : grid(row, column);
  };
  for (int64_t row = 0; row < grid.rows; ++row) {
    for (int64_t column = 0; column < grid.columns; ++column) {
      down(row, column) = row_or_zero(row - 1, column) + grid(row, column) +
                          row_or_zero(row + 1, column);
    }
  }
  for (int64_t row = 0; row < grid.rows; ++row) {
    for (int64_t column = 0; column < grid.columns; ++column) {
      const double left = column > 0 ? down(row, column - 1) : 0.0;
      const double right = column + 1 < grid.columns ? down(row, column + 1) : 0.0;
      out(row, column) = left + down(row, column) + right;
    }
  }
  return out;
}

// Minimum or maximum over windows of 2 radius + 1 cells along one axis, by doubling; beyond the edge
// stands `beyond`.
template <class Pick>
void running(Grid* grid, int64_t radius, int axis, double beyond, Pick pick) {
  const int64_t length = axis == 0 ? grid->rows : grid->columns;
  const int64_t inner = axis == 0 ? grid->columns : 1, outer = axis == 0 ? 1 : grid->rows;
  std::vector<double> padded((length + 2 * radius) * inner);
  for (int64_t line = 0; line < outer; ++line) {
    double* values = grid->values.data() + line * length * inner;
    std::fill(padded.begin(), padded.end(), beyond);
    std::copy(values, values + length * inner, padded.begin() + radius * inner);
    int64_t held = (length + 2 * radius) * inner;
    for (int64_t width = 1, window = 2 * radius + 1; width < window;) {
      const int64_t step = std::min(width, window - width);
      held -= step * inner;
      for (int64_t i = 0; i < held; ++i) padded[i] = pick(padded[i], padded[i + step * inner]);
      width += step;
    }
    std::copy(padded.begin(), padded.begin() + length * inner, values);
  }
}

// Gray opening with a square window of 2 radius + 1 cells; beyond the edge nothing counts.
Grid opening(Grid surface, int64_t radius) {
  const auto lower = [](double a, double b) { return b < a ? b : a; };
  const auto higher = [](double a, double b) { return a < b ? b : a; };
  for (int axis = 0; axis < 2; ++axis) running(&surface, radius, axis, kInfinity, lower);
  for (int axis = 0; axis < 2; ++axis) running(&surface, radius, axis, -kInfinity, higher);
  return surface;
}

// Sums of blocks of two by two cells, in the order in which numpy adds them.
Grid halved(const Grid& grid) {
  Grid out((grid.rows + 1) / 2, (grid.columns + 1) / 2);
  const auto value = [&](int64_t row, int64_t column) {
    return row < grid.rows && column < grid.columns ? grid(row, column) : 0.0;
  };
  for (int64_t row = 0; row < out.rows; ++row) {
    for (int64_t column = 0; column < out.columns; ++column) {
      out(row, column) = (value(2 * row, 2 * column) + value(2 * row, 2 * column + 1)) +
                         (value(2 * row + 1, 2 * column) + value(2 * row + 1, 2 * column + 1));
    }
  }
  return out;
}

// Known cells as they are; beside them their mean; farther off coarser and coarser averages.
Grid fill(const Grid& values, const Mask& known) {
  const bool all = std::all_of(known.begin(), known.end(), [](char is) { return is != 0; });
  if (all || std::max(values.rows, values.columns) == 1) return values;
  Grid weight(values.rows, values.columns), total(values.rows, values.columns);
  for (int64_t i = 0; i < values.size(); ++i) {
    weight.values[i] = known[i] ? 1.0 : 0.0;
    total.values[i] = known[i] ? values.values[i] : 0.0;
  }
  const Grid around = sum_of_nine(weight), sums = sum_of_nine(total);
  Grid filled = values;
  bool far = false;
  for (int64_t i = 0; i < values.size(); ++i) {
    if (!known[i]) filled.values[i] = sums.values[i] / std::max(around.values[i], 1.0);
    far = far || around.values[i] == 0.0;
  }
  if (!far) return filled;
  Grid coarse = halved(total);
  const Grid count = halved(weight);
  Mask coarse_known(coarse.size());
  for (int64_t i = 0; i < coarse.size(); ++i) {
    coarse.values[i] /= std::max(count.values[i], 1.0);
    coarse_known[i] = count.values[i] > 0.0;
  }
  coarse = fill(coarse, coarse_known);
  for (int64_t row = 0; row < values.rows; ++row) {
    for (int64_t column = 0; column < values.columns; ++column) {
      if (around(row, column) != 0.0) continue;
      filled(row, column) = bilinear(coarse, static_cast<double>(row) / 2 - 0.25,
                                     static_cast<double>(column) / 2 - 0.25);
    }
  }
  return filled;
}

// Ground height of each cell from the lowest z in it (infinite: empty).
Grid ground_surface(const Grid& lowest, double cell) {
  Mask is_ground(lowest.size());
  Grid start = lowest;
  for (int64_t i = 0; i < lowest.size(); ++i) {
    is_ground[i] = std::isfinite(lowest.values[i]);
    if (!is_ground[i]) start.values[i] = 0.0;
  }
  const Grid surface = fill(start, is_ground);
  Grid opened = surface;
  for (int64_t radius = 1;;) {
    const Grid previous = opened;
    opened = opening(opened, radius);
    const double reach = static_cast<double>(radius) * cell;
    const double step = std::max(kSlope * reach, kLeastStep);
    for (int64_t i = 0; i < lowest.size(); ++i) {
      is_ground[i] = is_ground[i] && previous.values[i] - opened.values[i] <= step;
    }
    if (2 * reach >= kMaxWindow || radius >= std::max(lowest.rows, lowest.columns)) break;
    radius = std::max(radius + 1, static_cast<int64_t>(static_cast<double>(radius) * 1.5));
  }
  if (std::none_of(is_ground.begin(), is_ground.end(), [](char is) { return is != 0; })) {
    return opened;
  }
  Grid ground = surface;
  for (int64_t i = 0; i < ground.size(); ++i) {
    if (!is_ground[i]) ground.values[i] = 0.0;
  }
  ground = fill(ground, is_ground);
  // A lone return from below the ground (multipath) must not lift its neighbors.
  Grid closed = ground;
  for (double& value : closed.values) value = -value;
  closed = opening(std::move(closed), 1);
  for (int64_t i = 0; i < ground.size(); ++i) {
    const double upper = -closed.values[i];
    if (upper - ground.values[i] > kPit) ground.values[i] = upper;
  }
  return ground;
}

// Takes off each height how far the ground is above the coarse one there; positions in fine cells.
void correct_ground(std::vector<double>* above, const std::vector<Place>& places) {
  Grid lowest = empty_cells(places);
  bool any = false;
  const auto is_near = [&](size_t i) { return std::fabs((*above)[i]) < kHighestGround; };
  for (size_t i = 0; i < places.size(); ++i) {
    if (!is_near(i)) continue;
    double& cell = lowest.values[cell_of(places[i], lowest)];
    cell = std::min(cell, (*above)[i]);
    any = true;
  }
  if (!any) return;
  Grid total(lowest.rows, lowest.columns);
  std::vector<int64_t> count(lowest.size(), 0);
  for (size_t i = 0; i < places.size(); ++i) {
    if (!is_near(i)) continue;
    const int64_t cell = cell_of(places[i], lowest);
    if (!((*above)[i] <= lowest.values[cell] + kGroundBand)) continue;
    ++count[cell];
    total.values[cell] += (*above)[i];
  }
  Grid weight(lowest.rows, lowest.columns);
  for (int64_t i = 0; i < lowest.size(); ++i) {
    weight.values[i] = static_cast<double>(std::min(count[i], kMostCounted));
    total.values[i] = total.values[i] / static_cast<double>(std::max<int64_t>(count[i], 1)) *
                      weight.values[i];
  }
  const Grid around = sum_of_nine(weight);
  Grid mean = sum_of_nine(total);
  Mask known(mean.size());
  for (int64_t i = 0; i < mean.size(); ++i) {
    mean.values[i] /= std::max(around.values[i], 1.0);
    known[i] = around.values[i] > 0.0;
  }
  mean = fill(mean, known);
  for (size_t i = 0; i < places.size(); ++i) {
    (*above)[i] -= bilinear(mean, places[i][0] - 0.5, places[i][1] - 0.5);
  }
}

}  // namespace

std::vector<double> height_above_ground(const double* points, int64_t n) {
  double low[3] = {points[0], points[1], points[2]};
  for (int64_t i = 0; i < n; ++i) {
    for (int axis = 0; axis < 3; ++axis) low[axis] = std::min(low[axis], points[3 * i + axis]);
  }
  std::vector<Place> places(n);
  std::vector<double> above(n);
  for (int64_t i = 0; i < n; ++i) {
    places[i] = {(points[3 * i] - low[0]) / kCell, (points[3 * i + 1] - low[1]) / kCell};
    above[i] = points[3 * i + 2] - low[2];
  }
  double cell = kCell;
  Place high = highest(places);
  if ((high[0] + 1) * (high[1] + 1) > static_cast<double>(kMaxCells)) {
    for (int axis = 0; axis < 2; ++axis) cut_gaps(&places, axis);
    high = highest(places);
    const double extent[2] = {high[0] * kCell, high[1] * kCell};
    cell = std::max({kCell, std::sqrt(extent[0] * extent[1] / static_cast<double>(kMaxCells)),
                     (extent[0] + extent[1]) / static_cast<double>(kMaxCells)});
    for (Place& place : places) {
      for (double& value : place) value *= kCell / cell;
    }
  }
  Grid lowest = empty_cells(places);
  for (int64_t i = 0; i < n; ++i) {
    double& least = lowest.values[cell_of(places[i], lowest)];
    least = std::min(least, above[i]);
  }
  const Grid ground = ground_surface(lowest, cell);
  for (int64_t i = 0; i < n; ++i) {
    above[i] -= bilinear(ground, places[i][0] - 0.5, places[i][1] - 0.5);
  }
  const double cells = static_cast<double>(lowest.size());
  const double finer = std::min(2.0, std::max(1.0, std::sqrt(kMaxCells / cells)));
  for (Place& place : places) {
    for (double& value : place) value *= finer;
  }
  correct_ground(&above, places);
  return above;
}

}  // namespace dela::capi
