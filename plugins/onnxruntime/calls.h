// What every provider's kernels share: a node's attributes, and a call's inputs read and checked.
#pragma once

#include "cpu/operators.h"
#include "onnxruntime/ort_abi.h"

namespace dela::ort {

#define DELA_RETURN_IF_ERROR(expression)                       \
  do {                                                         \
    if (OrtStatus* status_ = (expression)) return status_;     \
  } while (false)

// A status with a message made as by printf.
__attribute__((format(printf, 2, 3))) OrtStatus* refuse(const Api& api, const char* format, ...);

// What ONNX Runtime passes back to every callback: the operator with its own additions.
struct Operator : OrtCustomOp {
  const char* name;
  const char* provider;  // null: the CPU's
  int input_types[7];
  size_t inputs;
  int output_type;
  bool residual;  // of SPAMP: inputs 5 and 6 are base and scale
  const OrtApi* table;

  static const Operator& of(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }
};

// One node of a session.
struct SpseKernel {
  Api api;
  float epsilon;
  int64_t directions;
};
struct SpampKernel {
  Api api;
  const char* name;
  bool residual;
};

// The callbacks CreateKernelV2 of both operators.
OrtStatus* spse_create(const OrtCustomOp* op, const OrtApi* table, const OrtKernelInfo* info,
                       void** kernel) noexcept;
OrtStatus* spamp_create(const OrtCustomOp* op, const OrtApi* table, const OrtKernelInfo* info,
                        void** kernel) noexcept;

// Fills in a call from its inputs, wherever their values lie, and makes its output `out`. Values
// are not looked at. Sizes that do not fit are refused in words.
OrtStatus* read_call(const SpseKernel& kernel, OrtKernelContext* context, Spse* op, void** out);
OrtStatus* read_call(const SpampKernel& kernel, OrtKernelContext* context, Spamp* op, void** out);

// The callbacks KernelComputeV2 on the CPU.
OrtStatus* spse_compute(void* kernel, OrtKernelContext* context) noexcept;
OrtStatus* spamp_compute(void* kernel, OrtKernelContext* context) noexcept;

// On CUDA; kernels are made only where they can be launched.
OrtStatus* spse_create_cuda(const OrtCustomOp* op, const OrtApi* table, const OrtKernelInfo* info,
                            void** kernel) noexcept;
OrtStatus* spamp_create_cuda(const OrtCustomOp* op, const OrtApi* table, const OrtKernelInfo* info,
                             void** kernel) noexcept;
OrtStatus* spse_compute_cuda(void* kernel, OrtKernelContext* context) noexcept;
OrtStatus* spamp_compute_cuda(void* kernel, OrtKernelContext* context) noexcept;

}  // namespace dela::ort
