// Built as libcuda.so.1 for tensorrt_edges.cpp.
#include "fake_driver.h"

#include <cstring>
#include <mutex>

FakeDriver fake_driver;

namespace {

std::mutex lock;

}  // namespace

extern "C" {

int cuCtxGetCurrent(void** context) {
  *context = fake_driver.context;
  return 0;
}
int cuCtxPushCurrent_v2(void*) { return fake_driver.push_status; }
int cuCtxPopCurrent_v2(void** context) {
  *context = fake_driver.context;
  return 0;
}
int cuCtxGetDevice(int* device) {
  *device = 0;
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? fake_driver.capability / 10 : fake_driver.capability % 10;
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  fake_driver.image = static_cast<const unsigned char*>(image);
  const int status = fake_driver.refusals[fake_driver.loads++ % 8];
  if (status != 0) return status;
  *module = new int(++fake_driver.modules);
  return 0;
}
int cuModuleUnload(void* module) {
  delete static_cast<int*>(module);
  --fake_driver.modules;
  return 0;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
  *function = const_cast<char*>(name);
  return fake_driver.function_status;
}
int cuLaunchKernel(void* function, unsigned grid, unsigned, unsigned, unsigned block, unsigned,
                   unsigned, unsigned, void* stream, void** arguments, void**) {
  const std::lock_guard<std::mutex> guard(lock);
  ++fake_driver.launches;
  std::strncpy(fake_driver.kernel, static_cast<const char*>(function), 31);
  fake_driver.grid = grid;
  fake_driver.block = block;
  fake_driver.stream = stream;
  const bool spse = std::strncmp(fake_driver.kernel, "dela_spse", 9) == 0;
  const int inputs = spse ? 3 : 5, sizes = spse ? 7 : 4;
  for (int i = 0; i < inputs; ++i) std::memcpy(&fake_driver.inputs[i], *arguments++, 8);
  for (int i = 0; i < sizes; ++i) std::memcpy(&fake_driver.sizes[i], *arguments++, 4);
  std::memcpy(&fake_driver.output, *arguments, 8);
  return fake_driver.launch_status;
}
int cuGetErrorString(int status, const char** text) {
  *text = status == 1 ? "invalid argument" : "another error";
  return 0;
}
int cuThreadExchangeStreamCaptureMode(int* mode) {
  *mode = 2 - *mode;
  ++fake_driver.mode_changes;
  return 0;
}

}  // extern "C"
