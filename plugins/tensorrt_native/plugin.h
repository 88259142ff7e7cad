// An operator as TensorRT's plugin, and what makes such plugins.
#pragma once

#include <memory>

#include "tensorrt_native/operators.h"
#include "tensorrt_native/trt_abi.h"

namespace dela::trt {

constexpr const char* kVersion = "1";
// Not that of the plugins launched from Python, so that both may be in one process.
constexpr const char* kNamespace = "dela_native";

class Plugin final : public PluginV3, public PluginCore, public PluginBuild, public PluginRuntime {
 public:
  Plugin(const Operator& one, const Attributes& attributes) noexcept;
  Plugin(const Plugin& other) noexcept : Plugin(other.operator_, other.attributes_) {}

  PluginCapability* getCapabilityInterface(Capability kind) noexcept override;
  PluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return operator_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t configurePlugin(const DynamicTensorDesc* in, int32_t inputs, const DynamicTensorDesc* out,
                          int32_t outputs) noexcept override;
  int32_t getOutputDataTypes(DataType* out, int32_t outputs, const DataType* in,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(const DimsExprs* in, int32_t inputs, const DimsExprs* shapes,
                          int32_t shape_inputs, DimsExprs* out, int32_t outputs,
                          ExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const DynamicTensorDesc* tensors, int32_t inputs,
                                 int32_t outputs) noexcept override;
  int32_t getNbOutputs() const noexcept override { return 1; }
  // Shapes and types, which TensorRT adds by itself, tell timings apart.
  const char* getTimingCacheID() noexcept override { return ""; }

  // Plans the launch. Kernels are loaded here where no context was attached, as while TensorRT
  // times layers; without a driver, as when TensorRT for RTX builds, the plan waits for them.
  int32_t onShapeChange(const TensorDesc* in, int32_t inputs, const TensorDesc* out,
                        int32_t outputs) noexcept override;
  // Queues one kernel, as planned.
  int32_t enqueue(const TensorDesc* in, const TensorDesc* out, const void* const* inputs,
                  void* const* outputs, void* workspace, void* stream) noexcept override;
  PluginV3* attachToContext(void* resources) noexcept override;
  const FieldCollection* getFieldsToSerialize() noexcept override { return &serialized_; }

 private:
  bool check_counts(int32_t inputs, int32_t outputs, Problem& problem) const noexcept;
  bool launch(const void* const* inputs, void* output, void* stream,
              Problem& problem) const noexcept;

  const Operator& operator_;
  Attributes attributes_;
  Field fields_[2];
  FieldCollection serialized_;
  std::shared_ptr<const Kernels> kernels_;
  Plan plan_;
};

class Creator final : public PluginCreator {
 public:
  explicit Creator(const Operator& one) noexcept;

  PluginV3* createPlugin(const char* name, const FieldCollection* fields,
                         Phase phase) noexcept override;
  const FieldCollection* getFieldNames() noexcept override { return &names_; }
  const char* getPluginName() const noexcept override { return operator_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  const Operator& operator_;
  Field fields_[2];
  FieldCollection names_;
};

}  // namespace dela::trt
