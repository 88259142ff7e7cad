// Which instruction set runs: the best one the processor has, or the one asked for.
#include <atomic>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/common.h"
#include "cpu/dispatch.h"

namespace dela {
namespace {

#if defined(DELA_HAS_v2)
bool processor_has(Isa isa) {
  __builtin_cpu_init();
  switch (isa) {
    case Isa::v4:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && processor_has(Isa::v3);
    case Isa::v3:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2");
    case Isa::v2:
      return __builtin_cpu_supports("sse4.2");
    default:
      return false;
  }
}
Isa best_isa() {
  if (processor_has(Isa::v4)) return Isa::v4;
  if (processor_has(Isa::v3)) return Isa::v3;
  return Isa::v2;
}
#else
#if defined(DELA_HAS_neon)
constexpr Isa kOnly = Isa::neon;
#else
constexpr Isa kOnly = Isa::portable;
#endif
bool processor_has(Isa isa) { return isa == kOnly; }
Isa best_isa() { return kOnly; }
#endif

const char* const kNames[] = {"portable", "v2", "v3", "v4", "neon"};
constexpr int kIsas = sizeof kNames / sizeof *kNames;
std::atomic<int> active{static_cast<int>(best_isa())};

}  // namespace

Isa active_isa() { return static_cast<Isa>(active.load(std::memory_order_relaxed)); }

int resolve_threads(int32_t requested) {
#ifdef _OPENMP
  return requested > 0 ? requested : omp_get_max_threads();
#else
  (void)requested;
  return 1;
#endif
}

}  // namespace dela

// The C ABI's version: raised whenever a signature changes, checked by the loader.
DELA_EXPORT int32_t dela_abi_version() { return 3; }

// Name of the instruction set in use: "v2", "v3", "v4" (x86-64 levels), "neon" (64-bit
// ARM) or "portable".
DELA_EXPORT const char* dela_isa() { return dela::kNames[static_cast<int>(dela::active_isa())]; }

// Chooses an instruction set by name, or the best with "auto". 0 when done,
// kBadArgument when the name is unknown or the processor lacks it.
DELA_EXPORT int32_t dela_set_isa(const char* name) {
  if (name == nullptr) return dela::kBadArgument;
  if (std::strcmp(name, "auto") == 0) {
    dela::active.store(static_cast<int>(dela::best_isa()));
    return dela::kOk;
  }
  for (int i = 0; i < dela::kIsas; ++i) {
    if (std::strcmp(name, dela::kNames[i]) == 0) {
      if (!dela::processor_has(static_cast<dela::Isa>(i))) return dela::kBadArgument;
      dela::active.store(i);
      return dela::kOk;
    }
  }
  return dela::kBadArgument;
}
