// SPAMP forward: the largest position-weighted feature difference to the center, per channel; where
// there is a base, that times a scale is added to it before it is stored.
#include "cpu/features.h"
#include "cpu/operators.h"
#include "cpu/simd.h"
#include "math/spamp.h"

namespace dela {
namespace DELA_ISA {
namespace {

// Neighbors whose offsets are held at a time; a longer list is walked in pieces.
constexpr int kHeld = 128;
// Four channels share one weight, so one vector of weights serves four vectors of channels.
constexpr int kGroup = 4;
constexpr int kBlock = kGroup * kLanes;
// Rows of the prepared weight: -s log2(e), its product with the distance offset, p.
constexpr int kPreparedRows = 5;

// Rows between a prefetch and its use, and how much of each neighbor's features to ask for.
constexpr int kAhead = 2;
constexpr int64_t kPrefetchedBytes = 256;

struct Row {
  float offset[kHeld][4];
  int64_t at[kHeld];  // where a neighbor's features start
};

DELA_INLINE void fill(const Spamp& op, const float* center, const int32_t* list, int count,
                      Row& row) {
  for (int j = 0; j < count; ++j) {
    const int64_t neighbor = list[j];
    store_offset(op.points + neighbor * op.stride, center, row.offset[j]);
    row.at[j] = neighbor * op.channels;
  }
}

// Asks for the start of the features that row `list` will read.
template <class Stored>
DELA_INLINE void prefetch(const Spamp& op, const int32_t* list) {
  const Stored* features = static_cast<const Stored*>(op.features);
  const int64_t size = op.channels * static_cast<int64_t>(sizeof(Stored));
  const int64_t bytes = size < kPrefetchedBytes ? size : kPrefetchedBytes;
  for (int j = 0; j < op.k; ++j) {
    const char* row = reinterpret_cast<const char*>(features + list[j] * op.channels);
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(row + b);
  }
}

// The running maximum of vector `part` of a block, and its neighbor.
template <class Feature, bool kWinner, bool kPartial, int part>
DELA_INLINE void update(const typename Feature::Stored* f, Floats own, Floats weight, int lanes,
                        Ints j, Floats& best, Ints& slot) {
  const Floats there =
      kPartial ? Feature::read(f + part * kLanes, lanes) : Feature::read(f + part * kLanes);
  const Floats value = (there - own) * expand<part>(weight);
  if (kWinner) slot = select(less(best, value), j, slot);
  best = max(value, best);
}

// Writes the `lanes` channels from `c` on, the first of them element `at` of the output.
template <class Feature>
DELA_INLINE void finish(const Spamp& op, Floats best, int64_t at, int64_t c, int lanes, void* out) {
  typedef typename Feature::Stored Stored;
  // No neighbor above minus infinity: not a number.
  const Floats lowest = broadcast(-__builtin_inff());
  best = select(equal(best, lowest), broadcast(__builtin_nanf("")), best);
  Stored* there = static_cast<Stored*>(out) + at;
  const Stored* base = op.base == nullptr ? nullptr : static_cast<const Stored*>(op.base) + at;
  if (lanes == kLanes) {
    if (base != nullptr) best = fma(best, load(op.scale + c), Feature::read(base));
    Feature::write(there, best);
  } else {
    if (base != nullptr) {
      best = fma(best, load_partial(op.scale + c, lanes), Feature::read(base, lanes));
    }
    Feature::write(there, best, lanes);
  }
}

// One block of row m: `parts` vectors of channels, the last with `lanes` channels.
template <class Feature, bool kWinner, int parts, bool kPartial>
void block_of(const Spamp& op, const float* w, int64_t m, int64_t center,
              const int32_t* list, int64_t c, int lanes, Row& row, void* out,
              void* winner) {
  typedef typename Feature::Stored Stored;
  const Stored* features = static_cast<const Stored*>(op.features) + c;
  const Floats s = load(w), s0 = load(w + kLanes), px = load(w + 2 * kLanes),
               py = load(w + 3 * kLanes), pz = load(w + 4 * kLanes);
  Floats own[kGroup], best[kGroup];
  Ints slot[kGroup];
  const Stored* here = features + center * op.channels;
  for (int i = 0; i < parts; ++i) {
    own[i] = kPartial && i == parts - 1 ? Feature::read(here + i * kLanes, lanes)
                                        : Feature::read(here + i * kLanes);
    best[i] = broadcast(-__builtin_inff());
    slot[i] = broadcast(int32_t{0});
  }
  for (int first = 0; first < op.k; first += kHeld) {
    const int count = op.k - first < kHeld ? op.k - first : kHeld;
    if (op.k > kHeld) fill(op, op.points + center * op.stride, list + first, count, row);
    for (int j = 0; j < count; ++j) {
      const Floats x = broadcast(row.offset[j][0]) - px, y = broadcast(row.offset[j][1]) - py,
                   z = broadcast(row.offset[j][2]) - pz;
      const Floats weight = exp2(fma(fma(x, x, fma(y, y, z * z)), s, s0));
      const Stored* f = features + row.at[j];
      const Ints number = broadcast(static_cast<int32_t>(first + j));
      update<Feature, kWinner, kPartial && parts == 1, 0>(f, own[0], weight, lanes, number,
                                                          best[0], slot[0]);
      if constexpr (parts > 1) {
        update<Feature, kWinner, kPartial && parts == 2, 1>(f, own[1], weight, lanes, number,
                                                            best[1], slot[1]);
      }
      if constexpr (parts > 2) {
        update<Feature, kWinner, kPartial && parts == 3, 2>(f, own[2], weight, lanes, number,
                                                            best[2], slot[2]);
      }
      if constexpr (parts > 3) {
        update<Feature, kWinner, kPartial && parts == 4, 3>(f, own[3], weight, lanes, number,
                                                            best[3], slot[3]);
      }
    }
  }
  const int64_t at = m * op.channels + c;
  const int bytes = winner_bytes(op.k);
  for (int i = 0; i < parts; ++i) {
    const int held = i == parts - 1 ? lanes : kLanes;
    finish<Feature>(op, best[i], at + i * kLanes, c + i * kLanes, held, out);
    if (kWinner) store_slots(winner, at + i * kLanes, bytes, slot[i], held);
  }
}

template <class Feature, bool kWinner>
void rows_of(const Spamp& op, const float* prepared, int64_t begin, int64_t end, void* out,
             void* winner) {
  const int64_t channels = op.channels;
  // The last block: how many vectors, and how many channels in the last of them.
  const int64_t whole = channels / kBlock * kBlock;
  const int64_t rest = channels - whole;
  const int parts = static_cast<int>((rest + kLanes - 1) / kLanes);
  const int lanes = static_cast<int>(rest - (parts - 1) * kLanes);
  alignas(64) Row row;
  for (int64_t m = begin; m < end; ++m) {
    const int64_t center = op.centers != nullptr ? op.centers[m] : m;
    const int32_t* list = op.neighbors + m * op.k;
    if (m + kAhead < end && op.k <= kHeld) {
      prefetch<typename Feature::Stored>(op, list + kAhead * op.k);
    }
    if (op.k <= kHeld) fill(op, op.points + center * op.stride, list, op.k, row);
    const float* w = prepared;
    int64_t c = 0;
    for (; c < whole; c += kBlock, w += kPreparedRows * kLanes) {
      block_of<Feature, kWinner, 4, false>(op, w, m, center, list, c, kLanes, row, out, winner);
    }
#define DELA_LAST_BLOCK(n, partial) \
  block_of<Feature, kWinner, n, partial>(op, w, m, center, list, c, lanes, row, out, winner)
    if (lanes == kLanes) {
      if (parts == 1) DELA_LAST_BLOCK(1, false);
      if (parts == 2) DELA_LAST_BLOCK(2, false);
      if (parts == 3) DELA_LAST_BLOCK(3, false);
    } else {
      if (parts == 1) DELA_LAST_BLOCK(1, true);
      if (parts == 2) DELA_LAST_BLOCK(2, true);
      if (parts == 3) DELA_LAST_BLOCK(3, true);
      if (parts == 4) DELA_LAST_BLOCK(4, true);
    }
#undef DELA_LAST_BLOCK
  }
}

template <class Feature>
void rows_of_type(const Spamp& op, const float* prepared, int64_t begin, int64_t end, void* out,
                  void* winner) {
  if (winner != nullptr) {
    rows_of<Feature, true>(op, prepared, begin, end, out, winner);
  } else {
    rows_of<Feature, false>(op, prepared, begin, end, out, winner);
  }
}

}  // namespace

int64_t spamp_prepared_floats(const Spamp& op) {
  return round_up(op.channels / kGroup, kLanes) * kPreparedRows;
}

// Blocks of kLanes groups, each with its rows one after the other, filled up with zeros.
void spamp_prepare(const Spamp& op, float* prepared) {
  const int64_t groups = op.channels / kGroup;
  const int64_t padded = round_up(groups, kLanes);
  for (int64_t g = 0; g < padded; ++g) {
    float* column = prepared + g / kLanes * kLanes * kPreparedRows + g % kLanes;
    const bool real = g < groups;
    const float s = real ? -op.weight[3 * groups + g] * kLog2E : 0.0f;
    column[0] = s;
    column[kLanes] = s * kDistanceOffset;
    for (int i = 0; i < 3; ++i) {
      column[(2 + i) * kLanes] = real ? op.weight[i * groups + g] : 0.0f;
    }
  }
}

void spamp_rows(const Spamp& op, const float* prepared, int64_t begin, int64_t end, void* out,
                void* winner) {
  switch (op.type) {
    case FeatureType::f32:
      return rows_of_type<Float32>(op, prepared, begin, end, out, winner);
    case FeatureType::f16:
      return rows_of_type<Float16>(op, prepared, begin, end, out, winner);
    case FeatureType::bf16:
      return rows_of_type<BFloat16>(op, prepared, begin, end, out, winner);
  }
}

}  // namespace DELA_ISA
}  // namespace dela
