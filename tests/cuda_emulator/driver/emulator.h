// State and services that the parts of the emulated driver share.
#pragma once

#define __CUDA_API_VERSION_INTERNAL  // cuda.h then declares every version of a call by its own name
#include <cuda.h>

#include "abi.h"

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define CUDA_ENTRY extern "C" __attribute__((visibility("default"))) CUresult CUDAAPI
// What most entry points begin with: one call at a time, an initialised driver, and no earlier fault
// (after which a real context answers every call with the same error).
#define ENTER             \
  emulated::Call counted; \
  if (const CUresult blocked = emulated::blocked()) return blocked
// The same, for calls that need a current context.
#define ENTER_CONTEXT \
  ENTER;              \
  if (emulated::current_context() == nullptr) return CUDA_ERROR_INVALID_CONTEXT

namespace emulated {

using Lock = std::lock_guard<std::recursive_mutex>;
extern std::recursive_mutex mutex;

// Set by tests, by name; see control.cpp.
struct Settings {
  bool defer = false;           // stream work runs only when somebody waits for it
  bool check_initialised = false;  // kernels must not read bytes that nobody wrote
  bool hide_device_memory = true;  // host code that touches device memory is a fault
  bool allow_capture_allocation = false;  // allocating in a relaxed capture is no fault
  int order = 0;                // of a kernel's threads: emulated::Order
  int capability = 90;          // compute capability, major * 10 + minor
  int driver_version = 13000;
  int junk = 0xCB;              // fills fresh memory
  int64_t memory = int64_t{8} << 30;
};
extern Settings settings;

// What happened so far, for tests to assert on.
struct Counters {
  int64_t allocations = 0, frees = 0, device_bytes = 0;
  int64_t host_allocations = 0, host_frees = 0;
  int64_t launches = 0, graph_launches = 0, captures = 0;
  int64_t copies = 0, pageable_copies = 0;
  int64_t bytes_up = 0, bytes_down = 0;  // copied to the device, and to the host
  int64_t synchronisations = 0;
  int64_t calls = 0;  // of the driver by the program
  std::map<std::string, int64_t> launches_of;  // by kernel
};
extern Counters counters;

// A call of the driver: one at a time, and counted unless another entry point makes it.
class Call {
 public:
  Call() { counters.calls += depth++ == 0; }
  ~Call() { --depth; }
  Call(const Call&) = delete;

 private:
  Lock lock_{mutex};
  static thread_local int depth;
};

// ---- faults (control.cpp) ----
// Reports a fault of the program: told on stderr and to the test. `sticky` other than CUDA_SUCCESS is
// what every later call answers.
void fault(CUresult sticky, const char* format, ...) __attribute__((format(printf, 2, 3)));
// Says on stderr why a call is refused, and returns `code`. No fault: the caller gets the error.
CUresult refuse(CUresult code, const char* format, ...) __attribute__((format(printf, 2, 3)));
CUresult blocked();
CUresult sticky_error();
void initialise();

// ---- contexts (device.cpp) ----
CUcontext current_context();

// ---- memory (memory.cpp) ----
// Device memory is readable and writable while one of these lives.
class DeviceMemoryOpen {
 public:
  DeviceMemoryOpen();
  ~DeviceMemoryOpen();
};
CUresult allocate(size_t size, bool host, void** address);
CUresult release(uintptr_t address, bool host);
// Memory a kernel may touch at this address.
bool kernel_memory(uintptr_t address, Extent* extent);
// "12 bytes past the end of an allocation of 64 bytes" and the like.
std::string describe(uintptr_t address);
bool is_pinned(uintptr_t address, size_t size);
bool is_device(uintptr_t address);
// Whether [address, address + size) lies in one live allocation; true for host memory of others.
bool whole(uintptr_t address, size_t size, bool device);
struct Copy {
  uintptr_t to, from;
  size_t width, height, to_pitch, from_pitch;  // rows of `width` bytes
  bool to_device, from_device;                 // as the caller says; false may still be device memory
};
CUresult run_copy(const Copy& copy);
struct Fill {
  uintptr_t to;
  uint32_t value;
  size_t element, width, height, pitch;  // elements per row, bytes between rows
};
CUresult check_fill(const Fill& fill);
CUresult run_fill(const Fill& fill);

// ---- kernels (modules.cpp) ----
struct Function;
struct KernelCall {
  Function* function = nullptr;
  Dim grid{}, block{};
  unsigned shared = 0;
  std::vector<char> arguments;    // each at its own offset
  std::vector<size_t> offsets;
};
CUresult run_kernel(const KernelCall& call);
CUresult make_call(Function* function, Dim grid, Dim block, unsigned shared, void** parameters,
                   void** extra, KernelCall* call);
Function* valid_function(const void* handle);
bool add_kernels(const char* path);

// ---- graphs and streams (streams.cpp, graphs.cpp) ----
struct Node {
  CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
  KernelCall kernel;
  Copy copy{};
  Fill fill{};
  std::function<void()> host;
  std::vector<std::shared_ptr<Node>> children;  // of a child graph
  std::vector<Node*> dependencies;

  CUresult run() const;
};
using NodePointer = std::shared_ptr<Node>;

// Something of the program's, destroyed when the last reference goes.
struct UserObject {
  void* object;
  CUhostFn destroy;
  ~UserObject() { destroy(object); }
};

struct Graph {
  std::vector<NodePointer> nodes;  // in an order that respects the dependencies
  std::vector<std::shared_ptr<UserObject>> kept;  // one entry for each reference
};

struct Stream;
struct Capture {
  Graph* graph;
  CUstreamCaptureMode mode;
  std::thread::id thread;
  Stream* origin;
  std::set<Stream*> streams;
  bool valid = true;
  uint64_t id;
};

struct Stream {
  struct Work {
    std::function<CUresult()> run;
  };
  std::deque<Work> queue;
  uint64_t issued = 0, completed = 0;
  unsigned flags = 0;
  int priority = 0;
  CUcontext context = nullptr;
  Capture* capture = nullptr;
  std::vector<Node*> tails;  // of the capture: what the next node depends on

  bool blocking() const { return (flags & CU_STREAM_NON_BLOCKING) == 0; }
  // Runs work until `position` pieces are done.
  void run_until(uint64_t position);
  void finish() { run_until(issued); }
};

Stream* find_stream(CUstream handle);  // null: no such stream
void finish_all();
void forget_work();
// Queues a node, or adds it to the capture of the stream.
CUresult submit(Stream* stream, NodePointer node);
void queue_work(Stream* stream, std::function<CUresult()> work);
// CUDA_SUCCESS, or the error of a call that no capture allows (and that ends the captures it breaks).
// `allocation`: relaxed captures allow it, but it is reported as a fault unless a test permits it.
CUresult refused_by_capture(const char* what, bool allocation);
// The same, for a wait for the whole context, which no mode of capture allows.
CUresult refused_by_any_capture(const char* what);
CUresult invalidate(Stream* stream, CUresult code, const char* what);
NodePointer add_captured(Stream* stream, NodePointer node);
extern std::vector<Capture*> captures;

template <class T>
class Handles {
 public:
  T* add(std::unique_ptr<T> object) {
    T* raw = object.get();
    objects_[raw] = std::move(object);
    return raw;
  }
  T* find(const void* handle) const {
    const auto found = objects_.find(static_cast<T*>(const_cast<void*>(handle)));
    return found == objects_.end() ? nullptr : found->first;
  }
  bool erase(T* object) { return objects_.erase(object) > 0; }
  template <class Visit>
  void each(Visit visit) {
    for (auto& [raw, owner] : objects_) visit(raw);
  }

 private:
  std::map<T*, std::unique_ptr<T>> objects_;
};

}  // namespace emulated
