// Faults, settings and counters: what a test sees of the emulator, through plain C functions.
#include "emulator.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define CONTROL extern "C" __attribute__((visibility("default")))

namespace emulated {

std::recursive_mutex mutex;
Settings settings;
Counters counters;
thread_local int Call::depth = 0;

namespace {

CUresult sticky = CUDA_SUCCESS;
bool initialised = false;
std::string faults;  // one a line

std::string format_text(const char* format, va_list arguments) {
  char text[1024];
  vsnprintf(text, sizeof text, format, arguments);
  return text;
}

struct Named {
  const char* name;
  std::function<int64_t()> get;
  std::function<void(int64_t)> set;
};

template <class T>
Named setting(const char* name, T Settings::*member) {
  return {name, [=] { return static_cast<int64_t>(settings.*member); },
          [=](int64_t value) { settings.*member = static_cast<T>(value); }};
}

Named counter(const char* name, int64_t Counters::*member) {
  return {name, [=] { return counters.*member; }, nullptr};
}

const std::vector<Named>& names() {
  static const std::vector<Named> all = {
      setting("defer", &Settings::defer),
      setting("check_initialised", &Settings::check_initialised),
      setting("hide_device_memory", &Settings::hide_device_memory),
      setting("allow_capture_allocation", &Settings::allow_capture_allocation),
      setting("order", &Settings::order),
      setting("capability", &Settings::capability),
      setting("driver_version", &Settings::driver_version),
      setting("junk", &Settings::junk),
      setting("memory", &Settings::memory),
      counter("allocations", &Counters::allocations),
      counter("frees", &Counters::frees),
      counter("device_bytes", &Counters::device_bytes),
      counter("host_allocations", &Counters::host_allocations),
      counter("host_frees", &Counters::host_frees),
      counter("launches", &Counters::launches),
      counter("graph_launches", &Counters::graph_launches),
      counter("captures", &Counters::captures),
      counter("copies", &Counters::copies),
      counter("pageable_copies", &Counters::pageable_copies),
      counter("bytes_up", &Counters::bytes_up),
      counter("bytes_down", &Counters::bytes_down),
      counter("synchronisations", &Counters::synchronisations),
      counter("calls", &Counters::calls),
  };
  return all;
}

const Named* find_name(const char* name) {
  for (const Named& one : names()) {
    if (std::strcmp(one.name, name) == 0) return &one;
  }
  return nullptr;
}

// Copies as much as there is room for, and returns the whole length.
size_t copy_text(const std::string& from, char* text, size_t size) {
  if (size > 0) {
    std::strncpy(text, from.c_str(), size - 1);
    text[size - 1] = 0;
  }
  return from.size();
}

// EMULATED_CUDA_<NAME> presets a setting, for programs that are not tests.
void read_environment() {
  for (const Named& one : names()) {
    std::string variable = "EMULATED_CUDA_";
    for (const char* c = one.name; *c; ++c) variable += static_cast<char>(toupper(*c));
    const char* value = std::getenv(variable.c_str());
    if (one.set && value) one.set(std::atoll(value));
  }
}

}  // namespace

void fault(CUresult code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string text = format_text(format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "emulated CUDA driver: fault: %s\n", text.c_str());
  faults += text + "\n";
  if (sticky == CUDA_SUCCESS) sticky = code;
}

CUresult refuse(CUresult code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fprintf(stderr, "emulated CUDA driver: %s\n", format_text(format, arguments).c_str());
  va_end(arguments);
  return code;
}

CUresult blocked() { return initialised ? sticky : CUDA_ERROR_NOT_INITIALIZED; }
CUresult sticky_error() { return sticky; }

void initialise() {
  if (initialised) return;
  read_environment();
  initialised = true;
}

}  // namespace emulated

using namespace emulated;

// Sets a setting; 0 where there is none of this name.
CONTROL int emulated_cuda_set(const char* name, int64_t value) {
  Lock lock(mutex);
  const Named* one = find_name(name);
  if (one == nullptr || !one->set) return 0;
  one->set(value);
  return 1;
}

// A setting or a counter; -1 where there is none of this name.
CONTROL int64_t emulated_cuda_get(const char* name) {
  Lock lock(mutex);
  const Named* one = find_name(name);
  return one ? one->get() : -1;
}

// The faults since the last reset, one a line.
CONTROL size_t emulated_cuda_faults(char* text, size_t size) {
  Lock lock(mutex);
  return copy_text(faults, text, size);
}

// "kernel launches" of every kernel that ran since the process started, one a line.
CONTROL size_t emulated_cuda_launches(char* text, size_t size) {
  Lock lock(mutex);
  std::string all;
  for (const auto& [name, count] : counters.launches_of) {
    all += name + " " + std::to_string(count) + "\n";
  }
  return copy_text(all, text, size);
}

// Forgets faults, queued work and captures, and sets every setting as at first. Memory, modules,
// streams and contexts stay as they are.
CONTROL void emulated_cuda_reset() {
  Lock lock(mutex);
  forget_work();
  sticky = CUDA_SUCCESS;
  faults.clear();
  settings = Settings{};
  read_environment();
}

// Adds a library of kernels; 0 where it cannot be loaded.
CONTROL int emulated_cuda_add_kernels(const char* path) {
  Lock lock(mutex);
  return add_kernels(path) ? 1 : 0;
}

extern "C" int emulated_unsupported(const char* name) {
  static std::set<std::string> told;
  Lock lock(mutex);
  if (told.insert(name).second) {
    std::fprintf(stderr, "emulated CUDA driver: %s is not emulated\n", name);
  }
  return CUDA_ERROR_NOT_SUPPORTED;
}
