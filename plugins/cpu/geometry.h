// Search tree, voxel cells and farthest point sampling: what the orchestration in geometry.cpp
// and the kernels compiled per instruction set share.
#pragma once

#include "cpu/common.h"
#include "cpu/dispatch.h"

namespace dela {

// Codes of the geometry calls beyond those of common.h.
enum GeometryStatus : int32_t {
  kNotFinite = 3,   // a coordinate is NaN, infinite or beyond kLargestCoordinate
  kGridTooFine = 4, // more than 2^42 cells along an axis
};

// Squared distances of coordinates up to this stay finite in float32.
constexpr float kLargestCoordinate = 1e18f;

// A leaf of the search tree holds this many points: one AVX-512 register of floats.
constexpr int64_t kLeafPoints = 16;

// Balanced k-d tree. Points lie in leaf order, so node [a, b) owns points 16 a .. 16 b; nodes are
// numbered in preorder: the left child of `node` is node + 1 and owns [a, m), the right one is
// node + 2 (m - a), with m = (a + b + 1) / 2. Points of a node without extent are sorted by index.
struct TreeView {
  const float* x;        // [16 leaves], +inf past the last point
  const float* y;
  const float* z;
  const int32_t* index;  // row in the caller's array
  const float* boxes;    // [2 leaves - 1, 8]: lowest x y z, highest x y z, unused
  const float* leaf_boxes;  // [leaves, 8]: the same for leaves alone
  int64_t points, leaves;
};

struct NeighborSearch {
  TreeView tree, queries;
  bool self;       // the queries are the tree's own points: each is its own first neighbor
  int32_t k;
  int32_t offset;  // added to every row of the result
  int32_t* out;    // [queries, k]
};

}  // namespace dela

// Bytes of scratch (64-byte aligned) that one thread needs for a search.
DELA_DECLARE(int64_t neighbor_scratch_bytes(int32_t k))
// Answers the queries of leaves begin .. end of the query tree.
DELA_DECLARE(void neighbor_search(const NeighborSearch& search, int64_t begin, int64_t end,
                                  void* scratch))
// Cells of 24-value blocks: cell[i] = trunc((value[i] - origin[i % 3]) / size), at most 2^31 - 1.
DELA_DECLARE(void cells_f32(const float* values, int64_t count, const double* origin, double size,
                            int32_t* cells))
DELA_DECLARE(void cells_f64(const double* values, int64_t count, const double* origin, double size,
                            int32_t* cells))
// Lowest and highest value per axis; false when a value is not finite.
DELA_DECLARE(bool bounds_f32(const float* values, int64_t points, double* lowest, double* highest))
DELA_DECLARE(bool bounds_f64(const double* values, int64_t points, double* lowest,
                             double* highest))
// Order of farthest point sampling of one cloud. `scratch`: 4 floats per point, points rounded up
// to 64.
DELA_DECLARE(void farthest_points(const float* points, int64_t n, int64_t count, int32_t offset,
                                  float* scratch, int32_t* out))
