// LZF (Lehmann's liblzf), in which the Point Cloud Library compresses its files: runs of literal
// bytes and references to bytes already written. Nothing outside the two buffers is touched,
// whatever the input holds.
#include <cstring>

#include "cpu/common.h"

namespace dela {
namespace {

constexpr uint8_t kLiteralBelow = 32;  // a control byte below begins a run of control + 1 bytes
constexpr int64_t kLongLength = 7;     // the length that another byte adds to
constexpr int64_t kShortest = 2;       // added to every length of a reference

// Copies `length` bytes from `distance` back; where they overlap, the last bytes repeat.
inline void copy_back(uint8_t* to, int64_t distance, int64_t length) {
  if (distance >= length) {
    std::memcpy(to, to - distance, static_cast<size_t>(length));
    return;
  }
  for (int64_t i = 0; i < length; ++i) to[i] = to[i - distance];
}

}  // namespace
}  // namespace dela

// Decompresses into exactly `size` bytes. kBadArgument: the input is cut short, refers to bytes
// before the first, or gives more or fewer bytes.
DELA_EXPORT int32_t dela_lzf_decompress(const uint8_t* input, int64_t input_size, uint8_t* output,
                                        int64_t size) {
  using namespace dela;
  int64_t at = 0, done = 0;
  while (at < input_size) {
    const int64_t control = input[at++];
    if (control < kLiteralBelow) {
      const int64_t run = control + 1;
      if (run > input_size - at || run > size - done) return kBadArgument;
      std::memcpy(output + done, input + at, static_cast<size_t>(run));
      at += run;
      done += run;
      continue;
    }
    int64_t length = control >> 5;
    if (length == kLongLength) {
      if (at == input_size) return kBadArgument;
      length += input[at++];
    }
    if (at == input_size) return kBadArgument;
    const int64_t distance = ((control & 31) << 8 | input[at++]) + 1;
    length += kShortest;
    if (distance > done || length > size - done) return kBadArgument;
    copy_back(output + done, distance, length);
    done += length;
  }
  return done == size ? kOk : kBadArgument;
}
