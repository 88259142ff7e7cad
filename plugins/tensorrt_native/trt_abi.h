// The part of TensorRT's C++ ABI that plugins of version 3 use, declared here because its wheels
// ship no headers, so that the library is built without TensorRT and serves every version of it
// from 10.3 on and TensorRT for RTX alike.
//
// TensorRT calls these classes through their tables of virtual functions: what counts is the order
// of the functions and the layout of the structs, not the names. No function of TensorRT's own
// objects is called: those tables differ between its versions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dela::trt {

enum class DataType : int32_t { kFloat = 0, kHalf = 1, kInt32 = 3, kBFloat16 = 7 };
enum class TensorFormat : int32_t { kLinear = 0 };
enum class FieldType : int32_t { kFloat32 = 1, kInt32 = 5, kInt64 = 10 };
enum class Phase : int32_t { kBuild = 0, kRuntime = 1 };
enum class Capability : int32_t { kCore = 0, kBuild = 1, kRuntime = 2 };

constexpr int kMostDims = 8;

struct Dims {
  int32_t rank;
  int64_t size[kMostDims];
};

struct TensorDesc {
  Dims dims;
  DataType type;
  TensorFormat format;
  float scale;  // of int8 tensors only
};

// Sizes that are not known yet are -1 in `desc`.
struct DynamicTensorDesc {
  TensorDesc desc;
  Dims min, max, opt;
};

class DimensionExpr;  // handed from inputs to outputs, never looked into
class ExprBuilder;

struct DimsExprs {
  int32_t rank;
  const DimensionExpr* size[kMostDims];
};

struct Field {
  const char* name;
  const void* data;
  FieldType type;
  int32_t length;  // number of values
};

struct FieldCollection {
  int32_t count;
  const Field* fields;
};

struct InterfaceInfo {
  const char* kind;
  int32_t major, minor;
};

class Versioned {
 public:
  virtual int32_t getAPILanguage() const noexcept { return 0; }  // C++
  virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
  virtual ~Versioned() noexcept = default;
};

class PluginCapability : public Versioned {};

class PluginV3 : public Versioned {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN", 1, 0}; }
  virtual PluginCapability* getCapabilityInterface(Capability kind) noexcept = 0;
  virtual PluginV3* clone() noexcept = 0;
};

class PluginCore : public PluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
  virtual const char* getPluginName() const noexcept = 0;
  virtual const char* getPluginVersion() const noexcept = 0;
  virtual const char* getPluginNamespace() const noexcept = 0;
};

// Functions that return an int answer 0 when all is well.
class PluginBuild : public PluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_BUILD", 1, 0}; }
  virtual int32_t configurePlugin(const DynamicTensorDesc* in, int32_t inputs,
                                  const DynamicTensorDesc* out, int32_t outputs) noexcept = 0;
  virtual int32_t getOutputDataTypes(DataType* out, int32_t outputs, const DataType* in,
                                     int32_t inputs) const noexcept = 0;
  virtual int32_t getOutputShapes(const DimsExprs* in, int32_t inputs, const DimsExprs* shapes,
                                  int32_t shape_inputs, DimsExprs* out, int32_t outputs,
                                  ExprBuilder& builder) noexcept = 0;
  virtual bool supportsFormatCombination(int32_t position, const DynamicTensorDesc* tensors,
                                         int32_t inputs, int32_t outputs) noexcept = 0;
  virtual int32_t getNbOutputs() const noexcept = 0;
  virtual size_t getWorkspaceSize(const DynamicTensorDesc*, int32_t, const DynamicTensorDesc*,
                                  int32_t) const noexcept {
    return 0;
  }
  virtual int32_t getValidTactics(int32_t*, int32_t) noexcept { return 0; }
  virtual int32_t getNbTactics() noexcept { return 0; }
  virtual const char* getTimingCacheID() noexcept { return nullptr; }
  virtual int32_t getFormatCombinationLimit() noexcept { return 100; }
  virtual const char* getMetadataString() noexcept { return nullptr; }
};

class PluginRuntime : public PluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override {
    return {"PLUGIN_V3ONE_RUNTIME", 1, 0};
  }
  virtual int32_t setTactic(int32_t) noexcept { return 0; }
  virtual int32_t onShapeChange(const TensorDesc* in, int32_t inputs, const TensorDesc* out,
                                int32_t outputs) noexcept = 0;
  virtual int32_t enqueue(const TensorDesc* in, const TensorDesc* out, const void* const* inputs,
                          void* const* outputs, void* workspace, void* stream) noexcept = 0;
  virtual PluginV3* attachToContext(void* resources) noexcept = 0;
  virtual const FieldCollection* getFieldsToSerialize() noexcept = 0;
};

class PluginCreator : public Versioned {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override {
    return {"PLUGIN CREATOR_V3ONE", 1, 0};
  }
  virtual PluginV3* createPlugin(const char* name, const FieldCollection* fields,
                                 Phase phase) noexcept = 0;
  virtual const FieldCollection* getFieldNames() noexcept = 0;
  virtual const char* getPluginName() const noexcept = 0;
  virtual const char* getPluginVersion() const noexcept = 0;
  virtual const char* getPluginNamespace() const noexcept = 0;
};

}  // namespace dela::trt
