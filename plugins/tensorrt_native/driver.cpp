#include "tensorrt_native/driver.h"

#include <dlfcn.h>

namespace dela::trt {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

struct Lookup {
  Driver entries{};
  bool whole = false;
  Problem problem;

  template <class Function>
  bool find(void* library, const char* name, Function& entry) noexcept {
    entry = reinterpret_cast<Function>(dlsym(library, name));
    return entry != nullptr ||
           problem.say("the NVIDIA driver lacks %s; install 520 or newer", name);
  }

  Lookup() noexcept {
    void* library = dlopen(kLibrary, RTLD_LAZY | RTLD_LOCAL);
    if (library == nullptr) {
      problem.say("no NVIDIA driver: %s is not found", kLibrary);
      return;
    }
#define DELA_FIND(name) find(library, #name, entries.name)
    whole = DELA_FIND(cuCtxGetCurrent) && DELA_FIND(cuCtxPushCurrent_v2) &&
            DELA_FIND(cuCtxPopCurrent_v2) && DELA_FIND(cuCtxGetDevice) &&
            DELA_FIND(cuDeviceGetAttribute) && DELA_FIND(cuModuleLoadData) &&
            DELA_FIND(cuModuleUnload) && DELA_FIND(cuModuleGetFunction) &&
            DELA_FIND(cuLaunchKernel) && DELA_FIND(cuGetErrorString) &&
            DELA_FIND(cuThreadExchangeStreamCaptureMode);
#undef DELA_FIND
  }
};

}  // namespace

const char* Driver::error(int status) const noexcept {
  const char* text = nullptr;
  return cuGetErrorString(status, &text) == 0 && text != nullptr ? text : "unknown CUDA error";
}

const Driver* driver(Problem& problem) noexcept {
  static const Lookup lookup;
  if (lookup.whole) return &lookup.entries;
  problem = lookup.problem;
  return nullptr;
}

}  // namespace dela::trt
