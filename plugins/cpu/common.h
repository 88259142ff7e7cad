// What every native translation unit shares: status codes, the exported-symbol mark
// and the thread count. Plain C++17, no STL containers: code in isa/ is compiled once
// per instruction set, and an STL template instantiated there with AVX-512 could be the
// copy the linker keeps for every caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#define DELA_EXPORT extern "C" __attribute__((visibility("default")))

namespace dela {

// Return codes of the C ABI. 0 is success.
enum Status : int32_t {
  kOk = 0,
  kOutOfMemory = 1,
  kBadArgument = 2,
};

// Threads for the OpenMP loops: the value given by the caller, or every core when it is < 1.
int resolve_threads(int32_t requested);

}  // namespace dela
