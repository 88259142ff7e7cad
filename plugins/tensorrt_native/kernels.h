// The kernels of one CUDA context.
#pragma once

#include <memory>

#include "cuda/launch.h"
#include "tensorrt_native/driver.h"

namespace dela::trt {

// By its number in cuda::kKernelNames.
using Kernel = int;

// A loaded image with all its functions, so that nothing is left to load while work is queued.
// It lives as long as a plugin uses it.
class Kernels {
 public:
  // Those of the calling thread's context, loaded by the first to ask. Null when they cannot be
  // loaded; `problem` then says why.
  static std::shared_ptr<const Kernels> of_current_context(Problem& problem) noexcept;

  Kernels(const Driver& driver, void* context) noexcept : driver_(driver), context_(context) {}
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;
  ~Kernels();

  // Queues a kernel; it allocates, copies and waits for nothing.
  bool launch(Kernel kernel, unsigned blocks, void** arguments, void* stream,
              Problem& problem) const noexcept;

 private:
  bool load(Problem& problem) noexcept;

  const Driver& driver_;
  void* context_;
  void* module_ = nullptr;
  void* functions_[cuda::kKernels] = {};
};

}  // namespace dela::trt
