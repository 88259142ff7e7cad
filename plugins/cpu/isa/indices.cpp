// Range check of index tables, as one vectorised pass.
#include "cpu/operators.h"

namespace dela {
namespace DELA_ISA {

bool indices_within(const int32_t* values, int64_t count, int64_t limit) {
  const uint32_t bound = static_cast<uint32_t>(limit);  // a negative value reads as a large one
  uint32_t outside = 0;
#pragma omp simd reduction(| : outside)
  for (int64_t i = 0; i < count; ++i) {
    outside |= static_cast<uint32_t>(values[i]) >= bound ? 1u : 0u;
  }
  return outside == 0;
}

}  // namespace DELA_ISA
}  // namespace dela
