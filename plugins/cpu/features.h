// Reading and writing features in float32, float16 and bfloat16; arithmetic is always float32.
#pragma once

#include "cpu/simd.h"

namespace dela {
namespace DELA_ISA {

struct Float32 {
  typedef float Stored;
  static Floats read(const float* p) { return load(p); }
  static Floats read(const float* p, int count) { return load_partial(p, count); }
  static void write(float* p, Floats v) { store(p, v); }
  static void write(float* p, Floats v, int count) { store_partial(p, v, count); }
};

// kLanes 16-bit values, and the conversions of the two 16-bit formats.
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));

DELA_INLINE Bits widen(Halves h) { return __builtin_convertvector(h, Bits); }
DELA_INLINE Halves narrow(Bits b) { return __builtin_convertvector(b, Halves); }
DELA_INLINE Bits choose(Ints mask, Bits a, Bits b) { return ((Bits)mask & a) | (~(Bits)mask & b); }

struct Float16Format {
#if defined(DELA_ISA_v4)
  static Floats widen_value(Halves h) { return _mm512_cvtph_ps((__m256i)h); }
  static Halves narrow_value(Floats v) {
    return (Halves)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
#elif defined(DELA_ISA_v3)
  static Floats widen_value(Halves h) { return _mm256_cvtph_ps((__m128i)h); }
  static Halves narrow_value(Floats v) {
    return (Halves)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
#elif defined(DELA_ISA_neon)
  static Floats widen_value(Halves h) { return vcvt_f32_f16((float16x4_t)h); }
  static Halves narrow_value(Floats v) { return (Halves)vcvt_f16_f32(v); }
#else
  static Floats widen_value(Halves h) {
    const Bits bits = widen(h), magnitude = bits & 0x7fffu;
    // Read as a float the exponent is 112 too small; the product also mends subnormals.
    const Floats scaled = (Floats)(magnitude << 13) * broadcast(0x1p112f);
    const Ints special = magnitude > 0x7bffu;
    const Bits finite = (Bits)scaled;
    return (Floats)(choose(special, finite | 0x7f800000u, finite) | ((bits & 0x8000u) << 16));
  }
  static Halves narrow_value(Floats v) {
    const Bits bits = (Bits)v, sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    // Normal numbers: shift the exponent by 112, round to nearest even.
    const Bits normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal numbers: the addition rounds at the right bit.
    const Bits small = (Bits)((Floats)magnitude + broadcast(0.5f)) - 0x3f000000u;
    Bits half = choose(magnitude < (113u << 23), small, normal);
    half = choose(magnitude >= 0x477ff000u, half * 0u + 0x7c00u, half);
    half = choose(magnitude > 0x7f800000u, half * 0u + 0x7e00u, half);
    return narrow(half | sign);
  }
#endif
};

struct BFloat16Format {
  static Floats widen_value(Halves h) { return (Floats)(widen(h) << 16); }
  static Halves narrow_value(Floats v) {
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return narrow(choose((bits & 0x7fffffffu) > 0x7f800000u, bits * 0u + 0x7fc0u, rounded));
  }
};

template <class Format>
struct SixteenBit {
  typedef uint16_t Stored;
  static Floats read(const uint16_t* p) { return read(p, kLanes); }
  static Floats read(const uint16_t* p, int count) {
    Halves h = {};
    if (count == kLanes) {
      std::memcpy(&h, p, sizeof h);
    } else {
      std::memcpy(&h, p, sizeof(uint16_t) * static_cast<size_t>(count));
    }
    return Format::widen_value(h);
  }
  static void write(uint16_t* p, Floats v) { write(p, v, kLanes); }
  static void write(uint16_t* p, Floats v, int count) {
    const Halves h = Format::narrow_value(v);
    if (count == kLanes) {
      std::memcpy(p, &h, sizeof h);
    } else {
      std::memcpy(p, &h, sizeof(uint16_t) * static_cast<size_t>(count));
    }
  }
};
typedef SixteenBit<Float16Format> Float16;
typedef SixteenBit<BFloat16Format> BFloat16;

}  // namespace DELA_ISA
}  // namespace dela
