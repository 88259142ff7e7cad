// Kernels for the tests of the emulated CUDA driver: right ones, and one for each planted fault.

extern "C" __global__ void scale(const float* from, float factor, int n, float* to) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) to[i] = from[i] * factor;
}

// Sum of each block of up to 256 values, in shared memory.
extern "C" __global__ void block_sums(const float* from, int n, float* sums) {
  __shared__ float part[256];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  part[threadIdx.x] = i < n ? from[i] : 0.0f;
  __syncthreads();
  for (int step = blockDim.x / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) part[threadIdx.x] += part[threadIdx.x + step];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}

// Every lane gets the sum of its warp's values, and lane 0 counts the positive ones.
extern "C" __global__ void warp_sums(const int* from, int* sums, int* positive) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  int value = from[i];
  const unsigned votes = __ballot_sync(0xffffffffu, value > 0);
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  sums[i] = value;
  if (threadIdx.x % 32 == 0) positive[i / 32] = __popc(votes);
}

extern "C" __global__ void count_even(const int* from, int n, unsigned* count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n && from[i] % 2 == 0) atomicAdd(count, 1u);
}

extern "C" __global__ void pick(const float4* from, int n, double* to) {
  const int i = threadIdx.y * blockDim.x + threadIdx.x;
  if (i < n) to[i] = from[i].w;
}

// ---- planted faults ----

extern "C" __global__ void write_one_too_far(float* to, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) to[i] = 1.0f;
}

extern "C" __global__ void read_before(const float* from, float* to) { to[0] = from[-1]; }

extern "C" __global__ void read_misaligned(const float* from, float4* to) {
  to[0] = *reinterpret_cast<const float4*>(from + 1);
}

extern "C" __global__ void no_barrier(const float* from, float* to) {
  __shared__ float part[64];
  part[threadIdx.x] = from[threadIdx.x];
  to[threadIdx.x] = part[63 - threadIdx.x];
}

extern "C" __global__ void split_barrier(float* to) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  to[threadIdx.x] = 0.0f;
}

extern "C" __global__ void past_shared(float* to) {
  __shared__ float part[32];
  __shared__ float other[32];
  part[threadIdx.x] = other[threadIdx.x] = 1.0f;
  __syncthreads();
  to[threadIdx.x] = part[threadIdx.x + 1];
}

extern "C" __global__ void divide(const int* from, int by, int* to) {
  to[threadIdx.x] = from[threadIdx.x] / by;
}
