// What the emulated driver and a library of host-compiled kernels know of each other.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulated {

struct Dim {
  unsigned x, y, z;
};

// One kernel: its parameters as the device's ABI lays them out, and how to run one thread of it.
struct KernelEntry {
  const char* name;
  uint32_t count;
  const uint32_t* sizes;
  const uint32_t* alignments;
  void (*call)(void** arguments);
};

// Memory that kernels may touch. `initialised` holds a byte for every byte of it, or is null.
struct Extent {
  uintptr_t begin, end;
  uint8_t* initialised;
};

enum class FaultKind { none, access, uninitialised, signal, deadlock, trap };

struct Fault {
  FaultKind kind;
  int signal;  // of FaultKind::signal
  uintptr_t address;
  size_t size;
  bool write;
  Dim block, thread;
};

// The order in which the threads of a block, and the blocks of a grid, get their turn.
enum class Order : int { forward, backward, shuffled };

struct Launch {
  const KernelEntry* kernel;
  Dim grid, block;
  void** arguments;
  Order order;
  unsigned char junk;                              // fills shared memory at a block's start
  bool (*find)(uintptr_t address, Extent* extent);  // false: no kernel may touch this address
  Fault fault;                                     // set where the launch failed
};

// Exported by a library of kernels under the names of these types' comments.
using ListKernels = const KernelEntry* (*)(int* count);  // emulated_kernels
using RunLaunch = bool (*)(Launch*);                     // emulated_run: false with `fault` set

}  // namespace emulated
