// SPSE forward: the nearest neighbor of every point in C learned metrics.
//
// A thread factors the metrics of four channels, then walks `rows` consecutive points; each
// neighbor is loaded once for all four. Neighboring threads take neighboring channels of the same
// points, so a neighbor's coordinates reach a warp as one or two broadcasts.
#include "cuda/device.cuh"
#include "cuda/vector_io.cuh"
#include "math/spse.h"

namespace dela {
namespace {

constexpr int kChannels = 4;

// Rows `first` to `first + kRows` of the weight for four channels; where `kWhole` is false only the
// first `held` of them exist, and the others are 0.
template <int kRows, bool kWhole>
DELA_DEVICE void weight_rows(const float* weight, int32_t first, int32_t c, int32_t channel,
                             int32_t held, float (*v)[kChannels]) {
  const float* from = weight + static_cast<size_t>(first) * c + channel;
  for (int row = 0; row < kRows; ++row, from += c) {
    if (kWhole) {
      read(from, v[row]);
    } else {
      for (int i = 0; i < kChannels; ++i) v[row][i] = i < held ? __ldg(from + i) : 0.0f;
    }
  }
}

template <int kRows>
DELA_DEVICE void weight_rows(const float* weight, int32_t first, int32_t c, int32_t channel,
                             int32_t held, float (*v)[kChannels]) {
  if (c % kChannels == 0) {
    weight_rows<kRows, true>(weight, first, c, channel, held, v);
  } else {
    weight_rows<kRows, false>(weight, first, c, channel, held, v);
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
  const int32_t extras_given = e + l;
  const int32_t stride = 3 + (kKnown ? kExtra : extras_given);
  const uint32_t quads = (static_cast<uint32_t>(c) + kChannels - 1) / kChannels;
  const uint32_t piece = thread_number() / quads;
  const int32_t channel = static_cast<int32_t>((thread_number() - piece * quads) * kChannels);
  const int32_t held = c - channel < kChannels ? c - channel : kChannels;
  const int64_t begin = static_cast<int64_t>(piece) * rows;
  const int64_t end = begin + rows < n ? begin + rows : n;
  if (begin >= end) return;

  float w[12 + kExtra][kChannels], r[kFactoredRows][kChannels];
  weight_rows<12 + kExtra>(weight, 0, c, channel, held, w);
  float(*extras)[kChannels] = w + 12;
  for (int i = 0; i < kChannels; ++i) {
    float one[12], factored[kFactoredRows];
    for (int row = 0; row < 12; ++row) one[row] = w[row][i];
    factor_ellipsoid(one, factored);
    for (int row = 0; row < kFactoredRows; ++row) r[row][i] = factored[row];
  }
  const float epsilon = __int_as_float(epsilon_bits);

  const float* center = points + begin * stride;
  const int32_t* list = neighbors + begin * k;
  size_t at = static_cast<size_t>(begin) * c + channel;
  for (int32_t row = static_cast<int32_t>(begin); row < end; ++row, center += stride, at += c) {
    const float cx = __ldg(center), cy = __ldg(center + 1), cz = __ldg(center + 2);
    float best[kChannels];
    int32_t slot[kChannels];
    for (int i = 0; i < kChannels; ++i) {
      best[i] = infinity();
      slot[i] = 0;
    }
#pragma unroll 4
    for (int32_t j = 0; j < k; ++j, ++list) {
      const int32_t neighbor = guarded(__ldg(list), n, row);
      const float* point = points + static_cast<int64_t>(neighbor) * stride;
      float there[3 + kExtra];
      read_row<3 + kExtra>(point, there);
      const float x = there[0] - cx, y = there[1] - cy, z = there[2] - cz;
      float value[kChannels];
      for (int i = 0; i < kChannels; ++i) {
        const float u = fmaf(x, r[0][i], fmaf(y, r[1][i], fmaf(z, r[2][i], r[6][i])));
        const float v = fmaf(y, r[3][i], fmaf(z, r[4][i], r[7][i]));
        const float t = fmaf(z, r[5][i], r[8][i]);
        value[i] = fmaf(u, u, fmaf(v, v, t * t));
      }
      if (kKnown) {
        for (int a = 0; a < kExtra; ++a) {
          const float extra = there[3 + a];
          for (int i = 0; i < kChannels; ++i) {
            const float difference = extra - extras[a][i];
            value[i] = a < E ? fmaf(difference, difference, value[i])
                             : fmaf(extra, extras[a][i], value[i]);
          }
        }
      } else {
        for (int32_t a = 0; a < extras_given; ++a) {
          const float extra = __ldg(point + 3 + a);
          float own[1][kChannels];
          weight_rows<1>(weight, 12 + a, c, channel, held, own);
          for (int i = 0; i < kChannels; ++i) {
            const float difference = extra - own[0][i];
            value[i] = a < e ? fmaf(difference, difference, value[i])
                             : fmaf(extra, own[0][i], value[i]);
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
      const float root = root_approximate(fmaxf(best[i] + epsilon, 0.0f));
      best[i] = best[i] < infinity() ? root : not_a_number();
    }
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
  DELA_TRAINING(DELA_KERNEL(winner_blocks)                                                         \
  dela_spse_winner_##shape(const float* points, const int32_t* neighbors, const float* weight,     \
                           int32_t n, int32_t k, int32_t c, int32_t e, int32_t l, int32_t rows,    \
                           int32_t epsilon_bits, float* out, void* winner) {                       \
    dela::spse<E, L, true>(points, neighbors, weight, n, k, c, e, l, rows, epsilon_bits, out,      \
                           winner);                                                                \
  })

DELA_SPSE(0, 0, 0, 6, 6)
DELA_SPSE(1, 1, 0, 6, 5)
DELA_SPSE(2, 2, 0, 5, 5)
DELA_SPSE(3, 3, 0, 5, 5)
DELA_SPSE(4, 4, 0, 5, 5)
DELA_SPSE(4_3, 4, 3, 4, 4)
DELA_SPSE(any, -1, -1, 5, 5)
