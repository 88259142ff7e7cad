#include "tensorrt_native/plugin.h"

#include <cmath>
#include <cstring>
#include <new>

namespace dela::trt {
namespace {

constexpr const char kEpsilon[] = "epsilon", kDirections[] = "directions";
constexpr uintptr_t kAlignment = 16;  // of everything kernels read or write in vectors

bool read_directions(const Field& field, int32_t& directions, Problem& problem) {
  int64_t value;
  if (field.type == FieldType::kInt32) {
    value = *static_cast<const int32_t*>(field.data);
  } else if (field.type == FieldType::kInt64) {
    value = *static_cast<const int64_t*>(field.data);
  } else {
    return problem.say("%s is no integer", kDirections);
  }
  if (value < 0 || value > INT32_MAX) {
    return problem.say("%s is %lld, must not be negative", kDirections,
                       static_cast<long long>(value));
  }
  directions = static_cast<int32_t>(value);
  return true;
}

bool read_epsilon(const Field& field, float& epsilon, Problem& problem) {
  if (field.type != FieldType::kFloat32) return problem.say("%s is no float32", kEpsilon);
  const float value = *static_cast<const float*>(field.data);
  if (!std::isfinite(value) || value < 0) {
    return problem.say("%s is %g, must be finite and not negative", kEpsilon, value);
  }
  epsilon = value;
  return true;
}

// Other fields than these are the parser's own.
bool read_attributes(const FieldCollection* fields, Attributes& attributes, Problem& problem) {
  for (int32_t i = 0; fields != nullptr && i < fields->count; ++i) {
    const Field& field = fields->fields[i];
    const bool epsilon = field.name != nullptr && std::strcmp(field.name, kEpsilon) == 0;
    const bool directions = field.name != nullptr && std::strcmp(field.name, kDirections) == 0;
    if (!epsilon && !directions) continue;
    if (field.data == nullptr || field.length != 1) {
      return problem.say("%s has %d values, expected 1", field.name, field.length);
    }
    if (epsilon && !read_epsilon(field, attributes.epsilon, problem)) return false;
    if (directions && !read_directions(field, attributes.directions, problem)) return false;
  }
  return true;
}

}  // namespace

Plugin::Plugin(const Operator& one, const Attributes& attributes) noexcept
    : operator_(one),
      attributes_(attributes),
      fields_{{kEpsilon, &attributes_.epsilon, FieldType::kFloat32, 1},
              {kDirections, &attributes_.directions, FieldType::kInt32, 1}},
      serialized_{one.field_count, fields_} {}

PluginCapability* Plugin::getCapabilityInterface(Capability kind) noexcept {
  if (kind == Capability::kBuild) return static_cast<PluginBuild*>(this);
  if (kind == Capability::kRuntime) return static_cast<PluginRuntime*>(this);
  return kind == Capability::kCore ? static_cast<PluginCore*>(this) : nullptr;
}

PluginV3* Plugin::clone() noexcept { return new (std::nothrow) Plugin(*this); }

bool Plugin::check_counts(int32_t inputs, int32_t outputs, Problem& problem) const noexcept {
  return (inputs == operator_.input_count && outputs == 1) ||
         problem.say("%d inputs and %d outputs, expected %d and 1", inputs, outputs,
                     operator_.input_count);
}

int32_t Plugin::configurePlugin(const DynamicTensorDesc* in, int32_t inputs,
                                const DynamicTensorDesc*, int32_t outputs) noexcept {
  Problem problem;
  if (!check_counts(inputs, outputs, problem)) return report(operator_.name, problem);
  const int64_t channels = in[0].desc.dims.size[1];
  if (channels >= 0 && !fits_group(operator_, channels, problem)) {
    return report(operator_.name, problem);
  }
  return 0;
}

int32_t Plugin::getOutputDataTypes(DataType* out, int32_t outputs, const DataType* in,
                                   int32_t inputs) const noexcept {
  Problem problem;
  if (!check_counts(inputs, outputs, problem)) return report(operator_.name, problem);
  out[0] = output_type(operator_, in[0]);
  return 0;
}

int32_t Plugin::getOutputShapes(const DimsExprs* in, int32_t inputs, const DimsExprs*, int32_t,
                                DimsExprs* out, int32_t outputs, ExprBuilder&) noexcept {
  Problem problem;
  if (!check_counts(inputs, outputs, problem)) return report(operator_.name, problem);
  for (int i = 0; i < inputs; ++i) {
    if (in[i].rank == operator_.ranks[i]) continue;
    problem.say("input %d has %d dimensions, expected %d", i, in[i].rank, operator_.ranks[i]);
    return report(operator_.name, problem);
  }
  const Axis rows = operator_.rows, columns = operator_.columns;
  out[0].rank = 2;
  out[0].size[0] = in[rows.input].size[rows.dimension];
  out[0].size[1] = in[columns.input].size[columns.dimension];
  return 0;
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicTensorDesc* tensors,
                                       int32_t inputs, int32_t outputs) noexcept {
  if (inputs != operator_.input_count || outputs != 1 || position < 0 || position > inputs) {
    return false;
  }
  const TensorDesc& found = tensors[position].desc;
  return found.format == TensorFormat::kLinear &&
         allows(operator_, position, found.type, tensors[0].desc.type);
}

int32_t Plugin::onShapeChange(const TensorDesc* in, int32_t inputs, const TensorDesc*,
                              int32_t outputs) noexcept {
  Problem problem;
  plan_ = Plan{};
  if (!check_counts(inputs, outputs, problem) ||
      !make_plan(operator_, attributes_, in, plan_, problem)) {
    return report(operator_.name, problem);
  }
  if (kernels_ == nullptr) kernels_ = Kernels::of_current_context(problem);
  return 0;
}

bool Plugin::launch(const void* const* inputs, void* output, void* stream,
                    Problem& problem) const noexcept {
  if (plan_.kernel < 0) return problem.say("run before its shapes were set");
  if (plan_.blocks == 0) return true;
  if (kernels_ == nullptr) {
    return problem.say("no kernels were loaded: there was no GPU when shapes were set");
  }
  const void* addresses[kMostInputs + 1];
  void* arguments[kMostInputs + kMostSizes + 1];
  int count = 0;
  for (int i = 0; i <= operator_.input_count; ++i) {
    const bool out = i == operator_.input_count;
    addresses[i] = out ? output : inputs[i];
    const bool indices = !out && operator_.kinds[i] == Kind::kInt32;
    if (!indices && reinterpret_cast<uintptr_t>(addresses[i]) % kAlignment != 0) {
      return problem.say("%s %d starts at no multiple of 16 bytes", out ? "output" : "input",
                         out ? 0 : i);
    }
    if (out) {
      for (int j = 0; j < plan_.size_count; ++j) {
        arguments[count++] = const_cast<int32_t*>(&plan_.sizes[j]);
      }
    }
    arguments[count++] = &addresses[i];
  }
  return kernels_->launch(plan_.kernel, plan_.blocks, arguments, stream, problem);
}

int32_t Plugin::enqueue(const TensorDesc*, const TensorDesc*, const void* const* inputs,
                        void* const* outputs, void*, void* stream) noexcept {
  Problem problem;
  return launch(inputs, outputs[0], stream, problem) ? 0 : report(operator_.name, problem);
}

PluginV3* Plugin::attachToContext(void*) noexcept {
  Problem problem;
  std::shared_ptr<const Kernels> kernels = Kernels::of_current_context(problem);
  if (kernels == nullptr) {
    report(operator_.name, problem);
    return nullptr;
  }
  Plugin* attached = new (std::nothrow) Plugin(*this);
  if (attached != nullptr) attached->kernels_ = std::move(kernels);
  return attached;
}

Creator::Creator(const Operator& one) noexcept
    : operator_(one),
      fields_{{kEpsilon, nullptr, FieldType::kFloat32, 1},
              {kDirections, nullptr, FieldType::kInt32, 1}},
      names_{one.field_count, fields_} {}

PluginV3* Creator::createPlugin(const char*, const FieldCollection* fields, Phase) noexcept {
  Problem problem;
  Attributes attributes;
  if (operator_.field_count > 0 && !read_attributes(fields, attributes, problem)) {
    report(operator_.name, problem);
    return nullptr;
  }
  return new (std::nothrow) Plugin(operator_, attributes);
}

}  // namespace dela::trt
