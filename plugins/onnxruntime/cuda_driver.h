// Launches the operators' kernels through the CUDA driver, which is looked up when it is first
// needed: a machine without one loads this library as any other does.
#pragma once

#include <cstdint>

namespace dela::ort {

// Why something failed, in words.
struct Reason {
  char text[480];
};

// Loads the kernels for the device of the calling thread's CUDA context, once per context. A thread
// without a context has nothing loaded, and is no failure: `launch` then loads them.
bool load_kernels(Reason* reason);

// Queues kernel `number` of plugins/cuda/launch.h on `stream`, in the stream's context: allocates
// and waits for nothing once the kernels are loaded there. `arguments` are cuLaunchKernel's.
bool launch(int number, int64_t threads, void** arguments, void* stream, Reason* reason);

}  // namespace dela::ort
