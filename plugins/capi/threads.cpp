#include "capi/threads.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <locale>
#include <set>
#include <string>

#ifdef __linux__
#include <sched.h>
#endif
#include <thread>

namespace dela::capi {
namespace {

// The first of the numbers in a value such as "4" or "4,2"; 0 where there is none.
int wished_threads() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  if (text == nullptr) return 0;
  const long value = std::strtol(text, nullptr, 10);
  return value > 0 && value < (1 << 16) ? static_cast<int>(value) : 0;
}

std::set<int> usable_processors() {
  std::set<int> found;
#ifdef __linux__
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
    for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
      if (CPU_ISSET(processor, &mask)) found.insert(processor);
    }
  }
#endif
  const int present = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  if (found.empty()) {
    for (int processor = 0; processor < present; ++processor) found.insert(processor);
  }
  return found;
}

// Processors' worth of time that the container gives, as it sees its own control group (version 2,
// then 1); infinite for no limit.
double processor_quota() {
  double quota = 0.0, period = 0.0;
  std::ifstream both("/sys/fs/cgroup/cpu.max");
  both.imbue(std::locale::classic());
  if (!(both >> quota >> period)) {
    std::ifstream first("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream second("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    first.imbue(std::locale::classic());
    second.imbue(std::locale::classic());
    if (!(first >> quota) || !(second >> period)) return INFINITY;
  }
  return quota > 0.0 && period > 0.0 ? quota / period : INFINITY;
}

// How many cores these processors are; two threads of one core count once.
int physical_cores(const std::set<int>& processors) {
  std::set<std::string> cores;
  for (const int processor : processors) {
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(processor) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    if (!(file >> siblings)) siblings = std::to_string(processor);
    cores.insert(siblings);
  }
  return static_cast<int>(cores.size());
}

}  // namespace

ThreadCounts count_threads(int asked) {
  if (asked > 0) return {asked, asked};
  if (const int wished = wished_threads()) return {wished, wished};
  const std::set<int> processors = usable_processors();
  const auto usable = static_cast<int>(processors.size());
  const double quota = processor_quota();
  const int count = quota < usable ? std::max(1, static_cast<int>(quota)) : usable;
  return {count, std::min(count, physical_cores(processors))};
}

const char* waiting_policy() {
  const char* policy = std::getenv("OMP_WAIT_POLICY");
  const char* spins = std::getenv("GOMP_SPINCOUNT");
  std::string lower = policy == nullptr ? "" : policy;
  for (char& letter : lower) letter = static_cast<char>(std::tolower(letter));
  const bool chosen = !lower.empty() || (spins != nullptr && *spins != 0);
  if (!chosen) return "";
  const bool none = spins != nullptr && std::string(spins) == "0";
  return lower == "passive" || none ? "passive" : "active";
}

}  // namespace dela::capi
