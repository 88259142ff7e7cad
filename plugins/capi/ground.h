// Height above the local ground, from the coordinates alone: the C++ counterpart of
// dela/scan/attributes.py:height_above_ground, operation for operation in the same order, so that
// both give the same numbers.
#pragma once

#include <cstdint>
#include <vector>

namespace dela::capi {

// [n] meters above the ground of finite points [n, 3], z up, n >= 1.
std::vector<double> height_above_ground(const double* points, int64_t n);

}  // namespace dela::capi
