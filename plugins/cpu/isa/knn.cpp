// Exact k nearest neighbors, sixteen queries (one leaf) at a time. One descent collects the leaves
// that any of the sixteen may need; each query then tests their boxes and scans those within its
// own bound. Bounds come from the triangle inequality: k points lie within r of a place, so k
// points lie within r + d of every query at distance d from it. Order is by (distance, index), with
// the query itself first; the same float operations in the same order decide everywhere
// (compiled without contraction), so every instruction set gives the same table.
#include <cfloat>
#include <cstring>

#include "cpu/geometry.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dela {
namespace DELA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kLeaf = static_cast<int>(kLeafPoints);
typedef float Floats __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
constexpr int kListed = 256;     // leaves collected for one group; beyond: one descent per query
constexpr int kDepth = 64;       // levels of the tree: more than log2 of 2^31 points
constexpr float kSlack = 1.0f + 4e-6f;   // covers the rounding of a bound's square root and sum
constexpr float kTiny = 1e-18f;          // and squares that underflow
constexpr int kRankedAtMost = 256;       // longer candidate lists are sorted by a heap

struct Point {
  float x, y, z;
};

inline float distance2(Point a, Point b) {
  const float dx = a.x - b.x, dy = a.y - b.y, dz = a.z - b.z;
  return dx * dx + dy * dy + dz * dz;
}

inline float gap(float low, float high, float value) {
  const float below = low - value, above = value - high;
  const float most = below > above ? below : above;
  return most > 0.0f ? most : 0.0f;
}

// Never above distance2 of any point in the box: rounding is monotone.
inline float box_distance2(const float* box, Point q) {
  const float dx = gap(box[0], box[3], q.x), dy = gap(box[1], box[4], q.y);
  const float dz = gap(box[2], box[5], q.z);
  return dx * dx + dy * dy + dz * dz;
}

inline float boxes_distance2(const float* a, const float* b) {
  float sum[3];
  for (int axis = 0; axis < 3; ++axis) {
    const float below = a[axis] - b[axis + 3], above = b[axis] - a[axis + 3];
    const float most = below > above ? below : above;
    sum[axis] = most > 0.0f ? most * most : 0.0f;
  }
  return sum[0] + sum[1] + sum[2];
}

inline bool without_extent(const float* box) {
  return box[0] == box[3] && box[1] == box[4] && box[2] == box[5];
}

inline float root(float value) { return __builtin_sqrtf(value); }

// A bound on the squared distance from a bound on the distance.
inline float squared_bound(float distance) {
  const float padded = distance * kSlack + kTiny;
  const float squared = padded * padded;
  return squared < FLT_MAX ? squared : FLT_MAX;
}

// Arrays in the scratch of one thread.
struct Scratch {
  int32_t* bits;   // [capacity] squared distances of the candidates, as integers
  int32_t* index;  // [capacity]
  int64_t* keys;   // [capacity] distance bits and index in one number
  int32_t* order;  // [capacity]
  float* window;   // [window leaves * 16]
  float* boxes;    // [6, kListed]
  float* gaps;     // [kListed]
  int32_t* leaves;    // [kListed]
  int32_t* selected;  // [kListed]
  int capacity;
};

inline int capacity_for(int32_t k) { return (2 * k + 160) / 16 * 16; }
inline int64_t window_leaves(int32_t k) { return (k + kLeaf - 1) / kLeaf + 2; }

int64_t carve(int32_t k, char* base, Scratch* scratch) {
  const int capacity = capacity_for(k);
  int64_t used = 0;
  auto take = [&](int64_t bytes) {
    char* place = base + used;
    used += (bytes + 63) / 64 * 64;
    return place;
  };
  char* bits = take(capacity * 4);
  char* index = take(capacity * 4);
  char* keys = take(capacity * 8);
  char* order = take(capacity * 4);
  char* window = take(window_leaves(k) * kLeaf * 4);
  char* boxes = take(6 * kListed * 4);
  char* gaps = take(kListed * 4);
  char* leaves = take(kListed * 4);
  char* selected = take(kListed * 4);
  if (scratch != nullptr) {
    *scratch = {reinterpret_cast<int32_t*>(bits), reinterpret_cast<int32_t*>(index),
                reinterpret_cast<int64_t*>(keys), reinterpret_cast<int32_t*>(order),
                reinterpret_cast<float*>(window), reinterpret_cast<float*>(boxes),
                reinterpret_cast<float*>(gaps),   reinterpret_cast<int32_t*>(leaves),
                reinterpret_cast<int32_t*>(selected), capacity};
  }
  return used;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each mask of eight lanes: the lanes set, then zeros.
struct PackedLanes {
  uint8_t lanes[256][8];
  constexpr PackedLanes() : lanes() {
    for (int mask = 0; mask < 256; ++mask) {
      int filled = 0;
      for (int lane = 0; lane < 8; ++lane) {
        if ((mask >> lane) & 1) lanes[mask][filled++] = static_cast<uint8_t>(lane);
      }
    }
  }
};
constexpr PackedLanes kPackedLanes;
#endif

// One query's candidates: everything seen within the bound, cut to the best when full.
struct Candidates {
  Scratch* scratch;
  Point query;
  int32_t self;   // index left out, or -1
  int32_t want;
  int count;
  float bound;    // squared; a point at exactly this distance may still belong

  void scan(const TreeView& tree, int64_t leaf) {
    if (count + kLeaf > scratch->capacity) shrink();
    const int64_t first = leaf * kLeafPoints;
#if defined(__AVX512F__)
    const __m512 dx = _mm512_sub_ps(_mm512_load_ps(tree.x + first), _mm512_set1_ps(query.x));
    const __m512 dy = _mm512_sub_ps(_mm512_load_ps(tree.y + first), _mm512_set1_ps(query.y));
    const __m512 dz = _mm512_sub_ps(_mm512_load_ps(tree.z + first), _mm512_set1_ps(query.z));
    const __m512 distance = _mm512_add_ps(
        _mm512_add_ps(_mm512_mul_ps(dx, dx), _mm512_mul_ps(dy, dy)), _mm512_mul_ps(dz, dz));
    const __m512i index = _mm512_load_si512(tree.index + first);
    __mmask16 near = _mm512_cmp_ps_mask(distance, _mm512_set1_ps(bound), _CMP_LE_OQ);
    near = _mm512_mask_cmpneq_epi32_mask(near, index, _mm512_set1_epi32(self));
    _mm512_storeu_si512(scratch->bits + count,
                        _mm512_maskz_compress_epi32(near, _mm512_castps_si512(distance)));
    _mm512_storeu_si512(scratch->index + count, _mm512_maskz_compress_epi32(near, index));
    count += __builtin_popcount(near);
#elif defined(__AVX2__)
    for (int half = 0; half < kLeaf; half += kLanes) {
      const __m256 dx = _mm256_sub_ps(_mm256_load_ps(tree.x + first + half), _mm256_set1_ps(query.x));
      const __m256 dy = _mm256_sub_ps(_mm256_load_ps(tree.y + first + half), _mm256_set1_ps(query.y));
      const __m256 dz = _mm256_sub_ps(_mm256_load_ps(tree.z + first + half), _mm256_set1_ps(query.z));
      const __m256 distance = _mm256_add_ps(
          _mm256_add_ps(_mm256_mul_ps(dx, dx), _mm256_mul_ps(dy, dy)), _mm256_mul_ps(dz, dz));
      const __m256i index =
          _mm256_load_si256(reinterpret_cast<const __m256i*>(tree.index + first + half));
      const __m256 near = _mm256_andnot_ps(
          _mm256_castsi256_ps(_mm256_cmpeq_epi32(index, _mm256_set1_epi32(self))),
          _mm256_cmp_ps(distance, _mm256_set1_ps(bound), _CMP_LE_OQ));
      const int mask = _mm256_movemask_ps(near);
      const __m256i lanes = _mm256_cvtepu8_epi32(
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPackedLanes.lanes[mask])));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(scratch->bits + count),
                          _mm256_permutevar8x32_epi32(_mm256_castps_si256(distance), lanes));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(scratch->index + count),
                          _mm256_permutevar8x32_epi32(index, lanes));
      count += __builtin_popcount(mask);
    }
#else
    float distance[kLeaf];
    for (int lane = 0; lane < kLeaf; lane += kLanes) {
      const Floats dx = *reinterpret_cast<const Floats*>(tree.x + first + lane) - query.x;
      const Floats dy = *reinterpret_cast<const Floats*>(tree.y + first + lane) - query.y;
      const Floats dz = *reinterpret_cast<const Floats*>(tree.z + first + lane) - query.z;
      *reinterpret_cast<Floats*>(distance + lane) = dx * dx + dy * dy + dz * dz;
    }
    int filled = count;
    for (int lane = 0; lane < kLeaf; ++lane) {
      const int32_t index = tree.index[first + lane];
      std::memcpy(scratch->bits + filled, distance + lane, 4);
      scratch->index[filled] = index;
      filled += static_cast<int>(distance[lane] <= bound) & static_cast<int>(index != self);
    }
    count = filled;
#endif
  }

  void make_keys() {
    for (int i = 0; i < count; ++i) {
      scratch->keys[i] = (static_cast<int64_t>(scratch->bits[i]) << 32) | scratch->index[i];
    }
  }

  // Keeps the `want` smallest and takes the last one's distance as the bound.
  void shrink() {
    make_keys();
    const int64_t last = smallest_key(want);
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      scratch->bits[kept] = scratch->bits[i];
      scratch->index[kept] = scratch->index[i];
      kept += static_cast<int>(scratch->keys[i] <= last);
    }
    count = kept;
    const int32_t bits = static_cast<int32_t>(last >> 32);
    float distance;
    std::memcpy(&distance, &bits, 4);
    bound = distance < bound ? distance : bound;
  }

  // The rank-th smallest key (from 1), by bits from the highest down; keys are distinct.
  int64_t smallest_key(int rank) const {
    int64_t value = 0;
    for (int bit = 62; bit >= 0; --bit) {
      const int64_t trial = value | (int64_t{1} << bit);
      int below = 0;
      for (int i = 0; i < count; ++i) below += static_cast<int>(scratch->keys[i] < trial);
      if (below < rank) value = trial;
    }
    return value;
  }

  // Writes the indices of the `want` best in order; returns the last one's squared distance.
  float sorted(int32_t* out, int32_t offset) {
    int32_t last_bits;
    if (want == 1) {
      make_keys();
      int64_t best = scratch->keys[0];
      for (int i = 1; i < count; ++i) best = scratch->keys[i] < best ? scratch->keys[i] : best;
      out[0] = static_cast<int32_t>(best & 0xffffffff) + offset;
      last_bits = static_cast<int32_t>(best >> 32);
    } else if (count <= kRankedAtMost) {
      rank();
      for (int i = 0; i < want; ++i) out[i] = scratch->index[scratch->order[i]] + offset;
      last_bits = scratch->bits[scratch->order[want - 1]];
    } else {
      make_keys();
      heap_sort(scratch->keys, count);
      for (int i = 0; i < want; ++i) {
        out[i] = static_cast<int32_t>(scratch->keys[i] & 0xffffffff) + offset;
      }
      last_bits = static_cast<int32_t>(scratch->keys[want - 1] >> 32);
    }
    float distance;
    std::memcpy(&distance, &last_bits, 4);
    return distance;
  }

  // Fills `order`: the place of a candidate is the number of those nearer.
  void rank() {
    int32_t* bits = scratch->bits;
    int32_t* order = scratch->order;
    int32_t places[kRankedAtMost];
    const int padded = (count + kLanes - 1) / kLanes * kLanes;
    for (int i = count; i < padded; ++i) bits[i] = INT32_MAX;
    for (int i = 0; i < padded; i += kLanes) {
      const Ints mine = *reinterpret_cast<const Ints*>(bits + i);
      Ints place = {};
      for (int j = 0; j < count; ++j) place -= (bits[j] < mine);
      *reinterpret_cast<Ints*>(places + i) = place;
    }
    int32_t sum = 0;
    for (int i = 0; i < count; ++i) {
      order[places[i]] = i;
      sum += places[i];
    }
    if (sum != count * (count - 1) / 2) order_ties(places);
  }

  // Equal distances share a place and leave gaps behind it: fills them in order of index.
  void order_ties(const int32_t* places) {
    int32_t* order = scratch->order;
    for (int i = 0; i < count; ++i) order[i] = -1;
    for (int i = 0; i < count; ++i) {
      int place = places[i];
      while (order[place] >= 0) ++place;
      order[place] = i;
    }
    const int32_t* bits = scratch->bits;
    const int32_t* index = scratch->index;
    for (int at = 1; at < count; ++at) {
      const int32_t moved = order[at];
      int place = at;
      for (; place > 0; --place) {
        const int32_t before = order[place - 1];
        if (bits[before] != bits[moved] || index[before] < index[moved]) break;
        order[place] = before;
      }
      order[place] = moved;
    }
  }

  static void sift(int64_t* keys, int at, int count) {
    const int64_t key = keys[at];
    for (int child; (child = 2 * at + 1) < count; at = child) {
      if (child + 1 < count && keys[child + 1] > keys[child]) ++child;
      if (keys[child] <= key) break;
      keys[at] = keys[child];
    }
    keys[at] = key;
  }

  static void heap_sort(int64_t* keys, int count) {
    for (int at = count / 2 - 1; at >= 0; --at) sift(keys, at, count);
    for (int end = count - 1; end > 0; --end) {
      const int64_t top = keys[0];
      keys[0] = keys[end];
      keys[end] = top;
      sift(keys, 0, end);
    }
  }
};

struct Node {
  int64_t number, begin, end;
  float distance2;

  int64_t middle() const { return (begin + end + 1) / 2; }
  Node left() const { return {number + 1, begin, middle(), 0.0f}; }
  Node right() const { return {number + 2 * (middle() - begin), middle(), end, 0.0f}; }
};

// Leaves of a node that a search needs: where all points coincide, those of the lowest indices.
inline int64_t needed_end(const Node& node, const float* box, int32_t want) {
  const int64_t enough = node.begin + (want + 1 + kLeaf - 1) / kLeaf;
  if (node.end > enough && without_extent(box)) return enough;
  return node.end - node.begin == 1 ? node.end : -1;
}

// Leaf nearest to a place, going down by box distance.
int64_t nearest_leaf(const TreeView& tree, Point place) {
  Node node{0, 0, tree.leaves, 0.0f};
  while (node.end - node.begin > 1) {
    const Node left = node.left(), right = node.right();
    node = box_distance2(tree.boxes + 8 * left.number, place) <=
                   box_distance2(tree.boxes + 8 * right.number, place)
               ? left
               : right;
  }
  return node.begin;
}

// A distance from `place` within which at least k points lie, from the leaves around `leaf`.
float radius_of_k(const TreeView& tree, int64_t leaf, Point place, int32_t k, float* distances) {
  const int64_t span = window_leaves(k);
  int64_t begin = leaf - span / 2;
  if (begin + span > tree.leaves) begin = tree.leaves - span;
  if (begin < 0) begin = 0;
  const int64_t end = begin + span < tree.leaves ? begin + span : tree.leaves;
  const int64_t count = (end - begin) * kLeafPoints;
  const int64_t real = end == tree.leaves ? tree.points - begin * kLeafPoints : count;
  const Floats zero = {};
  Floats most = zero;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t at = begin * kLeafPoints + i;
    const Floats dx = *reinterpret_cast<const Floats*>(tree.x + at) - place.x;
    const Floats dy = *reinterpret_cast<const Floats*>(tree.y + at) - place.y;
    const Floats dz = *reinterpret_cast<const Floats*>(tree.z + at) - place.z;
    const Floats d = dx * dx + dy * dy + dz * dz;
    *reinterpret_cast<Floats*>(distances + i) = d;
    if (i + kLanes <= real) most = d > most ? d : most;
  }
  float high = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) high = most[lane] > high ? most[lane] : high;
  for (int64_t i = real / kLanes * kLanes; i < real; ++i) {
    high = distances[i] > high ? distances[i] : high;
  }
  // A few halvings come close enough; the upper end always holds k points.
  float low = 0.0f;
  for (int step = 0; step < 10; ++step) {
    const float trial = 0.5f * (low + high);
    Ints within = {};
    for (int64_t i = 0; i < count; i += kLanes) {
      within -= *reinterpret_cast<const Floats*>(distances + i) <= zero + trial;
    }
    int32_t total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += within[lane];
    (total >= k ? high : low) = trial;
  }
  return root(high);
}

// k points lie within `radius` of `place`, so within that and the way there of every query.
inline void extend_reach(const TreeView& queries, int64_t first, Point place, float radius,
                         float* reach) {
#pragma omp simd
  for (int lane = 0; lane < kLeaf; ++lane) {
    const float dx = queries.x[first + lane] - place.x, dy = queries.y[first + lane] - place.y;
    const float dz = queries.z[first + lane] - place.z;
    const float through = radius + root(dx * dx + dy * dy + dz * dz);
    reach[lane] = through < reach[lane] ? through : reach[lane];
  }
}

// Leaves within `bound` (squared) of a box; -1 when there are more than kListed.
int collect(const TreeView& tree, const float* box, float bound, int32_t want,
            const Scratch& scratch) {
  Node stack[kDepth];
  int depth = 0, listed = 0;
  stack[depth++] = {0, 0, tree.leaves, 0.0f};
  while (depth > 0) {
    const Node node = stack[--depth];
    const float* node_box = tree.boxes + 8 * node.number;
    const int64_t end = needed_end(node, node_box, want);
    if (end >= 0) {
      for (int64_t leaf = node.begin; leaf < end; ++leaf) {
        if (listed == kListed) return -1;
        for (int side = 0; side < 6; ++side) {
          scratch.boxes[side * kListed + listed] = node_box[side];
        }
        scratch.leaves[listed++] = static_cast<int32_t>(leaf);
      }
      continue;
    }
    const Node left = node.left(), right = node.right();
    const float to_left = boxes_distance2(tree.boxes + 8 * left.number, box);
    const float to_right = boxes_distance2(tree.boxes + 8 * right.number, box);
    const bool left_first = to_left <= to_right;
    if (to_left <= bound && !left_first) stack[depth++] = left;
    if (to_right <= bound) stack[depth++] = right;
    if (to_left <= bound && left_first) stack[depth++] = left;
  }
  return listed;
}

// Scans the listed leaves whose boxes reach into the query's bound.
void scan_listed(const TreeView& tree, const Scratch& scratch, int listed, Candidates* found) {
  const Floats zero = {};
  const Floats x = zero + found->query.x, y = zero + found->query.y, z = zero + found->query.z;
  auto side = [&](int number, int i) {
    return *reinterpret_cast<const Floats*>(scratch.boxes + number * kListed + i);
  };
  auto gaps = [&](int axis, int i, Floats value) {
    const Floats below = side(axis, i) - value, above = value - side(axis + 3, i);
    const Floats most = below > above ? below : above;
    return most > zero ? most : zero;
  };
  for (int i = 0; i < listed; i += kLanes) {
    const Floats dx = gaps(0, i, x), dy = gaps(1, i, y), dz = gaps(2, i, z);
    *reinterpret_cast<Floats*>(scratch.gaps + i) = dx * dx + dy * dy + dz * dz;
  }
  int selected = 0;
  for (int i = 0; i < listed; ++i) {
    scratch.selected[selected] = i;
    selected += static_cast<int>(scratch.gaps[i] <= found->bound);
  }
  for (int s = 0; s < selected; ++s) {
    const int i = scratch.selected[s];
    if (scratch.gaps[i] <= found->bound) found->scan(tree, scratch.leaves[i]);
  }
}

// One query alone, nearest boxes first: steady however the density changes.
void descend(const TreeView& tree, Candidates* found) {
  Node stack[kDepth];
  int depth = 0;
  stack[depth++] = {0, 0, tree.leaves, 0.0f};
  while (depth > 0) {
    const Node node = stack[--depth];
    if (node.distance2 > found->bound) continue;
    const int64_t end = needed_end(node, tree.boxes + 8 * node.number, found->want);
    if (end >= 0) {
      for (int64_t leaf = node.begin; leaf < end; ++leaf) found->scan(tree, leaf);
      continue;
    }
    Node left = node.left(), right = node.right();
    left.distance2 = box_distance2(tree.boxes + 8 * left.number, found->query);
    right.distance2 = box_distance2(tree.boxes + 8 * right.number, found->query);
    const bool left_first = left.distance2 <= right.distance2;
    stack[depth++] = left_first ? right : left;
    stack[depth++] = left_first ? left : right;
  }
}

}  // namespace

int64_t neighbor_scratch_bytes(int32_t k) { return carve(k, nullptr, nullptr); }

void neighbor_search(const NeighborSearch& search, int64_t begin, int64_t end, void* memory) {
  const TreeView& tree = search.tree;
  const TreeView& queries = search.queries;
  const int32_t found_k =
      tree.points < search.k ? static_cast<int32_t>(tree.points) : search.k;
  const int32_t want = search.self ? found_k - 1 : found_k;
  Scratch scratch;
  carve(search.k, static_cast<char*>(memory), &scratch);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * kLeafPoints;
    const int64_t last =
        first + kLeafPoints < queries.points ? first + kLeafPoints : queries.points;
    const float* box = queries.leaf_boxes + 8 * group;
    const Point center{0.5f * (box[0] + box[3]), 0.5f * (box[1] + box[4]),
                       0.5f * (box[2] + box[5])};
    // Distance within which each query of the group has k points; far too much for absent ones.
    float reach[kLeaf];
    int listed = 0;
    if (want > 0) {
      const int64_t leaf = search.self ? group : nearest_leaf(tree, center);
      const float radius = radius_of_k(tree, leaf, center, found_k, scratch.window);
      for (float& bound : reach) bound = FLT_MAX;
      extend_reach(queries, first, center, radius, reach);
      float most = 0.0f;
      for (int64_t row = first; row < last; ++row) {
        most = reach[row - first] > most ? reach[row - first] : most;
      }
      listed = collect(tree, box, squared_bound(most), want, scratch);
    }
    for (int64_t row = first; row < last; ++row) {
      const Point query{queries.x[row], queries.y[row], queries.z[row]};
      int32_t* out = search.out + static_cast<int64_t>(queries.index[row]) * search.k;
      int32_t filled = 0;
      if (search.self) out[filled++] = queries.index[row] + search.offset;
      if (want > 0) {
        Candidates found{&scratch, query, search.self ? queries.index[row] : -1,
                         want,     0,     squared_bound(reach[row - first])};
        if (listed >= 0) {
          scan_listed(tree, scratch, listed, &found);
        } else {
          descend(tree, &found);
        }
        const float radius = root(found.sorted(out + filled, search.offset));
        extend_reach(queries, first, query, radius, reach);
      }
      for (filled += want; filled < search.k; ++filled) out[filled] = out[0];
    }
  }
}

}  // namespace DELA_ISA
}  // namespace dela
