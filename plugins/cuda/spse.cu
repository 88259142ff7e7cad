// SPSE forward: the nearest neighbor of every point in C learned metrics.
//
// A thread factors the metrics of four channels, then walks `rows` consecutive points; each neighbor
// is loaded once for all four. Neighboring threads take neighboring channels of the same points, so a
// neighbor's coordinates reach a warp as one or two broadcasts.
#include "cuda/device.cuh"
#include "cuda/vector_io.cuh"
#include "math/spse.h"

namespace dela {
namespace {

constexpr int kChannels = 4;

// Row `row` of the weight for four channels, the last `kChannels - held` of them 0.
DELA_DEVICE void weight_row(const float* weight, int32_t row, int32_t c, int32_t channel,
                            int32_t held, float (&v)[kChannels]) {
  const float* from = weight + static_cast<size_t>(row) * c + channel;
  if (c % kChannels == 0) {
    read(from, v);
  } else {
    for (int i = 0; i < kChannels; ++i) v[i] = i < held ? __ldg(from + i) : 0.0f;
  }
}

// `E` attributes and `L` directions, or -1 for as many as `e` and `l` say.
template <int E, int L, bool kWinner>
DELA_DEVICE void spse(const float* __restrict__ points, const int32_t* __restrict__ neighbors,
                      const float* __restrict__ weight, int32_t n, int32_t k, int32_t c, int32_t e,
                      int32_t l, int32_t rows, int32_t epsilon_bits, float* __restrict__ out,
                      void* __restrict__ winner) {
  constexpr bool kKnown = E >= 0;
  constexpr int kExtra = kKnown ? E + L : 0;
  const int32_t attributes = kKnown ? E : e, extra = kKnown ? E + L : e + l;
  const int32_t stride = 3 + extra;
  const uint32_t quads = (static_cast<uint32_t>(c) + kChannels - 1) / kChannels;
  const uint32_t piece = thread_number() / quads;
  const int32_t channel = static_cast<int32_t>((thread_number() - piece * quads) * kChannels);
  const int32_t held = c - channel < kChannels ? c - channel : kChannels;
  const int64_t begin = static_cast<int64_t>(piece) * rows;
  const int64_t end = begin + rows < n ? begin + rows : n;
  if (begin >= end) return;

  float r[kFactoredRows][kChannels], extras[kExtra > 0 ? kExtra : 1][kChannels];
  {
    float w[12][kChannels];
    for (int i = 0; i < 12; ++i) weight_row(weight, i, c, channel, held, w[i]);
    for (int i = 0; i < kChannels; ++i) {
      float one[12], factored[kFactoredRows];
      for (int row = 0; row < 12; ++row) one[row] = w[row][i];
      factor_ellipsoid(one, factored);
      for (int row = 0; row < kFactoredRows; ++row) r[row][i] = factored[row];
    }
    for (int i = 0; i < kExtra; ++i) weight_row(weight, 12 + i, c, channel, held, extras[i]);
  }
  const float epsilon = __int_as_float(epsilon_bits);

  for (int32_t row = static_cast<int32_t>(begin); row < end; ++row) {
    const float* center = points + static_cast<size_t>(row) * stride;
    const float cx = __ldg(center), cy = __ldg(center + 1), cz = __ldg(center + 2);
    const int32_t* list = neighbors + static_cast<size_t>(row) * k;
    float best[kChannels];
    int32_t slot[kChannels];
    for (int i = 0; i < kChannels; ++i) {
      best[i] = infinity();
      slot[i] = 0;
    }
#pragma unroll 4
    for (int32_t j = 0; j < k; ++j) {
      const int32_t neighbor = guarded(__ldg(list + j), n, row);
      const float* point = points + static_cast<int64_t>(neighbor) * stride;
      const float x = __ldg(point) - cx, y = __ldg(point + 1) - cy, z = __ldg(point + 2) - cz;
      float value[kChannels];
      for (int i = 0; i < kChannels; ++i) {
        const float u = fmaf(x, r[0][i], fmaf(y, r[1][i], fmaf(z, r[2][i], r[6][i])));
        const float v = fmaf(y, r[3][i], fmaf(z, r[4][i], r[7][i]));
        const float t = fmaf(z, r[5][i], r[8][i]);
        value[i] = fmaf(u, u, fmaf(v, v, t * t));
      }
      if (kKnown) {
        for (int a = 0; a < kExtra; ++a) {
          const float there = __ldg(point + 3 + a);
          for (int i = 0; i < kChannels; ++i) {
            const float difference = there - extras[a][i];
            value[i] = a < E ? fmaf(difference, difference, value[i])
                             : fmaf(there, extras[a][i], value[i]);
          }
        }
      } else {
        for (int32_t a = 0; a < extra; ++a) {
          const float there = __ldg(point + 3 + a);
          float own[kChannels];
          weight_row(weight, 12 + a, c, channel, held, own);
          for (int i = 0; i < kChannels; ++i) {
            const float difference = there - own[i];
            value[i] = a < attributes ? fmaf(difference, difference, value[i])
                                      : fmaf(there, own[i], value[i]);
          }
        }
      }
      for (int i = 0; i < kChannels; ++i) {
        if (kWinner) slot[i] = value[i] < best[i] ? j : slot[i];
        best[i] = fminf(best[i], value[i]);
      }
    }
    for (int i = 0; i < kChannels; ++i) {
      // Only rounding makes the value negative. No neighbor below infinity: not a number.
      best[i] = best[i] < infinity() ? sqrtf(fmaxf(best[i] + epsilon, 0.0f)) : not_a_number();
    }
    const size_t at = static_cast<size_t>(row) * c + channel;
    if (c % kChannels == 0) {
      write(out + at, best);
      if (kWinner) write_slots(winner, k, at, slot);
    } else {
      for (int i = 0; i < kChannels; ++i) {
        if (i >= held) break;
        out[at + i] = best[i];
        if (kWinner) write_slot(winner, k, at + i, slot[i]);
      }
    }
  }
}

}  // namespace
}  // namespace dela

#define DELA_SPSE(shape, E, L, blocks, winner_blocks)                                              \
  DELA_KERNEL(blocks)                                                                              \
  dela_spse_##shape(const float* points, const int32_t* neighbors, const float* weight, int32_t n, \
                    int32_t k, int32_t c, int32_t e, int32_t l, int32_t rows,                      \
                    int32_t epsilon_bits, float* out) {                                            \
    dela::spse<E, L, false>(points, neighbors, weight, n, k, c, e, l, rows, epsilon_bits, out,     \
                            nullptr);                                                              \
  }                                                                                                \
  DELA_KERNEL(winner_blocks)                                                                       \
  dela_spse_winner_##shape(const float* points, const int32_t* neighbors, const float* weight,     \
                           int32_t n, int32_t k, int32_t c, int32_t e, int32_t l, int32_t rows,    \
                           int32_t epsilon_bits, float* out, void* winner) {                       \
    dela::spse<E, L, true>(points, neighbors, weight, n, k, c, e, l, rows, epsilon_bits, out,      \
                           winner);                                                                \
  }

DELA_SPSE(0, 0, 0, 6, 6)
DELA_SPSE(1, 1, 0, 6, 5)
DELA_SPSE(2, 2, 0, 5, 5)
DELA_SPSE(3, 3, 0, 5, 5)
DELA_SPSE(4, 4, 0, 5, 5)
DELA_SPSE(4_3, 4, 3, 4, 4)
DELA_SPSE(any, -1, -1, 5, 5)
