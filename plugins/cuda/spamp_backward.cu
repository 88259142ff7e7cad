// SPAMP backward. Rows first: the gradient that each output hands to its winner (and takes from
// its center), and partial sums for the weight, which a second kernel adds in a fixed order. Then
// points: each gathers what the rows that name it hand over, in row order, by the lists of
// reverse.cu. No two threads add to one address, so the result is the same on every run.
#include "cuda/device.cuh"
#include "cuda/vector_io.cuh"
#include "math/spamp.h"

namespace dela {
namespace {

constexpr int kSumRows = 4;

// A thread takes one channel of `rows` consecutive rows.
template <class Stored>
DELA_DEVICE void spamp_backward(const float* __restrict__ points,
                                const int32_t* __restrict__ neighbors,
                                const int32_t* __restrict__ centers,
                                const float* __restrict__ weight, const Stored* __restrict__ out,
                                const void* __restrict__ winner, const Stored* __restrict__ grad,
                                int32_t n, int32_t m, int32_t k, int32_t c, int32_t rows,
                                float* __restrict__ passed, float* __restrict__ sums) {
  const uint32_t chunk = thread_number() / static_cast<uint32_t>(c);
  const int32_t channel = static_cast<int32_t>(thread_number() - chunk * c);
  const int64_t first_row = static_cast<int64_t>(chunk) * rows;
  if (first_row >= m) return;
  const int32_t begin = static_cast<int32_t>(first_row);
  const int32_t end = m - begin < rows ? m : begin + rows;

  const float* w = weight + channel / kGroup;
  const size_t groups = static_cast<size_t>(c / kGroup);
  const float px = __ldg(w), py = __ldg(w + groups), pz = __ldg(w + 2 * groups);
  const float s = -__ldg(w + 3 * groups) * kLog2E;
  float sum[kSumRows] = {};
#pragma unroll 4
  for (int32_t row = begin; row < end; ++row) {
    const size_t at = static_cast<size_t>(row) * c + channel;
    const int32_t center = center_of(centers, row, n);
    const int32_t slot = read_slot(winner, k, at);
    const int32_t neighbor =
        guarded(__ldg(neighbors + static_cast<size_t>(row) * k + slot), n, center);
    const float* here = points + static_cast<int64_t>(center) * 3;
    const float* there = points + static_cast<int64_t>(neighbor) * 3;
    const float x = __ldg(there) - __ldg(here) - px;
    const float y = __ldg(there + 1) - __ldg(here + 1) - py;
    const float z = __ldg(there + 2) - __ldg(here + 2) - pz;
    const float distance = fmaf(x, x, fmaf(y, y, fmaf(z, z, kDistanceOffset)));
    const float gradient = read(grad + at);
    passed[at] = gradient * exp2_approximate(distance * s);
    const float both = gradient * read(out + at);
    sum[0] = fmaf(both, x, sum[0]);
    sum[1] = fmaf(both, y, sum[1]);
    sum[2] = fmaf(both, z, sum[2]);
    sum[3] = fmaf(both, distance, sum[3]);
  }
  float* to = sums + static_cast<size_t>(chunk) * kSumRows * c + channel;
  for (int i = 0; i < kSumRows; ++i) to[static_cast<size_t>(i) * c] = sum[i];
}

// A thread takes four channels of one point.
template <class Stored>
DELA_DEVICE void spamp_feature_gradient(const float* __restrict__ passed,
                                        const void* __restrict__ winner,
                                        const uint32_t* __restrict__ counts,
                                        const uint32_t* __restrict__ ends,
                                        const uint32_t* __restrict__ entries, int32_t n, int32_t k,
                                        int32_t c, Stored* __restrict__ grad_features) {
  const Tile tile(static_cast<uint32_t>(n), static_cast<uint32_t>(c) / kGroup);
  if (!tile.inside) return;
  const uint32_t point = tile.row, channel = tile.piece * kGroup;
  const uint32_t count = __ldg(counts + point);
  const uint32_t* list = entries + __ldg(ends + point) - count;
  const uint32_t places = static_cast<uint32_t>(k) + 1;
  float sum[kGroup] = {};
#pragma unroll 4
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t entry = __ldg(list + i), row = entry / places;
    const int32_t slot = static_cast<int32_t>(entry - row * places) - 1;  // -1: as center
    const size_t at = static_cast<size_t>(row) * c + channel;
    int32_t slots[kGroup];
    read_slots(winner, k, at, slots);
    const bool any = slot < 0 || slots[0] == slot || slots[1] == slot || slots[2] == slot ||
                     slots[3] == slot;
    if (any) {
      float from[kGroup];
      read(passed + at, from);
      for (int j = 0; j < kGroup; ++j) {
        if (slot < 0) sum[j] -= from[j];
        if (slots[j] == slot) sum[j] += from[j];
      }
    }
  }
  write(grad_features + static_cast<size_t>(point) * c + channel, sum);
}

}  // namespace
}  // namespace dela

// As for SPSE; the four channels of a group share one gradient.
DELA_KERNEL(4)
dela_spamp_weight_gradient(const float* weight, const float* sums, int32_t chunks, int32_t c,
                           float* grad_weight) {
  using dela::kGroup;
  using dela::kLanes;
  using dela::kReducedChannels;
  using dela::kSumRows;
  __shared__ float part[kSumRows][kLanes][kReducedChannels];
  const int32_t own = threadIdx.x % kReducedChannels, lane = threadIdx.x / kReducedChannels;
  const int32_t channel = blockIdx.x * kReducedChannels + own;
  float sum[kSumRows] = {};
  if (channel < c) {
    for (int32_t chunk = lane; chunk < chunks; chunk += kLanes) {
      const float* from = sums + static_cast<size_t>(chunk) * kSumRows * c + channel;
      for (int i = 0; i < kSumRows; ++i) sum[i] += __ldg(from + static_cast<size_t>(i) * c);
    }
  }
  for (int i = 0; i < kSumRows; ++i) part[i][lane][own] = sum[i];
  __syncthreads();
  if (lane >= kSumRows || own % kGroup != 0 || channel >= c) return;
  double total = 0.0;
  for (int j = 0; j < kLanes; ++j) {
    for (int o = own; o < own + kGroup; ++o) total += part[lane][j][o];
  }
  const size_t groups = static_cast<size_t>(c / kGroup), group = channel / kGroup;
  const double factor = lane < 3 ? 2.0 * weight[3 * groups + group] : -1.0;
  grad_weight[lane * groups + group] = static_cast<float>(factor * total);
}

#define DELA_SPAMP_BACKWARD(suffix, Stored)                                                        \
  DELA_KERNEL(6)                                                                                   \
  dela_spamp_backward_##suffix(const float* points, const int32_t* neighbors,                      \
                               const int32_t* centers, const float* weight, const Stored* out,     \
                               const void* winner, const Stored* grad, int32_t n, int32_t m,       \
                               int32_t k, int32_t c, int32_t rows, float* passed, float* sums) {   \
    dela::spamp_backward<Stored>(points, neighbors, centers, weight, out, winner, grad, n, m, k,   \
                                 c, rows, passed, sums);                                           \
  }                                                                                                \
  DELA_KERNEL(8)                                                                                   \
  dela_spamp_feature_gradient_##suffix(const float* passed, const void* winner,                    \
                                       const uint32_t* counts, const uint32_t* ends,               \
                                       const uint32_t* entries, int32_t n, int32_t m, int32_t k,   \
                                       int32_t c, Stored* grad_features) {                         \
    dela::spamp_feature_gradient<Stored>(passed, winner, counts, ends, entries, n, k, c,           \
                                         grad_features);                                           \
  }

DELA_SPAMP_BACKWARD(f32, float)
DELA_SPAMP_BACKWARD(f16, dela::Float16)
DELA_SPAMP_BACKWARD(bf16, dela::BFloat16)
