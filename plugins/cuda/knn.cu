// Exact k nearest neighbors. Points in the order of a space-filling curve are the leaves, eight at a
// time, of a complete binary tree of boxes; a thread descends it for one query, nearest box first.
//
// A candidate's key is its squared distance and its row in one number, so the k smallest keys are the
// answer, ties to the lower row. A box's key is its squared distance and its lowest row: never above
// a key inside, as rounding is monotone. Boxes at or above the k-th best key are left out; that also
// settles duplicates, whose boxes differ by their rows. Every operation is rounded once, in the order
// of the CPU's search: both give the same table.
#include "cuda/geometry.cuh"

namespace dela {

// A search: k rows of `out` for each of the `asked` queries, placed as by dela_build_trees. `self`: the
// queries are the points, and each comes first in its own list. Lists are in the order of the queries'
// rows, and `offset` is added to what stands in them; where there are fewer than k points the first
// fills the rest.
struct Search {
  const float4 *points, *nodes, *queries;
  int32_t* out;
  int32_t n, leaves, asked, k, self, offset;
  int32_t first_block;  // of the launch that works at it
};

// A tree to be built over n points: point i is row order[i] of the cloud, or i where `order` is null, and
// row r of the cloud is points[rows[r]], or points[r] where `rows` is null. `leaves` is a power of two;
// a leaf may be empty.
struct Tree {
  const float* points;
  const int32_t* rows;
  const uint32_t* order;
  float4 *placed, *nodes;
  int32_t n, leaves;
  int32_t first_block;  // of the launch that works at it
};

namespace {

constexpr int kLeafPoints = 8;
constexpr int kSearchBlock = 64;
constexpr int kDepth = 32;
constexpr uint64_t kNothing = uint64_t{0x7f800000} << 32;  // at distance infinity

struct Box {
  float4 low, high;  // low.w: bits of the lowest row
};

DELA_DEVICE Box empty_box() {
  const float most = infinity();
  Box box;
  box.low.x = box.low.y = box.low.z = most;
  box.low.w = __int_as_float(0x7fffffff);
  box.high.x = box.high.y = box.high.z = -most;
  box.high.w = 0.0f;
  return box;
}

DELA_DEVICE int32_t row_of(const float4& point) { return __float_as_int(point.w); }

DELA_DEVICE void extend(Box* box, const float4& low, const float4& high) {
  box->low.x = fminf(box->low.x, low.x);
  box->low.y = fminf(box->low.y, low.y);
  box->low.z = fminf(box->low.z, low.z);
  box->high.x = fmaxf(box->high.x, high.x);
  box->high.y = fmaxf(box->high.y, high.y);
  box->high.z = fmaxf(box->high.z, high.z);
  if (row_of(low) < row_of(box->low)) box->low.w = low.w;
}

DELA_DEVICE float squared_length(float x, float y, float z) {
  return __fadd_rn(__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)), __fmul_rn(z, z));
}

DELA_DEVICE uint64_t key_of(float squared_distance, int32_t row) {
  return static_cast<uint64_t>(__float_as_uint(squared_distance)) << 32 |
         static_cast<uint32_t>(row);
}

DELA_DEVICE float gap(float low, float high, float value) {
  return fmaxf(fmaxf(__fsub_rn(low, value), __fsub_rn(value, high)), 0.0f);
}

DELA_DEVICE uint64_t box_key(const float4* nodes, int32_t node, const float4& query) {
  const float4 low = nodes[2 * static_cast<size_t>(node)];
  const float4 high = nodes[2 * static_cast<size_t>(node) + 1];
  const float distance =
      squared_length(gap(low.x, high.x, query.x), gap(low.y, high.y, query.y),
                     gap(low.z, high.z, query.z));
  return key_of(distance, row_of(low));
}

// The smallest keys so far as a heap, the largest on top; items of one thread lie `stride` apart.
struct Nearest {
  uint64_t* items;
  int64_t stride;
  int32_t want, count;
  uint64_t worst;  // keys from here on are of no use

  DELA_DEVICE uint64_t& item(int32_t i) { return items[i * stride]; }

  DELA_DEVICE void sift_down(uint64_t key, int32_t end) {
    int32_t at = 0;
    for (;;) {
      int32_t child = 2 * at + 1;
      if (child >= end) break;
      uint64_t larger = item(child);
      if (child + 1 < end && item(child + 1) > larger) larger = item(++child);
      if (larger <= key) break;
      item(at) = larger;
      at = child;
    }
    item(at) = key;
  }

  DELA_DEVICE void add(uint64_t key) {
    if (count == want) {
      sift_down(key, count);
    } else {
      int32_t at = count++;
      while (at > 0) {
        const int32_t parent = (at - 1) / 2;
        const uint64_t above = item(parent);
        if (above >= key) break;
        item(at) = above;
        at = parent;
      }
      item(at) = key;
    }
    if (count == want) worst = item(0);
  }

  DELA_DEVICE void sort() {
    for (int32_t end = count - 1; end > 0; --end) {
      const uint64_t last = item(end);
      item(end) = item(0);
      sift_down(last, end);
    }
  }
};

DELA_DEVICE void scan_leaf(const float4* points, int32_t n, int32_t leaf, const float4& query,
                           int32_t without, Nearest* nearest) {
  const int32_t begin = leaf * kLeafPoints;
  const int32_t end = n - begin < kLeafPoints ? n : begin + kLeafPoints;
  for (int32_t i = begin; i < end; ++i) {
    const float4 point = points[i];
    const float distance =
        squared_length(__fsub_rn(point.x, query.x), __fsub_rn(point.y, query.y),
                       __fsub_rn(point.z, query.z));
    const uint64_t key = key_of(distance, row_of(point));
    if (key < nearest->worst && row_of(point) != without) nearest->add(key);
  }
}

DELA_DEVICE void search(const float4* points, const float4* nodes, int32_t n, int32_t leaves,
                        const float4& query, int32_t without, Nearest* nearest) {
  int32_t pending[kDepth];
  uint64_t pending_key[kDepth];
  int depth = 0;
  int32_t node = 1;
  uint64_t key = box_key(nodes, 1, query);
  for (;;) {
    while (key < nearest->worst && node < leaves) {
      const uint64_t left = box_key(nodes, 2 * node, query);
      const uint64_t right = box_key(nodes, 2 * node + 1, query);
      const bool left_first = left <= right;
      const uint64_t far = left_first ? right : left;
      if (far < nearest->worst) {
        pending[depth] = left_first ? 2 * node + 1 : 2 * node;
        pending_key[depth++] = far;
      }
      key = left_first ? left : right;
      node = left_first ? 2 * node : 2 * node + 1;
    }
    if (key < nearest->worst) scan_leaf(points, n, node - leaves, query, without, nearest);
    if (depth == 0) return;
    node = pending[--depth];
    key = pending_key[depth];
  }
}

// The query `number` of a search. `items`: for as many candidates as a list holds, `stride` apart.
DELA_DEVICE void answer(const Search& asked, int64_t number, uint64_t* items, int64_t stride) {
  if (number >= asked.asked) return;
  const float4 query = asked.queries[number];
  const int32_t query_row = row_of(query), k = asked.k, self = asked.self;
  const int32_t want = (k < asked.n ? k : asked.n) - self;
  Nearest nearest{items, stride, want, 0, want > 0 ? kNothing : 0};
  search(asked.points, asked.nodes, asked.n, asked.leaves, query, self ? query_row : -1, &nearest);
  nearest.sort();

  int32_t* list = asked.out + static_cast<size_t>(query_row) * k;
  int32_t filled = 0;
  if (self) list[filled++] = query_row + asked.offset;
  for (int32_t i = 0; i < nearest.count; ++i) {
    list[filled++] = static_cast<int32_t>(nearest.item(i) & 0xffffffffu) + asked.offset;
  }
  const int32_t first = list[0];
  while (filled < k) list[filled++] = first;
}

// The boxes of `count` (a power of two) neighboring nodes' parents, their parents and so on: seven
// levels, or all there are. Each thread of the block brings one node's box, its number within the level
// being `first` + threadIdx.x.
DELA_DEVICE void merge(Box box, int32_t count, int32_t first, float4* nodes, float4 (&low)[kBlock],
                       float4 (&high)[kBlock]) {
  const int32_t thread = threadIdx.x;
  low[thread] = box.low;
  high[thread] = box.high;
  __syncthreads();
  for (int32_t width = kBlock / 2, level = count / 2; width > 0 && level > 0;
       width /= 2, level /= 2) {
    if (thread < width) {
      box.low = low[2 * thread];
      box.high = high[2 * thread];
      extend(&box, low[2 * thread + 1], high[2 * thread + 1]);
    }
    __syncthreads();
    first /= 2;
    if (thread < width) {
      low[thread] = box.low;
      high[thread] = box.high;
      const int32_t place = first + thread;
      if (place < level) {
        nodes[2 * (level + place)] = box.low;
        nodes[2 * (level + place) + 1] = box.high;
      }
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace dela

// Morton keys for points in any order: 21 bits per axis of the bounding cube.
DELA_KERNEL(8)
dela_curve_keys(const float* points, const uint64_t* bounds, int32_t n, uint64_t* keys) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= n) return;
  double extent = 0.0;
  for (int axis = 0; axis < 3; ++axis) {
    extent = fmax(extent, dela::highest(bounds, axis) - dela::lowest(bounds, axis));
  }
  const double most = (1 << dela::kAxisBits) - 1;
  const double scale = extent > 0.0 ? most / extent : 0.0;
  uint64_t place[3];
  for (int axis = 0; axis < 3; ++axis) {
    const double value = (points[3 * row + axis] - dela::lowest(bounds, axis)) * scale;
    place[axis] = static_cast<uint64_t>(fmin(value, most));
  }
  keys[row] = dela::interleaved(place[0], place[1], place[2], dela::kAxisBits, dela::kAxisBits,
                                dela::kAxisBits);
}

// Trees: points with their rows, leaf by leaf; the boxes of the leaves, nodes `leaves` .. 2 leaves - 1; and
// those above them. A block takes kBlock leaves and all that is above them alone; the last block of a tree
// to be done takes the rest. `done`: zero before and after, a word for each tree.
DELA_KERNEL(8)
dela_build_trees(dela::Jobs<dela::Tree> trees, uint32_t* done) {
  __shared__ float4 low[dela::kBlock], high[dela::kBlock];
  __shared__ bool is_last;
  int32_t number;
  const dela::Tree tree = trees.of_block(&number);
  const int32_t thread = threadIdx.x;
  const int32_t first = (static_cast<int32_t>(blockIdx.x) - tree.first_block) * dela::kBlock;
  const int32_t leaf = first + thread;
  dela::Box box = dela::empty_box();
  if (leaf < tree.leaves) {
    const int64_t begin = static_cast<int64_t>(leaf) * dela::kLeafPoints;
    for (int64_t i = begin; i < begin + dela::kLeafPoints && i < tree.n; ++i) {
      const int64_t row = tree.order == nullptr ? i : tree.order[i];
      const float* from = tree.points + 3 * static_cast<int64_t>(
          tree.rows == nullptr ? row : tree.rows[row]);
      float4 point;
      point.x = from[0];
      point.y = from[1];
      point.z = from[2];
      point.w = __int_as_float(static_cast<int32_t>(row));
      tree.placed[i] = point;
      dela::extend(&box, point, point);
    }
    const size_t node = static_cast<size_t>(tree.leaves) + leaf;
    tree.nodes[2 * node] = box.low;
    tree.nodes[2 * node + 1] = box.high;
  }
  dela::merge(box, tree.leaves, first, tree.nodes, low, high);
  if (tree.leaves <= dela::kBlock) return;

  __threadfence();
  __syncthreads();
  if (thread == 0) {
    const uint32_t blocks = tree.leaves / dela::kBlock;
    is_last = atomicAdd(done + number, 1u) + 1 == blocks;
    if (is_last) done[number] = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for (int32_t count = tree.leaves / dela::kBlock; count > 1; count /= dela::kBlock) {
    for (int32_t begin = 0; begin < count; begin += dela::kBlock) {
      dela::Box node_box = dela::empty_box();
      if (begin + thread < count) {
        const size_t node = static_cast<size_t>(count) + begin + thread;
        node_box.low = __ldcg(tree.nodes + 2 * node);
        node_box.high = __ldcg(tree.nodes + 2 * node + 1);
      }
      dela::merge(node_box, count, begin, tree.nodes, low, high);
    }
  }
}

// Searches of lists of up to `held` rows.
#define DELA_KNN(held)                                                                        \
  extern "C" __global__ void __launch_bounds__(dela::kSearchBlock)                            \
  dela_knn_##held(dela::Jobs<dela::Search> searches) {                                        \
    __shared__ uint64_t items[held * dela::kSearchBlock];                                     \
    int32_t number;                                                                           \
    const dela::Search asked = searches.of_block(&number);                                    \
    const int64_t block = static_cast<int32_t>(blockIdx.x) - asked.first_block;               \
    dela::answer(asked, block * dela::kSearchBlock + threadIdx.x, items + threadIdx.x,        \
                 dela::kSearchBlock);                                                         \
  }

DELA_KNN(1)
DELA_KNN(32)

// One search of any k, from the query `begin` on: candidates in device memory, min(k, n) for each thread
// of the launch.
extern "C" __global__ void __launch_bounds__(dela::kSearchBlock)
dela_knn_any(dela::Search asked, int32_t begin, int32_t end, uint64_t* items) {
  asked.asked = end;
  const int64_t thread = dela::thread_number();
  dela::answer(asked, begin + thread, items + thread, static_cast<int64_t>(gridDim.x) * blockDim.x);
}
