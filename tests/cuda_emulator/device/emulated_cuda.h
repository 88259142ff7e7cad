// CUDA's device language for g++: included before an unmodified .cu file. Vector, float16 and bfloat16
// types are NVIDIA's own headers in their host form; threads and barriers are in runtime.cpp.
#pragma once

#include "abi.h"

#include <algorithm>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>

#define __DEVICE_LAUNCH_PARAMETERS_H__  // threadIdx and the like are ours
#include <vector_functions.h>
#include <vector_types.h>

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __restrict__
#undef __align__
#if defined(EMULATED_NAMES_ONLY)
#define __global__ emulated_global_
#else
#define __global__
#endif
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One block runs at a time, so its memory is static; the section is refilled with junk before each.
#define __shared__ static __attribute__((section("emulated_shared")))

namespace emulated {

uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();
void block_barrier();
void warp_barrier(unsigned mask);
unsigned lane();
unsigned active_mask();
[[noreturn]] void trap();

// Every lane's value, after all lanes of `mask` have given theirs. The returned array is this warp's
// and lasts until its next exchange.
const uint64_t* exchange(unsigned mask, uint64_t value);
// Bit i: lane i takes part in the latest exchange of this warp.
unsigned exchanged();

template <class T>
uint64_t bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}

template <class T>
T from_bits(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// The value of lane `source`, or the own one where `source` is not among the lanes.
template <class T>
T shuffle(unsigned mask, T value, int source) {
  const uint64_t* all = exchange(mask, bits(value));
  return source >= 0 && source < 32 && (exchanged() >> source & 1u) ? from_bits<T>(all[source])
                                                                    : value;
}

// The launch's own copy of its arguments lies where no kernel may reach: this reads it unchecked.
void read_argument(void** arguments, size_t index, void* value, size_t size);

template <class T>
T argument(void** arguments, size_t index) {
  T value;
  read_argument(arguments, index, &value, sizeof value);
  return value;
}

template <auto kFunction>
struct Kernel;

template <class... T, void (*kFunction)(T...)>
struct Kernel<kFunction> {
  static constexpr uint32_t count = sizeof...(T);
  static constexpr uint32_t sizes[] = {static_cast<uint32_t>(sizeof(T))..., 0};
  static constexpr uint32_t alignments[] = {static_cast<uint32_t>(alignof(T))..., 1};
  template <size_t... I>
  static void spread(void** arguments, std::index_sequence<I...>) {
    kFunction(argument<T>(arguments, I)...);
  }
  static void call(void** arguments) { spread(arguments, std::index_sequence_for<T...>{}); }
};

void add_kernel(const KernelEntry& entry);

template <auto kFunction>
struct Registered {
  explicit Registered(const char* name) {
    using K = Kernel<kFunction>;
    add_kernel({name, K::count, K::sizes, K::alignments, &K::call});
  }
};

}  // namespace emulated

#define EMULATED_KERNEL(name) \
  static const emulated::Registered<&name> emulated_kernel_##name{#name};

#define threadIdx (emulated::thread_index())
#define blockIdx (emulated::block_index())
#define blockDim (emulated::block_size())
#define gridDim (emulated::grid_size())
#define warpSize 32

inline void __syncthreads() { emulated::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { emulated::warp_barrier(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { emulated::trap(); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = emulated::lane();
  return emulated::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = emulated::lane(), source = lane ^ bits;
  return emulated::shuffle(mask, value, source / width <= lane / width ? source : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emulated::lane(), source = lane + static_cast<int>(delta);
  return emulated::shuffle(mask, value, source / width == lane / width ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = emulated::lane(), source = lane - static_cast<int>(delta);
  return emulated::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane);
}
inline unsigned __activemask() { return emulated::active_mask(); }
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* all = emulated::exchange(mask, predicate != 0);
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if (emulated::exchanged() >> i & 1u) votes |= static_cast<unsigned>(all[i]) << i;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// One thread runs at a time, so plain arithmetic is atomic.
template <class T, class Update>
T emulated_atomic(T* address, Update update) {
  const T old = *address;
  *address = static_cast<T>(update(old));
  return old;
}
#define EMULATED_ATOMIC(T)                                                                     \
  inline T atomicAdd(T* p, T v) { return emulated_atomic(p, [=](T o) { return o + v; }); }     \
  inline T atomicExch(T* p, T v) { return emulated_atomic(p, [=](T) { return v; }); }
#define EMULATED_INTEGER_ATOMIC(T)                                                                \
  EMULATED_ATOMIC(T)                                                                              \
  inline T atomicSub(T* p, T v) { return emulated_atomic(p, [=](T o) { return o - v; }); }        \
  inline T atomicMin(T* p, T v) { return emulated_atomic(p, [=](T o) { return o < v ? o : v; }); } \
  inline T atomicMax(T* p, T v) { return emulated_atomic(p, [=](T o) { return o > v ? o : v; }); } \
  inline T atomicAnd(T* p, T v) { return emulated_atomic(p, [=](T o) { return o & v; }); }        \
  inline T atomicOr(T* p, T v) { return emulated_atomic(p, [=](T o) { return o | v; }); }         \
  inline T atomicXor(T* p, T v) { return emulated_atomic(p, [=](T o) { return o ^ v; }); }        \
  inline T atomicCAS(T* p, T expected, T v) {                                                     \
    return emulated_atomic(p, [=](T o) { return o == expected ? v : o; });                        \
  }
EMULATED_ATOMIC(float)
EMULATED_ATOMIC(double)
EMULATED_INTEGER_ATOMIC(int)
EMULATED_INTEGER_ATOMIC(unsigned)
EMULATED_INTEGER_ATOMIC(unsigned long long)
EMULATED_INTEGER_ATOMIC(long long)
EMULATED_INTEGER_ATOMIC(unsigned long)

template <class T>
T __ldg(const T* address) { return *address; }
template <class T>
T __ldcs(const T* address) { return *address; }
template <class T>
T __ldcg(const T* address) { return *address; }
template <class T>
void __stcs(T* address, T value) { *address = value; }

inline float __int_as_float(int v) { return emulated::from_bits<float>(emulated::bits(v)); }
inline float __uint_as_float(unsigned v) { return emulated::from_bits<float>(emulated::bits(v)); }
inline int __float_as_int(float v) { return emulated::from_bits<int>(emulated::bits(v)); }
inline unsigned __float_as_uint(float v) { return emulated::from_bits<unsigned>(emulated::bits(v)); }
inline double __longlong_as_double(long long v) {
  return emulated::from_bits<double>(emulated::bits(v));
}
inline long long __double_as_longlong(double v) {
  return emulated::from_bits<long long>(emulated::bits(v));
}

inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __clzll(long long v) {
  return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __brev(unsigned v) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (v >> i & 1u) << (31 - i);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline int __mul24(int a, int b) { return a * b; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float v) { return std::sqrt(v); }
inline float __frsqrt_rn(float v) { return 1.0f / std::sqrt(v); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }

// As the hardware converts: not a number is 0, and what does not fit is the nearest that does.
inline int emulated_to_int(float rounded) {
  if (std::isnan(rounded)) return 0;
  if (rounded >= 2147483648.0f) return INT_MAX;
  return rounded <= -2147483648.0f ? INT_MIN : static_cast<int>(rounded);
}
inline int __float2int_rd(float v) { return emulated_to_int(std::floor(v)); }
inline int __float2int_ru(float v) { return emulated_to_int(std::ceil(v)); }
inline int __float2int_rz(float v) { return emulated_to_int(std::trunc(v)); }
inline int __float2int_rn(float v) { return emulated_to_int(std::nearbyint(v)); }
inline float __int2float_rn(int v) { return static_cast<float>(v); }

#define EMULATED_EXTREMES(T)                       \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
EMULATED_EXTREMES(int)
EMULATED_EXTREMES(unsigned)
EMULATED_EXTREMES(long)
EMULATED_EXTREMES(unsigned long)
EMULATED_EXTREMES(long long)
EMULATED_EXTREMES(unsigned long long)
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
