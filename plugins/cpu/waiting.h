// How OpenMP's threads wait for each other: spinning while the cores are free, asleep when other
// work takes them. The number of threads never changes, so neither does any result.
#pragma once

#include <cstdint>

namespace dela {

// What decides over the waiting; returned by dela_watch_waiting.
enum WaitingPolicy : int32_t {
  kWatched = 0,     // this library switches it
  kUserSet = 1,     // OMP_WAIT_POLICY or GOMP_SPINCOUNT is set, and stands
  kNotLibgomp = 2,  // another OpenMP runtime, or none: it waits as it does
  kNoMeasure = 3,   // the system does not say how long threads wait for a core
};

// When to sleep and when to spin again, from the share of their time that this process's threads
// could run and had no core. Spinning ends soon and returns after a calm while: beside other work it
// costs ten times the step, sleeping on free cores a tenth of it.
class WaitingJudge {
 public:
  // One more window was measured; answers whether waits shall be short from here on.
  bool add(double share) {
    for (int i = 0; i + 1 < kCalmWindows; ++i) last_[i] = last_[i + 1];
    last_[kCalmWindows - 1] = share;
    if (seen_ < kCalmWindows) ++seen_;
    crowded_ = share > kCrowdedShare ? crowded_ + 1 : 0;
    if (crowded_ >= kCrowdedWindows) {
      short_ = true;
    } else if (seen_ == kCalmWindows && mean() < kCalmShare) {
      short_ = false;
    }
    return short_;
  }

 private:
  static constexpr double kCrowdedShare = 0.10, kCalmShare = 0.04;
  static constexpr int kCrowdedWindows = 2, kCalmWindows = 10;

  // Of the last windows: one in which something else woke up does not keep the others waiting.
  double mean() const {
    double sum = 0.0;
    for (const double share : last_) sum += share;
    return sum / kCalmWindows;
  }

  double last_[kCalmWindows] = {};
  int crowded_ = 0, seen_ = 0;
  bool short_ = false;
};

}  // namespace dela
