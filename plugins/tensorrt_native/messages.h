// What went wrong, in words.
#pragma once

#include <cstdint>

namespace dela::trt {

// One problem in words; allocates nothing.
struct Problem {
  char text[256] = "";

  // Formats as printf does; answers false, for `return problem.say(...)`.
  __attribute__((format(printf, 2, 3))) bool say(const char* format, ...) noexcept;
};

// Takes one line; may be called from any thread.
using Listener = void (*)(const char* line);

// Null: lines go to stderr.
void set_listener(Listener listener) noexcept;

// Tells "dela NAME: TEXT"; answers 1, which TensorRT takes for a failure.
int32_t report(const char* name, const Problem& problem) noexcept;

}  // namespace dela::trt
