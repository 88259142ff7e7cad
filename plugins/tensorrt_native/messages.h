// What went wrong, told to TensorRT's log.
#pragma once

#include "tensorrt_native/trt_abi.h"

namespace dela::trt {

// One problem in words; allocates nothing.
struct Problem {
  char text[256] = "";

  // Formats as printf does; answers false, for `return problem.say(...)`.
  __attribute__((format(printf, 2, 3))) bool say(const char* format, ...) noexcept;
};

void set_logger_finder(LoggerFinder* finder) noexcept;

// Logs "dela NAME: TEXT" as an error, on stderr where TensorRT has no logger; answers 1, which
// TensorRT takes for a failure.
int32_t report(const char* name, const Problem& problem) noexcept;

}  // namespace dela::trt
