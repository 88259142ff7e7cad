// SPSE and SPAMP as ONNX Runtime custom operators of the domain "dela". Rows are computed in
// blocks on the session's own threads, so a session's thread count and affinity hold for them.
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

#include "cpu/operators.h"
#include "onnxruntime/ort_abi.h"

namespace dela::ort {
namespace {

// Small enough to share 5,000 rows among many threads, large enough to hide the hand-over.
constexpr int64_t kBlockRows = 128;
// Far above any network's width, low enough that no product of sizes overflows.
constexpr int64_t kMaxChannels = 1 << 20;

__attribute__((format(printf, 2, 3))) OrtStatus* refuse(const Api& api, const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return api.create_status(kInvalidArgument, message);
}

#define DELA_RETURN_IF_ERROR(expression)                       \
  do {                                                         \
    if (OrtStatus* status_ = (expression)) return status_;     \
  } while (false)

struct Tensor {
  void* data = nullptr;
  int type = 0;
  size_t rank = 0;
  int64_t size[2] = {1, 1};
};

OrtStatus* read_input(const Api& api, OrtKernelContext* context, size_t index, const char* op,
                      const char* name, size_t rank, Tensor* out) {
  const OrtValue* value = nullptr;
  DELA_RETURN_IF_ERROR(api.input(context, index, &value));
  if (value == nullptr) return refuse(api, "%s: input %s is missing", op, name);
  OrtTensorTypeAndShapeInfo* shape = nullptr;
  DELA_RETURN_IF_ERROR(api.tensor_shape(value, &shape));
  OrtStatus* status = api.element_type(shape, &out->type);
  if (status == nullptr) status = api.rank(shape, &out->rank);
  if (status == nullptr && out->rank == rank) status = api.sizes(shape, out->size, rank);
  api.release_shape(shape);
  if (status != nullptr) return status;
  if (out->rank != rank) {
    return refuse(api, "%s: %s has %zu dimensions; expected %zu", op, name, out->rank, rank);
  }
  return api.tensor_data(const_cast<OrtValue*>(value), &out->data);
}

OrtStatus* make_output(const Api& api, OrtKernelContext* context, int64_t rows, int64_t columns,
                       void** out) {
  const int64_t sizes[2] = {rows, columns};
  OrtValue* value = nullptr;
  DELA_RETURN_IF_ERROR(api.output(context, 0, sizes, 2, &value));
  return api.tensor_data(value, out);
}

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

struct SpseKernel {
  Api api;
  float epsilon;
  int64_t directions;
};

OrtStatus* spse_create(const OrtCustomOp*, const OrtApi* table, const OrtKernelInfo* info,
                       void** kernel) noexcept {
  const Api api(table);
  float epsilon = 0;
  int64_t directions = 0;
  DELA_RETURN_IF_ERROR(api.float_attribute(info, "epsilon", &epsilon));
  DELA_RETURN_IF_ERROR(api.int_attribute(info, "directions", &directions));
  if (directions < 0 || directions > INT32_MAX - 16) {
    return refuse(api, "SPSE: attribute directions is %lld; it counts the last columns of points",
                  static_cast<long long>(directions));
  }
  *kernel = new (std::nothrow) SpseKernel{api, epsilon, directions};
  return *kernel != nullptr ? nullptr : api.create_status(kFail, "SPSE: out of memory");
}

OrtStatus* spse_compute(void* self, OrtKernelContext* context) noexcept {
  const SpseKernel& kernel = *static_cast<const SpseKernel*>(self);
  const Api& api = kernel.api;
  Tensor points, neighbors, weight;
  DELA_RETURN_IF_ERROR(read_input(api, context, 0, "SPSE", "points", 2, &points));
  DELA_RETURN_IF_ERROR(read_input(api, context, 1, "SPSE", "neighbors", 2, &neighbors));
  DELA_RETURN_IF_ERROR(read_input(api, context, 2, "SPSE", "weight", 2, &weight));
  const int64_t columns = points.size[1], k = neighbors.size[1], channels = weight.size[1];
  const int64_t attributes = columns - 3 - kernel.directions;
  if (attributes < 0) {
    return refuse(api, "SPSE: points has %lld columns; 3 coordinates and %lld directions need %lld",
                  static_cast<long long>(columns), static_cast<long long>(kernel.directions),
                  static_cast<long long>(3 + kernel.directions));
  }
  if (weight.size[0] != columns + 9) {
    return refuse(api, "SPSE: weight has %lld rows; points with %lld columns need %lld",
                  static_cast<long long>(weight.size[0]), static_cast<long long>(columns),
                  static_cast<long long>(columns + 9));
  }
  if (neighbors.size[0] != points.size[0]) {
    return refuse(api, "SPSE: neighbors has %lld rows, points %lld; give one row per point",
                  static_cast<long long>(neighbors.size[0]),
                  static_cast<long long>(points.size[0]));
  }
  if (k < 1 || k > kMaxNeighbors) {
    return refuse(api, "SPSE: neighbors has %lld columns; expected 1 to %d",
                  static_cast<long long>(k), kMaxNeighbors);
  }
  if (channels < 1 || channels > kMaxChannels) {
    return refuse(api, "SPSE: weight has %lld columns; expected 1 to %lld",
                  static_cast<long long>(channels), static_cast<long long>(kMaxChannels));
  }

  Spse op{};
  op.points = static_cast<const float*>(points.data);
  op.stride = columns;
  op.neighbors = static_cast<const int32_t*>(neighbors.data);
  op.weight = static_cast<const float*>(weight.data);
  op.epsilon = kernel.epsilon;
  op.n_points = op.n_rows = points.size[0];
  op.k = static_cast<int32_t>(k);
  op.channels = static_cast<int32_t>(channels);
  op.attributes = static_cast<int32_t>(attributes);
  op.directions = static_cast<int32_t>(kernel.directions);

  void* out = nullptr;
  DELA_RETURN_IF_ERROR(make_output(api, context, op.n_rows, channels, &out));
  const Prepared prepared(DELA_DISPATCH(spse_prepared_floats, op));
  if (prepared.data() == nullptr) return api.create_status(kFail, "SPSE: out of memory");
  DELA_DISPATCH(spse_prepare, op, prepared.data());

  IndexTable table{"neighbors", op.neighbors, k, op.n_points};
  DELA_RETURN_IF_ERROR(
      for_row_blocks(api, context, op.n_rows, [&](int64_t begin, int64_t end) noexcept {
        if (table.holds(begin, end)) {
          DELA_DISPATCH(spse_rows, op, prepared.data(), begin, end, static_cast<float*>(out),
                        nullptr);
        }
      }));
  return table.verdict(api, "SPSE");
}

struct SpampKernel {
  Api api;
};

OrtStatus* spamp_create(const OrtCustomOp*, const OrtApi* table, const OrtKernelInfo*,
                        void** kernel) noexcept {
  const Api api(table);
  *kernel = new (std::nothrow) SpampKernel{api};
  return *kernel != nullptr ? nullptr : api.create_status(kFail, "SPAMP: out of memory");
}

OrtStatus* spamp_compute(void* self, OrtKernelContext* context) noexcept {
  const Api& api = static_cast<const SpampKernel*>(self)->api;
  Tensor features, points, neighbors, centers, weight;
  DELA_RETURN_IF_ERROR(read_input(api, context, 0, "SPAMP", "features", 2, &features));
  DELA_RETURN_IF_ERROR(read_input(api, context, 1, "SPAMP", "points", 2, &points));
  DELA_RETURN_IF_ERROR(read_input(api, context, 2, "SPAMP", "neighbors", 2, &neighbors));
  DELA_RETURN_IF_ERROR(read_input(api, context, 3, "SPAMP", "centers", 1, &centers));
  DELA_RETURN_IF_ERROR(read_input(api, context, 4, "SPAMP", "weight", 2, &weight));
  const int64_t k = neighbors.size[1], channels = features.size[1];
  if (points.size[1] != 3 || points.size[0] != features.size[0]) {
    return refuse(api, "SPAMP: points is [%lld, %lld], features has %lld rows; expected [%lld, 3]",
                  static_cast<long long>(points.size[0]), static_cast<long long>(points.size[1]),
                  static_cast<long long>(features.size[0]),
                  static_cast<long long>(features.size[0]));
  }
  if (channels < 4 || channels % 4 != 0 || channels > kMaxChannels) {
    return refuse(api, "SPAMP: features has %lld channels; expected a multiple of 4",
                  static_cast<long long>(channels));
  }
  if (weight.size[0] != 4 || weight.size[1] != channels / 4) {
    return refuse(api, "SPAMP: weight is [%lld, %lld]; %lld channels need [4, %lld]",
                  static_cast<long long>(weight.size[0]), static_cast<long long>(weight.size[1]),
                  static_cast<long long>(channels), static_cast<long long>(channels / 4));
  }
  if (neighbors.size[0] != centers.size[0]) {
    return refuse(api, "SPAMP: neighbors has %lld rows, centers %lld; give one row per center",
                  static_cast<long long>(neighbors.size[0]),
                  static_cast<long long>(centers.size[0]));
  }
  if (k < 1 || k > kMaxNeighbors) {
    return refuse(api, "SPAMP: neighbors has %lld columns; expected 1 to %d",
                  static_cast<long long>(k), kMaxNeighbors);
  }

  Spamp op{};
  op.features = features.data;
  op.type = features.type == kFloat16    ? FeatureType::f16
            : features.type == kBFloat16 ? FeatureType::bf16
                                         : FeatureType::f32;
  op.points = static_cast<const float*>(points.data);
  op.stride = 3;
  op.neighbors = static_cast<const int32_t*>(neighbors.data);
  op.centers = static_cast<const int32_t*>(centers.data);
  op.weight = static_cast<const float*>(weight.data);
  op.n_points = features.size[0];
  op.n_rows = centers.size[0];
  op.k = static_cast<int32_t>(k);
  op.channels = static_cast<int32_t>(channels);

  void* out = nullptr;
  DELA_RETURN_IF_ERROR(make_output(api, context, op.n_rows, channels, &out));
  const Prepared prepared(DELA_DISPATCH(spamp_prepared_floats, op));
  if (prepared.data() == nullptr) return api.create_status(kFail, "SPAMP: out of memory");
  DELA_DISPATCH(spamp_prepare, op, prepared.data());

  IndexTable rows{"neighbors", op.neighbors, k, op.n_points};
  IndexTable own{"centers", op.centers, 1, op.n_points};
  DELA_RETURN_IF_ERROR(
      for_row_blocks(api, context, op.n_rows, [&](int64_t begin, int64_t end) noexcept {
        const bool neighbors_hold = rows.holds(begin, end);
        if (own.holds(begin, end) && neighbors_hold) {
          DELA_DISPATCH(spamp_rows, op, prepared.data(), begin, end, out, nullptr);
        }
      }));
  DELA_RETURN_IF_ERROR(rows.verdict(api, "SPAMP"));
  return own.verdict(api, "SPAMP");
}

// Output [rows of one input, columns of another], named dynamic sizes kept. Says nothing where a
// size has neither value nor name: ONNX Runtime takes two sizes without a name for one.
OrtStatus* infer_output(const Api& api, OrtShapeInferContext* context, size_t rows_from,
                        size_t columns_from) {
  int64_t sizes[2] = {-1, -1};
  const char* names[2] = {"", ""};
  int type = kFloat;
  const size_t inputs[2] = {rows_from, columns_from};
  for (int axis = 0; axis < 2; ++axis) {
    OrtTensorTypeAndShapeInfo* shape = nullptr;
    DELA_RETURN_IF_ERROR(api.inferred_input(context, inputs[axis], &shape));
    size_t rank = 0;
    DELA_RETURN_IF_ERROR(api.rank(shape, &rank));
    if (rank < 1 || rank > 2 || (axis == 1 && rank != 2)) return nullptr;
    int64_t input_sizes[2] = {-1, -1};
    const char* input_names[2] = {"", ""};
    DELA_RETURN_IF_ERROR(api.sizes(shape, input_sizes, rank));
    DELA_RETURN_IF_ERROR(api.size_names(shape, input_names, rank));
    sizes[axis] = input_sizes[axis];
    names[axis] = input_names[axis];
    if (sizes[axis] < 0 && *names[axis] == 0) return nullptr;
    if (axis == 1) DELA_RETURN_IF_ERROR(api.element_type(shape, &type));
  }
  OrtTensorTypeAndShapeInfo* out = nullptr;
  DELA_RETURN_IF_ERROR(api.create_shape(&out));
  OrtStatus* status = api.set_element_type(out, type);
  if (status == nullptr) status = api.set_sizes(out, sizes, 2);
  if (status == nullptr) status = api.set_size_names(out, names, 2);
  if (status == nullptr) status = api.set_inferred_output(context, 0, out);
  api.release_shape(out);
  return status;
}

// What ONNX Runtime passes back to every callback: the operator with its own additions.
struct Operator : OrtCustomOp {
  const char* name;
  int input_types[5];
  size_t inputs;
  int output_type;
  const OrtApi* table;

  static const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }
};

OrtStatus* spse_infer(const OrtCustomOp* op, OrtShapeInferContext* context) noexcept {
  return infer_output(Api(Operator::of(op).table), context, 0, 2);
}

OrtStatus* spamp_infer(const OrtCustomOp* op, OrtShapeInferContext* context) noexcept {
  return infer_output(Api(Operator::of(op).table), context, 2, 0);
}

Operator describe(const char* name, const OrtApi* table) {
  Operator op{};
  op.version = kApiVersion;
  op.name = name;
  op.table = table;
  op.GetName = [](const OrtCustomOp* self) { return Operator::of(self).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const OrtCustomOp* self, size_t i) {
    return Operator::of(self).input_types[i];
  };
  op.GetInputTypeCount = [](const OrtCustomOp* self) { return Operator::of(self).inputs; };
  op.GetOutputType = [](const OrtCustomOp* self, size_t) { return Operator::of(self).output_type; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return kRequired; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) -> int { return kRequired; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) -> int { return kDefaultMemory; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

Operator describe_spse(const OrtApi* table) {
  Operator op = describe("SPSE", table);
  op.inputs = 3;
  op.input_types[0] = kFloat;
  op.input_types[1] = kInt32;
  op.input_types[2] = kFloat;
  op.output_type = kFloat;
  op.CreateKernelV2 = spse_create;
  op.KernelComputeV2 = spse_compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<SpseKernel*>(kernel); };
  op.InferOutputShapeFn = spse_infer;
  return op;
}

Operator describe_spamp(const OrtApi* table, int feature_type) {
  Operator op = describe("SPAMP", table);
  op.inputs = 5;
  op.input_types[0] = feature_type;
  op.input_types[1] = kFloat;
  op.input_types[2] = kInt32;
  op.input_types[3] = kInt32;
  op.input_types[4] = kFloat;
  op.output_type = feature_type;
  op.CreateKernelV2 = spamp_create;
  op.KernelComputeV2 = spamp_compute;
  op.KernelDestroy = [](void* kernel) { delete static_cast<SpampKernel*>(kernel); };
  op.InferOutputShapeFn = spamp_infer;
  return op;
}

// The operators and their domain. Sessions keep pointers to all of it and nobody says when the
// last one ends, so one of them lives as long as the process and serves every session.
struct Domain {
  Operator operators[4];
  OrtCustomOpDomain* handle;
};

OrtStatus* make_domain(const OrtApi* table, Domain** out) {
  const Api api(table);
  Domain* domain = new (std::nothrow) Domain{{describe_spse(table), describe_spamp(table, kFloat),
                                              describe_spamp(table, kFloat16),
                                              describe_spamp(table, kBFloat16)},
                                             nullptr};
  if (domain == nullptr) return api.create_status(kFail, "dela: out of memory");
  DELA_RETURN_IF_ERROR(api.create_domain("dela", &domain->handle));
  for (const Operator& op : domain->operators) {
    DELA_RETURN_IF_ERROR(api.add_op(domain->handle, &op));
  }
  *out = domain;
  return nullptr;
}

// Answers in words through the newest table that this older runtime has.
OrtStatus* refuse_runtime(const OrtApiBase* base) {
  for (uint32_t version = kApiVersion - 1; version >= 1; --version) {
    const OrtApi* table = base->GetApi(version);
    if (table == nullptr) continue;
    char message[256];
    std::snprintf(message, sizeof message,
                  "dela needs ONNX Runtime 1.%u or newer, this is %s; pip install -U onnxruntime",
                  kApiVersion, base->GetVersionString());
    return Api(table).create_status(kFail, message);
  }
  return nullptr;
}

}  // namespace
}  // namespace dela::ort

// The entry point that ONNX Runtime looks up in a custom-op library.
DELA_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace dela::ort;
  const OrtApi* table = base->GetApi(kApiVersion);
  if (table == nullptr) return refuse_runtime(base);
  static std::mutex mutex;
  static const OrtApi* known = nullptr;
  static Domain* domain = nullptr;
  OrtCustomOpDomain* handle = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (known != table) {
      DELA_RETURN_IF_ERROR(make_domain(table, &domain));
      known = table;
    }
    handle = domain->handle;
  }
  return Api(table).add_domain(options, handle);
}
