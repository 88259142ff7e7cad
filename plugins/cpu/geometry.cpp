// C ABI of the voxel grid, the neighbor search and farthest point sampling: memory, threads and
// everything that sorts. The inner loops live in isa/{voxel,knn,sampling}.cpp.
#include "cpu/geometry.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace dela {
namespace {

int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
using Block = std::unique_ptr<T[], FreeMemory>;

// 64-byte aligned and not initialised; throws std::bad_alloc.
template <typename T>
Block<T> allocate(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes == 0 ? 64 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return Block<T>(static_cast<T*>(memory));
}

// ---------------------------------------------------------------------------- voxel grid

// Sort records, ordered by their keys. Keys of at most 32 bits share a word with the point's row.
struct Packed {
  uint64_t word;
  uint64_t key() const { return word >> 32; }
  uint32_t row() const { return static_cast<uint32_t>(word); }
};
struct Keyed {
  uint64_t word;
  uint32_t index;
  uint64_t key() const { return word; }
  uint32_t row() const { return index; }
};
// Grids too fine for 63 bits: `high` holds the upper 21 bits of each axis.
struct Wide {
  uint64_t high, low;
  uint32_t index;
  uint32_t row() const { return index; }
  bool operator<(const Wide& other) const {
    if (high != other.high) return high < other.high;
    return low != other.low ? low < other.low : index < other.index;
  }
};
inline bool same_cell(const Packed& a, const Packed& b) { return a.key() == b.key(); }
inline bool same_cell(const Keyed& a, const Keyed& b) { return a.word == b.word; }
inline bool same_cell(const Wide& a, const Wide& b) { return a.high == b.high && a.low == b.low; }

constexpr int kAxisBits = 21;  // three axes in one 63-bit key
constexpr int kTableBits = 12;
constexpr int64_t kTableSize = 1 << kTableBits;

int bits_of(uint64_t highest) {
  int bits = 0;
  for (; highest > 0; highest >>= 1) ++bits;
  return bits;
}

// Morton keys by table: the bits of the axes interleave, each axis only as long as it has bits.
class MortonTables {
 public:
  explicit MortonTables(const int64_t cells[3]) {
    int bits[3], level_bits[3][kAxisBits];
    for (int axis = 0; axis < 3; ++axis) bits[axis] = bits_of(cells[axis] - 1);
    for (int level = 0; level < kAxisBits; ++level) {
      for (int axis = 0; axis < 3; ++axis) {
        if (level < bits[axis]) level_bits[axis][level] = total_bits_++;
      }
    }
    for (int axis = 0; axis < 3; ++axis) {
      for (int part = 0; part < 2; ++part) {
        const int64_t entries =
            std::min<int64_t>(kTableSize, ((cells[axis] - 1) >> (part * kTableBits)) + 1);
        tables_[axis][part].assign(entries, 0);
        for (int64_t value = 0; value < entries; ++value) {
          for (int bit = 0; (value >> bit) > 0; ++bit) {
            if ((value >> bit) & 1) {
              tables_[axis][part][value] |= uint64_t{1} << level_bits[axis][part * kTableBits + bit];
            }
          }
        }
      }
    }
  }

  int total_bits() const { return total_bits_; }
  uint64_t key(const int32_t* cell) const {
    uint64_t key = 0;
    for (int axis = 0; axis < 3; ++axis) {
      key |= tables_[axis][0][cell[axis] & (kTableSize - 1)] |
             tables_[axis][1][cell[axis] >> kTableBits];
    }
    return key;
  }

 private:
  std::vector<uint64_t> tables_[3][2];
  int total_bits_ = 0;
};

inline uint64_t spread_bits(uint64_t value) {
  uint64_t key = 0;
  for (int bit = 0; bit < kAxisBits; ++bit) key |= ((value >> bit) & 1) << (3 * bit);
  return key;
}

// Stable radix sort of `bits` key bits above `shift`; the result is in `records` or `other`.
template <typename Record>
Record* radix_sort(Record* records, Record* other, int64_t n, int bits, int threads) {
  constexpr int kDigitBits = 11;
  const int passes = (bits + kDigitBits - 1) / kDigitBits;
  if (passes == 0) return records;
  const int digit_bits = (bits + passes - 1) / passes;
  const int64_t digits = int64_t{1} << digit_bits;
  const uint64_t mask = digits - 1;
  std::vector<int64_t> places(digits * threads);
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * digit_bits;
    std::fill(places.begin(), places.end(), 0);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int part = 0; part < threads; ++part) {
      int64_t* mine = places.data() + part * digits;
      for (int64_t i = n * part / threads; i < n * (part + 1) / threads; ++i) {
        ++mine[(records[i].key() >> shift) & mask];
      }
    }
    int64_t sum = 0;
    for (int64_t digit = 0; digit < digits; ++digit) {
      for (int part = 0; part < threads; ++part) {
        const int64_t count = places[part * digits + digit];
        places[part * digits + digit] = sum;
        sum += count;
      }
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int part = 0; part < threads; ++part) {
      int64_t* mine = places.data() + part * digits;
      for (int64_t i = n * part / threads; i < n * (part + 1) / threads; ++i) {
        other[mine[(records[i].key() >> shift) & mask]++] = records[i];
      }
    }
    std::swap(records, other);
  }
  return records;
}

// A well-mixed number for each (seed, voxel): SplitMix64's finaliser.
inline uint64_t mixed(uint64_t seed, uint64_t voxel) {
  uint64_t value = seed + (voxel + 1) * 0x9e3779b97f4a7c15ull;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
  return value ^ (value >> 31);
}

struct Pick {
  bool random;
  int64_t number;
  uint64_t seed;

  int64_t operator()(int64_t voxel, int64_t count) const {
    if (!random) return number % count;
    const unsigned __int128 wide =
        static_cast<unsigned __int128>(mixed(seed, voxel)) * static_cast<uint64_t>(count);
    return static_cast<int64_t>(wide >> 64);
  }
};

// Numbers the runs of equal cells and picks a point of each.
template <typename Record>
int64_t number_voxels(const Record* sorted, int64_t n, const Pick& pick, int threads,
                      int32_t* kept, int32_t* voxel_of_point) {
  auto starts = [&](int64_t i) { return i == 0 || !same_cell(sorted[i - 1], sorted[i]); };
  std::vector<int64_t> first(threads + 1, 0);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int part = 0; part < threads; ++part) {
    int64_t count = 0;
    for (int64_t i = n * part / threads; i < n * (part + 1) / threads; ++i) count += starts(i);
    first[part + 1] = count;
  }
  for (int part = 0; part < threads; ++part) first[part + 1] += first[part];
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int part = 0; part < threads; ++part) {
    // A part owns the voxels that start in it, to their end.
    const int64_t end = n * (part + 1) / threads;
    int64_t voxel = first[part], i = n * part / threads;
    while (i < end && !starts(i)) ++i;
    while (i < end) {
      const int64_t start = i;
      do {
        voxel_of_point[sorted[i].row()] = static_cast<int32_t>(voxel);
        ++i;
      } while (i < n && !starts(i));
      kept[voxel] = static_cast<int32_t>(sorted[start + pick(voxel, i - start)].row());
      ++voxel;
    }
  }
  return first[threads];
}

template <typename T>
int32_t voxel_grid(const T* points, int64_t n, double size, const Pick& pick, int threads,
                   int32_t* kept, int32_t* voxel_of_point, int64_t* count) {
  constexpr bool is_float = sizeof(T) == sizeof(float);
  auto bounds = [](const T* values, int64_t rows, double* low, double* high) {
    if constexpr (is_float) {
      return DELA_DISPATCH(bounds_f32, values, rows, low, high);
    } else {
      return DELA_DISPATCH(bounds_f64, values, rows, low, high);
    }
  };
  auto cells_of = [&](const T* values, int64_t values_count, const double* origin, int32_t* out) {
    if constexpr (is_float) {
      DELA_DISPATCH(cells_f32, values, values_count, origin, size, out);
    } else {
      DELA_DISPATCH(cells_f64, values, values_count, origin, size, out);
    }
  };
  *count = 0;
  if (n == 0) return kOk;
  // One thread sorts a million points in 8 ms; a dozen barriers cost more on a busy machine.
  threads = static_cast<int>(std::min<int64_t>(threads, n / (1 << 20) + 1));

  std::vector<double> low(3 * threads), high(3 * threads);
  std::vector<char> finite(threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
  for (int part = 0; part < threads; ++part) {
    const int64_t begin = n * part / threads, end = n * (part + 1) / threads;
    finite[part] = bounds(points + 3 * begin, end - begin, &low[3 * part], &high[3 * part]);
  }
  int64_t cells[3];
  for (int part = 0; part < threads; ++part) {
    if (!finite[part]) return kNotFinite;
    for (int axis = 0; axis < 3; ++axis) {
      low[axis] = std::min(low[axis], low[3 * part + axis]);
      high[axis] = std::max(high[axis], high[3 * part + axis]);
    }
  }
  int most_bits = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const double highest = std::floor((high[axis] - low[axis]) / size);
    if (!(highest < 4398046511104.0)) return kGridTooFine;  // 2^42
    cells[axis] = static_cast<int64_t>(highest) + 1;
    most_bits = std::max(most_bits, bits_of(cells[axis] - 1));
  }
  const double origin[3] = {low[0], low[1], low[2]};

  if (most_bits > kAxisBits) {
    auto records = allocate<Wide>(n);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < n; ++i) {
      Wide record{0, 0, static_cast<uint32_t>(i)};
      for (int axis = 0; axis < 3; ++axis) {
        const auto cell = static_cast<uint64_t>(
            (static_cast<double>(points[3 * i + axis]) - origin[axis]) / size);
        record.low |= spread_bits(cell & ((1u << kAxisBits) - 1)) << axis;
        record.high |= spread_bits(cell >> kAxisBits) << axis;
      }
      records[i] = record;
    }
    std::sort(records.get(), records.get() + n);
    *count = number_voxels(records.get(), n, pick, threads, kept, voxel_of_point);
    return kOk;
  }

  const MortonTables morton(cells);
  auto fill_and_sort = [&](auto* records, auto* other, auto make) {
    constexpr int64_t kChunk = 512;
    const int64_t chunks = (n + kChunk - 1) / kChunk;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      int32_t cell[3 * kChunk];
      const int64_t begin = chunk * kChunk, rows = std::min(kChunk, n - begin);
      cells_of(points + 3 * begin, 3 * rows, origin, cell);
      for (int64_t i = 0; i < rows; ++i) {
        records[begin + i] = make(morton.key(cell + 3 * i), static_cast<uint32_t>(begin + i));
      }
    }
    const auto* sorted = radix_sort(records, other, n, morton.total_bits(), threads);
    *count = number_voxels(sorted, n, pick, threads, kept, voxel_of_point);
  };
  if (morton.total_bits() <= 32) {
    auto records = allocate<Packed>(n), other = allocate<Packed>(n);
    fill_and_sort(records.get(), other.get(), [](uint64_t key, uint32_t row) {
      return Packed{(key << 32) | row};
    });
  } else {
    auto records = allocate<Keyed>(n), other = allocate<Keyed>(n);
    fill_and_sort(records.get(), other.get(),
                  [](uint64_t key, uint32_t row) { return Keyed{key, row}; });
  }
  return kOk;
}

// ---------------------------------------------------------------------------- search tree

struct Record {
  float place[3];
  int32_t index;
};

struct Tree {
  int64_t points, leaves;
  Block<float> coordinates, boxes, leaf_boxes;
  Block<int32_t> index;

  TreeView view() const {
    const int64_t padded = leaves * kLeafPoints;
    return {coordinates.get(), coordinates.get() + padded, coordinates.get() + 2 * padded,
            index.get(),       boxes.get(),                leaf_boxes.get(),
            points,            leaves};
  }
};

// Splits at the middle leaf along the widest side of the node's box. Order within an axis is by
// (coordinate, index), so the tree depends on nothing but the points.
class TreeBuilder {
 public:
  TreeBuilder(Tree* tree, Record* records) : tree_(tree), records_(records) {}

  void build(int64_t node, int64_t begin, int64_t end) {
    constexpr int64_t kTaskLeaves = 128;
    const int64_t first = begin * kLeafPoints;
    const int64_t last = std::min(end * kLeafPoints, tree_->points);
    float* box = tree_->boxes.get() + 8 * node;
    bound(first, last, box);
    int axis = 0;
    for (int other = 1; other < 3; ++other) {
      if (box[other + 3] - box[other] > box[axis + 3] - box[axis]) axis = other;
    }
    if (box[axis + 3] - box[axis] == 0.0f) {
      std::sort(records_ + first, records_ + last,
                [](const Record& a, const Record& b) { return a.index < b.index; });
    }
    if (end - begin == 1) {
      fill_leaf(begin, first, last, box);
      return;
    }
    const int64_t middle = (begin + end + 1) / 2;
    if (box[axis + 3] - box[axis] > 0.0f) split(axis, first, middle * kLeafPoints, last);
    const int64_t left = node + 1, right = node + 2 * (middle - begin);
    if (end - begin >= kTaskLeaves) {
#pragma omp task
      build(left, begin, middle);
      build(right, middle, end);
    } else {
      build(left, begin, middle);
      build(right, middle, end);
    }
  }

 private:
  void bound(int64_t first, int64_t last, float* box) const {
    float low[3], high[3];
    for (int axis = 0; axis < 3; ++axis) low[axis] = high[axis] = records_[first].place[axis];
    for (int64_t i = first + 1; i < last; ++i) {
      for (int axis = 0; axis < 3; ++axis) {
        const float value = records_[i].place[axis];
        low[axis] = value < low[axis] ? value : low[axis];
        high[axis] = value > high[axis] ? value : high[axis];
      }
    }
    for (int axis = 0; axis < 3; ++axis) {
      box[axis] = low[axis];
      box[axis + 3] = high[axis];
    }
    box[6] = box[7] = 0.0f;
  }

  void split(int axis, int64_t first, int64_t middle, int64_t last) {
    std::nth_element(records_ + first, records_ + middle, records_ + last,
                     [axis](const Record& a, const Record& b) {
                       if (a.place[axis] != b.place[axis]) return a.place[axis] < b.place[axis];
                       return a.index < b.index;
                     });
  }

  void fill_leaf(int64_t leaf, int64_t first, int64_t last, const float* box) {
    std::copy(box, box + 8, tree_->leaf_boxes.get() + 8 * leaf);
    const int64_t padded = tree_->leaves * kLeafPoints;
    float* coordinates = tree_->coordinates.get();
    for (int64_t i = first; i < first + kLeafPoints; ++i) {
      for (int axis = 0; axis < 3; ++axis) {
        coordinates[axis * padded + i] = i < last ? records_[i].place[axis] : INFINITY;
      }
      tree_->index[i] = i < last ? records_[i].index : -2;
    }
  }

  Tree* tree_;
  Record* records_;
};

int32_t build_tree(const float* points, int64_t n, int threads, Tree** out) {
  auto tree = std::make_unique<Tree>();
  tree->points = n;
  tree->leaves = (n + kLeafPoints - 1) / kLeafPoints;
  tree->coordinates = allocate<float>(3 * kLeafPoints * tree->leaves);
  tree->index = allocate<int32_t>(kLeafPoints * tree->leaves);
  tree->boxes = allocate<float>(8 * (2 * tree->leaves - 1));
  tree->leaf_boxes = allocate<float>(8 * tree->leaves);
  auto records = allocate<Record>(n);
  bool usable = true;
  for (int64_t i = 0; i < n; ++i) {
    for (int axis = 0; axis < 3; ++axis) {
      const float value = points[3 * i + axis];
      usable &= std::fabs(value) <= kLargestCoordinate;
      records[i].place[axis] = value;
    }
    records[i].index = static_cast<int32_t>(i);
  }
  if (!usable) return kNotFinite;
  TreeBuilder builder(tree.get(), records.get());
#pragma omp parallel num_threads(threads) if (threads > 1 && n > 32768)
#pragma omp single
  builder.build(0, 0, tree->leaves);
  *out = tree.release();
  return kOk;
}

}  // namespace
}  // namespace dela

// Voxel grid anchored at the lowest corner. `kept` and `voxel_of_point` hold n values each;
// `count` receives the number of voxels, which come in Morton order. pick < 0: a random member.
DELA_EXPORT int32_t dela_voxel_grid(const void* points, int32_t is_double, int64_t n, double size,
                                    int64_t pick, uint64_t seed, int32_t threads, int32_t* kept,
                                    int32_t* voxel_of_point, int64_t* count) {
  using namespace dela;
  if (n < 0 || n > INT32_MAX || !(size > 0)) return kBadArgument;
  const Pick rule{pick < 0, pick, seed};
  const int team = resolve_threads(threads);
  try {
    return is_double ? voxel_grid(static_cast<const double*>(points), n, size, rule, team, kept,
                                  voxel_of_point, count)
                     : voxel_grid(static_cast<const float*>(points), n, size, rule, team, kept,
                                  voxel_of_point, count);
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

// Search tree of n >= 1 points [n, 3]; freed with dela_tree_free.
DELA_EXPORT int32_t dela_tree_build(const float* points, int64_t n, int32_t threads, void** tree) {
  using namespace dela;
  *tree = nullptr;
  if (n < 1 || n > INT32_MAX - kLeafPoints) return kBadArgument;
  try {
    Tree* built = nullptr;
    const int32_t status = build_tree(points, n, resolve_threads(threads), &built);
    *tree = built;
    return status;
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
}

DELA_EXPORT void dela_tree_free(void* tree) { delete static_cast<dela::Tree*>(tree); }

// The k nearest of `tree` for every point of `queries`, in the caller's row order, plus `offset`.
// `queries` may be `tree`: then every point is its own first neighbor. out: [queries, k].
DELA_EXPORT int32_t dela_tree_knn(const void* tree, const void* queries, int32_t k, int32_t offset,
                                  int32_t threads, int32_t* out) {
  using namespace dela;
  if (tree == nullptr || queries == nullptr || k < 1 || k > (1 << 20)) return kBadArgument;
  const auto* searched = static_cast<const Tree*>(tree);
  const auto* asked = static_cast<const Tree*>(queries);
  const NeighborSearch search{searched->view(), asked->view(), searched == asked, k, offset, out};
  constexpr int64_t kGroups = 16;
  const int64_t chunks = (asked->leaves + kGroups - 1) / kGroups;
  const int team =
      static_cast<int>(std::min<int64_t>(resolve_threads(threads), chunks / 32 + 1));
  const int64_t bytes = DELA_DISPATCH(neighbor_scratch_bytes, k);
  try {
    auto scratch = allocate<char>(bytes * team);
#pragma omp parallel for num_threads(team) schedule(dynamic, 1) if (team > 1)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      DELA_DISPATCH(neighbor_search, search, chunk * kGroups,
                    std::min((chunk + 1) * kGroups, asked->leaves),
                    scratch.get() + bytes * thread_number());
    }
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kOk;
}

// Farthest point sampling of packed clouds: cloud b owns rows starts[b] .. starts[b + 1], at least
// one. out: [clouds, count], rows of the packed array.
DELA_EXPORT int32_t dela_farthest_points(const float* points, const int64_t* starts,
                                         int64_t clouds, int64_t count, int32_t threads,
                                         int32_t* out) {
  using namespace dela;
  if (clouds < 0 || count < 1) return kBadArgument;
  int64_t largest = 0;
  for (int64_t cloud = 0; cloud < clouds; ++cloud) {
    const int64_t n = starts[cloud + 1] - starts[cloud];
    if (n < 1 || starts[cloud + 1] > INT32_MAX - 64) return kBadArgument;
    largest = std::max(largest, n);
  }
  if (clouds == 0) return kOk;
  const int team = static_cast<int>(std::min<int64_t>(resolve_threads(threads), clouds));
  const int64_t floats = (largest + 63) / 64 * 64 * 4;
  try {
    auto scratch = allocate<float>(floats * team);
#pragma omp parallel for num_threads(team) schedule(dynamic, 1) if (team > 1)
    for (int64_t cloud = 0; cloud < clouds; ++cloud) {
      DELA_DISPATCH(farthest_points, points + 3 * starts[cloud], starts[cloud + 1] - starts[cloud],
                    count, static_cast<int32_t>(starts[cloud]),
                    scratch.get() + floats * thread_number(), out + cloud * count);
    }
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  }
  return kOk;
}
