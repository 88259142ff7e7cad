// Scenes cut into tiles that overlap, as dela/scan/tiles.py cuts them; see there for the reasons.
#include <algorithm>
#include <array>
#include <limits>
#include <numeric>

#include "capi/scan.h"

namespace dela::capi {
namespace {

// Where the full context does not fit into a tile, the core may fill this share of it.
constexpr double kCoreShare = 0.25;
// A tower is cut across its height only when it is this much longer than wide.
constexpr double kTower = 3.0;
// Context around a core, in cells of the coarsest stage (dela/families/dela/family.py).
constexpr double kContextCells = 4.0;

using Rows = std::vector<int64_t>;

struct Part {
  Rows core, around;  // rows of a core, and those among which its context lies
};

struct Box {
  std::array<float, 3> low, high;
};

Box box_of(const std::vector<float>& points, const Rows& rows) {
  Box box;
  for (int axis = 0; axis < 3; ++axis) {
    box.low[axis] = box.high[axis] = points[3 * rows[0] + axis];
    for (const int64_t row : rows) {
      box.low[axis] = std::min(box.low[axis], points[3 * row + axis]);
      box.high[axis] = std::max(box.high[axis], points[3 * row + axis]);
    }
  }
  return box;
}

// How far a point lies outside of a box along the axis where it is farthest; below 0 inside.
float outside(const Box& box, const float* point) {
  float most = -std::numeric_limits<float>::infinity();
  for (int axis = 0; axis < 3; ++axis) {
    most = std::max({most, box.low[axis] - point[axis], point[axis] - box.high[axis]});
  }
  return most;
}

std::array<Rows, 2> halves(const std::vector<float>& points, const Rows& core, const Box& box) {
  int longest = 0;
  double most = -1.0;
  for (int axis = 0; axis < 3; ++axis) {
    const double extent = static_cast<double>(box.high[axis] - box.low[axis]);
    const double counted = extent * (axis == 2 ? 1.0 / kTower : 1.0);
    if (counted > most) {
      most = counted;
      longest = axis;
    }
  }
  Rows order = core;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return points[3 * a + longest] < points[3 * b + longest];
  });
  const auto middle = order.begin() + static_cast<int64_t>(core.size() / 2);
  std::array<Rows, 2> result{Rows(order.begin(), middle), Rows(middle, order.end())};
  for (Rows& half : result) std::sort(half.begin(), half.end());
  return result;
}

Tile make_tile(const Rows& core, Rows around, const std::vector<float>& apart, int64_t max_points) {
  std::vector<char> is_core(around.size(), 0);
  size_t at = 0;
  for (const int64_t row : core) {  // both ascend
    while (around[at] != row) ++at;
    is_core[at] = 1;
  }
  if (static_cast<int64_t>(around.size()) <= max_points) return {std::move(around), is_core};
  // Points within the core's box but of another core count as nearest context.
  std::vector<float> distance(around.size());
  for (size_t i = 0; i < around.size(); ++i) {
    distance[i] =
        is_core[i] ? -std::numeric_limits<float>::infinity() : std::max(apart[i], 0.0f);
  }
  std::vector<size_t> order(around.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return distance[a] < distance[b]; });
  order.resize(max_points);
  std::sort(order.begin(), order.end());
  Tile tile;
  for (const size_t i : order) {
    tile.rows.push_back(around[i]);
    tile.core.push_back(is_core[i]);
  }
  return tile;
}

}  // namespace

std::vector<Tile> cut_tiles(const Scan& scan, const Contract& contract, int64_t max_points) {
  const int64_t count = scan.count();
  Rows all(count);
  std::iota(all.begin(), all.end(), int64_t{0});
  if (contract.classification || count <= max_points) {
    return {{std::move(all), std::vector<char>(count, 1)}};
  }
  const auto context = static_cast<float>(kContextCells * contract.grid.back());
  const auto smallest_core = std::max<int64_t>(
      1, static_cast<int64_t>(kCoreShare * static_cast<double>(max_points)));
  std::vector<Tile> tiles;
  std::vector<Part> parts{{all, all}};
  while (!parts.empty()) {
    const Part part = std::move(parts.back());
    parts.pop_back();
    const Box box = box_of(scan.points, part.core);
    Rows around;
    std::vector<float> apart;
    for (const int64_t row : part.around) {
      const float distance = outside(box, scan.points.data() + 3 * row);
      if (!(distance <= context)) continue;
      around.push_back(row);
      apart.push_back(distance);
    }
    if (static_cast<int64_t>(around.size()) > max_points &&
        static_cast<int64_t>(part.core.size()) > smallest_core) {
      std::array<Rows, 2> cores = halves(scan.points, part.core, box);
      parts.push_back({std::move(cores[1]), around});
      parts.push_back({std::move(cores[0]), std::move(around)});
      continue;
    }
    tiles.push_back(make_tile(part.core, std::move(around), apart, max_points));
  }
  return tiles;
}

}  // namespace dela::capi
