#include "capi/failure.h"

#include <cstdarg>
#include <cstdio>

namespace dela::capi {

void fail(dela_status status, const char* format, ...) {
  char words[1000];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(words, sizeof words, format, arguments);
  va_end(arguments);
  throw Failure(status, words);
}

std::string with_commas(long long number) {
  std::string digits = std::to_string(number);
  const size_t first = number < 0 ? 1 : 0;
  for (size_t at = digits.size(); at > first + 3;) digits.insert(at -= 3, ",");
  return digits;
}

}  // namespace dela::capi
