// A CUDA driver that does nothing but what a test asks of it: refuse, count and remember.
#pragma once

#include <atomic>

struct FakeDriver {
  void* context = nullptr;  // current in every thread
  int capability = 89;
  int refusals[8] = {};  // status of the next loads of images, then 0
  int function_status = 0, launch_status = 0, push_status = 0;
  std::atomic<int> loads{0}, modules{0}, launches{0}, mode_changes{0};
  const unsigned char* image = nullptr;  // last one loaded
  // Of the last launch.
  char kernel[32] = "";
  unsigned grid = 0, block = 0;
  void* stream = nullptr;
  const void* inputs[5] = {};
  int sizes[7] = {};
  void* output = nullptr;
};

extern "C" FakeDriver fake_driver;
