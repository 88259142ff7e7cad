// What NVIDIA's vector and 16-bit types need of the compiler's own headers, for the wheels that come
// without those (nvidia-cuda-runtime-cu12). Where the real file is there, it is found first.
#pragma once

#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __specialization_static static
#define __cuda_builtin_vector_align8(tag, members) \
  struct __align__(8) tag { members }
#define __host__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define CUDARTAPI
