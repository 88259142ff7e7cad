// Runs kernels on the CPU, one thread of one block at a time: fibers for barriers, checks of every
// load and store, and signals turned into faults. Linked into each library of kernels.
#include "abi.h"

#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector_types.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

extern "C" {
// Bounds of all __shared__ variables; the linker makes them where there are any.
extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulated {
namespace {

constexpr size_t kStack = 256 << 10, kPage = 4096, kMaxThreads = 1024, kWarp = 32;

enum class Waits : uint8_t { no, block, warp, done };

struct Thread {
  Waits waits;
  unsigned mask;  // of the warp barrier it waits at
};

// A stack that runs threads one after the other until one of them has to wait; that thread then keeps
// the fiber, and another one goes on with the threads that are left.
struct Fiber {
  ucontext_t context;
  char* stack;  // above its guard page
  unsigned thread;
  bool parked;  // between threads, so that it can be given more
};

struct Scheduler {
  Launch* launch = nullptr;
  ucontext_t main;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  Fiber* current = nullptr;
  std::vector<unsigned> order;  // of the threads of a block
  size_t started = 0;
  Thread threads[kMaxThreads];
  Fiber* holder[kMaxThreads];  // the fiber of a thread that waits
  uint64_t given[kMaxThreads], received[kMaxThreads];
  unsigned received_mask[kMaxThreads / kWarp];
  Dim block;
  Extent recent[4];
  unsigned next_recent = 0;
};

Scheduler scheduler;
thread_local bool running = false;  // this operating-system thread is inside a kernel

struct Global {  // laid out by gcc
  uintptr_t begin, size, padded;
  const char *name, *module;
  uintptr_t dynamic, location, indicator;
};
std::vector<Global>& globals() {
  static std::vector<Global> all;
  return all;
}

std::vector<KernelEntry>& entries() {
  static std::vector<KernelEntry> all;
  return all;
}

size_t thread_count() {
  const Dim& b = scheduler.launch->block;
  return static_cast<size_t>(b.x) * b.y * b.z;
}

Dim index_of(unsigned thread) {
  const Dim& b = scheduler.launch->block;
  return {thread % b.x, thread / b.x % b.y, thread / (b.x * b.y)};
}

bool faulted() { return scheduler.launch->fault.kind != FaultKind::none; }

void note(FaultKind kind, unsigned thread, uintptr_t address, size_t size, bool write, int signal) {
  scheduler.launch->fault = {kind, signal, address, size, write, scheduler.block, index_of(thread)};
}

// Ends the launch, from within a kernel: the scheduler goes on where it last resumed a fiber.
[[noreturn]] void leave(FaultKind kind, uintptr_t address, size_t size, bool write, int signal = 0) {
  note(kind, scheduler.current->thread, address, size, write, signal);
  setcontext(&scheduler.main);
  abort();
}

bool in_module(uintptr_t address) {
  struct Query {
    uintptr_t address;
    bool found;
  } query{address, false};
  static const uintptr_t here = reinterpret_cast<uintptr_t>(&scheduler);
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        Query& q = *static_cast<Query*>(data);
        bool ours = false, inside = false;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          if (segment.p_type != PT_LOAD) continue;
          const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
          ours |= here >= begin && here < begin + segment.p_memsz;
          inside |= q.address >= begin && q.address < begin + segment.p_memsz;
        }
        q.found = ours && inside;
        return static_cast<int>(ours);
      },
      &query);
  return query.found;
}

// Constants and shared variables of the kernels: all but the gaps behind them.
bool own_data(uintptr_t address, size_t size, Extent* extent) {
  for (const Global& global : globals()) {
    if (address >= global.begin + global.padded || address + size <= global.begin) continue;
    if (address + size > global.begin + global.size) return false;
    *extent = {global.begin, global.begin + global.size, nullptr};
    return true;
  }
  *extent = {address, address + size, nullptr};
  return in_module(address);
}

void check(uintptr_t address, size_t size, bool write) {
  if (!running) return;
  const Extent* extent = nullptr;
  for (const Extent& known : scheduler.recent) {
    if (address >= known.begin && address + size <= known.end) extent = &known;
  }
  if (extent == nullptr) {
    const uintptr_t stack = reinterpret_cast<uintptr_t>(scheduler.current->stack);
    if (address >= stack && address + size <= stack + kStack) return;
    Extent found;
    if (!own_data(address, size, &found) && !scheduler.launch->find(address, &found)) {
      leave(FaultKind::access, address, size, write);
    }
    if (address < found.begin || address + size > found.end) {
      leave(FaultKind::access, address, size, write);
    }
    Extent& slot = scheduler.recent[scheduler.next_recent++ % 4];
    slot = found;
    extent = &slot;
  }
  if (extent->initialised == nullptr) return;
  uint8_t* known = extent->initialised + (address - extent->begin);
  if (write) {
    std::memset(known, 1, size);
  } else if (std::memchr(known, 0, size) != nullptr) {
    leave(FaultKind::uninitialised, address, size, false);
  }
}

void run_threads() {
  for (;;) {
    while (scheduler.started < scheduler.order.size()) {
      Fiber* self = scheduler.current;
      self->thread = scheduler.order[scheduler.started++];
      scheduler.launch->kernel->call(scheduler.launch->arguments);
      scheduler.threads[self->thread].waits = Waits::done;
    }
    Fiber* self = scheduler.current;
    self->parked = true;
    swapcontext(&self->context, &scheduler.main);
  }
}

Fiber* take_fiber() {
  if (scheduler.idle.empty()) {
    auto fiber = std::make_unique<Fiber>();
    char* map = static_cast<char*>(mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (map == MAP_FAILED) abort();
    mprotect(map, kPage, PROT_NONE);
    fiber->stack = map + kPage;
    fiber->parked = false;
    scheduler.idle.push_back(fiber.get());
    scheduler.fibers.push_back(std::move(fiber));
  }
  Fiber* fiber = scheduler.idle.back();
  scheduler.idle.pop_back();
  if (!fiber->parked) {
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = kStack;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, run_threads, 0);
  }
  return fiber;
}

// Runs a fiber until its thread waits or no thread is left to start; false after a fault.
bool resume(Fiber* fiber) {
  fiber->parked = false;
  scheduler.current = fiber;
  running = true;
  swapcontext(&scheduler.main, &fiber->context);
  running = false;
  if (fiber->parked) scheduler.idle.push_back(fiber);
  return !faulted();
}

// Resumes the threads [first, last) of the order that a barrier has let go.
bool resume_released(size_t first, size_t last) {
  for (size_t i = first; i < last; ++i) {
    const unsigned thread = scheduler.order[i];
    Fiber* fiber = scheduler.holder[thread];
    if (fiber == nullptr || scheduler.threads[thread].waits != Waits::no) continue;
    scheduler.holder[thread] = nullptr;
    if (!resume(fiber)) return false;
  }
  return true;
}

void wait(Waits kind, unsigned mask) {
  Fiber* self = scheduler.current;
  scheduler.threads[self->thread] = {kind, mask};
  scheduler.holder[self->thread] = self;
  swapcontext(&self->context, &scheduler.main);
}

// Lets the threads of a warp barrier go on once all live threads of its mask have come.
bool release_warp(size_t first) {
  const size_t count = std::min(kWarp, thread_count() - first);
  for (size_t i = 0; i < count; ++i) {
    const Thread& one = scheduler.threads[first + i];
    if (one.waits != Waits::warp) continue;
    unsigned came = 0;
    bool all = true;
    for (size_t j = 0; j < count; ++j) {
      if (!(one.mask >> j & 1u)) continue;
      const Thread& other = scheduler.threads[first + j];
      if (other.waits == Waits::warp && other.mask == one.mask) {
        came |= 1u << j;
      } else if (other.waits != Waits::done) {
        all = false;
      }
    }
    if (!all) continue;
    scheduler.received_mask[first / kWarp] = came;
    for (size_t j = 0; j < count; ++j) {
      if (!(came >> j & 1u)) continue;
      scheduler.received[first + j] = scheduler.given[first + j];
      scheduler.threads[first + j].waits = Waits::no;
    }
    return true;
  }
  return false;
}

bool release_block() {
  const size_t count = thread_count();
  bool any = false;
  for (size_t i = 0; i < count; ++i) {
    const Waits waits = scheduler.threads[i].waits;
    if (waits != Waits::block && waits != Waits::done) return false;
    any |= waits == Waits::block;
  }
  for (size_t i = 0; i < count; ++i) {
    if (scheduler.threads[i].waits == Waits::block) scheduler.threads[i].waits = Waits::no;
  }
  return any;
}

// False after a fault.
bool run_block() {
  const size_t count = thread_count();
  if (__start_emulated_shared != nullptr) {
    std::memset(__start_emulated_shared, scheduler.launch->junk,
                __stop_emulated_shared - __start_emulated_shared);
  }
  std::fill_n(scheduler.threads, count, Thread{Waits::no, 0});
  std::fill_n(scheduler.holder, count, nullptr);
  scheduler.started = 0;
  while (scheduler.started < count) {
    if (!resume(take_fiber())) return false;
  }
  for (;;) {
    bool released = false;
    for (size_t first = 0; first < count; first += kWarp) released |= release_warp(first);
    if (!released) released = release_block();
    if (!released) break;
    if (!resume_released(0, count)) return false;
  }
  for (size_t i = 0; i < count; ++i) {
    if (scheduler.threads[i].waits == Waits::done) continue;
    note(FaultKind::deadlock, static_cast<unsigned>(i), 0, 0, false, 0);
    return false;
  }
  return true;
}

void run_grid() {
  const Launch& launch = *scheduler.launch;
  const Dim& grid = launch.grid;
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  std::mt19937 random(12345);
  scheduler.order.resize(thread_count());
  std::iota(scheduler.order.begin(), scheduler.order.end(), 0u);
  if (launch.order == Order::backward) std::reverse(scheduler.order.begin(), scheduler.order.end());
  std::vector<uint64_t> shuffled;
  if (launch.order == Order::shuffled) {
    std::shuffle(scheduler.order.begin(), scheduler.order.end(), random);
    shuffled.resize(blocks);
    std::iota(shuffled.begin(), shuffled.end(), uint64_t{0});
    std::shuffle(shuffled.begin(), shuffled.end(), random);
  }
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = launch.order == Order::forward    ? i
                       : launch.order == Order::backward ? blocks - 1 - i
                                                         : shuffled[i];
    scheduler.block = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                       static_cast<unsigned>(b / grid.x / grid.y)};
    if (!run_block()) return;
  }
}

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
struct sigaction earlier[4];

void on_signal(int signal, siginfo_t* info, void* context) {
  if (running) {
    const bool access = signal == SIGSEGV || signal == SIGBUS;
    leave(FaultKind::signal, access ? reinterpret_cast<uintptr_t>(info->si_addr) : 0, 0, false,
          signal);
  }
  // Another thread's, and not about a kernel.
  for (size_t i = 0; i < 4; ++i) {
    if (kSignals[i] != signal) continue;
    sigaction(signal, &earlier[i], nullptr);
    if (earlier[i].sa_flags & SA_SIGINFO) {
      earlier[i].sa_sigaction(signal, info, context);
    } else {
      raise(signal);
    }
  }
}

}  // namespace

uint3 thread_index() {
  const Dim d = index_of(scheduler.current->thread);
  return {d.x, d.y, d.z};
}
uint3 block_index() { return {scheduler.block.x, scheduler.block.y, scheduler.block.z}; }
dim3 block_size() {
  const Dim& d = scheduler.launch->block;
  return {d.x, d.y, d.z};
}
dim3 grid_size() {
  const Dim& d = scheduler.launch->grid;
  return {d.x, d.y, d.z};
}
unsigned lane() { return scheduler.current->thread % kWarp; }
void block_barrier() { wait(Waits::block, 0); }
void trap() { leave(FaultKind::trap, 0, 0, false); }

unsigned active_mask() {
  const size_t first = scheduler.current->thread / kWarp * kWarp;
  unsigned mask = 0;
  for (size_t i = first; i < std::min(first + kWarp, thread_count()); ++i) {
    if (scheduler.threads[i].waits != Waits::done) mask |= 1u << (i - first);
  }
  return mask;
}

void warp_barrier(unsigned mask) { wait(Waits::warp, mask); }

const uint64_t* exchange(unsigned mask, uint64_t value) {
  const unsigned thread = scheduler.current->thread;
  scheduler.given[thread] = value;
  wait(Waits::warp, mask);
  return scheduler.received + thread / kWarp * kWarp;
}

unsigned exchanged() { return scheduler.received_mask[scheduler.current->thread / kWarp]; }

void read_argument(void** arguments, size_t index, void* value, size_t size) {
  std::memcpy(value, arguments[index], size);
}

void add_kernel(const KernelEntry& entry) { entries().push_back(entry); }

}  // namespace emulated

using namespace emulated;

extern "C" const KernelEntry* emulated_kernels(int* count) {
  *count = static_cast<int>(entries().size());
  return entries().data();
}

extern "C" bool emulated_run(Launch* launch) {
  static char signal_stack[64 << 10];
  scheduler.launch = launch;
  for (Extent& extent : scheduler.recent) extent = {1, 0, nullptr};
  launch->fault = {};
  stack_t alternative{}, before{};
  alternative.ss_sp = signal_stack;
  alternative.ss_size = sizeof signal_stack;
  sigaltstack(&alternative, &before);
  struct sigaction action {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (size_t i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &earlier[i]);
  run_grid();
  if (faulted()) {
    // Threads that were in the middle of the kernel are given up.
    scheduler.idle.clear();
    for (const auto& fiber : scheduler.fibers) {
      fiber->parked = false;
      scheduler.idle.push_back(fiber.get());
    }
  }
  for (size_t i = 0; i < 4; ++i) sigaction(kSignals[i], &earlier[i], nullptr);
  sigaltstack(&before, nullptr);
  return !faulted();
}

#define CHECKED(bytes)                                                                            \
  extern "C" void __asan_load##bytes##_noabort(uintptr_t a) { check(a, bytes, false); }           \
  extern "C" void __asan_store##bytes##_noabort(uintptr_t a) { check(a, bytes, true); }
CHECKED(1)
CHECKED(2)
CHECKED(4)
CHECKED(8)
CHECKED(16)
extern "C" void __asan_loadN_noabort(uintptr_t a, size_t size) { check(a, size, false); }
extern "C" void __asan_storeN_noabort(uintptr_t a, size_t size) { check(a, size, true); }
extern "C" void __asan_handle_no_return() {}
extern "C" void __asan_register_globals(Global* first, size_t count) {
  globals().insert(globals().end(), first, first + count);
}
extern "C" void __asan_unregister_globals(Global*, size_t) {}
extern "C" void __asan_before_dynamic_init(const char*) {}
extern "C" void __asan_after_dynamic_init() {}
