// What TensorRT looks up in a library of plugins, and what dela asks it.
#include "tensorrt_native/images.h"
#include "tensorrt_native/messages.h"
#include "tensorrt_native/plugin.h"

#define DELA_EXPORT extern "C" __attribute__((visibility("default")))

using dela::trt::Creator;

// TensorRT calls this first and refuses a library without it. Its loggers are not used: their tables
// of functions are others in TensorRT 10 than in 11.
DELA_EXPORT void setLoggerFinder(void*) {}

// Who hears of errors, one line each, from any thread; null: they go to stderr.
DELA_EXPORT void dela_trt_set_listener(dela::trt::Listener listener) {
  dela::trt::set_listener(listener);
}

// One creator for each operator.
DELA_EXPORT dela::trt::Versioned* const* getCreators(int32_t& count) {
  static Creator spse(dela::trt::kOperators[0]), spamp(dela::trt::kOperators[1]),
      residual(dela::trt::kOperators[2]);
  static dela::trt::Versioned* const creators[] = {&spse, &spamp, &residual};
  count = sizeof(creators) / sizeof(creators[0]);
  return creators;
}

// Which kernels the library holds: a SHA-256, hexadecimal.
DELA_EXPORT const char* dela_trt_kernels() { return dela::trt::kImagesDigest; }
