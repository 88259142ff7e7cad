// Failures inside the C library. They are thrown where they are found; api.cpp turns each into a
// status and its words, and lets none out of the library.
#pragma once

#include <stdexcept>
#include <string>

#include "capi/include/dela.h"

namespace dela::capi {

class Failure : public std::runtime_error {
 public:
  Failure(dela_status status, const std::string& words)
      : std::runtime_error(words), status(status) {}
  const dela_status status;
};

// Throws a Failure with words put together as printf does, cut at 1,000 letters.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(dela_status status,
                                                             const char* format, ...);

// A number as people write it, such as 12,345.
std::string with_commas(long long number);

}  // namespace dela::capi
