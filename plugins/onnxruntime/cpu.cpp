// The operators on the CPU. Rows are computed in blocks on the session's own threads, so a
// session's thread count and affinity hold for them.
#include <atomic>
#include <cstdlib>

#include "onnxruntime/calls.h"

namespace dela::ort {
namespace {

// Small enough to share 5,000 rows among many threads, large enough to hide the hand-over.
constexpr int64_t kBlockRows = 128;

// Weights in the order the row kernels want; a few microseconds a call, so nothing is cached
// and concurrent runs of one session share nothing.
class Prepared {
 public:
  explicit Prepared(int64_t floats) {
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    data_ = static_cast<float*>(std::aligned_alloc(64, bytes == 0 ? 64 : bytes));
  }
  ~Prepared() { std::free(data_); }
  Prepared(const Prepared&) = delete;
  Prepared& operator=(const Prepared&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

void keep_smallest(std::atomic<int64_t>& smallest, int64_t value) {
  int64_t seen = smallest.load(std::memory_order_relaxed);
  while (value < seen && !smallest.compare_exchange_weak(seen, value)) {
  }
}

// One table of row numbers that a block of rows reads; `first_bad` ends as the first row that
// points outside [0, limit), the same one for every number of threads.
struct IndexTable {
  const char* name;
  const int32_t* values;
  int64_t columns, limit;
  std::atomic<int64_t> first_bad{INT64_MAX};

  bool holds(int64_t begin, int64_t end) {
    const int32_t* block = values + begin * columns;
    if (DELA_DISPATCH(indices_within, block, (end - begin) * columns, limit)) return true;
    int64_t row = begin;
    while (DELA_DISPATCH(indices_within, values + row * columns, columns, limit)) ++row;
    keep_smallest(first_bad, row);
    return false;
  }

  OrtStatus* verdict(const Api& api, const char* op) const {
    const int64_t row = first_bad.load();
    if (row == INT64_MAX) return nullptr;
    const int32_t* bad = values + row * columns;
    while (*bad >= 0 && *bad < limit) ++bad;
    return refuse(api, "%s: %s row %lld holds %d; every index must be in [0, %lld)", op, name,
                  static_cast<long long>(row), *bad, static_cast<long long>(limit));
  }
};

// Runs body(begin, end) over blocks of rows on the session's threads.
template <class Body>
OrtStatus* for_row_blocks(const Api& api, OrtKernelContext* context, int64_t rows, Body body) {
  struct Task {
    Body* body;
    int64_t rows;
  } task{&body, rows};
  const auto run = [](void* data, size_t block) {
    const Task* task = static_cast<const Task*>(data);
    const int64_t begin = static_cast<int64_t>(block) * kBlockRows;
    const int64_t end = begin + kBlockRows < task->rows ? begin + kBlockRows : task->rows;
    (*task->body)(begin, end);
  };
  const size_t blocks = static_cast<size_t>((rows + kBlockRows - 1) / kBlockRows);
  if (blocks == 0) return nullptr;
  return api.parallel_for(context, run, blocks, blocks, &task);
}

}  // namespace

OrtStatus* spse_compute(void* self, OrtKernelContext* context) noexcept {
  const SpseKernel& kernel = *static_cast<const SpseKernel*>(self);
  const Api& api = kernel.api;
  Spse op{};
  void* out = nullptr;
  DELA_RETURN_IF_ERROR(read_call(kernel, context, &op, &out));
  const Prepared prepared(DELA_DISPATCH(spse_prepared_floats, op));
  if (prepared.data() == nullptr) return api.create_status(kFail, "SPSE: out of memory");
  DELA_DISPATCH(spse_prepare, op, prepared.data());

  IndexTable table{"neighbors", op.neighbors, op.k, op.n_points};
  DELA_RETURN_IF_ERROR(
      for_row_blocks(api, context, op.n_rows, [&](int64_t begin, int64_t end) noexcept {
        if (table.holds(begin, end)) {
          DELA_DISPATCH(spse_rows, op, prepared.data(), begin, end, static_cast<float*>(out),
                        nullptr);
        }
      }));
  return table.verdict(api, "SPSE");
}

OrtStatus* spamp_compute(void* self, OrtKernelContext* context) noexcept {
  const SpampKernel& kernel = *static_cast<const SpampKernel*>(self);
  const Api& api = kernel.api;
  Spamp op{};
  void* out = nullptr;
  DELA_RETURN_IF_ERROR(read_call(kernel, context, &op, &out));
  const Prepared prepared(DELA_DISPATCH(spamp_prepared_floats, op));
  if (prepared.data() == nullptr) return refuse(api, "%s: out of memory", kernel.name);
  DELA_DISPATCH(spamp_prepare, op, prepared.data());

  IndexTable rows{"neighbors", op.neighbors, op.k, op.n_points};
  IndexTable own{"centers", op.centers, 1, op.n_points};
  DELA_RETURN_IF_ERROR(
      for_row_blocks(api, context, op.n_rows, [&](int64_t begin, int64_t end) noexcept {
        const bool neighbors_hold = rows.holds(begin, end);
        if (own.holds(begin, end) && neighbors_hold) {
          DELA_DISPATCH(spamp_rows, op, prepared.data(), begin, end, out, nullptr);
        }
      }));
  DELA_RETURN_IF_ERROR(rows.verdict(api, kernel.name));
  return own.verdict(api, kernel.name);
}

}  // namespace dela::ort
