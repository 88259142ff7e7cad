// Stable sort of 64-bit keys with the rows behind them, six bits at a time from the lowest; and the
// scan and the gathering of rows that the other geometry kernels need.
#include "cuda/geometry.cuh"

namespace dela {
namespace {

constexpr int kDigitBits = 6, kDigits = 1 << kDigitBits;
constexpr int kScanThreads = 512;
constexpr int kScanTile = kScanThreads * kTileItems;

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

// counts[digit * tiles + tile]: keys of the tile with that digit.
DELA_KERNEL(8)
dela_sort_count(const uint64_t* keys, int32_t n, int32_t shift, int32_t tiles, uint32_t* counts) {
  __shared__ uint32_t bins[dela::kDigits];
  if (threadIdx.x < dela::kDigits) bins[threadIdx.x] = 0;
  __syncthreads();
  for (int i = 0; i < dela::kTileItems; ++i) {
    const int64_t at =
        static_cast<int64_t>(blockIdx.x) * dela::kTile + i * dela::kBlock + threadIdx.x;
    if (at < n) atomicAdd(bins + dela::digit_of(keys[at], shift), 1u);
  }
  __syncthreads();
  if (threadIdx.x < dela::kDigits) {
    counts[static_cast<size_t>(threadIdx.x) * tiles + blockIdx.x] = bins[threadIdx.x];
  }
}

// Each value becomes the sum of those before it; `total` the sum of all. One block.
extern "C" __global__ void __launch_bounds__(dela::kScanThreads, 1)
dela_scan(int32_t n, uint32_t* values, uint32_t* total) {
  __shared__ uint32_t sums[dela::kScanThreads];
  uint32_t before = 0;
  for (int64_t tile = 0; tile < n; tile += dela::kScanTile) {
    const int64_t first = tile + static_cast<int64_t>(threadIdx.x) * dela::kTileItems;
    uint32_t own = 0;
    for (int i = 0; i < dela::kTileItems; ++i) own += first + i < n ? values[first + i] : 0u;
    uint32_t all;
    uint32_t sum = before + dela::sum_before(own, sums, &all);
    for (int i = 0; i < dela::kTileItems; ++i) {
      if (first + i >= n) break;
      const uint32_t value = values[first + i];
      values[first + i] = sum;
      sum += value;
    }
    before += all;
  }
  if (threadIdx.x == 0) *total = before;
}

// One pass: places keys and rows by their digit; `starts` are the scanned counts.
DELA_KERNEL(4)
dela_sort_place(const uint64_t* keys, const uint32_t* rows, const uint32_t* starts, int32_t n,
                int32_t shift, int32_t tiles, uint64_t* sorted_keys, uint32_t* sorted_rows) {
  __shared__ uint16_t counters[dela::kCounters];
  __shared__ uint32_t sums[dela::kBlock];
  __shared__ uint32_t before[dela::kDigits];  // keys of the tile with a lower digit
  const int thread = threadIdx.x;
  for (int digit = 0; digit < dela::kDigits; ++digit) {
    counters[dela::counter(digit * dela::kBlock + thread)] = 0;
  }
  const int64_t first = dela::first_item();
  for (int i = 0; i < dela::kTileItems; ++i) {
    if (first + i >= n) break;
    ++counters[dela::counter(dela::digit_of(keys[first + i], shift) * dela::kBlock + thread)];
  }
  __syncthreads();
  uint32_t own = 0;
  const int stretch = thread * dela::kDigits;
  for (int i = 0; i < dela::kDigits; ++i) own += counters[dela::counter(stretch + i)];
  uint32_t all;
  uint32_t sum = dela::sum_before(own, sums, &all);
  for (int i = 0; i < dela::kDigits; ++i) {
    const int at = dela::counter(stretch + i);
    const uint32_t count = counters[at];
    counters[at] = static_cast<uint16_t>(sum);
    sum += count;
  }
  __syncthreads();
  if (thread < dela::kDigits) before[thread] = counters[dela::counter(thread * dela::kBlock)];
  __syncthreads();
  for (int i = 0; i < dela::kTileItems; ++i) {
    if (first + i >= n) break;
    const uint64_t key = keys[first + i];
    const int32_t digit = dela::digit_of(key, shift);
    const uint32_t place = counters[dela::counter(digit * dela::kBlock + thread)]++;
    const uint32_t to =
        starts[static_cast<size_t>(digit) * tiles + blockIdx.x] + place - before[digit];
    sorted_keys[to] = key;
    sorted_rows[to] = rows[first + i];
  }
}

// counts[tile]: how many flags of the tile are set.
DELA_KERNEL(8)
dela_count_flags(const uint8_t* flags, int32_t n, uint32_t* counts) {
  __shared__ uint32_t sums[dela::kBlock];
  uint32_t own = 0;
  for (int i = 0; i < dela::kTileItems; ++i) {
    const int64_t at =
        static_cast<int64_t>(blockIdx.x) * dela::kTile + i * dela::kBlock + threadIdx.x;
    if (at < n) own += flags[at];
  }
  uint32_t all;
  dela::sum_before(own, sums, &all);
  if (threadIdx.x == 0) counts[blockIdx.x] = all;
}

// The numbers of the set flags, ascending; `starts` are the scanned counts.
DELA_KERNEL(8)
dela_list_flags(const uint8_t* flags, const uint32_t* starts, int32_t n, int32_t* numbers) {
  __shared__ uint32_t sums[dela::kBlock];
  const int64_t first = dela::first_item();
  uint32_t own = 0;
  for (int i = 0; i < dela::kTileItems; ++i) own += first + i < n ? flags[first + i] : 0u;
  uint32_t all;
  uint32_t to = starts[blockIdx.x] + dela::sum_before(own, sums, &all);
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
