// Cell numbers of points and the bounding box, in float64 so that no coordinate loses anything.
#include "cpu/geometry.h"

namespace dela {
namespace DELA_ISA {
namespace {

// Eight points: the axis pattern x y z repeats without a remainder.
constexpr int kBlock = 24;

template <typename T>
void cells(const T* values, int64_t count, const double* origin, double size, int32_t* out) {
  double origins[kBlock];
  for (int i = 0; i < kBlock; ++i) origins[i] = origin[i % 3];
  int64_t start = 0;
  for (; start + kBlock <= count; start += kBlock) {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      out[start + i] =
          static_cast<int32_t>((static_cast<double>(values[start + i]) - origins[i]) / size);
    }
  }
  for (; start < count; ++start) {
    out[start] =
        static_cast<int32_t>((static_cast<double>(values[start]) - origins[start % 3]) / size);
  }
}

template <typename T>
bool bounds(const T* values, int64_t points, double* lowest, double* highest) {
  T low[kBlock], high[kBlock], probe[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    low[i] = high[i] = values[i % 3];
    probe[i] = 0;
  }
  const int64_t count = 3 * points;
  int64_t start = 0;
  // NaN and infinity times zero are NaN; anything else leaves the probe at zero.
  for (; start + kBlock <= count; start += kBlock) {
#pragma omp simd
    for (int i = 0; i < kBlock; ++i) {
      const T value = values[start + i];
      low[i] = value < low[i] ? value : low[i];
      high[i] = value > high[i] ? value : high[i];
      probe[i] += value * T(0);
    }
  }
  for (; start < count; ++start) {
    const int i = static_cast<int>(start % 3);
    const T value = values[start];
    low[i] = value < low[i] ? value : low[i];
    high[i] = value > high[i] ? value : high[i];
    probe[i] += value * T(0);
  }
  bool finite = true;
  for (int axis = 0; axis < 3; ++axis) {
    T lowest_value = low[axis], highest_value = high[axis];
    for (int i = axis; i < kBlock; i += 3) {
      lowest_value = low[i] < lowest_value ? low[i] : lowest_value;
      highest_value = high[i] > highest_value ? high[i] : highest_value;
      finite = finite && probe[i] == T(0);
    }
    lowest[axis] = static_cast<double>(lowest_value);
    highest[axis] = static_cast<double>(highest_value);
  }
  return finite;
}

}  // namespace

void cells_f32(const float* values, int64_t count, const double* origin, double size,
               int32_t* out) {
  cells(values, count, origin, size, out);
}

void cells_f64(const double* values, int64_t count, const double* origin, double size,
               int32_t* out) {
  cells(values, count, origin, size, out);
}

bool bounds_f32(const float* values, int64_t points, double* lowest, double* highest) {
  return bounds(values, points, lowest, highest);
}

bool bounds_f64(const double* values, int64_t points, double* lowest, double* highest) {
  return bounds(values, points, lowest, highest);
}

}  // namespace DELA_ISA
}  // namespace dela
