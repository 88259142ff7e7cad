// Edge cases of LZF decompression, for a build with sanitizers: buffers of exactly the sizes given,
// whatever the bytes in them.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

extern "C" int32_t dela_lzf_decompress(const uint8_t*, int64_t, uint8_t*, int64_t);

namespace {

#define REQUIRE(condition)                                        \
  do {                                                            \
    if (!(condition)) {                                           \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                               \
    }                                                             \
  } while (0)

// The status, with both buffers on the heap at their exact sizes.
int32_t decompress(const std::vector<uint8_t>& data, int64_t size, std::vector<uint8_t>* out) {
  std::unique_ptr<uint8_t[]> input(new uint8_t[data.size()]);
  if (!data.empty()) std::memcpy(input.get(), data.data(), data.size());
  std::unique_ptr<uint8_t[]> output(new uint8_t[static_cast<size_t>(size)]);
  const int32_t status =
      dela_lzf_decompress(input.get(), static_cast<int64_t>(data.size()), output.get(), size);
  if (status == 0) out->assign(output.get(), output.get() + size);
  return status;
}

}  // namespace

int main() {
  std::vector<uint8_t> out;
  REQUIRE(decompress({}, 0, &out) == 0 && out.empty());
  REQUIRE(decompress({}, 1, &out) != 0);
  REQUIRE(decompress({0, 'a'}, 1, &out) == 0 && out == std::vector<uint8_t>{'a'});
  REQUIRE(decompress({0, 'a', 0xe0, 0xff, 0}, 265, &out) == 0);
  REQUIRE(out == std::vector<uint8_t>(265, 'a'));
  REQUIRE(decompress({0, 'a', 0xe0, 0xff, 0}, 264, &out) != 0);
  REQUIRE(decompress({0, 'a', 0xe0, 0xff}, 265, &out) != 0);
  REQUIRE(decompress({0, 'a', 0x20, 1}, 4, &out) != 0);
  REQUIRE(decompress({31, 'a'}, 32, &out) != 0);
  std::mt19937 random(1);
  for (int round = 0; round < 200000; ++round) {
    std::vector<uint8_t> data(random() % 24);
    for (auto& byte : data) byte = static_cast<uint8_t>(random() % 4 ? random() % 40 : random());
    decompress(data, random() % 300, &out);
  }
  return 0;
}
