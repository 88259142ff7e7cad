// What TensorRT looks up in a library of plugins, and what dela asks it.
#include "tensorrt_native/images.h"
#include "tensorrt_native/messages.h"
#include "tensorrt_native/plugin.h"

#define DELA_EXPORT extern "C" __attribute__((visibility("default")))

using dela::trt::Creator;

// Where errors go: TensorRT hands over its finder of loggers before it asks for the creators.
DELA_EXPORT void setLoggerFinder(dela::trt::LoggerFinder* finder) {
  dela::trt::set_logger_finder(finder);
}

// One creator for each operator.
DELA_EXPORT dela::trt::Versioned* const* getCreators(int32_t& count) {
  static Creator spse(dela::trt::kOperators[0]), spamp(dela::trt::kOperators[1]);
  static dela::trt::Versioned* const creators[] = {&spse, &spamp};
  count = sizeof(creators) / sizeof(creators[0]);
  return creators;
}

// Which kernels the library holds: a SHA-256, hexadecimal.
DELA_EXPORT const char* dela_trt_kernels() { return dela::trt::kImagesDigest; }
