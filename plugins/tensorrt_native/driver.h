// The CUDA driver, looked up when it is first needed: building engines needs none.
#pragma once

#include <cstdint>

#include "tensorrt_native/messages.h"

namespace dela::trt {

// Entries of the driver API (CUDA 11.8 and newer); 0 is success.
struct Driver {
  int (*cuCtxGetCurrent)(void** context);
  int (*cuCtxPushCurrent_v2)(void* context);
  int (*cuCtxPopCurrent_v2)(void** context);
  int (*cuCtxGetDevice)(int* device);
  int (*cuDeviceGetAttribute)(int* value, int attribute, int device);
  int (*cuModuleLoadData)(void** module, const void* image);
  int (*cuModuleUnload)(void* module);
  int (*cuModuleGetFunction)(void** function, void* module, const char* name);
  int (*cuLaunchKernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        void* stream, void** arguments, void** extra);
  int (*cuGetErrorString)(int status, const char** text);
  int (*cuThreadExchangeStreamCaptureMode)(int* mode);

  const char* error(int status) const noexcept;
};

// Null where there is no driver, or one that is too old; `problem` then says which.
const Driver* driver(Problem& problem) noexcept;

}  // namespace dela::trt
