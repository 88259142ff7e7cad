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
    calm_ = share < kCalmShare ? calm_ + 1 : 0;
    crowded_ = share > kCrowdedShare ? crowded_ + 1 : 0;
    if (crowded_ >= kCrowdedWindows) short_ = true;
    if (short_ && calm_ >= kCalmWindows) short_ = false;
    return short_;
  }

 private:
  static constexpr double kCrowdedShare = 0.10, kCalmShare = 0.04;
  static constexpr int kCrowdedWindows = 2, kCalmWindows = 10;
  int crowded_ = 0, calm_ = 0;
  bool short_ = false;
};

}  // namespace dela
