// What every kernel shares: integer types, the launch shape, guards against bad indices.
// Compiled by NVRTC for devices and, after a header that stands in for CUDA, by a C++ compiler.
#pragma once

#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cstddef>
#include <cstdint>
#endif

#define DELA_DEVICE __device__ __forceinline__
// `blocks`: how many the registers must leave room for on one multiprocessor.
#define DELA_KERNEL(blocks) extern "C" __global__ void __launch_bounds__(dela::kBlock, blocks)
// What only training needs is left out of the images that are embedded into libdela_trt.so.
#if defined(DELA_INFERENCE)
#define DELA_TRAINING(...)
#else
#define DELA_TRAINING(...) __VA_ARGS__
#endif

namespace dela {

constexpr int32_t kBlock = 128;
constexpr int kGroup = 4;  // channels of SPAMP that share one weight
// Kernels that add partial sums: channels per block, and threads per channel.
constexpr int kReducedChannels = 8, kLanes = kBlock / kReducedChannels;

DELA_DEVICE float infinity() { return __int_as_float(0x7f800000); }
DELA_DEVICE float not_a_number() { return __int_as_float(0x7fc00000); }

// This thread's number within the grid.
DELA_DEVICE uint32_t thread_number() { return blockIdx.x * blockDim.x + threadIdx.x; }

// `index`, or `instead` when it lies outside [0, n): memory is never read out of bounds.
DELA_DEVICE int32_t guarded(int32_t index, int32_t n, int32_t instead) {
  return static_cast<uint32_t>(index) < static_cast<uint32_t>(n) ? index : instead;
}

// The point that row `row` of a neighbor table belongs to.
DELA_DEVICE int32_t center_of(const int32_t* centers, int32_t row, int32_t n) {
  return centers == nullptr ? row : guarded(__ldg(centers + row), n, 0);
}

// What a SPAMP thread takes: piece `piece` of the `pieces` that the channels of row `row` are cut
// into.
//
// A block takes 16 or 8 neighboring pieces of many neighboring rows, not whole rows: neighboring
// rows have neighbors in common, whose features it then finds in its multiprocessor's own cache.
struct Tile {
  uint32_t row, piece;
  bool inside;

  DELA_DEVICE Tile(uint32_t rows, uint32_t pieces) {
    const uint32_t width = pieces % 16 == 0 ? 16 : pieces % 8 == 0 ? 8 : pieces;
    const uint32_t number = thread_number() / width, tile = number / rows;
    row = number - tile * rows;
    piece = tile * width + thread_number() - number * width;
    inside = piece < pieces;
  }
};

// 2^x by the special function unit: relative error 2^-22, results below 2^-126 are 0.
DELA_DEVICE float exp2_approximate(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// Square root of x >= 0: relative error 2^-23, x below 2^-126 counts as 0.
DELA_DEVICE float root_approximate(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return sqrtf(x);
#endif
}

}  // namespace dela
