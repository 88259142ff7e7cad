// Farthest point sampling: each step takes the point farthest from all taken so far. Several
// vectors of running maxima keep the comparison chains apart; ties go to the lowest row.
#include <cfloat>

#include "cpu/geometry.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace dela {
namespace DELA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kChains = 4;
typedef float Floats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

// Row of the largest value; the lowest of equals.
inline int64_t farthest_row(Floats best, Ints rows) {
#if defined(__AVX512F__)
  const __m512 values = reinterpret_cast<__m512>(best);
  const __mmask16 largest =
      _mm512_cmp_ps_mask(values, _mm512_set1_ps(_mm512_reduce_max_ps(values)), _CMP_EQ_OQ);
  return _mm512_mask_reduce_min_epi32(largest, reinterpret_cast<__m512i>(rows));
#else
  float most = best[0];
  int32_t row = rows[0];
  for (int lane = 1; lane < kLanes; ++lane) {
    const bool better = best[lane] > most || (best[lane] == most && rows[lane] < row);
    most = better ? best[lane] : most;
    row = better ? rows[lane] : row;
  }
  return row;
#endif
}

}  // namespace

void farthest_points(const float* points, int64_t n, int64_t count, int32_t offset,
                     float* scratch, int32_t* out) {
  const int64_t padded = (n + 63) / 64 * 64;
  float* x = scratch;
  float* y = x + padded;
  float* z = y + padded;
  float* away = z + padded;  // squared distance to the nearest point taken; -1: taken, or padding
  for (int64_t i = 0; i < padded; ++i) {
    const bool real = i < n;
    x[i] = real ? points[3 * i] : 0.0f;
    y[i] = real ? points[3 * i + 1] : 0.0f;
    z[i] = real ? points[3 * i + 2] : 0.0f;
    away[i] = real ? FLT_MAX : -1.0f;
  }
  const int64_t taken = count < n ? count : n;
  Ints lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  int64_t row = 0;
  for (int64_t step = 0; step < taken; ++step) {
    out[step] = static_cast<int32_t>(row) + offset;
    away[row] = -1.0f;
    const Floats zero = {};
    const Floats px = zero + x[row], py = zero + y[row], pz = zero + z[row];
    Floats best[kChains];
    Ints from[kChains];
    for (int chain = 0; chain < kChains; ++chain) {
      best[chain] = zero - 1.0f;
      from[chain] = Ints{};
    }
    Ints here = {};
    for (int64_t block = 0; block < padded; block += kChains * kLanes) {
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) {
        const int64_t at = block + chain * kLanes;
        const Floats dx = *reinterpret_cast<const Floats*>(x + at) - px;
        const Floats dy = *reinterpret_cast<const Floats*>(y + at) - py;
        const Floats dz = *reinterpret_cast<const Floats*>(z + at) - pz;
        const Floats d = dx * dx + dy * dy + dz * dz;
        const Floats old = *reinterpret_cast<const Floats*>(away + at);
        const Floats now = d < old ? d : old;
        *reinterpret_cast<Floats*>(away + at) = now;
        const Ints farther = now > best[chain];
        best[chain] = farther ? now : best[chain];
        from[chain] = farther ? here : from[chain];
      }
      here += kChains * kLanes;
    }
    Ints rows[kChains];
    for (int chain = 0; chain < kChains; ++chain) rows[chain] = from[chain] + lanes + chain * kLanes;
    for (int chain = 1; chain < kChains; ++chain) {
      const Ints better = (best[chain] > best[0]) |
                          ((best[chain] == best[0]) & (rows[chain] < rows[0]));
      best[0] = better ? best[chain] : best[0];
      rows[0] = better ? rows[chain] : rows[0];
    }
    row = farthest_row(best[0], rows[0]);
  }
  for (int64_t step = taken; step < count; ++step) out[step] = out[step - taken];
}

}  // namespace DELA_ISA
}  // namespace dela
