// Looks at a scan: the scene turned, the network's answers added up point by point, the labels.
//
// What is computed is defined in dela/scan/votes.py and, for the turn, in dela/scan/voxels.py. A thread takes a
// row of all classes: neighboring rows lie side by side, so what one thread leaves of a line of the
// cache the next ones take.
#include "cuda/geometry.cuh"

namespace dela {
namespace {

constexpr int kMiddleThreads = 512;

// An orthogonal matrix, row by row.
struct Turn {
  double row[3][3];

  DELA_DEVICE double component(int axis, double x, double y, double z) const {
    return x * row[axis][0] + y * row[axis][1] + z * row[axis][2];
  }
};

DELA_DEVICE int64_t row_of_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace
}  // namespace dela

// Mean of n >= 1 points, added up in double and in the same order every time. One block.
extern "C" __global__ void __launch_bounds__(dela::kMiddleThreads, 1)
dela_middle(const float* points, int32_t n, double* middle) {
  __shared__ double sums[3][dela::kMiddleThreads];
  const int thread = threadIdx.x;
  double own[3] = {0.0, 0.0, 0.0};
  for (int64_t row = thread; row < n; row += dela::kMiddleThreads) {
    for (int axis = 0; axis < 3; ++axis) own[axis] += points[3 * row + axis];
  }
  for (int axis = 0; axis < 3; ++axis) sums[axis][thread] = own[axis];
  for (int step = dela::kMiddleThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (thread < step) {
      for (int axis = 0; axis < 3; ++axis) sums[axis][thread] += sums[axis][thread + step];
    }
  }
  __syncthreads();
  if (thread < 3) middle[thread] = sums[thread][0] / n;
}

// Points turned about `middle` by the matrix a b c / d e f / g h i.
DELA_KERNEL(8)
dela_turn_points(const float* points, const double* middle, int32_t n, double a, double b, double c,
                 double d, double e, double f, double g, double h, double i, float* out) {
  const int64_t row = dela::row_of_thread();
  if (row >= n) return;
  const dela::Turn turn{{{a, b, c}, {d, e, f}, {g, h, i}}};
  const double x = points[3 * row] - middle[0], y = points[3 * row + 1] - middle[1],
               z = points[3 * row + 2] - middle[2];
  for (int axis = 0; axis < 3; ++axis) {
    out[3 * row + axis] = static_cast<float>(turn.component(axis, x, y, z) + middle[axis]);
  }
}

// The vector in the columns `first` to `first` + 2 of `values` [n, columns], turned in place.
DELA_KERNEL(8)
dela_turn_vectors(int32_t n, int32_t columns, int32_t first, double a, double b, double c, double d,
                  double e, double f, double g, double h, double i, float* values) {
  const int64_t row = dela::row_of_thread();
  if (row >= n) return;
  const dela::Turn turn{{{a, b, c}, {d, e, f}, {g, h, i}}};
  float* vector = values + row * columns + first;
  const double x = vector[0], y = vector[1], z = vector[2];
  for (int axis = 0; axis < 3; ++axis) {
    vector[axis] = static_cast<float>(turn.component(axis, x, y, z));
  }
}

// Probabilities of logits [n, classes]. Row i goes to row rows[i] of `out`, to none where that is
// below 0, to row i where `rows` is null. A row with a NaN is NaN.
DELA_KERNEL(8)
dela_softmax(const float* logits, const int32_t* rows, int32_t n, int32_t classes, float* out) {
  const int64_t row = dela::row_of_thread();
  if (row >= n) return;
  const int64_t to = rows == nullptr ? row : rows[row];
  if (to < 0) return;
  const float* from = logits + row * classes;
  float* answer = out + to * classes;
  float highest = from[0];
  for (int32_t k = 1; k < classes; ++k) highest = fmaxf(highest, from[k]);
  double sum = 0.0;
  for (int32_t k = 0; k < classes; ++k) {
    const float share = expf(from[k] - highest);
    answer[k] = share;
    sum += share;
  }
  for (int32_t k = 0; k < classes; ++k) answer[k] /= static_cast<float>(sum);
}

// Adds one vote to the first n points of a scan, or begins with it where `is_first`: each takes the
// probabilities of its voxel, weighted by exp(-d^2 / reach^2) + far, d being its distance from where
// the vote's point of that voxel stands. x y z is taken off the points; no operation is fused.
DELA_KERNEL(6)
dela_add_vote(const void* points, const int32_t* voxel_of_point, const float* standing,
              const float* probabilities, int32_t is_double, int32_t is_first, int32_t n,
              int32_t classes, double x, double y, double z, double reach_squared, double far,
              float* totals, float* weights) {
  const int64_t row = dela::row_of_thread();
  if (row >= n) return;
  const int64_t voxel = voxel_of_point[row];
  const double origin[3] = {x, y, z};
  double square = 0.0;
  for (int axis = 0; axis < 3; ++axis) {
    const double apart = (dela::coordinate(points, is_double, 3 * row + axis) - origin[axis]) -
                         standing[3 * voxel + axis];
    square = __dadd_rn(square, __dmul_rn(apart, apart));
  }
  const float weight = static_cast<float>(exp(-square / reach_squared) + far);
  weights[row] = is_first ? weight : weights[row] + weight;
  const float* answer = probabilities + voxel * classes;
  float* total = totals + row * classes;
  for (int32_t k = 0; k < classes; ++k) {
    const float share = __fmul_rn(weight, answer[k]);
    total[k] = is_first ? share : __fadd_rn(total[k], share);
  }
}

// The number of the highest value of each row of [n, classes], and that value: the first of equal
// ones, and the first NaN before any number. Where `weights` is not null each row is divided by its
// weight first, in place.
DELA_KERNEL(8)
dela_label_rows(const float* weights, int32_t n, int32_t classes, float* values, int32_t* labels,
                float* confidence) {
  const int64_t row = dela::row_of_thread();
  if (row >= n) return;
  float* own = values + row * classes;
  float highest = 0.0f;
  int32_t label = -1;
  for (int32_t k = 0; k < classes; ++k) {
    float value = own[k];
    if (weights != nullptr) {
      value /= weights[row];
      own[k] = value;
    }
    if (label < 0 || (highest == highest && !(value <= highest))) {
      highest = value;
      label = k;
    }
  }
  labels[row] = label;
  confidence[row] = highest;
}
