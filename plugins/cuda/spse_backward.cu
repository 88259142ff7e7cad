// SPSE backward: moments of the winners' offsets, from which the weight's gradient follows.
//
// A thread sums one channel over `rows` consecutive points; a second kernel adds those partial
// sums, always in the same order, so the result is the same on every run.
#include "cuda/device.cuh"
#include "cuda/vector_io.cuh"
#include "math/spse.h"

namespace dela {
namespace {

constexpr int kHeldExtras = 4;  // attributes and directions summed in one walk over the points

struct Spse {
  const float* __restrict__ points;
  const int32_t* __restrict__ neighbors;
  const float* __restrict__ weight;
  const float* __restrict__ out;
  const void* __restrict__ winner;
  const float* __restrict__ grad;
  int32_t n, k, c, attributes, extra;
};

// Rows [begin, end) of one channel: the moments, where asked for, and the sums of the attributes
// and directions from `first` on.
template <bool kMoments>
DELA_DEVICE void sum_rows(const Spse& op, int32_t channel, int32_t begin, int32_t end,
                          int32_t first, float (&moment)[kMomentRows],
                          float (&extras)[kHeldExtras]) {
  const int32_t stride = 3 + op.extra;
  const float* w = op.weight + channel;
  const size_t c = static_cast<size_t>(op.c);
  const float px = __ldg(w + 9 * c), py = __ldg(w + 10 * c), pz = __ldg(w + 11 * c);
  float own[kHeldExtras];
  for (int i = 0; i < kMomentRows; ++i) moment[i] = 0.0f;
  for (int i = 0; i < kHeldExtras; ++i) {
    extras[i] = 0.0f;
    own[i] = first + i < op.attributes ? __ldg(w + (12 + first + i) * c) : 0.0f;
  }
#pragma unroll 4
  for (int32_t row = begin; row < end; ++row) {
    const size_t at = row * c + channel;
    const int32_t slot = read_slot(op.winner, op.k, at);
    const float out = __ldg(op.out + at), grad = __ldg(op.grad + at);
    const int32_t neighbor =
        guarded(__ldg(op.neighbors + static_cast<size_t>(row) * op.k + slot), op.n, row);
    const float* point = op.points + static_cast<int64_t>(neighbor) * stride;
    // The root was clamped where it is 0: no slope there.
    const float h = out == 0.0f ? 0.0f : grad / out;
    if (kMoments) {
      const float* center = op.points + static_cast<int64_t>(row) * stride;
      const float x = __ldg(point) - __ldg(center) - px;
      const float y = __ldg(point + 1) - __ldg(center + 1) - py;
      const float z = __ldg(point + 2) - __ldg(center + 2) - pz;
      const float hx = h * x, hy = h * y, hz = h * z;
      moment[0] = fmaf(hx, x, moment[0]);
      moment[1] = fmaf(hx, y, moment[1]);
      moment[2] = fmaf(hx, z, moment[2]);
      moment[3] = fmaf(hy, y, moment[3]);
      moment[4] = fmaf(hy, z, moment[4]);
      moment[5] = fmaf(hz, z, moment[5]);
      moment[6] += hx;
      moment[7] += hy;
      moment[8] += hz;
    }
    for (int i = 0; i < kHeldExtras; ++i) {
      if (first + i < op.extra) {
        const float there = __ldg(point + 3 + first + i);
        const float slope = first + i < op.attributes ? own[i] - there : 0.5f * there;
        extras[i] = fmaf(h, slope, extras[i]);
      }
    }
  }
}

}  // namespace
}  // namespace dela

DELA_KERNEL(6)
dela_spse_backward(const float* points, const int32_t* neighbors, const float* weight,
                   const float* out, const void* winner, const float* grad, int32_t n, int32_t k,
                   int32_t c, int32_t e, int32_t l, int32_t rows, float* moments) {
  const dela::Spse op{points, neighbors, weight, out, winner, grad, n, k, c, e, e + l};
  const uint32_t chunk = dela::thread_number() / static_cast<uint32_t>(c);
  const int32_t channel = static_cast<int32_t>(dela::thread_number() - chunk * c);
  const int64_t first_row = static_cast<int64_t>(chunk) * rows;
  if (first_row >= n) return;
  const int32_t begin = static_cast<int32_t>(first_row);
  const int32_t end = n - begin < rows ? n : begin + rows;

  float moment[dela::kMomentRows], extras[dela::kHeldExtras];
  float* to =
      moments + static_cast<size_t>(chunk) * (dela::kMomentRows + op.extra) * c + channel;
  dela::sum_rows<true>(op, channel, begin, end, 0, moment, extras);
  for (int i = 0; i < dela::kMomentRows; ++i) to[static_cast<size_t>(i) * c] = moment[i];
  to += static_cast<size_t>(dela::kMomentRows) * c;
  for (int32_t first = 0; first < op.extra; first += dela::kHeldExtras) {
    if (first > 0) dela::sum_rows<false>(op, channel, begin, end, first, moment, extras);
    for (int i = 0; i < dela::kHeldExtras; ++i) {
      if (first + i < op.extra) to[static_cast<size_t>(first + i) * c] = extras[i];
    }
  }
}

// A block adds up the partial sums of 8 channels: 16 threads each take every 16th chunk, then one
// adds the 16.
DELA_KERNEL(4)
dela_spse_weight_gradient(const float* weight, const float* moments, int32_t chunks, int32_t c,
                          int32_t e, int32_t l, float* grad_weight) {
  using dela::kLanes;
  using dela::kMomentRows;
  using dela::kReducedChannels;
  __shared__ float part[kMomentRows][kLanes][kReducedChannels];
  __shared__ double total[kReducedChannels][kMomentRows];
  const int32_t own = threadIdx.x % kReducedChannels, lane = threadIdx.x / kReducedChannels;
  const int32_t channel = blockIdx.x * kReducedChannels + own;
  const int32_t rows = kMomentRows + e + l;
  for (int32_t first = 0; first < rows; first += kMomentRows) {
    const int32_t held = rows - first < kMomentRows ? rows - first : kMomentRows;
    float sum[kMomentRows] = {};
    if (channel < c) {
      for (int32_t chunk = lane; chunk < chunks; chunk += kLanes) {
        const float* from =
            moments + (static_cast<size_t>(chunk) * rows + first) * c + channel;
        for (int i = 0; i < kMomentRows; ++i) {
          if (i < held) sum[i] += __ldg(from + static_cast<size_t>(i) * c);
        }
      }
    }
    for (int i = 0; i < kMomentRows; ++i) part[i][lane][own] = sum[i];
    __syncthreads();
    if (lane < held) {
      double added = 0.0;
      for (int j = 0; j < kLanes; ++j) added += part[lane][j][own];
      total[own][lane] = added;
      // Row `first` of the sums is row 12 + (first - 9) of the weight.
      if (first > 0 && channel < c) {
        const size_t row = static_cast<size_t>(first) + lane + 12 - kMomentRows;
        grad_weight[row * c + channel] = static_cast<float>(added);
      }
    }
    __syncthreads();
    if (first == 0 && lane == 0 && channel < c) {
      dela::ellipsoid_gradient(weight + channel, c, total[own], grad_weight + channel);
    }
    __syncthreads();
  }
}
