#include "cpu/operators.h"
namespace dela { namespace DELA_ISA {
int64_t spse_prepared_floats(const Spse&){return 0;}
} }
