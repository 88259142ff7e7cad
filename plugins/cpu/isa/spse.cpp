// SPSE forward: the nearest neighbor of every point in C learned metrics.
#include "cpu/operators.h"
#include "cpu/simd.h"
#include "math/spse.h"

namespace dela {
namespace DELA_ISA {
namespace {

// Neighbors whose offsets are held at a time; a longer list is walked in pieces.
constexpr int kHeld = 128;

// A count known when compiled, or the one given when it is -1.
template <int known>
DELA_INLINE int count_of(int given) {
  return known >= 0 ? known : given;
}

// `E` attributes and `L` directions, or -1 for any number.
template <int E, int L, bool kWinner>
void rows_of(const Spse& op, const float* prepared, int64_t begin, int64_t end, float* out,
             void* winner) {
  const int attributes = count_of<E>(op.attributes), directions = count_of<L>(op.directions);
  const int rows = kFactoredRows + attributes + directions;
  const int64_t channels = op.channels;
  const int bytes = winner_bytes(op.k);
  const Floats infinity = broadcast(__builtin_inff());
  const Floats epsilon = broadcast(op.epsilon);
  alignas(64) float offset[kHeld][4];
  const float* extra[kHeld];

  for (int64_t m = begin; m < end; ++m) {
    const float* center = op.points + m * op.stride;
    const int32_t* list = op.neighbors + m * op.k;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const float* w = prepared + c * rows;
      const Floats r00 = load(w), r01 = load(w + kLanes), r02 = load(w + 2 * kLanes),
                   r11 = load(w + 3 * kLanes), r12 = load(w + 4 * kLanes),
                   r22 = load(w + 5 * kLanes), b0 = load(w + 6 * kLanes),
                   b1 = load(w + 7 * kLanes), b2 = load(w + 8 * kLanes);
      const float* q = w + kFactoredRows * kLanes;
      const float* d = q + attributes * kLanes;
      Floats best = infinity;
      Ints slot = broadcast(int32_t{0});
      for (int first = 0; first < op.k; first += kHeld) {
        const int count = op.k - first < kHeld ? op.k - first : kHeld;
        if (c == 0 || op.k > kHeld) {
          for (int j = 0; j < count; ++j) {
            const float* point = op.points + list[first + j] * op.stride;
            store_offset(point, center, offset[j]);
            extra[j] = point + 3;
          }
        }
        for (int j = 0; j < count; ++j) {
          const Floats x = broadcast(offset[j][0]), y = broadcast(offset[j][1]),
                       z = broadcast(offset[j][2]);
          const Floats u = fma(x, r00, fma(y, r01, fma(z, r02, b0)));
          const Floats v = fma(y, r11, fma(z, r12, b1));
          const Floats t = fma(z, r22, b2);
          Floats value = fma(u, u, fma(v, v, t * t));
          for (int e = 0; e < attributes; ++e) {
            const Floats a = broadcast(extra[j][e]) - load(q + e * kLanes);
            value = fma(a, a, value);
          }
          for (int l = 0; l < directions; ++l) {
            value = fma(broadcast(extra[j][attributes + l]), load(d + l * kLanes), value);
          }
          if (kWinner) {
            slot = select(less(value, best), broadcast(static_cast<int32_t>(first + j)), slot);
          }
          best = min(value, best);
        }
      }
      // Only rounding makes the value negative. No neighbor below infinity: not a number.
      Floats root = sqrt(max(best + epsilon, broadcast(0.0f)));
      root = select(less(best, infinity), root, broadcast(__builtin_nanf("")));
      const int lanes = lanes_left(c, channels);
      if (lanes == kLanes) {
        store(out + m * channels + c, root);
      } else {
        store_partial(out + m * channels + c, root, lanes);
      }
      if (kWinner) store_slots(winner, m * channels + c, bytes, slot, lanes);
    }
  }
}

template <bool kWinner>
void rows_by_shape(const Spse& op, const float* prepared, int64_t begin, int64_t end, float* out,
                   void* winner) {
  const int e = op.attributes, l = op.directions;
  if (l == 0 && e == 0) return rows_of<0, 0, kWinner>(op, prepared, begin, end, out, winner);
  if (l == 0 && e == 1) return rows_of<1, 0, kWinner>(op, prepared, begin, end, out, winner);
  if (l == 0 && e == 2) return rows_of<2, 0, kWinner>(op, prepared, begin, end, out, winner);
  if (l == 0 && e == 3) return rows_of<3, 0, kWinner>(op, prepared, begin, end, out, winner);
  if (l == 0 && e == 4) return rows_of<4, 0, kWinner>(op, prepared, begin, end, out, winner);
  if (l == 3 && e == 4) return rows_of<4, 3, kWinner>(op, prepared, begin, end, out, winner);
  return rows_of<-1, -1, kWinner>(op, prepared, begin, end, out, winner);
}

}  // namespace

int64_t spse_prepared_floats(const Spse& op) {
  return round_up(op.channels, kLanes) * (kFactoredRows + op.attributes + op.directions);
}

// Blocks of kLanes channels, each with its rows one after the other; the last block is filled up
// with zero metrics, whose results are never stored.
void spse_prepare(const Spse& op, float* prepared) {
  const int extra = op.attributes + op.directions;
  const int rows = kFactoredRows + extra;
  const int64_t padded = round_up(op.channels, kLanes);
  for (int64_t c = 0; c < padded; ++c) {
    float* column = prepared + c / kLanes * kLanes * rows + c % kLanes;
    if (c >= op.channels) {
      for (int i = 0; i < rows; ++i) column[i * kLanes] = 0.0f;
      continue;
    }
    double weight[12], factored[kFactoredRows];
    for (int i = 0; i < 12; ++i) weight[i] = op.weight[i * op.channels + c];
    factor_ellipsoid(weight, factored);
    for (int i = 0; i < kFactoredRows; ++i) column[i * kLanes] = static_cast<float>(factored[i]);
    for (int i = 0; i < extra; ++i) {
      column[(kFactoredRows + i) * kLanes] = op.weight[(12 + i) * op.channels + c];
    }
  }
}

void spse_rows(const Spse& op, const float* prepared, int64_t begin, int64_t end, float* out,
               void* winner) {
  if (winner != nullptr) {
    rows_by_shape<true>(op, prepared, begin, end, out, winner);
  } else {
    rows_by_shape<false>(op, prepared, begin, end, out, winner);
  }
}

}  // namespace DELA_ISA
}  // namespace dela
