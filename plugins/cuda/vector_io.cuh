// Loads and stores of 4 or 8 channels at once, in any storage type; arithmetic is float. Addresses
// must be multiples of the bytes moved.
#pragma once

#include "cuda/device.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace dela {

typedef __half Float16;
typedef __nv_bfloat16 BFloat16;

DELA_DEVICE float read(const float* p) { return __ldg(p); }
DELA_DEVICE float read(const Float16* p) { return __half2float(__ldg(p)); }
DELA_DEVICE float read(const BFloat16* p) { return __bfloat162float(__ldg(p)); }

// Two 16-bit numbers in one word; the first is the low half.
DELA_DEVICE void unpack(const Float16*, uint32_t word, float* v) {
  __half2_raw raw;
  raw.x = static_cast<unsigned short>(word & 0xffffu);
  raw.y = static_cast<unsigned short>(word >> 16);
  const float2 pair = __half22float2(__half2(raw));
  v[0] = pair.x;
  v[1] = pair.y;
}

DELA_DEVICE void unpack(const BFloat16*, uint32_t word, float* v) {
  v[0] = __uint_as_float(word << 16);
  v[1] = __uint_as_float(word & 0xffff0000u);
}

DELA_DEVICE uint32_t pack(const Float16*, const float* v) {
  const __half2_raw raw = __floats2half2_rn(v[0], v[1]);
  return raw.x | static_cast<uint32_t>(raw.y) << 16;
}

DELA_DEVICE uint32_t pack(const BFloat16*, const float* v) {
  const __nv_bfloat162_raw raw = __floats2bfloat162_rn(v[0], v[1]);
  return raw.x | static_cast<uint32_t>(raw.y) << 16;
}

DELA_DEVICE void read(const float* p, float (&v)[4]) {
  const float4 t = __ldg(reinterpret_cast<const float4*>(p));
  v[0] = t.x;
  v[1] = t.y;
  v[2] = t.z;
  v[3] = t.w;
}

template <class Stored>
DELA_DEVICE void read(const Stored* p, float (&v)[4]) {
  const uint2 t = __ldg(reinterpret_cast<const uint2*>(p));
  unpack(p, t.x, v);
  unpack(p, t.y, v + 2);
}

template <class Stored>
DELA_DEVICE void read(const Stored* p, float (&v)[8]) {
  const uint4 t = __ldg(reinterpret_cast<const uint4*>(p));
  unpack(p, t.x, v);
  unpack(p, t.y, v + 2);
  unpack(p, t.z, v + 4);
  unpack(p, t.w, v + 6);
}

DELA_DEVICE void write(float* p, const float (&v)[4]) {
  *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
}

template <class Stored>
DELA_DEVICE void write(Stored* p, const float (&v)[4]) {
  *reinterpret_cast<uint2*>(p) = make_uint2(pack(p, v), pack(p, v + 2));
}

template <class Stored>
DELA_DEVICE void write(Stored* p, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(p) =
      make_uint4(pack(p, v), pack(p, v + 2), pack(p, v + 4), pack(p, v + 6));
}

// A row of `kCount` floats, one of many without gaps, in the widest loads its alignment allows.
template <int kCount>
DELA_DEVICE void read_row(const float* p, float (&v)[kCount]) {
  if (kCount % 4 == 0) {
    for (int i = 0; i < kCount; i += 4) {
      const float4 t = __ldg(reinterpret_cast<const float4*>(p + i));
      v[i] = t.x;
      v[i + 1] = t.y;
      v[i + 2] = t.z;
      v[i + 3] = t.w;
    }
  } else if (kCount % 2 == 0) {
    for (int i = 0; i < kCount; i += 2) {
      const float2 t = __ldg(reinterpret_cast<const float2*>(p + i));
      v[i] = t.x;
      v[i + 1] = t.y;
    }
  } else {
    for (int i = 0; i < kCount; ++i) v[i] = __ldg(p + i);
  }
}

// Winner slots are uint8 when k <= 256, else uint16. `at` counts slots and is a multiple of 4.
DELA_DEVICE void write_slots(void* winner, int32_t k, size_t at, const int32_t* slot) {
  if (k <= 256) {
    uint8_t* to = static_cast<uint8_t*>(winner) + at;
    *reinterpret_cast<uchar4*>(to) = make_uchar4(
        static_cast<uint8_t>(slot[0]), static_cast<uint8_t>(slot[1]),
        static_cast<uint8_t>(slot[2]), static_cast<uint8_t>(slot[3]));
  } else {
    uint16_t* to = static_cast<uint16_t*>(winner) + at;
    *reinterpret_cast<ushort4*>(to) = make_ushort4(
        static_cast<uint16_t>(slot[0]), static_cast<uint16_t>(slot[1]),
        static_cast<uint16_t>(slot[2]), static_cast<uint16_t>(slot[3]));
  }
}

DELA_DEVICE void write_slot(void* winner, int32_t k, size_t at, int32_t slot) {
  if (k <= 256) {
    static_cast<uint8_t*>(winner)[at] = static_cast<uint8_t>(slot);
  } else {
    static_cast<uint16_t*>(winner)[at] = static_cast<uint16_t>(slot);
  }
}

DELA_DEVICE void read_slots(const void* winner, int32_t k, size_t at, int32_t (&slot)[4]) {
  if (k <= 256) {
    const uchar4 t =
        __ldg(reinterpret_cast<const uchar4*>(static_cast<const uint8_t*>(winner) + at));
    slot[0] = t.x;
    slot[1] = t.y;
    slot[2] = t.z;
    slot[3] = t.w;
  } else {
    const ushort4 t =
        __ldg(reinterpret_cast<const ushort4*>(static_cast<const uint16_t*>(winner) + at));
    slot[0] = t.x;
    slot[1] = t.y;
    slot[2] = t.z;
    slot[3] = t.w;
  }
}

DELA_DEVICE int32_t read_slot(const void* winner, int32_t k, size_t at) {
  return k <= 256 ? __ldg(static_cast<const uint8_t*>(winner) + at)
                  : __ldg(static_cast<const uint16_t*>(winner) + at);
}

}  // namespace dela
