#include "onnxruntime/cuda_driver.h"

#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "cuda/launch.h"

namespace dela::ort {
namespace {

// The part of the driver's ABI that is used here: handles are pointers, 0 is success.
typedef int Result;
typedef void* Handle;
constexpr int kCapabilityMajor = 75, kCapabilityMinor = 76;
constexpr int kOldestMajor = 8;

__attribute__((format(printf, 2, 3))) bool fail(Reason* reason, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(reason->text, sizeof reason->text, format, arguments);
  va_end(arguments);
  return false;
}

struct Driver {
  Result (*get_current)(Handle* context);
  Result (*push_current)(Handle context);
  Result (*pop_current)(Handle* context);
  Result (*get_device)(int* device);
  Result (*get_attribute)(int* value, int attribute, int device);
  Result (*get_stream_context)(Handle stream, Handle* context);
  Result (*load_module)(Handle* module, const void* image);
  Result (*unload_module)(Handle module);
  Result (*get_function)(Handle* function, Handle module, const char* name);
  Result (*launch_kernel)(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                          Handle stream, void** arguments, void** extra);
  Result (*get_error_string)(Result status, const char** text);

  const char* text(Result status) const {
    const char* found = nullptr;
    return get_error_string(status, &found) == 0 && found != nullptr ? found : "unknown error";
  }
};

template <class Function>
bool look_up(void* library, const char* name, Function* function, Reason* reason) {
  void* found = dlsym(library, name);
  if (found == nullptr) {
    return fail(reason, "the NVIDIA driver has no %s; update it", name);
  }
  std::memcpy(function, &found, sizeof found);
  return true;
}

bool open_driver(Driver* driver, Reason* reason) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return fail(reason, "no NVIDIA driver found (libcuda.so.1); install it, or use the CPU");
  }
  return look_up(library, "cuCtxGetCurrent", &driver->get_current, reason) &&
         look_up(library, "cuCtxPushCurrent_v2", &driver->push_current, reason) &&
         look_up(library, "cuCtxPopCurrent_v2", &driver->pop_current, reason) &&
         look_up(library, "cuCtxGetDevice", &driver->get_device, reason) &&
         look_up(library, "cuDeviceGetAttribute", &driver->get_attribute, reason) &&
         look_up(library, "cuStreamGetCtx", &driver->get_stream_context, reason) &&
         look_up(library, "cuModuleLoadData", &driver->load_module, reason) &&
         look_up(library, "cuModuleUnload", &driver->unload_module, reason) &&
         look_up(library, "cuModuleGetFunction", &driver->get_function, reason) &&
         look_up(library, "cuLaunchKernel", &driver->launch_kernel, reason) &&
         look_up(library, "cuGetErrorString", &driver->get_error_string, reason);
}

// The folder of the images, `cuda/images` beside this library; false when it has no path.
bool images_folder(char* path, size_t size) {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&images_folder), &info) == 0) return false;
  if (info.dli_fname == nullptr) return false;
  const char* slash = std::strrchr(info.dli_fname, '/');
  const int length = slash == nullptr ? 0 : static_cast<int>(slash - info.dli_fname + 1);
  const int written = std::snprintf(path, size, "%.*scuda/images", length, info.dli_fname);
  return written > 0 && static_cast<size_t>(written) < size;
}

// A whole file with a zero behind it, to be freed; null when it cannot be read.
char* read_file(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr) return nullptr;
  char* data = nullptr;
  if (std::fseek(file, 0, SEEK_END) == 0) {
    const long size = std::ftell(file);
    std::rewind(file);
    data = size < 0 ? nullptr : static_cast<char*>(std::malloc(static_cast<size_t>(size) + 1));
    if (data != nullptr && std::fread(data, 1, static_cast<size_t>(size), file) ==
                               static_cast<size_t>(size)) {
      data[size] = 0;
    } else {
      std::free(data);
      data = nullptr;
    }
  }
  std::fclose(file);
  return data;
}

// The kernels in one context.
struct Loaded {
  Handle context;
  Handle functions[cuda::kKernels];
  Loaded* next;
};

bool try_image(const Driver& driver, const char* folder, const char* name, Handle* module,
               Reason* reason) {
  char path[4200];
  std::snprintf(path, sizeof path, "%s/%s", folder, name);
  char* image = read_file(path);
  if (image == nullptr) return false;
  const Result status = driver.load_module(module, image);
  std::free(image);
  if (status == 0) return true;
  return fail(reason, "%s does not load: %s", name, driver.text(status));
}

// The image for a device: a binary of its own major version and at most its minor version, else
// what the driver compiles. One that does not load leaves the choice to the next.
bool load_image(const Driver& driver, int major, int minor, Handle* module, Reason* reason) {
  char folder[4096];
  if (!images_folder(folder, sizeof folder)) {
    return fail(reason, "the path of this library is not known; load it from a file");
  }
  fail(reason, "%s has no kernels for it; reinstall dela", folder);
  char name[64];
  for (int at_most = minor; at_most >= 0; --at_most) {
    std::snprintf(name, sizeof name, "operators.sm_%d%d.cubin", major, at_most);
    if (try_image(driver, folder, name, module, reason)) return true;
  }
  return try_image(driver, folder, "operators.compute_80.ptx", module, reason);
}

// Loads into the current context, which is `context`.
Loaded* load_into(const Driver& driver, Handle context, Reason* reason) {
  int device = 0, major = 0, minor = 0;
  Result status = driver.get_device(&device);
  if (status == 0) status = driver.get_attribute(&major, kCapabilityMajor, device);
  if (status == 0) status = driver.get_attribute(&minor, kCapabilityMinor, device);
  if (status != 0) {
    fail(reason, "the GPU does not answer: %s", driver.text(status));
    return nullptr;
  }
  if (major < kOldestMajor) {
    fail(reason, "the GPU has compute capability %d.%d; the kernels need 8.0 or newer", major,
         minor);
    return nullptr;
  }
  Handle module = nullptr;
  if (!load_image(driver, major, minor, &module, reason)) return nullptr;
  Loaded* loaded = new (std::nothrow) Loaded{};
  if (loaded == nullptr) {
    driver.unload_module(module);
    fail(reason, "out of memory");
    return nullptr;
  }
  loaded->context = context;
  for (int i = 0; i < cuda::kKernels; ++i) {
    status = driver.get_function(&loaded->functions[i], module, cuda::kKernelNames[i]);
    if (status == 0) continue;
    driver.unload_module(module);
    delete loaded;
    fail(reason, "the images have no kernel %s; reinstall dela", cuda::kKernelNames[i]);
    return nullptr;
  }
  return loaded;
}

// The driver, and what has been loaded; contexts are the devices' primary ones, which stay.
std::mutex mutex;
Driver known_driver;
bool driver_is_open = false;
Loaded* first = nullptr;

const Driver* the_driver(Reason* reason) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!driver_is_open) driver_is_open = open_driver(&known_driver, reason);
  return driver_is_open ? &known_driver : nullptr;
}

const Loaded* loaded_in(const Driver& driver, Handle context, Reason* reason) {
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Loaded* loaded = first; loaded != nullptr; loaded = loaded->next) {
    if (loaded->context == context) return loaded;
  }
  Loaded* made = load_into(driver, context, reason);
  if (made == nullptr) return nullptr;
  made->next = first;
  return first = made;
}

// Makes the context of a stream the calling thread's, and what was before it after.
class Current {
 public:
  Current(const Driver& driver, Handle stream) : driver_(driver) {
    Handle own = nullptr;
    driver.get_current(&context_);
    // Without a stream of its own the work goes to the current context's.
    if (stream == nullptr || driver.get_stream_context(stream, &own) != 0) return;
    pushed_ = own != nullptr && own != context_ && driver.push_current(own) == 0;
    if (pushed_) context_ = own;
  }
  ~Current() {
    Handle popped = nullptr;
    if (pushed_) driver_.pop_current(&popped);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  Handle context() const { return context_; }

 private:
  const Driver& driver_;
  Handle context_ = nullptr;
  bool pushed_ = false;
};

}  // namespace

bool load_kernels(Reason* reason) {
  const Driver* driver = the_driver(reason);
  if (driver == nullptr) return false;
  const Current current(*driver, nullptr);
  return current.context() == nullptr || loaded_in(*driver, current.context(), reason) != nullptr;
}

bool launch(int number, int64_t threads, void** arguments, void* stream, Reason* reason) {
  const Driver* driver = the_driver(reason);
  if (driver == nullptr) return false;
  if (threads > cuda::kMostThreads) {
    return fail(reason,
                "%lld values to compute are more than the kernels can number; run fewer points at "
                "a time",
                static_cast<long long>(threads));
  }
  const Current current(*driver, stream);
  if (current.context() == nullptr) return fail(reason, "the thread has no CUDA context");
  const Loaded* loaded = loaded_in(*driver, current.context(), reason);
  if (loaded == nullptr) return false;
  const auto blocks = static_cast<unsigned>(cuda::divide_up(threads, cuda::kThreads));
  const Result status =
      driver->launch_kernel(loaded->functions[number], blocks, 1, 1,
                            static_cast<unsigned>(cuda::kThreads), 1, 1, 0, stream, arguments,
                            nullptr);
  if (status == 0) return true;
  return fail(reason, "%s with %u blocks failed: %s", cuda::kKernelNames[number], blocks,
              driver->text(status));
}

}  // namespace dela::ort
