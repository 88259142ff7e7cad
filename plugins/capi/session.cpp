#include "capi/session.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <mutex>

#include "capi/failure.h"
#include "capi/threads.h"
#include "cpu/common.h"

struct OrtAllocator;
struct OrtEnv;
struct OrtMemoryInfo;
struct OrtModelMetadata;
struct OrtSession;
struct OrtTypeInfo;

// Of plugins/onnxruntime/register.cpp: our operators, for sessions of any ONNX Runtime.
extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace dela::capi {
namespace {

// Entries of `OrtApi` beyond those in ort_abi.h, by their position in the table.
enum Slot {
  kGetErrorMessage = 2,
  kCreateEnv = 3,
  kCreateSession = 7,
  kRun = 9,
  kCreateSessionOptions = 10,
  kSetSessionLogSeverityLevel = 22,
  kSetIntraOpNumThreads = 24,
  kSessionGetInputCount = 30,
  kSessionGetOutputCount = 31,
  kSessionGetInputTypeInfo = 33,
  kSessionGetOutputTypeInfo = 34,
  kSessionGetInputName = 36,
  kSessionGetOutputName = 37,
  kCreateTensorWithDataAsOrtValue = 49,
  kCastTypeInfoToTensorInfo = 55,
  kCreateCpuMemoryInfo = 69,
  kAllocatorFree = 76,
  kGetAllocatorWithDefaultOptions = 78,
  kReleaseStatus = 93,
  kReleaseMemoryInfo = 94,
  kReleaseSession = 95,
  kReleaseValue = 96,
  kReleaseTypeInfo = 98,
  kReleaseTensorTypeAndShapeInfo = 99,
  kReleaseSessionOptions = 100,
  kSessionGetModelMetadata = 111,
  kModelMetadataLookupCustomMetadataMap = 116,
  kReleaseModelMetadata = 118,
  kAddSessionConfigEntry = 130,
};

template <class... Arguments>
OrtStatus* call(const OrtApi* table, Slot slot, Arguments... arguments) {
  void* const entry = reinterpret_cast<void* const*>(table)[slot];
  return reinterpret_cast<OrtStatus* (*)(Arguments...)>(entry)(arguments...);
}

template <class Object>
void release(const OrtApi* table, Slot slot, Object* object) {
  void* const entry = reinterpret_cast<void* const*>(table)[slot];
  if (object != nullptr) reinterpret_cast<void (*)(Object*)>(entry)(object);
}

// An object of ONNX Runtime that is released with its holder.
template <class Object, Slot kRelease>
class Held {
 public:
  explicit Held(const OrtApi* table) : table_(table) {}
  ~Held() { release(table_, kRelease, object_); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  Object** out() { return &object_; }
  Object* get() const { return object_; }
  Object* leave() {
    Object* object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  const OrtApi* table_;
  Object* object_ = nullptr;
};

// The words of a failed call without ONNX Runtime's codes, its first line; frees the status.
std::string words_of(const OrtApi* table, OrtStatus* status) {
  void* const entry = reinterpret_cast<void* const*>(table)[kGetErrorMessage];
  std::string words = reinterpret_cast<const char* (*)(const OrtStatus*)>(entry)(status);
  release(table, kReleaseStatus, status);
  return words.substr(0, words.find('\n')).substr(0, 300);
}

void check(const OrtApi* table, OrtStatus* status, dela_status kind, const std::string& what) {
  if (status == nullptr) return;
  const std::string words = words_of(table, status);
  fail(kind, "%s: %s", what.c_str(), words.c_str());
}

// ONNX Runtime in this process: loaded once and never unloaded, because its threads and our operators
// live as long.
struct Runtime {
  const OrtApiBase* base = nullptr;
  const OrtApi* table = nullptr;
  OrtEnv* environment = nullptr;
};

// The library that the caller or the environment names; "" for none.
std::string named_library(const std::string& asked) {
  const char* named = std::getenv("DELA_ONNXRUNTIME");
  return !asked.empty() || named == nullptr ? asked : named;
}

void* open_library(const std::string& named) {
  if (!named.empty()) {
    void* library = dlopen(named.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) return library;
    fail(DELA_NO_RUNTIME, "ONNX Runtime does not load: %s; give the path of libonnxruntime.so",
         dlerror());
  }
  for (const char* name : {"libonnxruntime.so.1", "libonnxruntime.so", "libonnxruntime.dylib"}) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  }
  fail(DELA_NO_RUNTIME,
       "there is no ONNX Runtime on the library path; give the path of its libonnxruntime.so "
       "(dela_load_options.onnxruntime or $DELA_ONNXRUNTIME): in its release archives, and in its "
       "Python package under onnxruntime/capi");
}

Runtime start_runtime(const std::string& library) {
  const std::string named = named_library(library);
  void* handle = open_library(named);
  const auto get_base =
      reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) {
    dlclose(handle);
    fail(DELA_NO_RUNTIME, "%s is not ONNX Runtime's library: it has no OrtGetApiBase",
         named.empty() ? "what is on the library path" : named.c_str());
  }
  Runtime runtime;
  runtime.base = get_base();
  runtime.table = runtime.base->GetApi(ort::kApiVersion);
  if (runtime.table == nullptr) {
    fail(DELA_NO_RUNTIME, "dela needs ONNX Runtime 1.%u or newer, this is %s", ort::kApiVersion,
         runtime.base->GetVersionString());
  }
  constexpr int kFatal = 4;
  check(runtime.table,
        call<int, const char*, OrtEnv**>(runtime.table, kCreateEnv, kFatal, "dela",
                                         &runtime.environment),
        DELA_NO_RUNTIME, "ONNX Runtime does not start");
  return runtime;
}

const Runtime& runtime_of(const std::string& library) {
  static std::mutex mutex;
  static Runtime runtime;
  const std::lock_guard<std::mutex> lock(mutex);
  if (runtime.environment == nullptr) runtime = start_runtime(library);
  return runtime;
}

// Threads and waiting as dela/threads.py:tune_session sets them.
void tune(const OrtApi* table, OrtSessionOptions* options, int threads) {
  const auto set = [&](const char* key, const char* value) {
    check(table,
          call<OrtSessionOptions*, const char*, const char*>(table, kAddSessionConfigEntry, options,
                                                             key, value),
          DELA_NO_RUNTIME, "ONNX Runtime refuses an option");
  };
  check(table, call<OrtSessionOptions*, int>(table, kSetIntraOpNumThreads, options, threads),
        DELA_NO_RUNTIME, "ONNX Runtime refuses the number of threads");
  // A failed run is told by its status; a line on stderr would only repeat it.
  check(table, call<OrtSessionOptions*, int>(table, kSetSessionLogSeverityLevel, options, 4),
        DELA_NO_RUNTIME, "ONNX Runtime refuses an option");
  const std::string policy = waiting_policy();
  if (policy.empty()) set("session.intra_op.spin_duration_us", "50");
  if (policy == "passive") set("session.intra_op.allow_spinning", "0");
}

std::string taken_text(const OrtApi* table, OrtAllocator* allocator, char* text) {
  const std::string copy = text == nullptr ? "" : text;
  if (text != nullptr) {
    OrtStatus* status =
        call<OrtAllocator*, void*>(table, kAllocatorFree, allocator, static_cast<void*>(text));
    release(table, kReleaseStatus, status);
  }
  return copy;
}

OrtAllocator* default_allocator(const OrtApi* table) {
  OrtAllocator* allocator = nullptr;
  check(table, call<OrtAllocator**>(table, kGetAllocatorWithDefaultOptions, &allocator),
        DELA_NO_RUNTIME, "ONNX Runtime has no allocator");
  return allocator;
}

GraphTensor describe(const OrtApi* table, OrtTypeInfo* info, std::string name) {
  const ort::Api api(table);
  GraphTensor tensor{std::move(name), 0, {}};
  const OrtTensorTypeAndShapeInfo* shape = nullptr;
  const std::string what = "the type of " + tensor.name;
  check(table,
        call<const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**>(
            table, kCastTypeInfoToTensorInfo, info, &shape),
        DELA_BAD_MODEL, what);
  if (shape == nullptr) return tensor;  // no tensor; its type fits nothing
  size_t rank = 0;
  check(table, api.element_type(shape, &tensor.type), DELA_BAD_MODEL, what);
  check(table, api.rank(shape, &rank), DELA_BAD_MODEL, what);
  tensor.shape.resize(rank);
  if (rank > 0) check(table, api.sizes(shape, tensor.shape.data(), rank), DELA_BAD_MODEL, what);
  return tensor;
}

// Inputs or outputs of a session, by the entries that count, name and describe them.
std::vector<GraphTensor> tensors(const OrtApi* table, OrtSession* session, Slot counts, Slot names,
                                 Slot types) {
  OrtAllocator* allocator = default_allocator(table);
  size_t count = 0;
  check(table, call<const OrtSession*, size_t*>(table, counts, session, &count), DELA_BAD_MODEL,
        "the network's inputs");
  std::vector<GraphTensor> found;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    check(table,
          call<const OrtSession*, size_t, OrtAllocator*, char**>(table, names, session, i,
                                                                 allocator, &name),
          DELA_BAD_MODEL, "the network's inputs");
    std::string text = taken_text(table, allocator, name);
    Held<OrtTypeInfo, kReleaseTypeInfo> info(table);
    check(table,
          call<const OrtSession*, size_t, OrtTypeInfo**>(table, types, session, i, info.out()),
          DELA_BAD_MODEL, "the network's inputs");
    found.push_back(describe(table, info.get(), std::move(text)));
  }
  return found;
}

Properties read_properties(const OrtApi* table, OrtSession* session, const std::string& path) {
  OrtAllocator* allocator = default_allocator(table);
  Held<OrtModelMetadata, kReleaseModelMetadata> metadata(table);
  check(table,
        call<const OrtSession*, OrtModelMetadata**>(table, kSessionGetModelMetadata, session,
                                                    metadata.out()),
        DELA_BAD_MODEL, path);
  Properties properties;
  for (const char* key : {"format", "format_version", "dela_version", "config"}) {
    char* value = nullptr;
    check(table,
          call<const OrtModelMetadata*, OrtAllocator*, const char*, char**>(
              table, kModelMetadataLookupCustomMetadataMap, metadata.get(), allocator, key, &value),
          DELA_BAD_MODEL, path);
    if (value != nullptr) properties.emplace_back(key, taken_text(table, allocator, value));
  }
  return properties;
}

using Value = Held<OrtValue, kReleaseValue>;

std::vector<float> read_logits(const OrtApi* table, OrtValue* logits,
                               std::array<int64_t, 2> expected, const std::string& path) {
  const ort::Api api(table);
  Held<OrtTensorTypeAndShapeInfo, kReleaseTensorTypeAndShapeInfo> shape(table);
  check(table, api.tensor_shape(logits, shape.out()), DELA_FAILED, path);
  size_t rank = 0;
  std::array<int64_t, 2> sizes{0, 0};
  check(table, api.rank(shape.get(), &rank), DELA_FAILED, path);
  if (rank == 2) check(table, api.sizes(shape.get(), sizes.data(), 2), DELA_FAILED, path);
  if (sizes != expected) {
    fail(DELA_FAILED, "%s gave logits [%lld, %lld]; expected [%lld, %lld]", path.c_str(),
         static_cast<long long>(sizes[0]), static_cast<long long>(sizes[1]),
         static_cast<long long>(expected[0]), static_cast<long long>(expected[1]));
  }
  void* data = nullptr;
  check(table, api.tensor_data(logits, &data), DELA_FAILED, path);
  const auto* begin = static_cast<const float*>(data);
  return std::vector<float>(begin, begin + sizes[0] * sizes[1]);
}

[[noreturn]] void refuse_file(const OrtApi* table, OrtStatus* status, const std::string& path) {
  const std::string words = words_of(table, status);
  if (words.find("rotobuf") != std::string::npos) {
    fail(DELA_BAD_MODEL, "%s is not an ONNX file, or it is cut short", path.c_str());
  }
  if (words.find("find an implementation") != std::string::npos) {
    fail(DELA_BAD_MODEL,
         "%s does not run in ONNX Runtime here: %s; export with --dtype fp32 or fp16", path.c_str(),
         words.c_str());
  }
  fail(DELA_BAD_MODEL, "%s does not load in ONNX Runtime: %s", path.c_str(), words.c_str());
}

}  // namespace

Session::Session(const std::string& path, const std::string& library, int threads) : path_(path) {
  const Runtime& runtime = runtime_of(library);
  table_ = runtime.table;
  Held<OrtSessionOptions, kReleaseSessionOptions> options(table_);
  check(table_, call<OrtSessionOptions**>(table_, kCreateSessionOptions, options.out()),
        DELA_NO_RUNTIME, "ONNX Runtime does not start");
  tune(table_, options.get(), threads);
  check(table_, RegisterCustomOps(options.get(), runtime.base), DELA_NO_RUNTIME,
        "our operators are refused");
  OrtSession* session = nullptr;
  OrtStatus* status = call<const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**>(
      table_, kCreateSession, runtime.environment, path.c_str(), options.get(), &session);
  if (status != nullptr) refuse_file(table_, status, path);
  session_ = std::shared_ptr<OrtSession>(
      session, [table = table_](OrtSession* each) { release(table, kReleaseSession, each); });
  properties_ = read_properties(table_, session, path);
  inputs_ = tensors(table_, session, kSessionGetInputCount, kSessionGetInputName,
                    kSessionGetInputTypeInfo);
  outputs_ = tensors(table_, session, kSessionGetOutputCount, kSessionGetOutputName,
                     kSessionGetOutputTypeInfo);
}

std::vector<float> Session::run(const std::vector<Feed>& feeds, int64_t rows,
                                int64_t columns) const {
  Held<OrtMemoryInfo, kReleaseMemoryInfo> memory(table_);
  constexpr int kArena = 1, kDefault = 0;
  check(table_, call<int, int, OrtMemoryInfo**>(table_, kCreateCpuMemoryInfo, kArena, kDefault,
                                                memory.out()),
        DELA_FAILED, path_);
  std::vector<std::unique_ptr<Value>> held;
  std::vector<const char*> names;
  std::vector<const OrtValue*> values;
  for (const Feed& feed : feeds) {
    size_t count = 1;
    for (const int64_t size : feed.shape) count *= static_cast<size_t>(size);
    held.push_back(std::make_unique<Value>(table_));
    check(table_,
          call<const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int, OrtValue**>(
              table_, kCreateTensorWithDataAsOrtValue, memory.get(), const_cast<void*>(feed.data),
              count * sizeof(float), feed.shape.data(), feed.shape.size(), feed.type,
              held.back()->out()),
          DELA_FAILED, path_);
    names.push_back(feed.name.c_str());
    values.push_back(held.back()->get());
  }
  const char* output = "logits";
  Value logits(table_);
  check(table_,
        call<OrtSession*, const void*, const char* const*, const OrtValue* const*, size_t,
             const char* const*, size_t, OrtValue**>(
            table_, kRun, static_cast<OrtSession*>(session_.get()), nullptr, names.data(),
            values.data(), names.size(), &output, 1, logits.out()),
        DELA_FAILED, path_ + " failed");
  return read_logits(table_, logits.get(), {rows, columns}, path_);
}

}  // namespace dela::capi
