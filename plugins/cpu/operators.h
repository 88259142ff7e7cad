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

// What SPSE's backward pass is given, each [n_rows, channels].
struct SpseGradient {
  const float* out;
  const float* gradient;      // of `out`
  const void* winner;
};

// SPAMP: out[m, c] = max over j of (f[j, c] - f[i, c]) * exp(-s_g (1e-8 + |x_j - x_i - p_g|^2)).
// Its residual form is base[m, c] + scale[c] times that.
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
  int32_t k, channels;        // channels: a multiple of 4
  const void* base;           // [n_rows, channels] of `type`, or null: the maximum alone
  const float* scale;         // [channels], read where there is a base
};

// What SPAMP's backward pass is given, each [n_rows, channels]; `out` and `gradient` of `type`.
struct SpampGradient {
  const void* out;
  const void* gradient;
  const void* winner;
};

// Neighbors per row at most: a winner's slot has 16 bits.
constexpr int32_t kMaxNeighbors = 65535;

// Winner slots are saved as uint8 when k <= 256, else as uint16.
static inline int winner_bytes(int32_t k) { return k <= 256 ? 1 : 2; }

// First row whose entries in `values` [rows, columns] are not all in [0, limit), or -1.
int64_t first_bad_row(const int32_t* values, int64_t rows, int64_t columns, int64_t limit,
                      int32_t threads);

}  // namespace dela

// True when all `count` values lie in [0, limit).
DELA_DECLARE(bool indices_within(const int32_t* values, int64_t count, int64_t limit))

// Forward: `*_prepare` fills `*_prepared_floats` floats once per call, then `*_rows` may run on
// any ranges of rows, in parallel. A neighbor whose value is not a number never wins; where no
// neighbor has one, the result is not a number. `winner` is null or [n_rows, channels] slots.
DELA_DECLARE(int64_t spse_prepared_floats(const Spse& op))
DELA_DECLARE(void spse_prepare(const Spse& op, float* prepared))
DELA_DECLARE(void spse_rows(const Spse& op, const float* prepared, int64_t begin, int64_t end,
                            float* out, void* winner))
DELA_DECLARE(int64_t spamp_prepared_floats(const Spamp& op))
DELA_DECLARE(void spamp_prepare(const Spamp& op, float* prepared))
// `out` has the type of the features.
DELA_DECLARE(void spamp_rows(const Spamp& op, const float* prepared, int64_t begin, int64_t end,
                             void* out, void* winner))

// SPSE backward: rows of one chunk add to its `spse_moment_floats` moments (zeroed before); the
// weight's gradient comes from all chunks' moments, added in order.
DELA_DECLARE(int64_t spse_moment_floats(const Spse& op))
DELA_DECLARE(void spse_backward_rows(const Spse& op, const SpseGradient& given, int64_t begin,
                                     int64_t end, float* moments))
DELA_DECLARE(void spse_weight_gradient(const Spse& op, const float* moments, int64_t chunks,
                                       float* weight_gradient))

// SPAMP backward: rows [begin, end) write what each output passes on to its winner, `passed`
// [end - begin, channels], and add to the chunk's `spamp_sum_floats` sums (zeroed before). Then
// channels [first, last) of those rows are added to `feature_gradient` [n_points, channels].
DELA_DECLARE(int64_t spamp_sum_floats(const Spamp& op))
DELA_DECLARE(void spamp_backward_rows(const Spamp& op, const SpampGradient& given, int64_t begin,
                                      int64_t end, float* passed, float* sums))
DELA_DECLARE(void spamp_backward_channels(const Spamp& op, const void* winner, const float* passed,
                                          int64_t begin, int64_t end, int64_t first_channel,
                                          int64_t last_channel, float* feature_gradient))
DELA_DECLARE(void spamp_weight_gradient(const Spamp& op, const float* sums, int64_t chunks,
                                        float* weight_gradient))
