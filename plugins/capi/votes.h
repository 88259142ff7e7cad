// Labels of a whole scan: the C++ counterpart of dela/scan/votes.py.
#pragma once

#include <cstdint>
#include <vector>

#include "capi/cloud.h"
#include "capi/contract.h"
#include "capi/session.h"

namespace dela::capi {

struct Answer {
  std::vector<int32_t> classes;    // [n] index of the most probable class of each point
  std::vector<float> confidences;  // [n] its probability
};

struct Votes {
  int64_t max_points;  // voxels in one run, at least 1
  int votes;           // at least 1
  int threads;         // of the geometry
};

// Has the network look at a scan. Throws Failure.
Answer take_votes(const Session& session, const Contract& contract, const Cloud& cloud,
                  const Votes& options);

}  // namespace dela::capi
