// The part of ONNX Runtime's C ABI that the custom operators use, declared here because its
// wheels ship no headers. `OrtApi` is a table of function pointers that only ever grows at its
// end, so an entry is named by its position; the newest one used came with API version 17.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtApi;
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null when the runtime is older than `version`
  const char* (*GetVersionString)();
};

// One custom operator as ONNX Runtime reads it; the order of the fields is the ABI.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                               void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  // Read by API version 18 and newer, null here: no output shares memory with an input.
  size_t (*GetMayInplace)(int** input, int** output);
  void (*ReleaseMayInplace)(int* input, int* output);
  size_t (*GetAliasMap)(int** input, int** output);
  void (*ReleaseAliasMap)(int* input, int* output);
};

namespace dela::ort {

constexpr uint32_t kApiVersion = 17;

enum ErrorCode { kFail = 1, kInvalidArgument = 2 };
enum ElementType { kFloat = 1, kInt32 = 6, kFloat16 = 10, kBFloat16 = 16 };
enum Characteristic { kRequired = 0 };
enum MemoryType { kDefaultMemory = 0 };

// `OrtApi` with names and types. Every returned status is null on success.
class Api {
  template <int Slot, class Signature>
  struct Entry;
  template <int Slot, class Result, class... Arguments>
  struct Entry<Slot, Result(Arguments...)> {
    static Result call(void* const* slots, Arguments... arguments) {
      return reinterpret_cast<Result (*)(Arguments...)>(slots[Slot])(arguments...);
    }
  };
  template <int Slot, class Signature, class... Arguments>
  auto at(Arguments... arguments) const {
    return Entry<Slot, Signature>::call(slots_, arguments...);
  }

 public:
  explicit Api(const OrtApi* table = nullptr)
      : slots_(reinterpret_cast<void* const*>(table)) {}

  // Works with any version of the table: it is the first entry ever.
  OrtStatus* create_status(ErrorCode code, const char* message) const {
    return at<0, OrtStatus*(int, const char*)>(code, message);
  }
  OrtStatus* create_domain(const char* name, OrtCustomOpDomain** out) const {
    return at<26, OrtStatus*(const char*, OrtCustomOpDomain**)>(name, out);
  }
  OrtStatus* add_op(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
    return at<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>(domain, op);
  }
  OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return at<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>(options, domain);
  }
  OrtStatus* tensor_data(OrtValue* value, void** out) const {
    return at<51, OrtStatus*(OrtValue*, void**)>(value, out);
  }
  OrtStatus* create_shape(OrtTensorTypeAndShapeInfo** out) const {
    return at<57, OrtStatus*(OrtTensorTypeAndShapeInfo**)>(out);
  }
  OrtStatus* set_element_type(OrtTensorTypeAndShapeInfo* shape, int type) const {
    return at<58, OrtStatus*(OrtTensorTypeAndShapeInfo*, int)>(shape, type);
  }
  OrtStatus* set_sizes(OrtTensorTypeAndShapeInfo* shape, const int64_t* sizes,
                       size_t rank) const {
    return at<59, OrtStatus*(OrtTensorTypeAndShapeInfo*, const int64_t*, size_t)>(shape, sizes,
                                                                                  rank);
  }
  OrtStatus* element_type(const OrtTensorTypeAndShapeInfo* shape, int* out) const {
    return at<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)>(shape, out);
  }
  OrtStatus* rank(const OrtTensorTypeAndShapeInfo* shape, size_t* out) const {
    return at<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>(shape, out);
  }
  OrtStatus* sizes(const OrtTensorTypeAndShapeInfo* shape, int64_t* out, size_t rank) const {
    return at<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>(shape, out,
                                                                                  rank);
  }
  // Names of the dynamic sizes, "" where a size is known; they live as long as `shape`.
  OrtStatus* size_names(const OrtTensorTypeAndShapeInfo* shape, const char** out,
                        size_t rank) const {
    return at<63, OrtStatus*(const OrtTensorTypeAndShapeInfo*, const char**, size_t)>(shape, out,
                                                                                      rank);
  }
  OrtStatus* tensor_shape(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) const {
    return at<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>(value, out);
  }
  OrtStatus* float_attribute(const OrtKernelInfo* info, const char* name, float* out) const {
    return at<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)>(info, name, out);
  }
  OrtStatus* int_attribute(const OrtKernelInfo* info, const char* name, int64_t* out) const {
    return at<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)>(info, name, out);
  }
  OrtStatus* input(const OrtKernelContext* context, size_t index, const OrtValue** out) const {
    return at<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>(context, index,
                                                                                 out);
  }
  OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* sizes, size_t rank,
                    OrtValue** out) const {
    return at<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>(
        context, index, sizes, rank, out);
  }
  // Of the CUDA provider: the stream that the kernel must queue its work on.
  OrtStatus* compute_stream(const OrtKernelContext* context, void** out) const {
    return at<193, OrtStatus*(const OrtKernelContext*, void**)>(context, out);
  }
  void release_shape(OrtTensorTypeAndShapeInfo* shape) const {
    at<99, void(OrtTensorTypeAndShapeInfo*)>(shape);
  }
  // The context keeps ownership of the shape.
  OrtStatus* inferred_input(const OrtShapeInferContext* context, size_t index,
                            OrtTensorTypeAndShapeInfo** out) const {
    return at<268, OrtStatus*(const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**)>(
        context, index, out);
  }
  OrtStatus* set_inferred_output(const OrtShapeInferContext* context, size_t index,
                                 const OrtTensorTypeAndShapeInfo* shape) const {
    return at<270,
              OrtStatus*(const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*)>(
        context, index, shape);
  }
  OrtStatus* set_size_names(OrtTensorTypeAndShapeInfo* shape, const char** names,
                            size_t rank) const {
    return at<271, OrtStatus*(OrtTensorTypeAndShapeInfo*, const char**, size_t)>(shape, names,
                                                                                 rank);
  }
  // Calls function(data, i) for i in [0, total) on the session's intra-op threads and waits.
  OrtStatus* parallel_for(const OrtKernelContext* context, void (*function)(void*, size_t),
                          size_t total, size_t batches, void* data) const {
    return at<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t,
                              void*)>(context, function, total, batches, data);
  }

 private:
  void* const* slots_;
};

}  // namespace dela::ort
