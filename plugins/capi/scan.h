// A scan at the resolution of stage 0, and the network's input of a part of it: the C++ counterpart
// of dela/scan/voxels.py, dela/scan/tiles.py and dela/pyramid/cpu.py.
#pragma once

#include <cstdint>
#include <vector>

#include "capi/cloud.h"
#include "capi/contract.h"

namespace dela::capi {

struct Scan {
  std::vector<float> points;            // [v, 3] meters
  std::vector<float> attributes;        // [v, columns]
  std::vector<int32_t> voxel_of_point;  // [n]

  int64_t count() const { return static_cast<int64_t>(points.size() / 3); }
};

// One point of every voxel, the `pick`-th; for classification all points. Throws
// Failure(DELA_BAD_INPUT) when several points all fall into one voxel.
Scan make_scan(const Cloud& cloud, const Contract& contract, int64_t pick, int threads);

// The same scan turned or mirrored about its middle by an orthogonal matrix, row major.
Scan turned(const Scan& scan, const double matrix[9], const Contract& contract);

// Rows of a scan that go through the network together; those of the core take their answer from it.
struct Tile {
  std::vector<int64_t> rows;  // ascending
  std::vector<char> core;
};

// Tiles of at most `max_points` rows whose cores cover every row once.
std::vector<Tile> cut_tiles(const Scan& scan, const Contract& contract, int64_t max_points);

// The network's input: points, attributes, and for each stage its neighbors, the rows it keeps of
// the stage before and each row's nearest.
struct Pyramid {
  std::vector<float> points, attributes;
  std::vector<std::vector<int32_t>> neighbors, kept, nearest;
};

Pyramid build_pyramid(const Scan& scan, const Tile& tile, const Contract& contract, int threads);

}  // namespace dela::capi
