// Vectors of float32 and int32 as wide as the instruction set: the one layer that the kernels in
// isa/ are written in. v4 uses AVX-512, v3 AVX2 with FMA and F16C, v2 SSE4.2, neon what every 64-bit
// ARM processor has; portable, for all others, the compiler's generic vectors. Every function is
// static: nothing here may be shared between instruction sets by the linker.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(DELA_ISA_v2) || defined(DELA_ISA_v3) || defined(DELA_ISA_v4)
#define DELA_X86 1
// GCC 12 takes the intrinsics' deliberately undefined operands for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(DELA_ISA_neon)
#include <arm_neon.h>
#endif

#include "math/spamp.h"

#define DELA_INLINE static inline __attribute__((always_inline))

namespace dela {
namespace DELA_ISA {

#if defined(DELA_ISA_v4)
constexpr int kLanes = 16;
#elif defined(DELA_ISA_v3)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

DELA_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
DELA_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

#if defined(DELA_ISA_v4)

typedef __mmask16 Mask;
DELA_INLINE Floats broadcast(float x) { return _mm512_set1_ps(x); }
DELA_INLINE Ints broadcast(int32_t x) { return (Ints)_mm512_set1_epi32(x); }
DELA_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// Both return b when either is not a number, as the x86 instructions do.
DELA_INLINE Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
DELA_INLINE Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
DELA_INLINE Mask less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
DELA_INLINE Mask equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
DELA_INLINE Floats select(Mask m, Floats a, Floats b) { return _mm512_mask_mov_ps(b, m, a); }
DELA_INLINE Ints select(Mask m, Ints a, Ints b) {
  return (Ints)_mm512_mask_mov_epi32((__m512i)b, m, (__m512i)a);
}
DELA_INLINE Floats sqrt(Floats a) { return _mm512_sqrt_ps(a); }
DELA_INLINE Floats exp2_scale(Floats p, Floats n) { return _mm512_scalef_ps(p, n); }
DELA_INLINE Floats exp2_bound(Floats t) { return t; }
DELA_INLINE Floats round(Floats a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Lanes 4 part .. 4 part + 3 of v, each four times over.
template <int part>
DELA_INLINE Floats expand(Floats v) {
  const __m512i pick = _mm512_setr_epi32(4 * part, 4 * part, 4 * part, 4 * part, 4 * part + 1,
                                         4 * part + 1, 4 * part + 1, 4 * part + 1, 4 * part + 2,
                                         4 * part + 2, 4 * part + 2, 4 * part + 2, 4 * part + 3,
                                         4 * part + 3, 4 * part + 3, 4 * part + 3);
  return _mm512_permutexvar_ps(pick, v);
}
// table[slot] per lane; the table has `length` floats, a multiple of 32.
DELA_INLINE Floats lookup(const float* table, Ints slot, int length) {
  const __m512i s = (__m512i)slot;
  if (length == 32) return _mm512_permutex2var_ps(load(table), s, load(table + 16));
  return _mm512_i32gather_ps(s, table, 4);
}
DELA_INLINE Mask first_lanes(int count) { return (Mask)((1u << count) - 1u); }
DELA_INLINE Floats load_partial(const float* p, int count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), p);
}
DELA_INLINE void store_partial(float* p, Floats v, int count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), v);
}

#else

typedef Ints Mask;
DELA_INLINE Mask less(Floats a, Floats b) { return a < b; }
DELA_INLINE Mask equal(Floats a, Floats b) { return a == b; }

#if defined(DELA_ISA_v3)

DELA_INLINE Floats broadcast(float x) { return _mm256_set1_ps(x); }
DELA_INLINE Ints broadcast(int32_t x) { return (Ints)_mm256_set1_epi32(x); }
DELA_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
DELA_INLINE Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
DELA_INLINE Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
DELA_INLINE Floats select(Mask m, Floats a, Floats b) {
  return _mm256_blendv_ps(b, a, (__m256)m);
}
DELA_INLINE Floats sqrt(Floats a) { return _mm256_sqrt_ps(a); }
DELA_INLINE Floats round(Floats a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
DELA_INLINE Ints to_ints(Floats a) { return (Ints)_mm256_cvtps_epi32(a); }
template <int part>
DELA_INLINE Floats expand(Floats v) {
  const __m256i pick =
      _mm256_setr_epi32(2 * part, 2 * part, 2 * part, 2 * part, 2 * part + 1, 2 * part + 1,
                        2 * part + 1, 2 * part + 1);
  return _mm256_permutevar8x32_ps(v, pick);
}
DELA_INLINE Floats lookup(const float* table, Ints slot, int length) {
  const __m256i s = (__m256i)slot;
  if (length != 32) return _mm256_i32gather_ps(table, s, 4);
  // Permutations take three bits of the slot; the next two choose among four of them.
  const __m256 a = _mm256_permutevar8x32_ps(load(table), s),
               b = _mm256_permutevar8x32_ps(load(table + 8), s),
               c = _mm256_permutevar8x32_ps(load(table + 16), s),
               d = _mm256_permutevar8x32_ps(load(table + 24), s);
  const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(s, 28)),
               bit4 = _mm256_castsi256_ps(_mm256_slli_epi32(s, 27));
  return _mm256_blendv_ps(_mm256_blendv_ps(a, b, bit3), _mm256_blendv_ps(c, d, bit3), bit4);
}

#elif defined(DELA_ISA_v2)

DELA_INLINE Floats broadcast(float x) { return _mm_set1_ps(x); }
DELA_INLINE Ints broadcast(int32_t x) { return (Ints)_mm_set1_epi32(x); }
DELA_INLINE Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }
DELA_INLINE Floats min(Floats a, Floats b) { return _mm_min_ps(a, b); }
DELA_INLINE Floats max(Floats a, Floats b) { return _mm_max_ps(a, b); }
DELA_INLINE Floats select(Mask m, Floats a, Floats b) { return _mm_blendv_ps(b, a, (__m128)m); }
DELA_INLINE Floats sqrt(Floats a) { return _mm_sqrt_ps(a); }
DELA_INLINE Floats round(Floats a) {
  return _mm_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
DELA_INLINE Ints to_ints(Floats a) { return (Ints)_mm_cvtps_epi32(a); }
template <int part>
DELA_INLINE Floats expand(Floats v) {
  return _mm_shuffle_ps(v, v, part * 0x55);
}

#elif defined(DELA_ISA_neon)

DELA_INLINE Floats broadcast(float x) { return vdupq_n_f32(x); }
DELA_INLINE Ints broadcast(int32_t x) { return vdupq_n_s32(x); }
DELA_INLINE Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
DELA_INLINE Floats select(Mask m, Floats a, Floats b) {
  return vbslq_f32((uint32x4_t)m, a, b);
}
// A comparison and a choice: ARM's own minimum and maximum treat NaN in another way.
DELA_INLINE Floats min(Floats a, Floats b) { return select(a < b, a, b); }
DELA_INLINE Floats max(Floats a, Floats b) { return select(a > b, a, b); }
DELA_INLINE Floats sqrt(Floats a) { return vsqrtq_f32(a); }
DELA_INLINE Floats round(Floats a) { return vrndnq_f32(a); }
DELA_INLINE Ints to_ints(Floats a) { return vcvtq_s32_f32(a); }
template <int part>
DELA_INLINE Floats expand(Floats v) {
  return vdupq_laneq_f32(v, part);
}

#else

DELA_INLINE Floats broadcast(float x) { return Floats{x, x, x, x}; }
DELA_INLINE Ints broadcast(int32_t x) { return Ints{x, x, x, x}; }
DELA_INLINE Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }
DELA_INLINE Floats select(Mask m, Floats a, Floats b) {
  return (Floats)(((Ints)a & m) | ((Ints)b & ~m));
}
DELA_INLINE Floats min(Floats a, Floats b) { return select(a < b, a, b); }
DELA_INLINE Floats max(Floats a, Floats b) { return select(a > b, a, b); }
DELA_INLINE Floats sqrt(Floats a) {
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
DELA_INLINE Floats round(Floats a) {
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_rintf(a[i]);
  return a;
}
DELA_INLINE Ints to_ints(Floats a) {
  Ints n;
  for (int i = 0; i < kLanes; ++i) n[i] = a[i] == a[i] ? static_cast<int32_t>(a[i]) : 0;
  return n;
}
template <int part>
DELA_INLINE Floats expand(Floats v) {
  return broadcast(v[part]);
}

#endif

#if !defined(DELA_ISA_v3)
DELA_INLINE Floats lookup(const float* table, Ints slot, int) {
  Floats v;
  for (int i = 0; i < kLanes; ++i) v[i] = table[slot[i]];
  return v;
}
#endif

DELA_INLINE Ints select(Mask m, Ints a, Ints b) {
  return (Ints)select(m, (Floats)a, (Floats)b);
}
// Keeps 2^n within what the exponent field holds: 0 below, infinity above. NaN stays NaN.
DELA_INLINE Floats exp2_bound(Floats t) {
  return min(broadcast(128.0f), max(broadcast(-127.0f), t));
}
DELA_INLINE Floats exp2_scale(Floats p, Floats n) {
  return p * (Floats)((to_ints(n) + broadcast(int32_t{127})) << 23);
}
DELA_INLINE Floats load_partial(const float* p, int count) {
  Floats v = {};
  std::memcpy(&v, p, sizeof(float) * static_cast<size_t>(count));
  return v;
}
DELA_INLINE void store_partial(float* p, Floats v, int count) {
  std::memcpy(p, &v, sizeof(float) * static_cast<size_t>(count));
}

#endif

// 2^t, relative error 2e-7.
DELA_INLINE Floats exp2(Floats t) {
  const float* c = kExp2Coefficients;
  t = exp2_bound(t);
  const Floats n = round(t);
  const Floats r = t - n;
  Floats p = fma(broadcast(c[4]), r, broadcast(c[3]));
  p = fma(p, r, broadcast(c[2]));
  p = fma(p, r, broadcast(c[1]));
  p = fma(p, r, broadcast(c[0]));
  p = fma(p, r, broadcast(1.0f));
  return exp2_scale(p, n);
}

// Winner slots in memory: one byte each when `bytes` is 1, else two.
DELA_INLINE void store_slots(void* base, int64_t at, int bytes, Ints slot, int count) {
  if (bytes == 1) {
    uint8_t* p = static_cast<uint8_t*>(base) + at;
#if defined(DELA_ISA_v4)
    _mm512_mask_cvtepi32_storeu_epi8(p, first_lanes(count), (__m512i)slot);
#else
    for (int i = 0; i < count; ++i) p[i] = static_cast<uint8_t>(slot[i]);
#endif
  } else {
    uint16_t* p = static_cast<uint16_t*>(base) + at;
    for (int i = 0; i < count; ++i) p[i] = static_cast<uint16_t>(slot[i]);
  }
}
DELA_INLINE Ints load_slots(const void* base, int64_t at, int bytes, int count) {
  Ints slot = {};
  if (bytes == 1) {
    const uint8_t* p = static_cast<const uint8_t*>(base) + at;
#if defined(DELA_ISA_v4)
    return (Ints)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(count), p));
#else
    for (int i = 0; i < count; ++i) slot[i] = p[i];
#endif
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(base) + at;
    for (int i = 0; i < count; ++i) slot[i] = p[i];
  }
  return slot;
}

// (x, y, z) of `point` minus those of `center`, and 0; reads three floats of each.
DELA_INLINE void store_offset(const float* point, const float* center, float offset[4]) {
#if defined(DELA_X86)
  const __m128 a = _mm_insert_ps(_mm_castsi128_ps(_mm_loadu_si64(point)),
                                 _mm_load_ss(point + 2), 0x20);
  const __m128 b = _mm_insert_ps(_mm_castsi128_ps(_mm_loadu_si64(center)),
                                 _mm_load_ss(center + 2), 0x20);
  _mm_storeu_ps(offset, _mm_sub_ps(a, b));
#else
  for (int i = 0; i < 3; ++i) offset[i] = point[i] - center[i];
  offset[3] = 0.0f;
#endif
}

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Channels of `total` that the block starting at `first` holds, at most one vector.
DELA_INLINE int lanes_left(int64_t first, int64_t total) {
  return total - first < kLanes ? static_cast<int>(total - first) : kLanes;
}

}  // namespace DELA_ISA
}  // namespace dela
