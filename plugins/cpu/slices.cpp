#include "cpu/slices.h"

#if defined(__linux__)
#include <dirent.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

namespace dela {
namespace {

// The shortest that Linux grants.
constexpr uint64_t kShortSlice = 100'000;

// The kernel's struct sched_attr, first version: older C libraries do not declare it.
struct Attributes {
  uint32_t size = sizeof(Attributes), policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime = 0, deadline = 0, period = 0;
};
static_assert(sizeof(Attributes) == 48, "as the kernel lays it out");

constexpr uint64_t kResetOnFork = 1;  // the only flag that reading gives and writing takes back

// False for threads whose time is not shared fairly (real-time ones), or where it is not told.
bool read_thread(long thread, Attributes* found) {
  return syscall(SYS_sched_getattr, thread, found, sizeof *found, 0u) == 0 &&
         (found->policy == SCHED_OTHER || found->policy == SCHED_BATCH);
}

}  // namespace

Slices::Slices() {
  Attributes own;
  usual_ = read_thread(0, &own) ? own.runtime : 0;
}

void Slices::shorten() {
  if (usual_ <= kShortSlice) return;
  shortened_ = true;
  change(usual_, kShortSlice);
}

void Slices::restore() {
  if (shortened_) change(kShortSlice, usual_);
  shortened_ = false;
}

// Other slices than `from` are somebody's choice and stand.
void Slices::change(uint64_t from, uint64_t to) {
  DIR* const folder = opendir("/proc/self/task");
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    const long thread = std::strtol(entry->d_name, nullptr, 10);
    Attributes attributes;
    if (thread <= 0 || !read_thread(thread, &attributes)) continue;
    if (attributes.runtime != from) continue;
    attributes.size = sizeof attributes;
    attributes.flags &= kResetOnFork;
    attributes.runtime = to;
    // A thread that has ended, or a system that forbids it, is no loss.
    syscall(SYS_sched_setattr, thread, &attributes, 0u);
  }
  closedir(folder);
}

}  // namespace dela

#else

namespace dela {
Slices::Slices() : usual_(0) {}
void Slices::shorten() {}
void Slices::restore() {}
}  // namespace dela

#endif
