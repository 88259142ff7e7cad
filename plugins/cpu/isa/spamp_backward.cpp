// SPAMP backward. Rows first: the gradient that each output hands to its winner, and sums for the
// weight. Then channels: those gradients are added to the winners and taken from the centers, each
// thread owning whole channels, in row order, so no two threads meet and the order never changes.
#include "cpu/features.h"
#include "cpu/operators.h"
#include "cpu/simd.h"
#include "cpu/winners.h"
#include "math/spamp.h"

namespace dela {
namespace DELA_ISA {
namespace {

constexpr int kSumRows = 4;
// Rows between a prefetch and its use; lists longer than the second are not prefetched.
constexpr int kAhead = 3;
constexpr int kPrefetched = 64;

template <class Feature>
void rows_of(const Spamp& op, const SpampGradient& given, int64_t begin, int64_t end,
             float* passed, float* sums) {
  typedef typename Feature::Stored Stored;
  const Stored* outs = static_cast<const Stored*>(given.out);
  const Stored* gradients = static_cast<const Stored*>(given.gradient);
  const int64_t channels = op.channels, groups = channels / 4;
  const int bytes = winner_bytes(op.k);
  const Floats offset = broadcast(kDistanceOffset);
  WinnerTable table(op.points, op.stride, op.k, 3);

  for (int64_t first = begin; first < end; first += table.rows()) {
    const int held = static_cast<int>(end - first < table.rows() ? end - first : table.rows());
    for (int r = 0; r < held; ++r) {
      const int64_t m = first + r, at = m * channels;
      prefetch_row(outs + at, channels * static_cast<int64_t>(sizeof(Stored)));
      prefetch_row(gradients + at, channels * static_cast<int64_t>(sizeof(Stored)));
      prefetch_row(static_cast<const char*>(given.winner) + at * bytes, channels * bytes);
      table.set(r, op.neighbors + m * op.k, op.centers != nullptr ? op.centers[m] : m);
    }
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int lanes = lanes_left(c, channels);
      alignas(64) float w[4][kLanes] = {};
      for (int i = 0; i < 4; ++i) {
        for (int lane = 0; lane < lanes; ++lane) w[i][lane] = op.weight[i * groups + (c + lane) / 4];
      }
      const Floats px = load(w[0]), py = load(w[1]), pz = load(w[2]),
                   s = load(w[3]) * broadcast(-kLog2E);
      float* block = sums + c * kSumRows;
      Floats sx = load(block), sy = load(block + kLanes), sz = load(block + 2 * kLanes),
             sd = load(block + 3 * kLanes);
      for (int r = 0; r < held; ++r) {
        const int64_t at = (first + r) * channels + c;
        const Ints slot = load_slots(given.winner, at, bytes, lanes);
        const Floats x = table.get(r, 0, slot) - px, y = table.get(r, 1, slot) - py,
                     z = table.get(r, 2, slot) - pz;
        const Floats distance = fma(x, x, fma(y, y, fma(z, z, offset)));
        const Floats weight = exp2(distance * s);
        float* to = passed + at - begin * channels;
        Floats gradient, out;
        if (lanes == kLanes) {
          gradient = Feature::read(gradients + at);
          out = Feature::read(outs + at);
          store(to, gradient * weight);
        } else {
          gradient = Feature::read(gradients + at, lanes);
          out = Feature::read(outs + at, lanes);
          store_partial(to, gradient * weight, lanes);
        }
        const Floats both = gradient * out;
        sx = fma(both, x, sx);
        sy = fma(both, y, sy);
        sz = fma(both, z, sz);
        sd = fma(both, distance, sd);
      }
      store(block, sx);
      store(block + kLanes, sy);
      store(block + 2 * kLanes, sz);
      store(block + 3 * kLanes, sd);
    }
  }
}

// Asks for the channels that row `list` of the neighbor table will touch.
DELA_INLINE void prefetch(const int32_t* list, int k, int64_t channels, int64_t first,
                          int64_t last, const float* feature_gradient) {
  for (int j = 0; j < k; ++j) {
    const float* row = feature_gradient + list[j] * channels;
    for (int64_t c = first; c < last; c += 16) __builtin_prefetch(row + c, 1);
  }
}

template <class Slot>
void channels_of(const Spamp& op, const void* winner, const float* passed, int64_t begin,
                 int64_t end, int64_t first, int64_t last, float* feature_gradient) {
  const int64_t channels = op.channels;
  const Slot* slots = static_cast<const Slot*>(winner);
  for (int64_t m = begin; m < end; ++m) {
    const int32_t* list = op.neighbors + m * op.k;
    const int64_t center = op.centers != nullptr ? op.centers[m] : m;
    const float* from = passed + (m - begin) * channels;
    const Slot* slot = slots + m * channels;
    if (m + kAhead < end && op.k <= kPrefetched) {
      prefetch(list + kAhead * op.k, op.k, channels, first, last, feature_gradient);
    }
    float* own = feature_gradient + center * channels;
    for (int64_t c = first; c < last; ++c) own[c] -= from[c];
    for (int64_t c = first; c < last; c += 4) {
      // A row's four winners may be one point, but the channels differ: no two addresses meet.
      float* to[4];
      float sum[4];
      for (int i = 0; i < 4; ++i) to[i] = feature_gradient + list[slot[c + i]] * channels + c + i;
      for (int i = 0; i < 4; ++i) sum[i] = *to[i] + from[c + i];
      for (int i = 0; i < 4; ++i) *to[i] = sum[i];
    }
  }
}

}  // namespace

int64_t spamp_sum_floats(const Spamp& op) { return round_up(op.channels, kLanes) * kSumRows; }

void spamp_backward_rows(const Spamp& op, const SpampGradient& given, int64_t begin, int64_t end,
                         float* passed, float* sums) {
  switch (op.type) {
    case FeatureType::f32:
      return rows_of<Float32>(op, given, begin, end, passed, sums);
    case FeatureType::f16:
      return rows_of<Float16>(op, given, begin, end, passed, sums);
    case FeatureType::bf16:
      return rows_of<BFloat16>(op, given, begin, end, passed, sums);
  }
}

void spamp_backward_channels(const Spamp& op, const void* winner, const float* passed,
                             int64_t begin, int64_t end, int64_t first_channel,
                             int64_t last_channel, float* feature_gradient) {
  if (winner_bytes(op.k) == 1) {
    channels_of<uint8_t>(op, winner, passed, begin, end, first_channel, last_channel,
                         feature_gradient);
  } else {
    channels_of<uint16_t>(op, winner, passed, begin, end, first_channel, last_channel,
                          feature_gradient);
  }
}

void spamp_weight_gradient(const Spamp& op, const float* sums, int64_t chunks,
                           float* weight_gradient) {
  const int64_t groups = op.channels / 4, chunk_floats = spamp_sum_floats(op);
  for (int64_t g = 0; g < groups; ++g) {
    double total[kSumRows] = {};
    for (int64_t i = 0; i < chunks; ++i) {
      for (int64_t c = 4 * g; c < 4 * g + 4; ++c) {
        const float* column =
            sums + i * chunk_floats + c / kLanes * kLanes * kSumRows + c % kLanes;
        for (int r = 0; r < kSumRows; ++r) total[r] += column[r * kLanes];
      }
    }
    const double s = op.weight[3 * groups + g];
    for (int r = 0; r < 3; ++r) {
      weight_gradient[r * groups + g] = static_cast<float>(2 * s * total[r]);
    }
    weight_gradient[3 * groups + g] = static_cast<float>(-total[3]);
  }
}

}  // namespace DELA_ISA
}  // namespace dela
