// The operators as plugins: types and shapes of their tensors, and how a kernel is launched on
// them. The C++ counterpart of plugins/tensorrt/operators.py.
#pragma once

#include "tensorrt_native/kernels.h"
#include "tensorrt_native/trt_abi.h"

namespace dela::trt {

constexpr int kMostInputs = 7, kMostSizes = 7;

// Attributes of a node; operators without them leave them as they are.
struct Attributes {
  float epsilon = 1e-8f;
  int32_t directions = 0;
};

// All that a launch needs besides addresses.
struct Plan {
  Kernel kernel = -1;   // -1: no plan yet
  unsigned blocks = 0;  // 0: there is nothing to compute
  int32_t sizes[kMostSizes] = {};
  int size_count = 0;
};

enum class Kind : int32_t { kFeatures, kFloat, kInt32 };  // features: the type of the first input

struct Axis {
  int input, dimension;
};

struct Operator {
  const char* name;
  int input_count;
  Kind kinds[kMostInputs];
  int ranks[kMostInputs];
  Kind output;
  Axis rows, columns;  // where the output's shape comes from
  int field_count;     // epsilon and directions, or none
  int channel_group;   // columns of the first input are a multiple of it
  // Fills in the plan for inputs of the right ranks and types, sizes between 0 and 2^31 - 1.
  bool (*plan)(const Attributes& attributes, const TensorDesc* in, Plan& plan, Problem& problem);
};

extern const Operator kOperators[];
extern const int kOperatorCount;

// Whether an input (or, at position `input_count`, the output) may have this type when the first
// input has that one.
bool allows(const Operator& one, int position, DataType type, DataType features) noexcept;

// The type of the output for features of `features`.
DataType output_type(const Operator& one, DataType features) noexcept;

// Whether the kernels take so many columns of the first input; false with a problem else.
bool fits_group(const Operator& one, int64_t channels, Problem& problem) noexcept;

// The launch for inputs of these shapes and types; false with a problem where they do not fit.
bool make_plan(const Operator& one, const Attributes& attributes, const TensorDesc* in, Plan& plan,
               Problem& problem) noexcept;

}  // namespace dela::trt
