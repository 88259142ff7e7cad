// SPSE, SPAMP and SPAMPResidual as ONNX Runtime custom operators of the domain "dela", each for the
// CPU and for the CUDA provider: ONNX Runtime takes those of the provider that a node is given to.
#include <cstdio>
#include <mutex>
#include <new>

#include "onnxruntime/calls.h"

namespace dela::ort {
namespace {

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

OrtStatus* spse_infer(const OrtCustomOp* op, OrtShapeInferContext* context) noexcept {
  return infer_output(Api(Operator::of(op).table), context, 0, 2);
}

OrtStatus* spamp_infer(const OrtCustomOp* op, OrtShapeInferContext* context) noexcept {
  return infer_output(Api(Operator::of(op).table), context, 2, 0);
}

Operator describe(const char* name, const OrtApi* table, const char* provider) {
  Operator op{};
  op.version = kApiVersion;
  op.name = name;
  op.provider = provider;
  op.table = table;
  op.GetName = [](const OrtCustomOp* self) { return Operator::of(self).name; };
  op.GetExecutionProviderType = [](const OrtCustomOp* self) { return Operator::of(self).provider; };
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

Operator describe_spse(const OrtApi* table, const char* provider) {
  Operator op = describe("SPSE", table, provider);
  op.inputs = 3;
  op.input_types[0] = kFloat;
  op.input_types[1] = kInt32;
  op.input_types[2] = kFloat;
  op.output_type = kFloat;
  op.CreateKernelV2 = provider == nullptr ? spse_create : spse_create_cuda;
  op.KernelComputeV2 = provider == nullptr ? spse_compute : spse_compute_cuda;
  op.KernelDestroy = [](void* kernel) { delete static_cast<SpseKernel*>(kernel); };
  op.InferOutputShapeFn = spse_infer;
  return op;
}

Operator describe_spamp(const OrtApi* table, const char* provider, int type, bool residual) {
  Operator op = describe(residual ? "SPAMPResidual" : "SPAMP", table, provider);
  op.inputs = residual ? 7 : 5;
  op.residual = residual;
  const int types[7] = {type, kFloat, kInt32, kInt32, kFloat, type, kFloat};
  for (size_t i = 0; i < op.inputs; ++i) op.input_types[i] = types[i];
  op.output_type = type;
  op.CreateKernelV2 = provider == nullptr ? spamp_create : spamp_create_cuda;
  op.KernelComputeV2 = provider == nullptr ? spamp_compute : spamp_compute_cuda;
  op.KernelDestroy = [](void* kernel) { delete static_cast<SpampKernel*>(kernel); };
  op.InferOutputShapeFn = spamp_infer;
  return op;
}

constexpr const char* kProviders[] = {nullptr, "CUDAExecutionProvider"};
constexpr int kFeatureTypes[] = {kFloat, kFloat16, kBFloat16};

// The operators and their domain. Sessions keep pointers to all of it and nobody says when the
// last one ends, so one of them lives as long as the process and serves every session.
struct Domain {
  Operator operators[2 * (1 + 2 * 3)];
  OrtCustomOpDomain* handle;
};

OrtStatus* make_domain(const OrtApi* table, Domain** out) {
  const Api api(table);
  Domain* domain = new (std::nothrow) Domain{};
  if (domain == nullptr) return api.create_status(kFail, "dela: out of memory");
  Operator* next = domain->operators;
  for (const char* provider : kProviders) {
    *next++ = describe_spse(table, provider);
    for (const int type : kFeatureTypes) *next++ = describe_spamp(table, provider, type, false);
    for (const int type : kFeatureTypes) *next++ = describe_spamp(table, provider, type, true);
  }
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
