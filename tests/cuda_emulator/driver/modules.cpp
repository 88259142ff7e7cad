// Modules and launches. An image (PTX or cubin) is not run: it is checked, and its kernels are those
// of the same names in the libraries of host-compiled kernels.
#include "emulator.h"

#include <dlfcn.h>
#include <elf.h>
#include <signal.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace emulated {

struct Module;

struct HostKernel {
  const KernelEntry* entry;
  RunLaunch run;
};

struct Function {
  std::string name;
  Module* module;
  HostKernel host;
  std::vector<size_t> offsets;  // of the parameters, in the device's layout
  size_t parameter_bytes = 0;
  unsigned max_threads = 1024;  // per block, from the image's launch bounds
  unsigned registers = 0;       // per thread, 0 in PTX
  unsigned static_shared = 0;   // bytes
  unsigned dynamic_shared_limit = 48 << 10;
};

struct Module {
  std::string image;
  bool ptx;
  std::map<std::string, Function*> functions;
};

namespace {

Handles<Module> modules;
Handles<Function> functions;

constexpr unsigned kMaxShared = 227 << 10, kRegisters = 65536;

std::map<std::string, HostKernel>& host_kernels() {
  static std::map<std::string, HostKernel> all;
  static bool read = false;
  if (!read) {
    read = true;
    const char* paths = std::getenv("EMULATED_CUDA_KERNELS");
    std::string rest = paths ? paths : "";
    while (!rest.empty()) {
      const size_t end = std::min(rest.find(':'), rest.size());
      if (end > 0) add_kernels(rest.substr(0, end).c_str());
      rest.erase(0, end + 1);
    }
  }
  return all;
}

// ---- images ----

// What an image says of one kernel.
struct Description {
  bool found = false;
  std::vector<size_t> sizes;  // of the parameters; only in PTX
  size_t bytes = 0;           // of all parameters
  unsigned max_threads = 1024, registers = 0, static_shared = 0;
};

size_t type_bytes(const std::string& type) {  // ".u64", ".b8"
  const size_t digits = type.find_first_of("0123456789");
  return digits == std::string::npos ? 0 : std::strtoul(type.c_str() + digits, nullptr, 10) / 8;
}

// `.param .u64 .ptr .align 1 name_param_0` or `.param .align 4 .b8 name_param_0[12]`.
size_t declared_bytes(const std::string& text) {
  size_t bytes = 0;
  for (size_t dot = text.find('.'); dot != std::string::npos; dot = text.find('.', dot + 1)) {
    const char kind = dot + 1 < text.size() ? text[dot + 1] : 0;
    const bool typed = dot + 2 < text.size() && isdigit(static_cast<unsigned char>(text[dot + 2]));
    if (typed && std::strchr("ubsf", kind)) bytes = type_bytes(text.substr(dot, 5));
  }
  const size_t bracket = text.find('[');
  return bracket == std::string::npos
             ? bytes
             : bytes * std::strtoul(text.c_str() + bracket + 1, nullptr, 10);
}

Description describe_ptx(const std::string& image, const std::string& name) {
  Description d;
  const size_t entry = image.find(".entry " + name + "(");
  if (entry == std::string::npos) return d;
  d.found = true;
  const size_t open = image.find('(', entry), close = image.find(')', open);
  const size_t body = image.find('{', close);
  size_t at = image.find(".param", open);
  while (at < close) {
    const size_t next = std::min(image.find(".param", at + 6), close);
    d.sizes.push_back(declared_bytes(image.substr(at + 6, next - at - 6)));
    at = next == close ? std::string::npos : next;
  }
  const size_t bound = image.find(".maxntid", close);
  if (bound < body) {
    d.max_threads = 1;
    const char* text = image.c_str() + bound + 8;
    for (char* end = nullptr;; text = end + 1) {
      const unsigned long count = std::strtoul(text, &end, 10);
      if (end == text) break;
      d.max_threads *= static_cast<unsigned>(count);
      if (*end != ',') break;
    }
  }
  const size_t end = image.find("\n}", body);
  for (size_t s = image.find("\t.shared", body); s < end; s = image.find("\t.shared", s + 8)) {
    d.static_shared +=
        static_cast<unsigned>(declared_bytes(image.substr(s + 8, image.find(';', s) - s - 8)));
  }
  return d;
}

const Elf64_Shdr* section(const std::string& image, const std::string& name) {
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(image.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(image.data() + header->e_shoff);
  const char* names = image.data() + sections[header->e_shstrndx].sh_offset;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (name == names + sections[i].sh_name) return &sections[i];
  }
  return nullptr;
}

Description describe_cubin(const std::string& image, const std::string& name) {
  Description d;
  const Elf64_Shdr* code = section(image, ".text." + name);
  const Elf64_Shdr* info = section(image, ".nv.info." + name);
  if (!code || !info) return d;
  d.found = true;
  d.registers = code->sh_info >> 24;
  if (const Elf64_Shdr* shared = section(image, ".nv.shared." + name)) {
    d.static_shared = static_cast<unsigned>(shared->sh_size);
  }
  const unsigned char* p = reinterpret_cast<const unsigned char*>(image.data()) + info->sh_offset;
  const unsigned char* end = p + info->sh_size;
  while (p + 4 <= end) {
    const unsigned char format = p[0], attribute = p[1];
    uint16_t half;
    std::memcpy(&half, p + 2, 2);
    if (format == 3 && attribute == 0x19) d.bytes = half;  // EIATTR_CBANK_PARAM_SIZE
    if (format == 4 && attribute == 0x05 && half == 12) {  // EIATTR_MAX_THREADS
      uint32_t size[3];
      std::memcpy(size, p + 4, 12);
      d.max_threads = size[0] * size[1] * size[2];
    }
    p += 4 + (format == 4 ? half : 0);
  }
  return d;
}

// CUDA_SUCCESS where the selected device would take the image.
CUresult check_ptx(const std::string& image) {
  const size_t version = image.find(".version "), target = image.find(".target sm_");
  if (version == std::string::npos || target == std::string::npos) {
    return refuse(CUDA_ERROR_INVALID_PTX, "the image is neither a cubin nor PTX");
  }
  int major = 0, minor = 0, capability = 0;
  sscanf(image.c_str() + version, ".version %d.%d", &major, &minor);
  sscanf(image.c_str() + target, ".target sm_%d", &capability);
  // CUDA 11.0 came with PTX 7.0, 12.0 with 8.0, 13.0 with 9.0.
  const int toolkit = (major + 4) * 1000 + minor * 10;
  if (toolkit > settings.driver_version) {
    return refuse(CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "PTX %d.%d is newer than the driver (%d)",
                  major, minor, settings.driver_version);
  }
  if (capability > settings.capability) {
    return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "PTX for compute_%d on a device of %d", capability,
                  settings.capability);
  }
  return CUDA_SUCCESS;
}

CUresult check_cubin(const std::string& image) {
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(image.data());
  // The architecture is the second byte of the flags since CUDA 12.8's ABI, the first before.
  const int modern = header->e_flags >> 8 & 0xff, older = header->e_flags & 0xff;
  const int built = modern >= 50 ? modern : older;
  if (built / 10 != settings.capability / 10 || built % 10 > settings.capability % 10) {
    return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "a cubin for sm_%d on a device of %d", built,
                  settings.capability);
  }
  return CUDA_SUCCESS;
}

CUresult load(const void* image, Module** loaded) {
  if (!image) return CUDA_ERROR_INVALID_VALUE;
  if (const CUresult refused = refused_by_capture("loading a module", false)) return refused;
  auto module = std::make_unique<Module>();
  module->ptx = std::memcmp(image, ELFMAG, SELFMAG) != 0;
  if (module->ptx) {
    module->image = static_cast<const char*>(image);
  } else {
    Elf64_Ehdr header;
    std::memcpy(&header, image, sizeof header);
    size_t size = std::max({sizeof header,
                            header.e_shoff + size_t{header.e_shentsize} * header.e_shnum,
                            header.e_phoff + size_t{header.e_phentsize} * header.e_phnum});
    const auto* sections =
        reinterpret_cast<const Elf64_Shdr*>(static_cast<const char*>(image) + header.e_shoff);
    for (int i = 0; i < header.e_shnum; ++i) {
      if (sections[i].sh_type == SHT_NOBITS) continue;
      size = std::max<size_t>(size, sections[i].sh_offset + sections[i].sh_size);
    }
    module->image.assign(static_cast<const char*>(image), size);
  }
  const CUresult wrong = module->ptx ? check_ptx(module->image) : check_cubin(module->image);
  if (wrong) return wrong;
  *loaded = modules.add(std::move(module));
  return CUDA_SUCCESS;
}

CUresult load_file(const char* path, Module** loaded) {
  FILE* file = path ? fopen(path, "rb") : nullptr;
  if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
  std::string bytes;
  char chunk[65536];
  for (size_t count; (count = fread(chunk, 1, sizeof chunk, file)) > 0;) bytes.append(chunk, count);
  fclose(file);
  return load(bytes.c_str(), loaded);
}

CUresult unload(Module* module) {
  finish_all();
  for (const auto& [name, function] : module->functions) functions.erase(function);
  modules.erase(module);
  return CUDA_SUCCESS;
}

CUresult get_function(Module* module, const char* name, Function** function) {
  if (!name || !function) return CUDA_ERROR_INVALID_VALUE;
  const auto known = module->functions.find(name);
  if (known != module->functions.end()) {
    *function = known->second;
    return CUDA_SUCCESS;
  }
  const Description d =
      module->ptx ? describe_ptx(module->image, name) : describe_cubin(module->image, name);
  if (!d.found) return refuse(CUDA_ERROR_NOT_FOUND, "the image holds no kernel %s", name);
  const auto host = host_kernels().find(name);
  if (host == host_kernels().end()) {
    return refuse(CUDA_ERROR_NOT_FOUND, "kernel %s is in the image, but not in the kernels built for "
                  "the emulator", name);
  }
  const KernelEntry& entry = *host->second.entry;
  auto made = std::make_unique<Function>();
  made->name = name;
  made->module = module;
  made->host = host->second;
  bool same = !module->ptx || d.sizes.size() == entry.count;
  for (uint32_t i = 0; i < entry.count; ++i) {
    const size_t alignment = entry.alignments[i];
    made->parameter_bytes = (made->parameter_bytes + alignment - 1) / alignment * alignment;
    made->offsets.push_back(made->parameter_bytes);
    made->parameter_bytes += entry.sizes[i];
    same = same && (!module->ptx || d.sizes[i] == entry.sizes[i]);
  }
  if (!same || (!module->ptx && d.bytes != made->parameter_bytes)) {
    return refuse(CUDA_ERROR_INVALID_IMAGE,
                  "the parameters of %s differ between the image and the source it should be of",
                  name);
  }
  made->max_threads = d.max_threads;
  made->registers = d.registers;
  made->static_shared = d.static_shared;
  *function = functions.add(std::move(made));
  module->functions[name] = *function;
  return CUDA_SUCCESS;
}

// ---- launches ----

bool readable(const void* address, size_t size) {
  std::vector<char> bytes(size);
  iovec to{bytes.data(), size}, from{const_cast<void*>(address), size};
  return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == static_cast<ssize_t>(size);
}

CUresult read_arguments(const Function& function, void** parameters, void** extra, KernelCall* call) {
  const char* name = function.name.c_str();
  const KernelEntry& entry = *function.host.entry;
  call->offsets = function.offsets;
  call->arguments.resize(function.parameter_bytes);
  if (extra) {
    const char* buffer = nullptr;
    size_t size = 0;
    for (void** item = extra; *item != CU_LAUNCH_PARAM_END; item += 2) {
      if (*item == CU_LAUNCH_PARAM_BUFFER_POINTER) {
        buffer = static_cast<const char*>(item[1]);
      } else if (*item == CU_LAUNCH_PARAM_BUFFER_SIZE) {
        size = *static_cast<size_t*>(item[1]);
      } else {
        return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: unknown item in `extra`", name);
      }
    }
    if (parameters) {
      return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: both kinds of arguments", name);
    }
    if (size != function.parameter_bytes || (size > 0 && !buffer)) {
      return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: %zu bytes of arguments, it takes %zu",
                    name, size, function.parameter_bytes);
    }
    std::copy_n(buffer, size, call->arguments.begin());
    return CUDA_SUCCESS;
  }
  for (uint32_t i = 0; i < entry.count; ++i) {
    if (!parameters || !readable(parameters + i, sizeof *parameters) || !parameters[i] ||
        !readable(parameters[i], entry.sizes[i])) {
      return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: no argument %u; it takes %u", name, i,
                    entry.count);
    }
    std::memcpy(call->arguments.data() + function.offsets[i], parameters[i], entry.sizes[i]);
  }
  return CUDA_SUCCESS;
}

std::string text(const Dim& d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

void report(const Function& function, const Fault& f) {
  const std::string place = "kernel " + function.name + ", block " + text(f.block) + ", thread " +
                            text(f.thread) + ": ";
  const std::string where = describe(f.address);
  switch (f.kind) {
    case FaultKind::access:
      return fault(CUDA_ERROR_ILLEGAL_ADDRESS, "%s%s of %zu bytes at %#zx, %s", place.c_str(),
                   f.write ? "write" : "read", f.size, f.address, where.c_str());
    case FaultKind::uninitialised:
      return fault(CUDA_ERROR_LAUNCH_FAILED, "%sread of %zu bytes that nobody wrote at %#zx, %s",
                   place.c_str(), f.size, f.address, where.c_str());
    case FaultKind::deadlock:
      return fault(CUDA_ERROR_LAUNCH_TIMEOUT, "%swaits at a barrier that others never reach",
                   place.c_str());
    case FaultKind::trap:
      return fault(CUDA_ERROR_LAUNCH_FAILED, "%strap", place.c_str());
    default:
      break;
  }
  if (f.signal == SIGILL) {
    return fault(CUDA_ERROR_MISALIGNED_ADDRESS, "%smisaligned access", place.c_str());
  }
  if (f.signal == SIGFPE) {
    return fault(CUDA_ERROR_LAUNCH_FAILED, "%sinteger division by zero", place.c_str());
  }
  fault(CUDA_ERROR_ILLEGAL_ADDRESS, "%saccess at %#zx, %s", place.c_str(), f.address, where.c_str());
}

}  // namespace

bool add_kernels(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    refuse(CUDA_SUCCESS, "kernels not loaded: %s", dlerror());
    return false;
  }
  const auto list = reinterpret_cast<ListKernels>(dlsym(library, "emulated_kernels"));
  const auto run = reinterpret_cast<RunLaunch>(dlsym(library, "emulated_run"));
  if (!list || !run) return false;
  int count = 0;
  const KernelEntry* entries = list(&count);
  for (int i = 0; i < count; ++i) host_kernels()[entries[i].name] = {&entries[i], run};
  return true;
}

Function* valid_function(const void* handle) { return functions.find(handle); }

CUresult make_call(Function* function, Dim grid, Dim block, unsigned shared, void** parameters,
                   void** extra, KernelCall* call) {
  const char* name = function->name.c_str();
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) {
    return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: grid %s", name, text(grid).c_str());
  }
  if (threads == 0 || block.x > 1024 || block.y > 1024 || block.z > 64 || threads > 1024 ||
      threads > function->max_threads) {
    return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: block %s, its bound is %u threads", name,
                  text(block).c_str(), function->max_threads);
  }
  if (shared > function->dynamic_shared_limit || shared + function->static_shared > kMaxShared) {
    return refuse(CUDA_ERROR_INVALID_VALUE, "launch of %s: %u bytes of shared memory, its limit is %u",
                  name, shared, function->dynamic_shared_limit);
  }
  if ((threads + 31) / 32 * 32 * function->registers > kRegisters) {
    return refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "launch of %s: %u registers by %llu threads",
                  name, function->registers, static_cast<unsigned long long>(threads));
  }
  call->function = function;
  call->grid = grid;
  call->block = block;
  call->shared = shared;
  return read_arguments(*function, parameters, extra, call);
}

CUresult run_kernel(const KernelCall& call) {
  if (!functions.find(call.function)) {
    fault(CUDA_ERROR_INVALID_HANDLE, "a kernel ran after its module was unloaded");
    return CUDA_ERROR_INVALID_HANDLE;
  }
  const Function& function = *call.function;
  std::vector<char> arguments = call.arguments;
  std::vector<void*> pointers;
  for (const size_t offset : call.offsets) pointers.push_back(arguments.data() + offset);
  Launch launch{};
  launch.kernel = function.host.entry;
  launch.grid = call.grid;
  launch.block = call.block;
  launch.arguments = pointers.data();
  launch.order = static_cast<Order>(settings.order);
  launch.junk = static_cast<unsigned char>(settings.junk);
  launch.find = kernel_memory;
  ++counters.launches;
  ++counters.launches_of[function.name];
  DeviceMemoryOpen open;
  if (function.host.run(&launch)) return CUDA_SUCCESS;
  report(function, launch.fault);
  return CUDA_SUCCESS;  // told by the fault, which every later call answers
}

}  // namespace emulated

using namespace emulated;

CUDA_ENTRY cuModuleLoadData(CUmodule* module, const void* image) {
  ENTER_CONTEXT;
  return load(image, reinterpret_cast<Module**>(module));
}
CUDA_ENTRY cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(module, image);
}
CUDA_ENTRY cuModuleLoad(CUmodule* module, const char* path) {
  ENTER_CONTEXT;
  return load_file(path, reinterpret_cast<Module**>(module));
}
CUDA_ENTRY cuModuleUnload(CUmodule handle) {
  Call counted;
  Module* module = modules.find(handle);
  return module ? unload(module) : CUDA_ERROR_INVALID_HANDLE;
}
CUDA_ENTRY cuModuleGetFunction(CUfunction* function, CUmodule handle, const char* name) {
  ENTER_CONTEXT;
  Module* module = modules.find(handle);
  if (!module) return CUDA_ERROR_INVALID_HANDLE;
  return get_function(module, name, reinterpret_cast<Function**>(function));
}

CUDA_ENTRY cuLibraryLoadData(CUlibrary* library, const void* image, CUjit_option*, void**, unsigned,
                             CUlibraryOption*, void**, unsigned) {
  ENTER;
  return load(image, reinterpret_cast<Module**>(library));
}
CUDA_ENTRY cuLibraryLoadFromFile(CUlibrary* library, const char* path, CUjit_option*, void**, unsigned,
                                 CUlibraryOption*, void**, unsigned) {
  ENTER;
  return load_file(path, reinterpret_cast<Module**>(library));
}
CUDA_ENTRY cuLibraryUnload(CUlibrary library) {
  return cuModuleUnload(reinterpret_cast<CUmodule>(library));
}
CUDA_ENTRY cuLibraryGetKernel(CUkernel* kernel, CUlibrary library, const char* name) {
  ENTER;
  Module* module = modules.find(library);
  if (!module) return CUDA_ERROR_INVALID_HANDLE;
  return get_function(module, name, reinterpret_cast<Function**>(kernel));
}
CUDA_ENTRY cuLibraryGetModule(CUmodule* module, CUlibrary library) {
  ENTER_CONTEXT;
  *module = reinterpret_cast<CUmodule>(library);
  return modules.find(library) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
CUDA_ENTRY cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
  ENTER_CONTEXT;
  if (!functions.find(kernel)) return CUDA_ERROR_INVALID_HANDLE;
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuKernelGetLibrary(CUlibrary* library, CUkernel kernel) {
  ENTER;
  Function* function = functions.find(kernel);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  *library = reinterpret_cast<CUlibrary>(function->module);
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuFuncGetModule(CUmodule* module, CUfunction function) {
  return cuKernelGetLibrary(reinterpret_cast<CUlibrary*>(module),
                            reinterpret_cast<CUkernel>(function));
}
CUDA_ENTRY cuKernelGetName(const char** name, CUkernel kernel) {
  ENTER;
  Function* function = functions.find(kernel);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  *name = function->name.c_str();
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuFuncGetName(const char** name, CUfunction function) {
  return cuKernelGetName(name, reinterpret_cast<CUkernel>(function));
}
CUDA_ENTRY cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t* offset, size_t* size) {
  ENTER;
  Function* function = functions.find(kernel);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  if (index >= function->offsets.size()) return CUDA_ERROR_INVALID_VALUE;
  *offset = function->offsets[index];
  if (size) *size = function->host.entry->sizes[index];
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuFuncGetParamInfo(CUfunction function, size_t index, size_t* offset, size_t* size) {
  return cuKernelGetParamInfo(reinterpret_cast<CUkernel>(function), index, offset, size);
}

CUDA_ENTRY cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
  ENTER;
  Function* function = functions.find(handle);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = static_cast<int>(function->max_threads);
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      *value = static_cast<int>(function->static_shared);
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      *value = static_cast<int>(function->registers);
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      *value = static_cast<int>(function->dynamic_shared_limit);
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
      *value = settings.capability;
      return CUDA_SUCCESS;
    default:
      *value = 0;
      return CUDA_SUCCESS;
  }
}
CUDA_ENTRY cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel kernel,
                                CUdevice) {
  return cuFuncGetAttribute(value, attribute, reinterpret_cast<CUfunction>(kernel));
}
CUDA_ENTRY cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  ENTER;
  Function* function = functions.find(handle);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    if (value < 0 || static_cast<unsigned>(value) + function->static_shared > kMaxShared) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    function->dynamic_shared_limit = static_cast<unsigned>(value);
  }
  return CUDA_SUCCESS;
}
CUDA_ENTRY cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice) {
  return cuFuncSetAttribute(reinterpret_cast<CUfunction>(kernel), attribute, value);
}
CUDA_ENTRY cuFuncSetCacheConfig(CUfunction function, CUfunc_cache) {
  ENTER;
  return functions.find(function) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
// PyCUDA still makes these two calls before a launch.
CUDA_ENTRY cuFuncSetBlockShape(CUfunction function, int, int, int) {
  return cuFuncSetCacheConfig(function, CU_FUNC_CACHE_PREFER_NONE);
}
CUDA_ENTRY cuFuncSetSharedSize(CUfunction function, unsigned) {
  return cuFuncSetCacheConfig(function, CU_FUNC_CACHE_PREFER_NONE);
}

CUDA_ENTRY cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                          unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                          CUstream stream_handle, void** parameters, void** extra) {
  ENTER_CONTEXT;
  Function* function = functions.find(handle);
  Stream* stream = find_stream(stream_handle);
  if (!function) return refuse(CUDA_ERROR_INVALID_HANDLE, "launch of %p, no kernel", (void*)handle);
  if (!stream) return refuse(CUDA_ERROR_INVALID_HANDLE, "launch of %s in no stream",
                             function->name.c_str());
  auto node = std::make_shared<Node>();
  node->type = CU_GRAPH_NODE_TYPE_KERNEL;
  const CUresult wrong = make_call(function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z},
                                   shared, parameters, extra, &node->kernel);
  return wrong ? wrong : submit(stream, std::move(node));
}
CUDA_ENTRY cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters,
                            void** extra) {
  if (!config) return CUDA_ERROR_INVALID_VALUE;
  return cuLaunchKernel(function, config->gridDimX, config->gridDimY, config->gridDimZ,
                        config->blockDimX, config->blockDimY, config->blockDimZ,
                        config->sharedMemBytes, config->hStream, parameters, extra);
}

CUDA_ENTRY cuGraphKernelNodeGetParams_v2(CUgraphNode handle, CUDA_KERNEL_NODE_PARAMS* parameters) {
  ENTER_CONTEXT;
  Node* node = reinterpret_cast<Node*>(handle);
  if (node->type != CU_GRAPH_NODE_TYPE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
  KernelCall& call = node->kernel;
  static thread_local std::vector<void*> pointers;
  pointers.clear();
  for (const size_t offset : call.offsets) pointers.push_back(call.arguments.data() + offset);
  *parameters = {};
  parameters->func = reinterpret_cast<CUfunction>(call.function);
  parameters->gridDimX = call.grid.x;
  parameters->gridDimY = call.grid.y;
  parameters->gridDimZ = call.grid.z;
  parameters->blockDimX = call.block.x;
  parameters->blockDimY = call.block.y;
  parameters->blockDimZ = call.block.z;
  parameters->sharedMemBytes = call.shared;
  parameters->kernelParams = pointers.data();
  return CUDA_SUCCESS;
}
