// Included by the generated stubs.cpp: entry points of cuda.h that the emulator does not define, and
// the table of all entry points.
#pragma once

struct EntryPoint {
  const char* name;
  void* address;
};
extern "C" int emulated_unsupported(const char* name);

// No cuda.h here: each stub has the name only, so that one shape serves them all.
#define STUB(name)                                                                      \
  extern "C" __attribute__((weak, visibility("default"))) int name() {                  \
    return emulated_unsupported(#name);                                                 \
  }
#define ENTRY(name) {#name, reinterpret_cast<void*>(&name)}
extern const EntryPoint entry_points[];
