// Device and pinned memory: guard pages around each allocation, junk in fresh memory, freed memory
// that stays reserved and unreadable, and copies that check both ends.
#include "emulator.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {
namespace {

constexpr size_t kPage = 4096, kGuard = 1 << 20, kAlignment = 256, kQuarantine = 4096;

struct Allocation {
  uintptr_t begin;
  size_t size;
  uintptr_t map;    // where the guard before it begins
  size_t mapped;    // with both guards
  bool host, live;
  std::vector<uint8_t> initialised;  // empty where nobody checks

  uintptr_t pages() const { return map + kGuard; }
  size_t page_bytes() const { return mapped - 2 * kGuard; }
};

std::map<uintptr_t, Allocation> allocations;  // by `map`
std::deque<uintptr_t> quarantine;             // freed, oldest first
int opened = 0;

Allocation* find(uintptr_t address) {
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return nullptr;
  Allocation& one = std::prev(after)->second;
  return address < one.map + one.mapped ? &one : nullptr;
}

Allocation* find_live(uintptr_t address) {
  Allocation* one = find(address);
  return one && one->live && address >= one->begin && address < one->begin + one->size ? one
                                                                                       : nullptr;
}

void protect(int access) {
  for (auto& [map, one] : allocations) {
    if (one.live && !one.host) {
      mprotect(reinterpret_cast<void*>(one.pages()), one.page_bytes(), access);
    }
  }
}

void mark_written(uintptr_t address, size_t size) {
  Allocation* one = find_live(address);
  if (one && !one->initialised.empty()) {
    std::memset(one->initialised.data() + (address - one->begin), 1, size);
  }
}

// What the copied bytes were, they are at their new place too.
void copy_marks(uintptr_t to, uintptr_t from, size_t size) {
  Allocation *target = find_live(to), *source = find_live(from);
  if (!target || target->initialised.empty()) return;
  if (!source || source->initialised.empty()) return mark_written(to, size);
  std::memmove(target->initialised.data() + (to - target->begin),
               source->initialised.data() + (from - source->begin), size);
}

struct sigaction earlier_action;

// Device memory is not the host's to read: say so before the process dies of it.
void on_host_access(int signal, siginfo_t* info, void* context) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  if (find(address) != nullptr) {
    const char* log = std::getenv("EMULATED_CUDA_LOG");  // a descriptor that nobody captures
    dprintf(log ? std::atoi(log) : STDERR_FILENO,
            "emulated CUDA driver: fault: host code touched address %#zx, %s\n", address,
            describe(address).c_str());
  }
  sigaction(signal, &earlier_action, nullptr);  // and the instruction is tried again
  (void)context;
}

void watch_host_accesses() {
  static bool watching = false;
  if (watching) return;
  watching = true;
  struct sigaction action {};
  action.sa_sigaction = on_host_access;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &earlier_action);
}

}  // namespace

DeviceMemoryOpen::DeviceMemoryOpen() {
  if (opened++ == 0) protect(PROT_READ | PROT_WRITE);
}

DeviceMemoryOpen::~DeviceMemoryOpen() {
  if (--opened == 0 && settings.hide_device_memory) protect(PROT_NONE);
}

CUresult allocate(size_t size, bool host, void** address) {
  if (size == 0 || address == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (!host && counters.device_bytes + static_cast<int64_t>(size) > settings.memory) {
    return refuse(CUDA_ERROR_OUT_OF_MEMORY, "%zu bytes asked for, %zd left", size,
                  static_cast<ssize_t>(settings.memory - counters.device_bytes));
  }
  watch_host_accesses();
  const size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
  const size_t pages = (rounded + kPage - 1) / kPage * kPage, mapped = pages + 2 * kGuard;
  void* map =
      mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  Allocation one;
  one.map = reinterpret_cast<uintptr_t>(map);
  one.mapped = mapped;
  one.size = size;
  one.begin = one.map + kGuard + pages - rounded;  // its end touches the guard behind it
  one.host = host;
  one.live = true;
  if (settings.check_initialised && !host) one.initialised.resize(size, 0);
  mprotect(reinterpret_cast<void*>(one.pages()), pages, PROT_READ | PROT_WRITE);
  std::memset(reinterpret_cast<void*>(one.pages()), settings.junk, pages);
  if (!host && opened == 0 && settings.hide_device_memory) {
    mprotect(reinterpret_cast<void*>(one.pages()), pages, PROT_NONE);
  }
  *address = reinterpret_cast<void*>(one.begin);
  allocations[one.map] = std::move(one);
  ++(host ? counters.host_allocations : counters.allocations);
  if (!host) counters.device_bytes += static_cast<int64_t>(size);
  return CUDA_SUCCESS;
}

CUresult release(uintptr_t address, bool host) {
  Allocation* one = find(address);
  if (!one || one->begin != address || one->host != host) {
    fault(CUDA_SUCCESS, "free of %#zx, which is %s", address, describe(address).c_str());
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (!one->live) {
    fault(CUDA_SUCCESS, "second free of %#zx, an allocation of %zu bytes", address, one->size);
    return CUDA_ERROR_INVALID_VALUE;
  }
  one->live = false;
  one->initialised.clear();
  void* pages = reinterpret_cast<void*>(one->pages());
  madvise(pages, one->page_bytes(), MADV_DONTNEED);
  mprotect(pages, one->page_bytes(), PROT_NONE);
  ++(host ? counters.host_frees : counters.frees);
  if (!host) counters.device_bytes -= static_cast<int64_t>(one->size);
  quarantine.push_back(one->map);
  if (quarantine.size() > kQuarantine) {
    const auto oldest = allocations.find(quarantine.front());
    quarantine.pop_front();
    munmap(reinterpret_cast<void*>(oldest->second.map), oldest->second.mapped);
    allocations.erase(oldest);
  }
  return CUDA_SUCCESS;
}

bool kernel_memory(uintptr_t address, Extent* extent) {
  Allocation* one = find_live(address);
  if (!one) return false;
  *extent = {one->begin, one->begin + one->size,
             one->initialised.empty() ? nullptr : one->initialised.data()};
  return true;
}

std::string describe(uintptr_t address) {
  const Allocation* one = find(address);
  if (!one) return address < kPage ? "a null pointer" : "memory that CUDA did not allocate";
  char text[200];
  const char* kind = one->host ? "page-locked host" : "device";
  const char* state = one->live ? "an" : "a freed";
  if (address < one->begin) {
    snprintf(text, sizeof text, "%zu bytes before %s allocation of %zu bytes of %s memory",
             one->begin - address, state, one->size, kind);
  } else if (address >= one->begin + one->size) {
    snprintf(text, sizeof text, "%zu bytes past the end of %s allocation of %zu bytes of %s memory",
             address - one->begin - one->size, state, one->size, kind);
  } else {
    snprintf(text, sizeof text, "byte %zu of %s allocation of %zu bytes of %s memory",
             address - one->begin, state, one->size, kind);
  }
  return text;
}

bool is_pinned(uintptr_t address, size_t size) {
  const Allocation* one = find_live(address);
  return one && one->host && address + size <= one->begin + one->size;
}

bool is_device(uintptr_t address) {
  const Allocation* one = find_live(address);
  return one && !one->host;
}

bool whole(uintptr_t address, size_t size, bool device) {
  if (size == 0) return true;
  const Allocation* one = find(address);
  if (!one) return !device;
  return one->live && address >= one->begin && address + size <= one->begin + one->size;
}

CUresult run_copy(const Copy& copy) {
  if (copy.width == 0 || copy.height == 0) return CUDA_SUCCESS;
  for (const bool to : {true, false}) {
    const uintptr_t address = to ? copy.to : copy.from;
    const size_t pitch = to ? copy.to_pitch : copy.from_pitch;
    const size_t bytes = pitch * (copy.height - 1) + copy.width;
    if (whole(address, bytes, to ? copy.to_device : copy.from_device)) continue;
    return refuse(CUDA_ERROR_INVALID_VALUE, "copy of %zu bytes %s %#zx, which is %s", bytes,
                  to ? "to" : "from", address, describe(address).c_str());
  }
  ++counters.copies;
  if (is_device(copy.to) != is_device(copy.from)) {
    (is_device(copy.to) ? counters.bytes_up : counters.bytes_down) +=
        static_cast<int64_t>(copy.width * copy.height);
  }
  DeviceMemoryOpen open;
  for (size_t row = 0; row < copy.height; ++row) {
    const uintptr_t to = copy.to + row * copy.to_pitch, from = copy.from + row * copy.from_pitch;
    std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), copy.width);
    copy_marks(to, from, copy.width);
  }
  return CUDA_SUCCESS;
}

CUresult check_fill(const Fill& fill) {
  if (fill.width == 0 || fill.height == 0) return CUDA_SUCCESS;
  if (fill.to % fill.element != 0) return CUDA_ERROR_INVALID_VALUE;
  const size_t bytes = fill.pitch * (fill.height - 1) + fill.width * fill.element;
  if (whole(fill.to, bytes, true)) return CUDA_SUCCESS;
  return refuse(CUDA_ERROR_INVALID_VALUE, "fill of %zu bytes at %#zx, which is %s", bytes, fill.to,
                describe(fill.to).c_str());
}

CUresult run_fill(const Fill& fill) {
  if (const CUresult wrong = check_fill(fill)) return wrong;
  DeviceMemoryOpen open;
  for (size_t row = 0; row < fill.height; ++row) {
    const uintptr_t to = fill.to + row * fill.pitch;
    for (size_t i = 0; i < fill.width; ++i) {
      std::memcpy(reinterpret_cast<void*>(to + i * fill.element), &fill.value, fill.element);
    }
    if (fill.width > 0) mark_written(to, fill.width * fill.element);
  }
  return CUDA_SUCCESS;
}

}  // namespace emulated

using namespace emulated;

// ---- allocation ----

CUDA_ENTRY cuMemAlloc_v2(CUdeviceptr* address, size_t size) {
  ENTER_CONTEXT;
  if (const CUresult refused = refused_by_capture("cuMemAlloc", true)) return refused;
  return allocate(size, false, reinterpret_cast<void**>(address));
}

CUDA_ENTRY cuMemAllocPitch_v2(CUdeviceptr* address, size_t* pitch, size_t width, size_t height,
                              unsigned) {
  ENTER_CONTEXT;
  if (const CUresult refused = refused_by_capture("cuMemAllocPitch", true)) return refused;
  *pitch = (width + 511) / 512 * 512;
  return allocate(*pitch * height, false, reinterpret_cast<void**>(address));
}

CUDA_ENTRY cuMemFree_v2(CUdeviceptr address) {
  ENTER_CONTEXT;
  if (address == 0) return CUDA_SUCCESS;
  if (const CUresult refused = refused_by_capture("cuMemFree", false)) return refused;
  finish_all();  // as the real one waits for work that may use it
  if (const CUresult late = sticky_error()) return late;
  return release(address, false);
}

CUDA_ENTRY cuMemAllocAsync(CUdeviceptr* address, size_t size, CUstream handle) {
  ENTER_CONTEXT;
  Stream* stream = find_stream(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture) {
    return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                      "cuMemAllocAsync in a capture (allocation nodes are not emulated)");
  }
  return allocate(size, false, reinterpret_cast<void**>(address));
}

CUDA_ENTRY cuMemAllocFromPoolAsync(CUdeviceptr* address, size_t size, CUmemoryPool, CUstream stream) {
  return cuMemAllocAsync(address, size, stream);
}

CUDA_ENTRY cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
  ENTER_CONTEXT;
  Stream* stream = find_stream(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->capture) {
    return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                      "cuMemFreeAsync in a capture (allocation nodes are not emulated)");
  }
  if (!is_device(address)) return release(address, false);
  queue_work(stream, [=] { return release(address, false); });
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuMemHostAlloc(void** address, size_t size, unsigned) {
  ENTER_CONTEXT;
  if (const CUresult refused = refused_by_capture("cuMemHostAlloc", true)) return refused;
  return allocate(size, true, address);
}

CUDA_ENTRY cuMemAllocHost_v2(void** address, size_t size) { return cuMemHostAlloc(address, size, 0); }

CUDA_ENTRY cuMemFreeHost(void* address) {
  ENTER_CONTEXT;
  if (const CUresult refused = refused_by_capture("cuMemFreeHost", false)) return refused;
  finish_all();
  if (const CUresult late = sticky_error()) return late;
  return release(reinterpret_cast<uintptr_t>(address), true);
}

CUDA_ENTRY cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* host, unsigned) {
  ENTER_CONTEXT;
  if (!is_pinned(reinterpret_cast<uintptr_t>(host), 1)) return CUDA_ERROR_INVALID_VALUE;
  *device = reinterpret_cast<CUdeviceptr>(host);
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuMemHostGetFlags(unsigned* flags, void* host) {
  ENTER_CONTEXT;
  if (!is_pinned(reinterpret_cast<uintptr_t>(host), 1)) return CUDA_ERROR_INVALID_VALUE;
  *flags = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP;
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  ENTER_CONTEXT;
  *total = static_cast<size_t>(settings.memory);
  *free_bytes = static_cast<size_t>(std::max<int64_t>(0, settings.memory - counters.device_bytes));
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* size, CUdeviceptr address) {
  ENTER_CONTEXT;
  const Allocation* one = find_live(address);
  if (!one) return CUDA_ERROR_NOT_FOUND;
  if (base) *base = one->begin;
  if (size) *size = one->size;
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  ENTER;
  Allocation* one = find_live(address);
  if (!one) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      *static_cast<CUcontext*>(value) = current_context();
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(value) = one->host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (attribute == CU_POINTER_ATTRIBUTE_HOST_POINTER && !one->host) {
        return CUDA_ERROR_INVALID_VALUE;
      }
      *static_cast<CUdeviceptr*>(value) = address;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      *static_cast<unsigned*>(value) = 0;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      *static_cast<int*>(value) = 0;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      *static_cast<CUdeviceptr*>(value) = one->begin;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      *static_cast<size_t*>(value) = one->size;
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
}

CUDA_ENTRY cuPointerGetAttributes(unsigned count, CUpointer_attribute* attributes, void** values,
                                  CUdeviceptr address) {
  // Unlike the call for one attribute, this one answers zeros for memory that is not CUDA's.
  for (unsigned i = 0; i < count; ++i) {
    const CUpointer_attribute attribute = attributes[i];
    if (cuPointerGetAttribute(values[i], attribute, address) == CUDA_SUCCESS) continue;
    const bool small = attribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE ||
                       attribute == CU_POINTER_ATTRIBUTE_IS_MANAGED;
    if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) {
      *static_cast<int*>(values[i]) = -2;
    } else if (small) {
      *static_cast<unsigned*>(values[i]) = 0;
    } else {
      *static_cast<CUdeviceptr*>(values[i]) = 0;
    }
  }
  return CUDA_SUCCESS;
}

CUDA_ENTRY cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice) {
  ENTER;
  *pool = reinterpret_cast<CUmemoryPool>(8);  // there is one
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice device) {
  return cuDeviceGetDefaultMemPool(pool, device);
}
CUDA_ENTRY cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute, void*) {
  ENTER;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuMemPoolGetAttribute(CUmemoryPool, CUmemPool_attribute, void* value) {
  ENTER;
  std::memset(value, 0, 8);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuMemPoolTrimTo(CUmemoryPool, size_t) {
  ENTER;
  return CUDA_SUCCESS;
}

// ---- copies ----

namespace {

Copy line(uintptr_t to, uintptr_t from, size_t bytes, bool to_device, bool from_device) {
  return {to, from, bytes, 1, bytes, bytes, to_device, from_device};
}

bool pageable(uintptr_t address, size_t bytes) {
  return bytes > 0 && !is_device(address) && !is_pinned(address, bytes);
}

size_t span(size_t pitch, const Copy& copy) {
  return copy.height ? pitch * (copy.height - 1) + copy.width : 0;
}

CUresult check_copy(const Copy& copy) {
  for (const bool to : {true, false}) {
    const uintptr_t address = to ? copy.to : copy.from;
    const size_t bytes = span(to ? copy.to_pitch : copy.from_pitch, copy);
    const bool device = to ? copy.to_device : copy.from_device;
    if (bytes == 0 || whole(address, bytes, device)) continue;
    return refuse(CUDA_ERROR_INVALID_VALUE, "copy of %zu bytes %s %#zx, which is %s", bytes,
                  to ? "to" : "from", address, describe(address).c_str());
  }
  return CUDA_SUCCESS;
}

// Copies that return when they are done; they are the legacy stream's.
CUresult copy_now(const Copy& copy) {
  if (const CUresult wrong = check_copy(copy)) return wrong;
  if (const CUresult refused = refused_by_capture("a synchronous copy", false)) return refused;
  auto node = std::make_shared<Node>();
  node->type = CU_GRAPH_NODE_TYPE_MEMCPY;
  node->copy = copy;
  Stream* stream = find_stream(nullptr);
  if (const CUresult refused = submit(stream, std::move(node))) return refused;
  stream->finish();
  return sticky_error();
}

CUresult copy_later(Copy copy, CUstream handle) {
  if (const CUresult wrong = check_copy(copy)) return wrong;
  Stream* stream = find_stream(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  const size_t to_bytes = span(copy.to_pitch, copy), from_bytes = span(copy.from_pitch, copy);
  const bool to_pageable = pageable(copy.to, to_bytes);
  const bool from_pageable = pageable(copy.from, from_bytes);
  auto node = std::make_shared<Node>();
  node->type = CU_GRAPH_NODE_TYPE_MEMCPY;
  node->copy = copy;
  if (to_pageable || from_pageable) {
    ++counters.pageable_copies;
    if (stream->capture) {
      return invalidate(stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                        "a copy of pageable host memory in a capture");
    }
  }
  if (from_pageable) {
    // As the driver does: the bytes are taken now, and reach the device in the stream's order.
    const auto* first = reinterpret_cast<const char*>(copy.from);
    auto staged = std::make_shared<std::vector<char>>(first, first + from_bytes);
    copy.from = reinterpret_cast<uintptr_t>(staged->data());
    queue_work(stream, [=, keep = staged] { return run_copy(copy); });
  } else if (const CUresult refused = submit(stream, std::move(node))) {
    return refused;
  }
  // And a copy to pageable memory returns only when it is done.
  if (to_pageable) stream->finish();
  return CUDA_SUCCESS;
}

uintptr_t number(const void* address) { return reinterpret_cast<uintptr_t>(address); }

CUresult unpack(const CUDA_MEMCPY2D* from, Copy* copy) {
  const auto side = [](CUmemorytype type, const void* host, CUdeviceptr device, bool* is_device) {
    *is_device = type == CU_MEMORYTYPE_DEVICE;
    return type == CU_MEMORYTYPE_HOST ? number(host) : static_cast<uintptr_t>(device);
  };
  if (!from || from->srcMemoryType == CU_MEMORYTYPE_ARRAY ||
      from->dstMemoryType == CU_MEMORYTYPE_ARRAY) {
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  copy->width = from->WidthInBytes;
  copy->height = from->Height;
  copy->to_pitch = from->dstPitch ? from->dstPitch : from->WidthInBytes;
  copy->from_pitch = from->srcPitch ? from->srcPitch : from->WidthInBytes;
  if (copy->width > copy->to_pitch || copy->width > copy->from_pitch) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  copy->to = side(from->dstMemoryType, from->dstHost, from->dstDevice, &copy->to_device) +
             from->dstY * copy->to_pitch + from->dstXInBytes;
  copy->from = side(from->srcMemoryType, from->srcHost, from->srcDevice, &copy->from_device) +
               from->srcY * copy->from_pitch + from->srcXInBytes;
  return CUDA_SUCCESS;
}

}  // namespace

CUDA_ENTRY cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  ENTER_CONTEXT;
  return copy_now(line(to, from, bytes, false, false));
}
CUDA_ENTRY cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  ENTER_CONTEXT;
  return copy_now(line(to, number(from), bytes, true, false));
}
CUDA_ENTRY cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  ENTER_CONTEXT;
  return copy_now(line(number(to), from, bytes, false, true));
}
CUDA_ENTRY cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  ENTER_CONTEXT;
  return copy_now(line(to, from, bytes, true, true));
}
CUDA_ENTRY cuMemcpy2D_v2(const CUDA_MEMCPY2D* parameters) {
  ENTER_CONTEXT;
  Copy copy{};
  if (const CUresult wrong = unpack(parameters, &copy)) return wrong;
  return copy_now(copy);
}
CUDA_ENTRY cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D* parameters) {
  return cuMemcpy2D_v2(parameters);
}
CUDA_ENTRY cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  ENTER_CONTEXT;
  return copy_later(line(to, from, bytes, false, false), stream);
}
CUDA_ENTRY cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  ENTER_CONTEXT;
  return copy_later(line(to, number(from), bytes, true, false), stream);
}
CUDA_ENTRY cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  ENTER_CONTEXT;
  return copy_later(line(number(to), from, bytes, false, true), stream);
}
CUDA_ENTRY cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  ENTER_CONTEXT;
  return copy_later(line(to, from, bytes, true, true), stream);
}
CUDA_ENTRY cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D* parameters, CUstream stream) {
  ENTER_CONTEXT;
  Copy copy{};
  if (const CUresult wrong = unpack(parameters, &copy)) return wrong;
  return copy_later(copy, stream);
}

// ---- fills ----

namespace {

CUresult fill_later(const Fill& fill, CUstream handle) {
  if (const CUresult wrong = check_fill(fill)) return wrong;
  Stream* stream = find_stream(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  auto node = std::make_shared<Node>();
  node->type = CU_GRAPH_NODE_TYPE_MEMSET;
  node->fill = fill;
  return submit(stream, std::move(node));
}

}  // namespace

#define FILLS(bits, Value)                                                                          \
  CUDA_ENTRY cuMemsetD##bits##Async(CUdeviceptr to, Value value, size_t count, CUstream stream) {   \
    ENTER_CONTEXT;                                                                                  \
    return fill_later({to, value, bits / 8, count, 1, count * bits / 8}, stream);                   \
  }                                                                                                 \
  CUDA_ENTRY cuMemsetD##bits##_v2(CUdeviceptr to, Value value, size_t count) {                      \
    return cuMemsetD##bits##Async(to, value, count, nullptr);                                       \
  }                                                                                                 \
  CUDA_ENTRY cuMemsetD2D##bits##Async(CUdeviceptr to, size_t pitch, Value value, size_t width,      \
                                      size_t height, CUstream stream) {                             \
    ENTER_CONTEXT;                                                                                  \
    return fill_later({to, value, bits / 8, width, height, pitch}, stream);                         \
  }                                                                                                 \
  CUDA_ENTRY cuMemsetD2D##bits##_v2(CUdeviceptr to, size_t pitch, Value value, size_t width,        \
                                    size_t height) {                                                \
    return cuMemsetD2D##bits##Async(to, pitch, value, width, height, nullptr);                      \
  }
FILLS(8, unsigned char)
FILLS(16, unsigned short)
FILLS(32, unsigned)
