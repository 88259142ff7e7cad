// Reverse lists of a neighbor table: for every point, in ascending order, the entries that name it.
//
// Row m has k + 1 entries: m (k + 1) is its center, m (k + 1) + 1 + s its neighbor in slot s. Four
// kernels: count, place (where each list starts: lists may lie in any order), fill, sort. Filling
// and placing race, but sorted lists are the same on every run.
#include "cuda/device.cuh"

namespace dela {
namespace {

// The point that an entry names.
DELA_DEVICE int32_t named_point(const int32_t* __restrict__ neighbors,
                                const int32_t* __restrict__ centers, int32_t n, int32_t k,
                                uint32_t entry) {
  const uint32_t row = entry / (static_cast<uint32_t>(k) + 1);
  const uint32_t place = entry - row * (static_cast<uint32_t>(k) + 1);
  const int32_t center = center_of(centers, static_cast<int32_t>(row), n);
  if (place == 0) return center;
  return guarded(__ldg(neighbors + static_cast<size_t>(row) * k + place - 1), n, center);
}

DELA_DEVICE bool is_entry(uint32_t entry, int32_t m, int32_t k) {
  return entry < static_cast<uint64_t>(m) * (static_cast<uint64_t>(k) + 1);
}

}  // namespace
}  // namespace dela

DELA_KERNEL(8)
dela_reverse_count(const int32_t* neighbors, const int32_t* centers, int32_t n, int32_t m,
                   int32_t k, uint32_t* counts) {
  const uint32_t entry = dela::thread_number();
  if (!dela::is_entry(entry, m, k)) return;
  atomicAdd(counts + dela::named_point(neighbors, centers, n, k, entry), 1u);
}

// `ends`: where each list starts; filling moves it to the list's end. `total`: entries placed so
// far.
DELA_KERNEL(8)
dela_reverse_place(const uint32_t* counts, int32_t n, uint32_t* ends, uint32_t* total) {
  __shared__ uint32_t sums[dela::kBlock];
  __shared__ uint32_t base;
  const uint32_t point = dela::thread_number(), thread = threadIdx.x;
  const uint32_t count = point < static_cast<uint32_t>(n) ? counts[point] : 0u;
  sums[thread] = count;
  __syncthreads();
  for (uint32_t step = 1; step < dela::kBlock; step *= 2) {
    const uint32_t before = thread >= step ? sums[thread - step] : 0u;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  if (thread == dela::kBlock - 1) base = atomicAdd(total, sums[thread]);
  __syncthreads();
  if (point < static_cast<uint32_t>(n)) ends[point] = base + sums[thread] - count;
}

DELA_KERNEL(8)
dela_reverse_fill(const int32_t* neighbors, const int32_t* centers, int32_t n, int32_t m,
                  int32_t k, uint32_t* ends, uint32_t* entries) {
  const uint32_t entry = dela::thread_number();
  if (!dela::is_entry(entry, m, k)) return;
  entries[atomicAdd(ends + dela::named_point(neighbors, centers, n, k, entry), 1u)] = entry;
}

// Shell sort: lists are short and nearly sorted; a long one still takes much less than its square.
DELA_KERNEL(8)
dela_reverse_sort(const uint32_t* counts, const uint32_t* ends, int32_t n, uint32_t* entries) {
  const uint32_t point = dela::thread_number();
  if (point >= static_cast<uint32_t>(n)) return;
  const uint32_t count = counts[point];
  uint32_t* list = entries + ends[point] - count;
  uint32_t gap = 1;
  while (gap < count / 3) gap = 3 * gap + 1;
  for (; gap > 0; gap /= 3) {
    for (uint32_t i = gap; i < count; ++i) {
      const uint32_t entry = list[i];
      uint32_t j = i;
      for (; j >= gap && list[j - gap] > entry; j -= gap) list[j] = list[j - gap];
      list[j] = entry;
    }
  }
}
