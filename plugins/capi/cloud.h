// A caller's scan as the library works on it: the points that count, in float64, and the network's
// input columns of each.
#pragma once

#include <cstdint>
#include <vector>

#include "capi/contract.h"
#include "capi/include/dela.h"

namespace dela::capi {

struct Cloud {
  std::vector<double> points;      // [n, 3] meters, counted from the lowest corner
  std::vector<float> attributes;   // [n, columns], scaled
  std::vector<int64_t> row;        // [n] of the caller's scan; empty when all its points are here

  int64_t count() const { return static_cast<int64_t>(points.size() / 3); }
};

// Reads and checks a scan. Throws Failure: DELA_BAD_ARGUMENT for what no scan is, DELA_BAD_INPUT for
// points that are not finite (unless they are to be dropped), none at all, a missing column or NaN in
// one. Columns are those of dela/scan/attributes.py:compute_attributes.
Cloud read_cloud(const dela_cloud& given, const Contract& contract, bool drop_invalid);

// Names of the columns that a scan must have, each once.
std::vector<std::string> needed_columns(const Contract& contract);

}  // namespace dela::capi
