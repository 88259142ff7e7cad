// Stable sort of 64-bit keys with the rows behind them, six bits at a time from the lowest; and the
// listing and the gathering of rows that the other geometry kernels need.
//
// A pass reads and writes every key once: the digits of all passes are counted beforehand, and the tiles
// hand on how many of each digit lie before (Adinets and Merrill 2022, "Onesweep").
#include "cuda/geometry.cuh"

namespace dela {
namespace {

constexpr int kDigitBits = 6, kDigits = 1 << kDigitBits;
constexpr int kMostPasses = 11;

DELA_DEVICE int32_t digit_of(uint64_t key, int32_t shift) {
  return static_cast<int32_t>((key >> shift) & (kDigits - 1));
}

// A counter for every digit and thread, digit by digit. Each thread then adds up a stretch of as many
// as there are digits; a gap behind each stretch keeps the threads on different memory banks.
constexpr int kGap = 2;
constexpr int kCounters = (kDigits + kGap) * kBlock;
DELA_DEVICE int counter(int number) { return number + number / kDigits * kGap; }

}  // namespace
}  // namespace dela

// counts[pass * 64 + digit], zero before: keys with that digit in that pass. A grid-stride loop: any
// number of blocks.
DELA_KERNEL(8)
dela_sort_count(const uint64_t* keys, int32_t n, int32_t passes, uint32_t* counts) {
  __shared__ uint32_t bins[dela::kMostPasses * dela::kDigits];
  const int32_t all = passes * dela::kDigits;
  for (int32_t bin = threadIdx.x; bin < all; bin += dela::kBlock) bins[bin] = 0;
  __syncthreads();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = dela::thread_number(); at < n; at += step) {
    const uint64_t key = keys[at];
    for (int32_t pass = 0; pass < passes; ++pass) {
      const int32_t digit = dela::digit_of(key, pass * dela::kDigitBits);
      atomicAdd(bins + pass * dela::kDigits + digit, 1u);
    }
  }
  __syncthreads();
  for (int32_t bin = threadIdx.x; bin < all; bin += dela::kBlock) {
    if (bins[bin] > 0) atomicAdd(counts + bin, bins[bin]);
  }
}

// One pass: places keys and rows by their digit; null `rows` are 0, 1, 2 ... `counts`: of this pass's
// digits. `states`, zero before: a ticket, then a word for every tile and digit.
DELA_KERNEL(4)
dela_sort_place(const uint64_t* keys, const uint32_t* rows, const uint32_t* counts, int32_t n,
                int32_t shift, uint64_t* states, uint64_t* sorted_keys, uint32_t* sorted_rows) {
  __shared__ uint16_t counters[dela::kCounters];
  __shared__ uint32_t sums[dela::kBlock];
  // Where the tile's keys of a digit go, less those of lower digits in the tile.
  __shared__ uint32_t start[dela::kDigits];
  const int thread = threadIdx.x;
  for (int digit = 0; digit < dela::kDigits; ++digit) {
    counters[dela::counter(digit * dela::kBlock + thread)] = 0;
  }
  const uint32_t tile = dela::next_tile(states, sums);
  const int64_t first = dela::first_item(tile);
  for (int i = 0; i < dela::kTileItems; ++i) {
    if (first + i >= n) break;
    ++counters[dela::counter(dela::digit_of(keys[first + i], shift) * dela::kBlock + thread)];
  }
  __syncthreads();
  uint32_t own = 0;
  const int stretch = thread * dela::kDigits;
  for (int i = 0; i < dela::kDigits; ++i) own += counters[dela::counter(stretch + i)];
  uint32_t in_tile, all;
  uint32_t sum = dela::sum_before(own, sums, &in_tile);
  for (int i = 0; i < dela::kDigits; ++i) {
    const int at = dela::counter(stretch + i);
    const uint32_t count = counters[at];
    counters[at] = static_cast<uint16_t>(sum);
    sum += count;
  }
  const bool has_digit = thread < dela::kDigits;
  const uint32_t below = dela::sum_before(has_digit ? counts[thread] : 0u, sums, &all);
  if (has_digit) {
    const uint32_t lower = counters[dela::counter(thread * dela::kBlock)];
    const uint32_t upper = thread + 1 < dela::kDigits
                               ? counters[dela::counter((thread + 1) * dela::kBlock)]
                               : in_tile;
    start[thread] = below - lower + dela::sum_of_tiles_before(states + 1 + thread, dela::kDigits,
                                                              tile, upper - lower);
  }
  __syncthreads();
  for (int i = 0; i < dela::kTileItems; ++i) {
    if (first + i >= n) break;
    const uint64_t key = keys[first + i];
    const int32_t digit = dela::digit_of(key, shift);
    const uint32_t place = counters[dela::counter(digit * dela::kBlock + thread)]++;
    const uint32_t to = start[digit] + place;
    sorted_keys[to] = key;
    sorted_rows[to] = rows == nullptr ? static_cast<uint32_t>(first + i) : rows[first + i];
  }
}

// The numbers of the set flags, ascending, and how many. `states`, zero before: a ticket, then a word
// for every tile.
DELA_KERNEL(8)
dela_list_flags(const uint8_t* flags, int32_t n, uint64_t* states, int32_t* numbers,
                uint32_t* count) {
  __shared__ uint32_t sums[dela::kBlock];
  __shared__ uint32_t listed;
  const uint32_t tile = dela::next_tile(states, sums);
  const int64_t first = dela::first_item(tile);
  uint32_t own = 0;
  for (int i = 0; i < dela::kTileItems; ++i) own += first + i < n ? flags[first + i] : 0u;
  uint32_t all;
  const uint32_t before = dela::sum_before(own, sums, &all);
  if (threadIdx.x == 0) {
    listed = dela::sum_of_tiles_before(states + 1, 1, tile, all);
    if (tile + 1 == gridDim.x) *count = listed + all;
  }
  __syncthreads();
  uint32_t to = listed + before;
  for (int i = 0; i < dela::kTileItems; ++i) {
    if (first + i >= n) break;
    if (flags[first + i]) numbers[to++] = static_cast<int32_t>(first + i);
  }
}

// Rows of `width` 4-byte words: to[i] = from[rows[i]], or `missing` in every word where rows[i] is
// outside [0, n).
DELA_KERNEL(8)
dela_gather_rows(const uint32_t* from, const int32_t* rows, int32_t n, int32_t count, int32_t width,
                 int32_t missing, uint32_t* to) {
  const uint64_t at = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= static_cast<uint64_t>(count) * width) return;
  const uint64_t number = at / width, word = at - number * width;
  const int32_t row = rows[number];
  const bool there = static_cast<uint32_t>(row) < static_cast<uint32_t>(n);
  to[at] = there ? from[static_cast<uint64_t>(row) * width + word] : static_cast<uint32_t>(missing);
}
