// The operators on ONNX Runtime's CUDA provider: inputs lie on the device, and a call queues one
// kernel on the provider's stream.
//
// Indices are not looked at, for that would wait for the device: as on torch's CUDA tensors a
// neighbor outside the points counts as the row's own center, a center outside them as point 0.
#include <cstring>

#include "cuda/launch.h"
#include "onnxruntime/calls.h"
#include "onnxruntime/cuda_driver.h"

namespace dela::ort {
namespace {

// The kernels load 16 bytes at once from every array that does not hold indices.
constexpr uintptr_t kAlignment = 16;

struct Array {
  const char* name;
  const void* address;
};

// What the kernels cannot do with arrays that ONNX Runtime hands over.
template <size_t count>
OrtStatus* check(const Api& api, const char* name, int64_t points, int64_t rows,
                 const Array (&arrays)[count]) {
  if (points == 0) {
    return refuse(api, "%s: %lld rows of neighbors, but there are no points", name,
                  static_cast<long long>(rows));
  }
  if (points > INT32_MAX || rows > INT32_MAX) {
    return refuse(api, "%s: %lld rows around %lld points; the kernels take less than 2^31 of each",
                  name, static_cast<long long>(rows), static_cast<long long>(points));
  }
  for (const Array& array : arrays) {
    if (reinterpret_cast<uintptr_t>(array.address) % kAlignment != 0) {
      return refuse(api, "%s: %s starts at %p; the kernels need a multiple of %d", name, array.name,
                    array.address, static_cast<int>(kAlignment));
    }
  }
  return nullptr;
}

OrtStatus* queue(const Api& api, OrtKernelContext* context, const char* name, int kernel,
                 int64_t threads, void** arguments) {
  void* stream = nullptr;
  DELA_RETURN_IF_ERROR(api.compute_stream(context, &stream));
  Reason reason;
  if (launch(kernel, threads, arguments, stream, &reason)) return nullptr;
  return refuse(api, "%s: %s", name, reason.text);
}

// A node is given to the provider only once its kernels are known to load.
OrtStatus* require_kernels(const OrtApi* table, const char* name) {
  Reason reason;
  if (load_kernels(&reason)) return nullptr;
  return refuse(Api(table), "%s: %s", name, reason.text);
}

}  // namespace

OrtStatus* spse_create_cuda(const OrtCustomOp* op, const OrtApi* table, const OrtKernelInfo* info,
                            void** kernel) noexcept {
  DELA_RETURN_IF_ERROR(require_kernels(table, "SPSE"));
  return spse_create(op, table, info, kernel);
}

OrtStatus* spamp_create_cuda(const OrtCustomOp* op, const OrtApi* table, const OrtKernelInfo* info,
                             void** kernel) noexcept {
  DELA_RETURN_IF_ERROR(require_kernels(table, Operator::of(op).name));
  return spamp_create(op, table, info, kernel);
}

OrtStatus* spse_compute_cuda(void* self, OrtKernelContext* context) noexcept {
  const SpseKernel& kernel = *static_cast<const SpseKernel*>(self);
  Spse op{};
  void* out = nullptr;
  DELA_RETURN_IF_ERROR(read_call(kernel, context, &op, &out));
  if (op.n_rows == 0) return nullptr;
  const Array arrays[] = {{"points", op.points}, {"weight", op.weight}, {"the output", out}};
  DELA_RETURN_IF_ERROR(check(kernel.api, "SPSE", op.n_points, op.n_rows, arrays));
  int32_t n = static_cast<int32_t>(op.n_points), epsilon_bits = 0;
  int32_t rows = cuda::spse_rows(n, op.channels);
  std::memcpy(&epsilon_bits, &op.epsilon, sizeof epsilon_bits);
  void* arguments[] = {&op.points,     &op.neighbors,  &op.weight, &n,            &op.k,
                       &op.channels,   &op.attributes, &op.directions, &rows, &epsilon_bits, &out};
  return queue(kernel.api, context, "SPSE", cuda::spse_kernel(op.attributes, op.directions),
               cuda::spse_threads(n, op.channels, rows), arguments);
}

OrtStatus* spamp_compute_cuda(void* self, OrtKernelContext* context) noexcept {
  const SpampKernel& kernel = *static_cast<const SpampKernel*>(self);
  Spamp op{};
  void* out = nullptr;
  DELA_RETURN_IF_ERROR(read_call(kernel, context, &op, &out));
  if (op.n_rows == 0) return nullptr;
  const Array arrays[] = {{"features", op.features}, {"points", op.points}, {"weight", op.weight},
                          {"base", op.base},         {"scale", op.scale},   {"the output", out}};
  DELA_RETURN_IF_ERROR(check(kernel.api, kernel.name, op.n_points, op.n_rows, arrays));
  int32_t n = static_cast<int32_t>(op.n_points), m = static_cast<int32_t>(op.n_rows);
  const cuda::SpampKernel chosen =
      cuda::spamp_kernel(static_cast<int>(op.type), op.channels, kernel.residual);
  const int64_t threads = op.n_rows * (op.channels / chosen.width);
  if (kernel.residual) {
    void* arguments[] = {&op.features, &op.points, &op.neighbors, &op.centers, &op.weight,
                         &op.base,     &op.scale,  &n,            &m,          &op.k,
                         &op.channels, &out};
    return queue(kernel.api, context, kernel.name, chosen.number, threads, arguments);
  }
  void* arguments[] = {&op.features, &op.points, &op.neighbors, &op.centers,  &op.weight,
                       &n,           &m,         &op.k,         &op.channels, &out};
  return queue(kernel.api, context, kernel.name, chosen.number, threads, arguments);
}

}  // namespace dela::ort
