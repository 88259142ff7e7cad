#include "capi/scan.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "capi/failure.h"
#include "cpu/geometry.h"

// The geometry's C ABI, of plugins/cpu/geometry.cpp.
extern "C" {
int32_t dela_voxel_grid(const void* points, int32_t is_double, int64_t n, double size, int64_t pick,
                        uint64_t seed, int32_t threads, int32_t* kept, int32_t* voxel_of_point,
                        int64_t* count);
int32_t dela_tree_build(const float* points, int64_t n, int32_t threads, void** tree);
void dela_tree_free(void* tree);
int32_t dela_tree_knn(const void* tree, const void* queries, int32_t k, int32_t offset,
                      int32_t threads, int32_t* out);
int32_t dela_farthest_points(const float* points, const int64_t* starts, int64_t clouds,
                             int64_t count, int32_t threads, int32_t* out);
}

namespace dela::capi {
namespace {

void check(int32_t status, double size) {
  if (status == kOk) return;
  if (status == kOutOfMemory) throw std::bad_alloc();
  if (status == kGridTooFine) {
    fail(DELA_BAD_INPUT,
         "voxels of %g over this scan's extent are more than 2^42 along an axis; remove stray points",
         size);
  }
  if (status == kNotFinite) fail(DELA_BAD_INPUT, "a coordinate is beyond %g", 1e18);
  fail(DELA_FAILED, "the geometry refused its arguments (code %d)", status);
}

struct VoxelGrid {
  std::vector<int32_t> kept, voxel_of_point;
};

VoxelGrid voxel_grid(const std::vector<double>& points, double size, double told_size, int64_t pick,
                     int threads) {
  const auto n = static_cast<int64_t>(points.size() / 3);
  VoxelGrid grid{std::vector<int32_t>(n), std::vector<int32_t>(n)};
  int64_t count = 0;
  check(dela_voxel_grid(points.data(), 1, n, size, pick, 0, threads, grid.kept.data(),
                        grid.voxel_of_point.data(), &count),
        told_size);
  grid.kept.resize(count);
  return grid;
}

// The rows that a coarser stage keeps, ascending; its voxels are counted from the scene's corner.
std::vector<int32_t> coarser_rows(const std::vector<float>& points, double size, int threads) {
  std::vector<double> cells(points.size());
  for (size_t i = 0; i < points.size(); ++i) {
    cells[i] = std::floor(static_cast<double>(points[i]) / size);
  }
  std::vector<int32_t> rows = voxel_grid(cells, 1.0, size, 0, threads).kept;
  std::sort(rows.begin(), rows.end());
  return rows;
}

class Tree {
 public:
  Tree(const float* points, int64_t n, int threads) : n_(n), threads_(threads) {
    void* tree = nullptr;
    check(dela_tree_build(points, n, threads, &tree), 0.0);
    tree_.reset(tree);
  }
  std::vector<int32_t> knn(int32_t k, const Tree& queries) const {
    std::vector<int32_t> out(static_cast<size_t>(queries.n_) * k);
    check(dela_tree_knn(tree_.get(), queries.tree_.get(), k, 0, threads_, out.data()), 0.0);
    return out;
  }

 private:
  struct Free {
    void operator()(void* tree) const { dela_tree_free(tree); }
  };
  std::unique_ptr<void, Free> tree_;
  int64_t n_;
  int threads_;
};

template <class T, class Row>
std::vector<T> gather(const std::vector<T>& values, const std::vector<Row>& rows, int64_t columns) {
  std::vector<T> out(rows.size() * columns);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(values.begin() + static_cast<int64_t>(rows[i]) * columns, columns,
                out.begin() + static_cast<int64_t>(i) * columns);
  }
  return out;
}

Pyramid object_pyramid(const Scan& scan, const Contract& contract, int threads) {
  const int64_t starts[2] = {0, scan.count()}, count = contract.points[0];
  std::vector<int32_t> rows(count);
  check(dela_farthest_points(scan.points.data(), starts, 1, count, threads, rows.data()), 0.0);
  Pyramid pyramid;
  pyramid.points = gather(scan.points, rows, 3);
  for (int stage = 0; stage < contract.stages(); ++stage) {
    const Tree tree(pyramid.points.data(), contract.points[stage], threads);
    pyramid.neighbors.push_back(tree.knn(contract.neighbors[stage], tree));
    if (stage == 0) continue;
    std::vector<int32_t> kept(contract.points[stage]);
    for (size_t i = 0; i < kept.size(); ++i) kept[i] = static_cast<int32_t>(i);
    pyramid.kept.push_back(std::move(kept));
  }
  return pyramid;
}

}  // namespace

Scan make_scan(const Cloud& cloud, const Contract& contract, int64_t pick, int threads) {
  const int64_t n = cloud.count();
  Scan scan;
  if (contract.classification) {
    scan.points.assign(cloud.points.begin(), cloud.points.end());
    scan.attributes = cloud.attributes;
    scan.voxel_of_point.assign(n, 0);
    return scan;
  }
  VoxelGrid grid = voxel_grid(cloud.points, contract.grid[0], contract.grid[0], pick, threads);
  if (grid.kept.size() == 1 && n > 1) {
    fail(DELA_BAD_INPUT,
         "all %s points fall into one voxel of %g m (extent %.3g); the model wants coordinates in "
         "meters",
         with_commas(n).c_str(), contract.grid[0],
         *std::max_element(cloud.points.begin(), cloud.points.end()));
  }
  const std::vector<double> points = gather(cloud.points, grid.kept, 3);
  scan.points.assign(points.begin(), points.end());
  scan.attributes =
      gather(cloud.attributes, grid.kept, static_cast<int64_t>(contract.columns.size()));
  scan.voxel_of_point = std::move(grid.voxel_of_point);
  return scan;
}

Scan turned(const Scan& scan, const double matrix[9], const Contract& contract) {
  Scan out = scan;
  const int64_t n = scan.count();
  double middle[3] = {0.0, 0.0, 0.0};
  for (int64_t i = 0; i < 3 * n; ++i) middle[i % 3] += static_cast<double>(scan.points[i]);
  for (double& value : middle) value /= static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) {
    const float* from = scan.points.data() + 3 * i;
    const double apart[3] = {from[0] - middle[0], from[1] - middle[1], from[2] - middle[2]};
    for (int axis = 0; axis < 3; ++axis) {
      const double* row = matrix + 3 * axis;
      out.points[3 * i + axis] = static_cast<float>(
          row[0] * apart[0] + row[1] * apart[1] + row[2] * apart[2] + middle[axis]);
    }
  }
  if (contract.first_vector < 0) return out;
  const auto columns = static_cast<int64_t>(contract.columns.size());
  for (int64_t i = 0; i < n; ++i) {
    const float* from = scan.attributes.data() + i * columns + contract.first_vector;
    float* to = out.attributes.data() + i * columns + contract.first_vector;
    for (int axis = 0; axis < 3; ++axis) {
      const double* row = matrix + 3 * axis;
      to[axis] = static_cast<float>(row[0]) * from[0] + static_cast<float>(row[1]) * from[1] +
                 static_cast<float>(row[2]) * from[2];
    }
  }
  return out;
}

Pyramid build_pyramid(const Scan& scan, const Tile& tile, const Contract& contract, int threads) {
  if (contract.classification) return object_pyramid(scan, contract, threads);
  Pyramid pyramid;
  pyramid.points = gather(scan.points, tile.rows, 3);
  pyramid.attributes =
      gather(scan.attributes, tile.rows, static_cast<int64_t>(contract.columns.size()));
  std::vector<float> points = pyramid.points;
  const Tree first(points.data(), static_cast<int64_t>(points.size() / 3), threads);
  pyramid.neighbors.push_back(first.knn(contract.neighbors[0], first));
  for (int stage = 1; stage < contract.stages(); ++stage) {
    pyramid.kept.push_back(coarser_rows(points, contract.grid[stage], threads));
    points = gather(points, pyramid.kept.back(), 3);
    const Tree tree(points.data(), static_cast<int64_t>(points.size() / 3), threads);
    pyramid.neighbors.push_back(tree.knn(contract.neighbors[stage], tree));
    pyramid.nearest.push_back(tree.knn(1, first));
  }
  return pyramid;
}

}  // namespace dela::capi
