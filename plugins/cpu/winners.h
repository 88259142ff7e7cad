// Coordinates of the winning neighbors in the backward passes, looked up by slot.
//
// A few rows' neighbor lists are laid out column by column (x of every neighbor, y of every
// neighbor ...), so that one table lookup answers a whole vector of channels.
#pragma once

#include "cpu/operators.h"
#include "cpu/simd.h"

namespace dela {
namespace DELA_ISA {

class WinnerTable {
 public:
  // `columns` floats are kept of each neighbor; the first three relative to the center.
  WinnerTable(const float* points, int64_t stride, int k, int columns)
      : points_(points), stride_(stride), k_(k), columns_(columns) {
    length_ = round_up(k, 32);
    const int64_t fit = kFloats / (length_ * columns);
    held_ = fit < kRows ? static_cast<int>(fit) : kRows;
  }

  // Rows to take at a time. Lists too long for the table are read from the points themselves.
  int rows() const { return held_ > 0 ? held_ : kRows; }

  // Row `r` of the table (r < rows()): the neighbors `list` of point `center`.
  void set(int r, const int32_t* list, int64_t center) {
    lists_[r] = list;
    centers_[r] = points_ + center * stride_;
    if (held_ == 0) return;
    float* table = values_ + r * columns_ * length_;
    for (int j = 0; j < k_; ++j) {
      const float* point = points_ + list[j] * stride_;
      for (int i = 0; i < 3; ++i) table[i * length_ + j] = point[i] - centers_[r][i];
      for (int i = 3; i < columns_; ++i) table[i * length_ + j] = point[i];
    }
  }

  // Column `i` of the neighbors of row `r` in these slots.
  Floats get(int r, int i, Ints slot) const {
    if (__builtin_expect(held_ > 0, 1)) {
      return lookup(values_ + (r * columns_ + i) * length_, slot, static_cast<int>(length_));
    }
    Floats v;
    for (int lane = 0; lane < kLanes; ++lane) {
      v[lane] = points_[lists_[r][slot[lane]] * stride_ + i];
      if (i < 3) v[lane] -= centers_[r][i];
    }
    return v;
  }

 private:
  static constexpr int kRows = 32;
  static constexpr int64_t kFloats = 8192;
  alignas(64) float values_[kFloats];
  const int32_t* lists_[kRows];
  const float* centers_[kRows];
  const float* points_;
  int64_t stride_, length_;
  int k_, columns_, held_;
};

// Asks for `bytes` from `p` on, read once the table is filled.
DELA_INLINE void prefetch_row(const void* p, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(static_cast<const char*>(p) + b);
}

}  // namespace DELA_ISA
}  // namespace dela
