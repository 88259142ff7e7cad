// The two operators as functions over a range of rows, so that OpenMP loops and
// ONNX Runtime's thread pool drive the same code. Declared once per instruction set.
#pragma once

#include "cpu/common.h"
#include "cpu/dispatch.h"

namespace dela {

// SPSE: out[m, c] = sqrt(min over j of epsilon + |W_c^T (x_j - x_m - p_c)|^2 + attributes + directions).
// Row m of `neighbors` belongs to point m.
struct Spse {
  const float* points;        // [n_points, 3 + attributes + directions], row stride in floats below
  int64_t stride;
  const int32_t* neighbors;   // [n_rows, k], every value in [0, n_points)
  const float* weight;        // [12 + attributes + directions, channels]
  float epsilon;
  int64_t n_points, n_rows;
  int32_t k, channels, attributes, directions;
};

// SPAMP: out[m, c] = max over j of (f[j, c] - f[i, c]) * exp(-s_g (1e-8 + |x_j - x_i - p_g|^2)).
enum class FeatureType : int32_t { f32 = 0, f16 = 1, bf16 = 2 };
struct Spamp {
  const void* features;       // [n_points, channels] of `type`
  FeatureType type;
  const float* points;        // [n_points, 3], row stride in floats below
  int64_t stride;
  const int32_t* neighbors;   // [n_rows, k]
  const int32_t* centers;     // [n_rows] or null: row m belongs to point m
  const float* weight;        // [4, channels / 4]
  int64_t n_points, n_rows;
  int32_t k, channels;
};

// Winner slots are saved as uint8 when k <= 256, else as uint16 (k <= 65536).
inline int winner_bytes(int32_t k) { return k <= 256 ? 1 : 2; }

// First row m whose table `values` [rows, columns] holds a value outside [0, limit), or -1.
int64_t first_bad_row(const int32_t* values, int64_t rows, int64_t columns, int64_t limit,
                      int32_t threads);

}  // namespace dela

// `prepared` holds `*_prepared_floats` floats, 64-byte aligned, filled once per call.
DELA_DECLARE(int64_t spse_prepared_floats(const Spse& op))
DELA_DECLARE(void spse_prepare(const Spse& op, float* prepared))
DELA_DECLARE(void spse_rows(const Spse& op, const float* prepared, int64_t begin, int64_t end,
                            float* out, void* winner))
DELA_DECLARE(int64_t spamp_prepared_floats(const Spamp& op))
DELA_DECLARE(void spamp_prepare(const Spamp& op, float* prepared))
// `out` has the type of the features.
DELA_DECLARE(void spamp_rows(const Spamp& op, const float* prepared, int64_t begin, int64_t end,
                             void* out, void* winner))
