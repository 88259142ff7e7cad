// How many threads compute: the C++ counterpart of dela/threads.py.
#pragma once

namespace dela::capi {

struct ThreadCounts {
  int geometry;  // for OpenMP
  int session;   // for ONNX Runtime: one for each core
};

// `asked` for both where it is above 0; else $OMP_NUM_THREADS, else the processors that this process
// may run on, within the container's quota.
ThreadCounts count_threads(int asked);

// What the user set about waiting: "" for nothing, "passive" for no spinning, "active" for long.
const char* waiting_policy();

}  // namespace dela::capi
