// Lets one header of maths serve the C++ compiler and the CUDA one.
#pragma once

#if defined(__CUDACC__)
#define DELA_MATH __device__ __forceinline__
#else
#include <math.h>
#define DELA_MATH static inline
#endif

namespace dela {

// Squares above this have a root with an inverse; it is the least normal float.
constexpr float kLeastSquare = 1.17549435e-38f;

#if defined(__CUDA_ARCH__)
// The fast approximation is good to 2 units in the last place; a Newton step halves that.
DELA_MATH float inverse_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y * fmaf(-0.5f * x * y, y, 1.5f);
}
#else
DELA_MATH float inverse_root(float x) { return 1.0f / sqrtf(x); }
DELA_MATH double inverse_root(double x) { return 1.0 / sqrt(x); }
#endif

}  // namespace dela
