// Launch geometry of the forward kernels for callers in C++: what launch.py says, in its words. A
// test compares the two.
#pragma once

#include <cstdint>

namespace dela::cuda {

constexpr int64_t kThreads = 128;  // of a block
// More threads than this cannot be numbered in 32 bits.
constexpr int64_t kMostThreads = (int64_t{1} << 32) - kThreads;

// Names of the kernels, by the numbers that the functions below answer.
constexpr const char* kKernelNames[] = {
    "dela_spse_0",
    "dela_spse_1",
    "dela_spse_2",
    "dela_spse_3",
    "dela_spse_4",
    "dela_spse_4_3",
    "dela_spse_any",
    "dela_spamp_f32",
    "dela_spamp_f16",
    "dela_spamp_bf16",
    "dela_spamp_f16_8",
    "dela_spamp_bf16_8",
    "dela_spamp_residual_f32",
    "dela_spamp_residual_f16",
    "dela_spamp_residual_bf16",
    "dela_spamp_residual_f16_8",
    "dela_spamp_residual_bf16_8",
};
constexpr int kKernels = sizeof kKernelNames / sizeof *kKernelNames;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The fastest kernel of SPSE for so many attributes and directions.
inline int spse_kernel(int32_t attributes, int32_t directions) {
  if (directions == 0 && attributes <= 4) return attributes;
  return directions == 3 && attributes == 4 ? 5 : 6;
}

// Rows per thread of SPSE: more on a large cloud, for a thread factors its metrics once.
inline int32_t spse_rows(int64_t n, int64_t c) {
  const int64_t rows = n * divide_up(c, 4) / 65536;
  return static_cast<int32_t>(rows < 1 ? 1 : rows > 4 ? 4 : rows);
}

inline int64_t spse_threads(int64_t n, int64_t c, int32_t rows) {
  return divide_up(n, rows) * divide_up(c, 4);
}

struct SpampKernel {
  int number;
  int width;  // channels per thread
};

// `type`: 0 float32, 1 float16, 2 bfloat16.
inline SpampKernel spamp_kernel(int type, int64_t c, bool residual) {
  const int first = residual ? 12 : 7;
  const bool wide = type != 0 && c % 8 == 0;
  return {first + type + (wide ? 2 : 0), wide ? 8 : 4};
}

}  // namespace dela::cuda
