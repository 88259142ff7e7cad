#include "tensorrt_native/messages.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace dela::trt {
namespace {

std::atomic<LoggerFinder*> logger_finder{nullptr};

}  // namespace

bool Problem::say(const char* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return false;
}

void set_logger_finder(LoggerFinder* finder) noexcept { logger_finder = finder; }

int32_t report(const char* name, const Problem& problem) noexcept {
  char line[sizeof(problem.text) + 64];
  std::snprintf(line, sizeof(line), "dela %s: %s", name, problem.text);
  LoggerFinder* finder = logger_finder;
  Logger* logger = finder != nullptr ? finder->findLogger() : nullptr;
  if (logger != nullptr) {
    logger->log(Severity::kError, line);
  } else {
    std::fprintf(stderr, "%s\n", line);
  }
  return 1;
}

}  // namespace dela::trt
