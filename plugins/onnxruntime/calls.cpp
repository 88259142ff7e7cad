#include "onnxruntime/calls.h"

#include <cstdarg>
#include <cstdio>
#include <new>

namespace dela::ort {
namespace {

// Far above any network's width, low enough that no product of sizes overflows.
constexpr int64_t kMaxChannels = 1 << 20;

struct Tensor {
  void* data = nullptr;
  int type = 0;
  size_t rank = 0;
  int64_t size[2] = {1, 1};
};

long long number(int64_t value) { return value; }

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

// What does not fit in the width of a neighbor table.
OrtStatus* check_neighbors(const Api& api, const char* name, int64_t k) {
  if (k >= 1 && k <= kMaxNeighbors) return nullptr;
  return refuse(api, "%s: neighbors has %lld columns; expected 1 to %d", name, number(k),
                kMaxNeighbors);
}

FeatureType feature_type(int type) {
  return type == kFloat16 ? FeatureType::f16
         : type == kBFloat16 ? FeatureType::bf16
                             : FeatureType::f32;
}

// Base and scale of SPAMP's residual form; the rest of the call has been read.
OrtStatus* read_residual(const SpampKernel& kernel, OrtKernelContext* context, Spamp* op) {
  const Api& api = kernel.api;
  Tensor base, scale;
  DELA_RETURN_IF_ERROR(read_input(api, context, 5, kernel.name, "base", 2, &base));
  DELA_RETURN_IF_ERROR(read_input(api, context, 6, kernel.name, "scale", 1, &scale));
  if (base.size[0] != op->n_rows || base.size[1] != op->channels) {
    return refuse(api, "%s: base is [%lld, %lld]; expected [%lld, %d], as the output",
                  kernel.name, number(base.size[0]), number(base.size[1]), number(op->n_rows),
                  op->channels);
  }
  if (scale.size[0] != op->channels) {
    return refuse(api, "%s: scale has %lld values; %d channels need as many", kernel.name,
                  number(scale.size[0]), op->channels);
  }
  op->base = base.data;
  op->scale = static_cast<const float*>(scale.data);
  return nullptr;
}

// What does not fit in the sizes of SPAMP's inputs.
OrtStatus* check_sizes(const SpampKernel& kernel, const Tensor& features, const Tensor& points,
                       const Tensor& neighbors, const Tensor& centers, const Tensor& weight) {
  const Api& api = kernel.api;
  const char* name = kernel.name;
  const int64_t channels = features.size[1];
  if (points.size[1] != 3 || points.size[0] != features.size[0]) {
    return refuse(api, "%s: points is [%lld, %lld], features has %lld rows; expected [%lld, 3]",
                  name, number(points.size[0]), number(points.size[1]), number(features.size[0]),
                  number(features.size[0]));
  }
  if (channels < 4 || channels % 4 != 0 || channels > kMaxChannels) {
    return refuse(api, "%s: features has %lld channels; expected a multiple of 4", name,
                  number(channels));
  }
  if (weight.size[0] != 4 || weight.size[1] != channels / 4) {
    return refuse(api, "%s: weight is [%lld, %lld]; %lld channels need [4, %lld]", name,
                  number(weight.size[0]), number(weight.size[1]), number(channels),
                  number(channels / 4));
  }
  if (neighbors.size[0] != centers.size[0]) {
    return refuse(api, "%s: neighbors has %lld rows, centers %lld; give one row per center", name,
                  number(neighbors.size[0]), number(centers.size[0]));
  }
  return check_neighbors(api, name, neighbors.size[1]);
}

// What does not fit in the sizes of SPSE's inputs.
OrtStatus* check_sizes(const SpseKernel& kernel, const Tensor& points, const Tensor& neighbors,
                       const Tensor& weight) {
  const Api& api = kernel.api;
  const int64_t columns = points.size[1], channels = weight.size[1];
  if (columns - 3 - kernel.directions < 0) {
    return refuse(api, "SPSE: points has %lld columns; 3 coordinates and %lld directions need %lld",
                  number(columns), number(kernel.directions), number(3 + kernel.directions));
  }
  if (weight.size[0] != columns + 9) {
    return refuse(api, "SPSE: weight has %lld rows; points with %lld columns need %lld",
                  number(weight.size[0]), number(columns), number(columns + 9));
  }
  if (neighbors.size[0] != points.size[0]) {
    return refuse(api, "SPSE: neighbors has %lld rows, points %lld; give one row per point",
                  number(neighbors.size[0]), number(points.size[0]));
  }
  if (channels < 1 || channels > kMaxChannels) {
    return refuse(api, "SPSE: weight has %lld columns; expected 1 to %lld", number(channels),
                  number(kMaxChannels));
  }
  return check_neighbors(api, "SPSE", neighbors.size[1]);
}

}  // namespace

OrtStatus* refuse(const Api& api, const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return api.create_status(kInvalidArgument, message);
}

OrtStatus* spse_create(const OrtCustomOp*, const OrtApi* table, const OrtKernelInfo* info,
                       void** kernel) noexcept {
  const Api api(table);
  float epsilon = 0;
  int64_t directions = 0;
  DELA_RETURN_IF_ERROR(api.float_attribute(info, "epsilon", &epsilon));
  DELA_RETURN_IF_ERROR(api.int_attribute(info, "directions", &directions));
  if (directions < 0 || directions > INT32_MAX - 16) {
    return refuse(api, "SPSE: attribute directions is %lld; it counts the last columns of points",
                  number(directions));
  }
  *kernel = new (std::nothrow) SpseKernel{api, epsilon, directions};
  return *kernel != nullptr ? nullptr : api.create_status(kFail, "SPSE: out of memory");
}

OrtStatus* spamp_create(const OrtCustomOp* op, const OrtApi* table, const OrtKernelInfo*,
                        void** kernel) noexcept {
  const Api api(table);
  const Operator& of = Operator::of(op);
  *kernel = new (std::nothrow) SpampKernel{api, of.name, of.residual};
  return *kernel != nullptr ? nullptr : refuse(api, "%s: out of memory", of.name);
}

OrtStatus* read_call(const SpseKernel& kernel, OrtKernelContext* context, Spse* op, void** out) {
  const Api& api = kernel.api;
  Tensor points, neighbors, weight;
  DELA_RETURN_IF_ERROR(read_input(api, context, 0, "SPSE", "points", 2, &points));
  DELA_RETURN_IF_ERROR(read_input(api, context, 1, "SPSE", "neighbors", 2, &neighbors));
  DELA_RETURN_IF_ERROR(read_input(api, context, 2, "SPSE", "weight", 2, &weight));
  DELA_RETURN_IF_ERROR(check_sizes(kernel, points, neighbors, weight));
  op->points = static_cast<const float*>(points.data);
  op->stride = points.size[1];
  op->neighbors = static_cast<const int32_t*>(neighbors.data);
  op->weight = static_cast<const float*>(weight.data);
  op->epsilon = kernel.epsilon;
  op->n_points = op->n_rows = points.size[0];
  op->k = static_cast<int32_t>(neighbors.size[1]);
  op->channels = static_cast<int32_t>(weight.size[1]);
  op->attributes = static_cast<int32_t>(points.size[1] - 3 - kernel.directions);
  op->directions = static_cast<int32_t>(kernel.directions);
  return make_output(api, context, op->n_rows, op->channels, out);
}

OrtStatus* read_call(const SpampKernel& kernel, OrtKernelContext* context, Spamp* op, void** out) {
  const Api& api = kernel.api;
  const char* name = kernel.name;
  Tensor features, points, neighbors, centers, weight;
  DELA_RETURN_IF_ERROR(read_input(api, context, 0, name, "features", 2, &features));
  DELA_RETURN_IF_ERROR(read_input(api, context, 1, name, "points", 2, &points));
  DELA_RETURN_IF_ERROR(read_input(api, context, 2, name, "neighbors", 2, &neighbors));
  DELA_RETURN_IF_ERROR(read_input(api, context, 3, name, "centers", 1, &centers));
  DELA_RETURN_IF_ERROR(read_input(api, context, 4, name, "weight", 2, &weight));
  DELA_RETURN_IF_ERROR(check_sizes(kernel, features, points, neighbors, centers, weight));
  op->features = features.data;
  op->type = feature_type(features.type);
  op->points = static_cast<const float*>(points.data);
  op->stride = 3;
  op->neighbors = static_cast<const int32_t*>(neighbors.data);
  op->centers = static_cast<const int32_t*>(centers.data);
  op->weight = static_cast<const float*>(weight.data);
  op->n_points = features.size[0];
  op->n_rows = centers.size[0];
  op->k = static_cast<int32_t>(neighbors.size[1]);
  op->channels = static_cast<int32_t>(features.size[1]);
  if (kernel.residual) DELA_RETURN_IF_ERROR(read_residual(kernel, context, op));
  return make_output(api, context, op->n_rows, op->channels, out);
}

}  // namespace dela::ort
