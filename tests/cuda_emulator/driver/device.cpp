// The device and its attributes, contexts, error names, and the lookup of entry points.
#include "emulator.h"
#include "stubs.h"

#include <cstdio>
#include <cstring>

namespace emulated {
namespace {

struct Context {
  bool primary;
};

Context primary{true};
int primary_references = 0;
Handles<Context> contexts;
thread_local std::vector<CUcontext> stack;

CUcontext primary_handle() { return reinterpret_cast<CUcontext>(&primary); }

bool is_context(CUcontext context) {
  return context == primary_handle() || contexts.find(context) != nullptr;
}

int attribute_value(CUdevice_attribute attribute) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 << 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return 227 << 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return 228 << 10;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return 1 << 10;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 64 << 10;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1000000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 1000000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 384;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 32 << 20;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return 16;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 2048;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return 32;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 2;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return settings.capability / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return settings.capability % 10;
    case CU_DEVICE_ATTRIBUTE_GPU_OVERLAP:
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: return 1;
    default: return 0;
  }
}

}  // namespace

CUcontext current_context() { return stack.empty() ? nullptr : stack.back(); }

}  // namespace emulated

using namespace emulated;

// ---- start and device ----

CUDA_ENTRY cuInit(unsigned flags) {
  Call counted;
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  initialise();
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDriverGetVersion(int* version) {
  Call counted;
  *version = settings.driver_version;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDeviceGetCount(int* count) {
  ENTER;
  *count = 1;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDeviceGet(CUdevice* device, int ordinal) {
  ENTER;
  *device = 0;
  return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUDA_ENTRY cuDeviceGetName(char* name, int size, CUdevice) {
  ENTER;
  snprintf(name, static_cast<size_t>(size), "Emulated GPU");
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  ENTER;
  *bytes = static_cast<size_t>(settings.memory);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice) {
  ENTER;
  std::memcpy(uuid->bytes, "emulated-device!", 16);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDeviceGetUuid(CUuuid* uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }
CUDA_ENTRY cuDeviceGetPCIBusId(char* id, int size, CUdevice) {
  ENTER;
  snprintf(id, static_cast<size_t>(size), "0000:00:00.0");
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDeviceComputeCapability(int* major, int* minor, CUdevice) {
  ENTER;
  *major = settings.capability / 10;
  *minor = settings.capability % 10;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  ENTER;
  if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
  *value = attribute_value(attribute);
  return CUDA_SUCCESS;
}

// ---- contexts ----

CUDA_ENTRY cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  ENTER;
  if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
  ++primary_references;
  *context = primary_handle();
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDevicePrimaryCtxRelease_v2(CUdevice) {
  Call counted;
  if (primary_references == 0) return CUDA_ERROR_INVALID_CONTEXT;
  --primary_references;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  ENTER;
  *flags = 0;
  *active = primary_references > 0;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxCreate_v4(CUcontext* context, CUctxCreateParams*, unsigned, CUdevice device) {
  ENTER;
  if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
  *context = reinterpret_cast<CUcontext>(contexts.add(std::make_unique<Context>(Context{false})));
  stack.push_back(*context);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxCreate_v2(CUcontext* context, unsigned flags, CUdevice device) {
  return cuCtxCreate_v4(context, nullptr, flags, device);
}
CUDA_ENTRY cuCtxDestroy_v2(CUcontext handle) {
  Call counted;
  Context* context = contexts.find(handle);
  if (!context) return CUDA_ERROR_INVALID_CONTEXT;
  finish_all();
  if (current_context() == handle) stack.pop_back();
  contexts.erase(context);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxAttach(CUcontext* context, unsigned) {
  ENTER_CONTEXT;
  *context = current_context();
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxDetach(CUcontext context) {
  Call counted;
  return is_context(context) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUDA_ENTRY cuCtxPushCurrent_v2(CUcontext context) {
  Call counted;
  if (!is_context(context)) return CUDA_ERROR_INVALID_CONTEXT;
  stack.push_back(context);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxPopCurrent_v2(CUcontext* context) {
  Call counted;
  if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context) *context = stack.back();
  stack.pop_back();
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxSetCurrent(CUcontext context) {
  Call counted;
  if (context && !is_context(context)) return CUDA_ERROR_INVALID_CONTEXT;
  if (!stack.empty()) stack.pop_back();
  if (context) stack.push_back(context);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxGetCurrent(CUcontext* context) {
  Call counted;
  *context = current_context();
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxGetDevice(CUdevice* device) {
  ENTER_CONTEXT;
  *device = 0;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxGetDevice_v2(CUdevice* device, CUcontext) { return cuCtxGetDevice(device); }
CUDA_ENTRY cuCtxGetFlags(unsigned* flags) {
  ENTER_CONTEXT;
  *flags = 0;
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxGetId(CUcontext context, unsigned long long* id) {
  ENTER;
  *id = reinterpret_cast<unsigned long long>(context ? context : current_context());
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxGetApiVersion(CUcontext, unsigned* version) {
  ENTER;
  *version = static_cast<unsigned>(settings.driver_version);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  ENTER_CONTEXT;
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return CUDA_SUCCESS;
}

// ---- errors ----

namespace {

struct ErrorText {
  CUresult code;
  const char *name, *text;
};

#define ERROR_TEXT(code, text) {code, #code, text}
constexpr ErrorText kErrors[] = {
    ERROR_TEXT(CUDA_SUCCESS, "no error"),
    ERROR_TEXT(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR_TEXT(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR_TEXT(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR_TEXT(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ERROR_TEXT(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR_TEXT(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    ERROR_TEXT(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR_TEXT(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    ERROR_TEXT(CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"),
    ERROR_TEXT(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "the provided PTX was compiled with an unsupported toolchain."),
    ERROR_TEXT(CUDA_ERROR_FILE_NOT_FOUND, "file not found"),
    ERROR_TEXT(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR_TEXT(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    ERROR_TEXT(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ERROR_TEXT(CUDA_ERROR_NOT_READY, "device not ready"),
    ERROR_TEXT(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    ERROR_TEXT(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    ERROR_TEXT(CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"),
    ERROR_TEXT(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    ERROR_TEXT(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    ERROR_TEXT(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ERROR_TEXT(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    ERROR_TEXT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    ERROR_TEXT(CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences"),
    ERROR_TEXT(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"),
    ERROR_TEXT(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    ERROR_TEXT(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"),
    ERROR_TEXT(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR_TEXT(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR_TEXT(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR_TEXT(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, "the graph update was not performed because it included changes which violated constraints specific to instantiated graph update"),
};

const ErrorText* find_error(CUresult code) {
  for (const ErrorText& error : kErrors) {
    if (error.code == code) return &error;
  }
  return nullptr;
}

}  // namespace

CUDA_ENTRY cuGetErrorName(CUresult code, const char** name) {
  const ErrorText* error = find_error(code);
  *name = error ? error->name : nullptr;
  return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUDA_ENTRY cuGetErrorString(CUresult code, const char** text) {
  const ErrorText* error = find_error(code);
  *text = error ? error->text : nullptr;
  return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- entry points by name ----

namespace {

// The newest version of a call: "cuMemAlloc" is cuMemAlloc_v2. Versions that differ only in the
// default stream (_ptsz, _ptds) are not asked for by name.
void* find_entry(const char* name) {
  const size_t length = std::strlen(name);
  void* found = nullptr;
  int newest = 0;
  for (const EntryPoint* entry = entry_points; entry->name; ++entry) {
    if (std::strncmp(entry->name, name, length) != 0) continue;
    int version = 1, used = 0;
    const char* rest = entry->name + length;
    if (*rest != 0 && (sscanf(rest, "_v%d%n", &version, &used) != 1 || rest[used] != 0)) continue;
    if (version > newest) found = entry->address, newest = version;
  }
  return found;
}

}  // namespace

CUDA_ENTRY cuGetProcAddress_v2(const char* name, void** address, int, cuuint64_t,
                               CUdriverProcAddressQueryResult* status) {
  *address = find_entry(name);
  if (status) {
    *status = *address ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  }
  return *address ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
