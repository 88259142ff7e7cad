// SPSE backward: moments of the winners' offsets, from which the weight's gradient follows.
#include "cpu/operators.h"
#include "cpu/simd.h"
#include "cpu/winners.h"
#include "math/spse.h"

namespace dela {
namespace DELA_ISA {
namespace {

// `E` attributes and `L` directions, or -1 for any number (their sums then stay in memory).
template <int E, int L>
void rows_of(const Spse& op, const SpseGradient& given, int64_t begin, int64_t end,
             float* moments) {
  constexpr bool kKnown = E >= 0;
  const int attributes = kKnown ? E : op.attributes, directions = kKnown ? L : op.directions;
  const int rows = kMomentRows + attributes + directions;
  const int64_t channels = op.channels;
  const int bytes = winner_bytes(op.k);
  const Floats zero = broadcast(0.0f), half = broadcast(0.5f);
  WinnerTable table(op.points, op.stride, op.k, 3 + attributes + directions);

  for (int64_t first = begin; first < end; first += table.rows()) {
    const int held = static_cast<int>(end - first < table.rows() ? end - first : table.rows());
    for (int r = 0; r < held; ++r) {
      const int64_t at = (first + r) * channels;
      prefetch_row(given.out + at, 4 * channels);
      prefetch_row(given.gradient + at, 4 * channels);
      prefetch_row(static_cast<const char*>(given.winner) + at * bytes, channels * bytes);
      table.set(r, op.neighbors + (first + r) * op.k, first + r);
    }
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int lanes = lanes_left(c, channels);
      const float* weight = op.weight + c;
      const Floats px = load_partial(weight + 9 * channels, lanes),
                   py = load_partial(weight + 10 * channels, lanes),
                   pz = load_partial(weight + 11 * channels, lanes);
      float* sums = moments + c * rows;
      Floats sum[kMomentRows + (kKnown ? E + L : 0)];
      constexpr int kSums = sizeof sum / sizeof sum[0];
      for (int i = 0; i < kSums; ++i) sum[i] = load(sums + i * kLanes);
      for (int r = 0; r < held; ++r) {
        const int64_t at = (first + r) * channels + c;
        const Ints slot = load_slots(given.winner, at, bytes, lanes);
        Floats out, gradient;
        if (lanes == kLanes) {
          out = load(given.out + at);
          gradient = load(given.gradient + at);
        } else {
          out = load_partial(given.out + at, lanes);
          gradient = load_partial(given.gradient + at, lanes);
        }
        // The root was clamped where it is 0: no slope there.
        const Floats h = select(equal(out, zero), zero, gradient / out);
        const Floats x = table.get(r, 0, slot) - px, y = table.get(r, 1, slot) - py,
                     z = table.get(r, 2, slot) - pz;
        const Floats hx = h * x, hy = h * y, hz = h * z;
        sum[0] = fma(hx, x, sum[0]);
        sum[1] = fma(hx, y, sum[1]);
        sum[2] = fma(hx, z, sum[2]);
        sum[3] = fma(hy, y, sum[3]);
        sum[4] = fma(hy, z, sum[4]);
        sum[5] = fma(hz, z, sum[5]);
        sum[6] = sum[6] + hx;
        sum[7] = sum[7] + hy;
        sum[8] = sum[8] + hz;
        for (int i = 0; i < attributes + directions; ++i) {
          Floats slope = table.get(r, 3 + i, slot);
          if (i < attributes) {
            slope = load_partial(weight + (12 + i) * channels, lanes) - slope;
          } else {
            slope = slope * half;
          }
          if constexpr (kKnown) {
            sum[kMomentRows + i] = fma(h, slope, sum[kMomentRows + i]);
          } else {
            float* one = sums + (kMomentRows + i) * kLanes;
            store(one, fma(h, slope, load(one)));
          }
        }
      }
      for (int i = 0; i < kSums; ++i) store(sums + i * kLanes, sum[i]);
    }
  }
}

}  // namespace

int64_t spse_moment_floats(const Spse& op) {
  return round_up(op.channels, kLanes) * (kMomentRows + op.attributes + op.directions);
}

void spse_backward_rows(const Spse& op, const SpseGradient& given, int64_t begin, int64_t end,
                        float* moments) {
  const int e = op.attributes, l = op.directions;
  if (l == 0 && e == 0) return rows_of<0, 0>(op, given, begin, end, moments);
  if (l == 0 && e == 4) return rows_of<4, 0>(op, given, begin, end, moments);
  if (l == 3 && e == 4) return rows_of<4, 3>(op, given, begin, end, moments);
  rows_of<-1, -1>(op, given, begin, end, moments);
}

void spse_weight_gradient(const Spse& op, const float* moments, int64_t chunks,
                          float* weight_gradient) {
  const int extra = op.attributes + op.directions;
  const int64_t rows = kMomentRows + extra, chunk_floats = spse_moment_floats(op);
  for (int64_t c = 0; c < op.channels; ++c) {
    const float* column = moments + c / kLanes * kLanes * rows + c % kLanes;
    double total[kMomentRows] = {};
    for (int64_t i = 0; i < chunks; ++i) {
      for (int r = 0; r < kMomentRows; ++r) total[r] += column[i * chunk_floats + r * kLanes];
    }
    ellipsoid_gradient(op.weight + c, op.channels, total, weight_gradient + c);
    for (int r = 0; r < extra; ++r) {
      double sum = 0;
      for (int64_t i = 0; i < chunks; ++i) {
        sum += column[i * chunk_floats + (kMomentRows + r) * kLanes];
      }
      weight_gradient[(12 + r) * op.channels + c] = static_cast<float>(sum);
    }
  }
}

}  // namespace DELA_ISA
}  // namespace dela
