// SPAMP forward: the largest position-weighted feature difference to the center, per channel; in its
// residual form that times a scale is added to a base before it is stored.
//
// A thread takes 4 or 8 channels of one row, so one exponential serves every group of four and the
// neighbor's features come in loads of up to 16 bytes; neighboring threads read neighboring bytes.
#include "cuda/device.cuh"
#include "cuda/vector_io.cuh"
#include "math/spamp.h"

namespace dela {
namespace {

enum Form { kPlain, kWinner, kResidual };

// `kWidth` channels per thread, 4 or 8; c is a multiple of it.
template <class Stored, int kWidth, Form kForm>
DELA_DEVICE void spamp(const Stored* __restrict__ features, const float* __restrict__ points,
                       const int32_t* __restrict__ neighbors, const int32_t* __restrict__ centers,
                       const float* __restrict__ weight, const Stored* __restrict__ base,
                       const float* __restrict__ scale, int32_t n, int32_t m, int32_t k, int32_t c,
                       Stored* __restrict__ out, void* __restrict__ winner) {
  constexpr int kGroups = kWidth / kGroup;
  const Tile tile(static_cast<uint32_t>(m), static_cast<uint32_t>(c) / kWidth);
  if (!tile.inside) return;
  const int32_t row = static_cast<int32_t>(tile.row);
  const int32_t channel = static_cast<int32_t>(tile.piece * kWidth);

  const int32_t center = center_of(centers, row, n);
  const float* here = points + static_cast<int64_t>(center) * 3;
  const float cx = __ldg(here), cy = __ldg(here + 1), cz = __ldg(here + 2);
  float px[kGroups], py[kGroups], pz[kGroups], s[kGroups];
  const int32_t groups = c / kGroup;
  for (int g = 0; g < kGroups; ++g) {
    const float* w = weight + channel / kGroup + g;
    px[g] = __ldg(w);
    py[g] = __ldg(w + groups);
    pz[g] = __ldg(w + 2 * static_cast<size_t>(groups));
    s[g] = -__ldg(w + 3 * static_cast<size_t>(groups)) * kLog2E;
  }
  features += channel;
  float own[kWidth], best[kWidth];
  int32_t slot[kWidth];
  read(features + static_cast<int64_t>(center) * c, own);
  for (int i = 0; i < kWidth; ++i) {
    best[i] = -infinity();
    slot[i] = 0;
  }
  const int32_t* list = neighbors + static_cast<size_t>(row) * k;
#pragma unroll 4
  for (int32_t j = 0; j < k; ++j, ++list) {
    const int32_t neighbor = guarded(__ldg(list), n, center);
    const float* point = points + static_cast<int64_t>(neighbor) * 3;
    const float x = __ldg(point) - cx, y = __ldg(point + 1) - cy, z = __ldg(point + 2) - cz;
    float there[kWidth];
    read(features + static_cast<int64_t>(neighbor) * c, there);
    for (int g = 0; g < kGroups; ++g) {
      const float ex = x - px[g], ey = y - py[g], ez = z - pz[g];
      const float distance = fmaf(ex, ex, fmaf(ey, ey, fmaf(ez, ez, kDistanceOffset)));
      const float factor = exp2_approximate(distance * s[g]);
      for (int i = g * kGroup; i < (g + 1) * kGroup; ++i) {
        const float value = (there[i] - own[i]) * factor;
        if (kForm == kWinner) slot[i] = value > best[i] ? j : slot[i];
        best[i] = fmaxf(best[i], value);
      }
    }
  }
  for (int i = 0; i < kWidth; ++i) {
    // No neighbor above minus infinity: not a number.
    best[i] = best[i] > -infinity() ? best[i] : not_a_number();
  }
  const size_t at = static_cast<size_t>(row) * c + channel;
  if (kForm == kResidual) {
    read(base + at, own);
    for (int i = 0; i < kWidth; i += 4) {
      float factors[4];
      read(scale + channel + i, factors);
      for (int j = 0; j < 4; ++j) best[i + j] = fmaf(best[i + j], factors[j], own[i + j]);
    }
  }
  write(out + at, best);
  if (kForm == kWinner) {
    for (int i = 0; i < kWidth; i += 4) write_slots(winner, k, at + i, slot + i);
  }
}

}  // namespace
}  // namespace dela

#define DELA_SPAMP(vector, Stored, width, blocks, winner_blocks)                                   \
  DELA_KERNEL(blocks)                                                                              \
  dela_spamp_##vector(const Stored* features, const float* points, const int32_t* neighbors,       \
                      const int32_t* centers, const float* weight, int32_t n, int32_t m,           \
                      int32_t k, int32_t c, Stored* out) {                                         \
    dela::spamp<Stored, width, dela::kPlain>(features, points, neighbors, centers, weight,         \
                                             nullptr, nullptr, n, m, k, c, out, nullptr);          \
  }                                                                                                \
  DELA_TRAINING(DELA_KERNEL(winner_blocks)                                                         \
  dela_spamp_winner_##vector(const Stored* features, const float* points,                          \
                             const int32_t* neighbors, const int32_t* centers,                     \
                             const float* weight, int32_t n, int32_t m, int32_t k, int32_t c,      \
                             Stored* out, void* winner) {                                          \
    dela::spamp<Stored, width, dela::kWinner>(features, points, neighbors, centers, weight,        \
                                              nullptr, nullptr, n, m, k, c, out, winner);          \
  })                                                                                               \
  DELA_KERNEL(blocks)                                                                              \
  dela_spamp_residual_##vector(const Stored* features, const float* points,                        \
                               const int32_t* neighbors, const int32_t* centers,                   \
                               const float* weight, const Stored* base, const float* scale,        \
                               int32_t n, int32_t m, int32_t k, int32_t c, Stored* out) {          \
    dela::spamp<Stored, width, dela::kResidual>(features, points, neighbors, centers, weight,      \
                                                base, scale, n, m, k, c, out, nullptr);            \
  }

DELA_SPAMP(f32, float, 4, 8, 8)
DELA_SPAMP(f16, dela::Float16, 4, 8, 8)
DELA_SPAMP(bf16, dela::BFloat16, 4, 8, 8)
DELA_SPAMP(f16_8, dela::Float16, 8, 8, 7)
DELA_SPAMP(bf16_8, dela::BFloat16, 8, 8, 7)
