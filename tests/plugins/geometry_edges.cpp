// Edge cases of the geometry calls, for a build with sanitizers: arrays of exactly the sizes the C
// ABI promises, results checked against brute force.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

extern "C" {
int32_t dela_set_isa(const char*);
int32_t dela_voxel_grid(const void*, int32_t, int64_t, double, int64_t, uint64_t, int32_t,
                        int32_t*, int32_t*, int64_t*);
int32_t dela_tree_build(const float*, int64_t, int32_t, void**);
void dela_tree_free(void*);
int32_t dela_tree_knn(const void*, const void*, int32_t, int32_t, int32_t, int32_t*);
int32_t dela_farthest_points(const float*, const int64_t*, int64_t, int64_t, int32_t, int32_t*);
}

namespace {

#define REQUIRE(condition)                                               \
  do {                                                                   \
    if (!(condition)) {                                                  \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);        \
      std::exit(1);                                                      \
    }                                                                    \
  } while (false)

std::mt19937 generator(7);

std::vector<float> cloud(int64_t n, int kind) {
  std::normal_distribution<float> normal;
  std::vector<float> points(3 * n);
  for (int64_t i = 0; i < n; ++i) {
    const float scale = kind == 3 ? std::exp(8 * normal(generator)) : 1.0f;
    for (int axis = 0; axis < 3; ++axis) points[3 * i + axis] = scale * normal(generator);
    if (kind == 1) points[3 * i + 2] = 0;                       // a plane
    if (kind == 2) points[3 * i] = points[3 * i + 1] = 0;       // a line
    if (kind == 4) {                                            // a lattice with duplicates
      for (int axis = 0; axis < 3; ++axis) points[3 * i + axis] = std::round(points[3 * i + axis]);
    }
    if (kind == 5) std::fill_n(points.begin() + 3 * i, 3, 1e6f);  // all the same
  }
  return points;
}

float distance2(const float* a, const float* b) {
  const float x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
  volatile float xx = x * x, yy = y * y, zz = z * z;  // no fused multiplication
  volatile float sum = xx + yy;
  return sum + zz;
}

void neighbors(const std::vector<float>& points, const std::vector<float>& queries, bool self,
               int32_t k) {
  const int64_t n = points.size() / 3, m = queries.size() / 3;
  void *tree = nullptr, *asked = nullptr;
  REQUIRE(dela_tree_build(points.data(), n, 2, &tree) == 0);
  if (!self) REQUIRE(dela_tree_build(queries.data(), m, 2, &asked) == 0);
  std::vector<int32_t> out(m * k);
  REQUIRE(dela_tree_knn(tree, self ? tree : asked, k, 5, 2, out.data()) == 0);
  std::vector<int32_t> order(n);
  std::vector<float> away(n);
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t i = 0; i < n; ++i) away[i] = distance2(&points[3 * i], &queries[3 * row]);
    if (self) away[row] = -1;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return away[a] < away[b]; });
    for (int32_t i = 0; i < k; ++i) REQUIRE(out[row * k + i] == order[i < n ? i : 0] + 5);
  }
  dela_tree_free(tree);
  dela_tree_free(asked);
}

template <typename T>
void voxels(const std::vector<float>& source, double size, int64_t pick) {
  const std::vector<T> points(source.begin(), source.end());
  const int64_t n = points.size() / 3;
  std::vector<int32_t> kept(n), voxel(n);
  int64_t count = -1;
  const int32_t status = dela_voxel_grid(points.data(), sizeof(T) == 8, n, size, pick, 3, 2,
                                         kept.data(), voxel.data(), &count);
  if (status == 4) return;  // more than 2^42 cells along an axis
  REQUIRE(status == 0);
  REQUIRE((n == 0) == (count == 0));
  for (int64_t i = 0; i < n; ++i) REQUIRE(voxel[i] >= 0 && voxel[i] < count);
  for (int64_t i = 0; i < count; ++i) REQUIRE(voxel[kept[i]] == i);
}

void farthest(const std::vector<float>& points, int64_t count) {
  const int64_t n = points.size() / 3;
  const int64_t starts[] = {0, n};
  std::vector<int32_t> out(count);
  REQUIRE(dela_farthest_points(points.data(), starts, 1, count, 2, out.data()) == 0);
  std::vector<bool> seen(n);
  for (int64_t i = 0; i < count; ++i) {
    REQUIRE(out[i] >= 0 && out[i] < n);
    REQUIRE(i >= n ? out[i] == out[i - n] : !seen[out[i]]);
    seen[out[i]] = true;
  }
}

void every_cloud() {
  for (int kind = 0; kind < 6; ++kind) {
    for (int64_t n : {1, 2, 15, 16, 17, 64, 65, 700}) {
      const std::vector<float> points = cloud(n, kind), queries = cloud(37, kind);
      for (int32_t k : {1, 2, 24, 33, 300}) {
        neighbors(points, points, true, k);
        neighbors(points, queries, false, k);
      }
      for (double size : {1e3, 0.1, 1e-4, 1e-6}) {
        voxels<float>(points, size, 0);
        voxels<double>(points, size, 7);
        voxels<float>(points, size, -1);
      }
      for (int64_t count : {int64_t{1}, n, n + 3}) farthest(points, count);
    }
  }
  neighbors(cloud(20000, 0), cloud(5, 0), false, 24);  // large enough for tasks
}

}  // namespace

int main() {
  for (const char* name : {"portable", "v2", "v3", "v4", "neon"}) {
    if (dela_set_isa(name) == 0) every_cloud();
  }

  int32_t kept[1], voxel[1];
  int64_t count;
  void* tree;
  REQUIRE(dela_voxel_grid(nullptr, 0, 0, 1.0, 0, 0, 1, nullptr, nullptr, &count) == 0);
  REQUIRE(count == 0);
  REQUIRE(dela_tree_build(nullptr, 0, 1, &tree) == 2);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY, 1e30f}) {
    const float point[] = {0, bad, 0};
    REQUIRE(dela_tree_build(point, 1, 1, &tree) == 3);
    if (bad != 1e30f) {
      REQUIRE(dela_voxel_grid(point, 0, 1, 1.0, 0, 0, 1, kept, voxel, &count) == 3);
    }
  }
  const double apart[] = {0, 0, 0, 1e9, 0, 0};
  int32_t two_kept[2], two_voxels[2];
  REQUIRE(dela_voxel_grid(apart, 1, 2, 0.02, 0, 0, 1, two_kept, two_voxels, &count) == 0);
  REQUIRE(count == 2);
  REQUIRE(dela_voxel_grid(apart, 1, 2, 1e-6, 0, 0, 1, two_kept, two_voxels, &count) == 4);
  std::printf("clean\n");
  return 0;
}
