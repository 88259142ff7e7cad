// How long the system lets a thread of this process run before another one gets the core.
#pragma once

#include <cstdint>

namespace dela {

// Threads that meet many times in a step lose most where one of them waits for a core while the
// others wait for it. Linux (6.12 and newer) lets a thread ask for short slices: it gets a core
// sooner and more often, for no more time in all. Other systems refuse or ignore the wish.
class Slices {
 public:
  // To be made by a thread whose slice is the process's usual one.
  Slices();
  // The wish of every thread that has the usual slice, those started since included.
  void shorten();
  // Takes the wishes back.
  void restore();

 private:
  void change(uint64_t from, uint64_t to);

  uint64_t usual_;  // nanoseconds; 0 where the system does not tell
  bool shortened_ = false;
};

}  // namespace dela
