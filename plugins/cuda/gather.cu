// Several arrays copied into one block, each followed by padding: one launch instead of a copy and
// several fills for each array.
#include "cuda/device.cuh"

namespace dela {
namespace {

constexpr int kParts = 16;  // as in gather.py
constexpr int kWords = 4;   // that a thread copies at once

// Sizes are in words of four bytes. Past `given` words comes padding up to `total`: the first `row`
// words over and over, or zeros where `row` is 0. `target` starts at a multiple of 16 bytes.
struct GatherPart {
  const uint32_t* source;
  uint32_t* target;
  uint64_t given, total, row;

  DELA_DEVICE uint32_t word(uint64_t index) const {
    if (index < given) return __ldg(source + index);
    return row == 0 ? 0 : __ldg(source + index % row);
  }
};

}  // namespace

struct GatherParts {
  GatherPart part[kParts];
};

}  // namespace dela

// One row of blocks for each part; a grid-stride loop: any number of them.
DELA_KERNEL(8) dela_gather(const dela::GatherParts parts) {
  const dela::GatherPart part = parts.part[blockIdx.y];
  const bool aligned = reinterpret_cast<uint64_t>(part.source) % 16 == 0;
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  const uint64_t pieces = (part.total + dela::kWords - 1) / dela::kWords;
  for (uint64_t piece = dela::thread_number(); piece < pieces; piece += step) {
    const uint64_t first = piece * dela::kWords;
    if (aligned && first + dela::kWords <= part.given) {
      reinterpret_cast<uint4*>(part.target)[piece] =
          __ldg(reinterpret_cast<const uint4*>(part.source) + piece);
      continue;
    }
    for (uint64_t word = first; word < first + dela::kWords && word < part.total; ++word) {
      part.target[word] = part.word(word);
    }
  }
}
