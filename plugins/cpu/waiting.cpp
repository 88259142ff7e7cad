// libgomp reads its spin count once, when it is loaded, but asks at every wait whether it manages
// more threads than there are cores; if so it spins some 100 turns instead of some 300,000 and
// sleeps. A sleeping team of its own threads, kept by a thread of ours, brings that about at run
// time; when the team ends, waits spin again. A watcher decides which, some times a second.
#include "cpu/waiting.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "cpu/common.h"
#include "cpu/slices.h"

#if defined(__linux__) && defined(_OPENMP)
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

extern "C" void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);

namespace dela {
namespace {

// A window is long enough to tell a daemon's moment from work that stays.
constexpr int64_t kWindowNanoseconds = 50'000'000;
// A window in which this process wanted less than this says nothing about the cores.
constexpr double kLeastSeconds = 0.010;

// Everything lives as long as the process: threads of ours may run while it ends.
// (pthreads: std::condition_variable would tie the library to a newer libstdc++.)
struct State {
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
  bool team_wanted = false;
  int teams = 0;
  std::vector<void*> asked;  // GOMP_parallel of each libgomp that was asked for a team
  int processors = 0;  // when the watcher started: libgomp does not count anew
  Slices slices;
  bool forced = false;  // a caller chose; the watcher only measures
  std::atomic<bool> is_short{false};
  std::atomic<double> share{0.0};
};
State& state() {
  static State* const shared = new State;
  return *shared;
}

class Hold {
 public:
  Hold() { pthread_mutex_lock(&state().lock); }
  ~Hold() { pthread_mutex_unlock(&state().lock); }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;
  void wait() { pthread_cond_wait(&state().changed, &state().lock); }
};

bool start_thread(void* (*body)(void*), void* argument) {
  // Signals are for the program's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  const bool started = pthread_create(&thread, nullptr, body, argument) == 0;
  if (started) pthread_detach(thread);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// GOMP_parallel of a loaded library; null unless the library is libgomp. (LLVM's runtime answers
// to libgomp's names too.)
Parallel parallel_of(const char* path) {
  void* const library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  void* const found = dlsym(library, "GOMP_parallel");
  const bool other = dlsym(library, "__kmpc_fork_call") != nullptr;
  dlclose(library);
  return other ? nullptr : reinterpret_cast<Parallel>(found);
}

// Every libgomp of this process: a wheel of torch may bring one beside ours.
std::vector<Parallel> runtimes() {
  std::vector<std::string> names;
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void* list) {
        if (std::strstr(library->dlpi_name, "libgomp") != nullptr) {
          static_cast<std::vector<std::string>*>(list)->push_back(library->dlpi_name);
        }
        return 0;
      },
      &names);
  std::vector<Parallel> found;
  for (const std::string& name : names) {
    const Parallel parallel = parallel_of(name.c_str());
    if (parallel != nullptr) found.push_back(parallel);
  }
  return found;
}

void sleep_in_team(void*) {
  Hold hold;
  while (state().team_wanted) hold.wait();
}

// One thread more than libgomp sees cores.
int team_size() { return std::max(state().processors, omp_get_num_procs()) + 1; }

// Whether the system grants a team's threads: libgomp ends the process where it does not. They are
// started as plain threads first, all at once, and let go.
bool threads_are_to_be_had(int count) {
  struct Gate {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
    bool open = false;
  } gate;
  std::vector<pthread_t> started;
  const auto wait = [](void* argument) -> void* {
    Gate* const own = static_cast<Gate*>(argument);
    pthread_mutex_lock(&own->lock);
    while (!own->open) pthread_cond_wait(&own->changed, &own->lock);
    pthread_mutex_unlock(&own->lock);
    return nullptr;
  };
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  // Two more than are needed: others may be starting threads meanwhile.
  while (static_cast<int>(started.size()) < count + 2 &&
         pthread_create(&thread, nullptr, wait, &gate) == 0) {
    started.push_back(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_mutex_lock(&gate.lock);
  gate.open = true;
  pthread_cond_broadcast(&gate.changed);
  pthread_mutex_unlock(&gate.lock);
  for (const pthread_t one : started) pthread_join(one, nullptr);
  return static_cast<int>(started.size()) == count + 2;
}

// Sleeps in a team of more threads than cores until it is no longer wanted. Leaving the thread
// ends the team's threads, which libgomp then no longer counts.
void* keep_team(void* parallel) {
  const unsigned team = static_cast<unsigned>(team_size());
  reinterpret_cast<Parallel>(parallel)(sleep_in_team, nullptr, team, 0);
  const Hold hold;
  --state().teams;
  pthread_cond_broadcast(&state().changed);
  return nullptr;
}

void wait_shortly(Hold& hold, bool wanted) {
  State& shared = state();
  // The last teams may still be leaving.
  while (wanted && !shared.team_wanted && shared.teams > 0) hold.wait();
  if (!wanted) {
    shared.team_wanted = false;
    shared.asked.clear();
    pthread_cond_broadcast(&shared.changed);
    shared.is_short.store(false);
    shared.slices.restore();
    return;
  }
  shared.team_wanted = true;
  shared.slices.shorten();
  // Also those that were loaded since: a torch imported meanwhile brings its own.
  for (const Parallel parallel : runtimes()) {
    void* const runtime = reinterpret_cast<void*>(parallel);
    const auto end = shared.asked.end();
    if (std::find(shared.asked.begin(), end, runtime) != end) continue;
    // Once: a system short of threads is not to be asked for some in every window.
    shared.asked.push_back(runtime);
    if (threads_are_to_be_had(team_size()) && start_thread(keep_team, runtime)) ++shared.teams;
  }
  shared.is_short.store(shared.teams > 0);
}

// Seconds of a thread, or of several.
struct Times {
  long thread = 0;
  double running = 0.0, delayed = 0.0;
};

// Reads how long the threads of this process ran, and how long they could run and had no core.
class Meter {
 public:
  // What all threads but the caller's added since the last call. False when nothing is told.
  bool measure(Times* added) {
    *added = {};
    DIR* const folder = opendir("/proc/self/task");
    if (folder == nullptr) return false;
    const long own = syscall(SYS_gettid);
    now_.clear();
    while (const dirent* entry = readdir(folder)) {
      Times times;
      times.thread = std::strtol(entry->d_name, nullptr, 10);
      if (times.thread <= 0 || times.thread == own || !read_thread(&times)) continue;
      const Times last = before(times.thread);
      added->running += times.running - last.running;
      added->delayed += times.delayed - last.delayed;
      now_.push_back(times);
    }
    closedir(folder);
    before_.swap(now_);
    return !before_.empty();
  }

 private:
  Times before(long thread) const {
    for (const Times& times : before_) {
      if (times.thread == thread) return times;
    }
    return {};
  }

  static bool read_thread(Times* times) {
    char path[64], text[96];
    std::snprintf(path, sizeof path, "/proc/self/task/%ld/schedstat", times->thread);
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    const ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0) return false;
    text[length] = '\0';
    char* rest = text;
    times->running = static_cast<double>(std::strtoull(rest, &rest, 10)) * 1e-9;
    times->delayed = static_cast<double>(std::strtoull(rest, &rest, 10)) * 1e-9;
    return true;
  }

  std::vector<Times> before_, now_;
};

double process_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

void* watch(void*) {
  State& shared = state();
  WaitingJudge judge;
  Meter meter;
  Times added;
  meter.measure(&added);
  double used = process_seconds();
  for (;;) {
    const timespec window{0, kWindowNanoseconds};
    nanosleep(&window, nullptr);
    // An idle process is not looked into; threads that starve still run now and then.
    const double now = process_seconds();
    if (now - used < kLeastSeconds / 10) continue;
    used = now;
    if (!meter.measure(&added)) continue;
    const double wanted = added.running + added.delayed;
    if (wanted < kLeastSeconds) continue;
    shared.share.store(added.delayed / wanted);
    const bool crowded = judge.add(added.delayed / wanted);
    Hold hold;
    // A single thread waits for no other.
    if (!shared.forced && (crowded || shared.team_wanted)) {
      wait_shortly(hold, crowded && omp_get_max_threads() > 1);
    }
  }
}

bool runs_on_libgomp() {
  Dl_info found;
  return dladdr(reinterpret_cast<void*>(GOMP_parallel), &found) != 0 &&
         parallel_of(found.dli_fname) != nullptr;
}

bool is_set(const char* variable) {
  const char* const value = std::getenv(variable);
  return value != nullptr && *value != '\0';
}

int32_t start_watching() {
  // Where nothing can be measured, dela/threads.py has set a spin count itself.
  if (is_set("DELA_SPIN_SETTLED")) return kNoMeasure;
  if (is_set("OMP_WAIT_POLICY") || is_set("GOMP_SPINCOUNT")) return kUserSet;
  if (!runs_on_libgomp()) return kNotLibgomp;
  state().processors = omp_get_num_procs();
  if (access("/proc/self/task", R_OK) != 0 || access("/proc/thread-self/schedstat", R_OK) != 0 ||
      !start_thread(watch, nullptr)) {
    return kNoMeasure;
  }
  return kWatched;
}

}  // namespace
}  // namespace dela

// Starts the watcher unless it runs, and answers a WaitingPolicy. A forked child has none; its
// waits stay as they were at the fork.
DELA_EXPORT int32_t dela_watch_waiting() {
  static const int32_t policy = dela::start_watching();
  return policy;
}

// Whether waits are short now.
DELA_EXPORT int32_t dela_waits_shortly() { return dela::state().is_short.load() ? 1 : 0; }

// 1: short waits, 0: spinning, from now on and whatever the watcher measures; -1: its choice again.
DELA_EXPORT void dela_force_waiting(int32_t choice) {
  dela::State& shared = dela::state();
  dela::Hold hold;
  shared.forced = choice >= 0;
  if (shared.forced) dela::wait_shortly(hold, choice == 1);
}

// The share of the last busy window in which this process's threads could run and had no core.
DELA_EXPORT double dela_delayed_share() { return dela::state().share.load(); }

#else

DELA_EXPORT int32_t dela_watch_waiting() { return dela::kNotLibgomp; }
DELA_EXPORT int32_t dela_waits_shortly() { return 0; }
DELA_EXPORT void dela_force_waiting(int32_t) {}
DELA_EXPORT double dela_delayed_share() { return 0.0; }

#endif

// What the watcher decides over a history of shares: modes[i] is 1 where waits are short after
// window i.
DELA_EXPORT void dela_judge_waiting(const double* shares, int32_t count, int32_t* modes) {
  dela::WaitingJudge judge;
  for (int32_t i = 0; i < count; ++i) modes[i] = judge.add(shares[i]) ? 1 : 0;
}
