// Lets one header of maths serve the C++ compiler and the CUDA one.
#pragma once

#if defined(__CUDACC__)
#define DELA_MATH __device__ __forceinline__
#else
#include <cmath>
#define DELA_MATH static inline
#endif

namespace dela {

#if defined(__CUDACC__)
// The fast approximation is good to 2 units in the last place; a Newton step halves that.
DELA_MATH float inverse_root(float x) {
  const float y = rsqrtf(x);
  return y * fmaf(-0.5f * x * y, y, 1.5f);
}
#else
DELA_MATH float inverse_root(float x) { return 1.0f / std::sqrt(x); }
DELA_MATH double inverse_root(double x) { return 1.0 / std::sqrt(x); }
#endif

}  // namespace dela
