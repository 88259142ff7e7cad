#include "tensorrt_native/messages.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace dela::trt {
namespace {

std::atomic<Listener> current{nullptr};

}  // namespace

bool Problem::say(const char* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return false;
}

void set_listener(Listener listener) noexcept { current = listener; }

int32_t report(const char* name, const Problem& problem) noexcept {
  char line[sizeof(problem.text) + 64];
  std::snprintf(line, sizeof(line), "dela %s: %s", name, problem.text);
  if (const Listener listener = current; listener != nullptr) {
    listener(line);
  } else {
    std::fprintf(stderr, "%s\n", line);
  }
  return 1;
}

}  // namespace dela::trt
