// Edge cases of the operator calls, for a build with sanitizers: arrays of exactly the sizes the C
// ABI promises, results checked against the definition in double.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

extern "C" {
int32_t dela_set_isa(const char*);
int64_t dela_first_bad_row(const int32_t*, int64_t, int64_t, int64_t, int32_t);
int32_t dela_spse_forward(const float*, int64_t, const int32_t*, const float*, int64_t, int32_t,
                          int32_t, int32_t, int32_t, float, float*, void*, int32_t);
int32_t dela_spse_backward(const float*, int64_t, const int32_t*, const float*, int64_t, int32_t,
                           int32_t, int32_t, int32_t, const float*, const float*, const void*,
                           float*, int32_t);
int32_t dela_spamp_forward(const void*, int32_t, const float*, int64_t, const int32_t*,
                           const int32_t*, const float*, int64_t, int64_t, int32_t, int32_t, void*,
                           void*, int32_t);
int32_t dela_spamp_residual(const void*, int32_t, const float*, int64_t, const int32_t*,
                            const int32_t*, const float*, const void*, const float*, int64_t,
                            int64_t, int32_t, int32_t, void*, int32_t);
int32_t dela_spamp_backward(int32_t, const float*, int64_t, const int32_t*, const int32_t*,
                            const float*, int64_t, int64_t, int32_t, int32_t, const void*,
                            const void*, const void*, float*, float*, int32_t);
}

namespace {

#define REQUIRE(condition)                                                    \
  do {                                                                        \
    if (!(condition)) {                                                       \
      std::printf("%s:%d (%s): %s\n", __FILE__, __LINE__, name, #condition);  \
      std::exit(1);                                                           \
    }                                                                         \
  } while (false)

std::mt19937 generator(0);

std::vector<float> random_floats(int64_t count, float low = -1, float high = 1) {
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(generator);
  values.shrink_to_fit();
  return values;
}

std::vector<int32_t> random_rows(int64_t count, int64_t limit) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  for (int32_t& value : values) value = static_cast<int32_t>(generator() % limit);
  if (!values.empty()) values.back() = static_cast<int32_t>(limit - 1);
  return values;
}

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return static_cast<uint16_t>(bits >> 16);
}

float from_bfloat16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

void spse_case(const char* name, int64_t n, int32_t k, int32_t channels, int32_t attributes,
               int32_t directions, int32_t threads) {
  const int64_t columns = 3 + attributes + directions;
  const auto points = random_floats(n * columns);
  const auto neighbors = random_rows(n * k, std::max<int64_t>(n, 1));
  const auto weight = random_floats((12 + attributes + directions) * channels);
  const auto gradient = random_floats(n * channels);
  const float epsilon = directions ? 4.0f : 1e-8f;
  std::vector<float> out(n * channels), plain(n * channels), weight_gradient(weight.size());
  std::vector<uint8_t> winner(n * channels * (k <= 256 ? 1 : 2));
  REQUIRE(dela_first_bad_row(neighbors.data(), n, k, n, threads) == -1);
  REQUIRE(dela_spse_forward(points.data(), columns, neighbors.data(), weight.data(), n, k, channels,
                            attributes, directions, epsilon, out.data(), winner.data(),
                            threads) == 0);
  REQUIRE(dela_spse_forward(points.data(), columns, neighbors.data(), weight.data(), n, k, channels,
                            attributes, directions, epsilon, plain.data(), nullptr, threads) == 0);
  REQUIRE(dela_spse_backward(points.data(), columns, neighbors.data(), weight.data(), n, k,
                             channels, attributes, directions, out.data(), gradient.data(),
                             winner.data(), weight_gradient.data(), threads) == 0);
  REQUIRE(out == plain);
  for (float value : weight_gradient) REQUIRE(std::isfinite(value));
  for (int64_t m = 0; m < n; ++m) {
    for (int32_t c = 0; c < channels; ++c) {
      const auto w = [&](int row) { return static_cast<double>(weight[row * channels + c]); };
      double best = std::numeric_limits<double>::infinity();
      for (int32_t j = 0; j < k; ++j) {
        const float* there = &points[neighbors[m * k + j] * columns];
        double value = epsilon;
        for (int a = 0; a < 3; ++a) {
          double along = 0;
          for (int r = 0; r < 3; ++r) {
            along += w(3 * r + a) * (double(there[r]) - points[m * columns + r] - w(9 + r));
          }
          value += along * along;
        }
        for (int e = 0; e < attributes; ++e) value += std::pow(there[3 + e] - w(12 + e), 2);
        for (int l = 0; l < directions; ++l) {
          value += there[3 + attributes + l] * w(12 + attributes + l);
        }
        best = std::min(best, value);
      }
      REQUIRE(std::abs(out[m * channels + c] - std::sqrt(best)) < 1e-4);
    }
  }
}

void spamp_case(const char* name, int64_t n, int64_t rows, int32_t k, int32_t channels,
                bool with_centers, bool bfloat16, int32_t threads) {
  const auto points = random_floats(n * 3);
  const auto neighbors = random_rows(rows * k, std::max<int64_t>(n, 1));
  const auto centers = random_rows(with_centers ? rows : 0, std::max<int64_t>(n, 1));
  const auto weight = random_floats(channels, 0, 1);
  auto features = random_floats(n * channels);
  const auto gradient = random_floats(rows * channels);
  std::vector<uint16_t> features16(features.size()), gradient16(gradient.size());
  for (size_t i = 0; i < features.size(); ++i) features16[i] = to_bfloat16(features[i]);
  for (size_t i = 0; i < gradient.size(); ++i) gradient16[i] = to_bfloat16(gradient[i]);
  if (bfloat16) {
    for (size_t i = 0; i < features.size(); ++i) features[i] = from_bfloat16(features16[i]);
  }
  std::vector<float> out32(bfloat16 ? 0 : rows * channels);
  std::vector<uint16_t> out16(bfloat16 ? rows * channels : 0);
  void* out = bfloat16 ? static_cast<void*>(out16.data()) : out32.data();
  const void* in = bfloat16 ? static_cast<const void*>(features16.data()) : features.data();
  const void* slope = bfloat16 ? static_cast<const void*>(gradient16.data()) : gradient.data();
  const int32_t* center_rows = with_centers ? centers.data() : nullptr;
  std::vector<uint8_t> winner(rows * channels * (k <= 256 ? 1 : 2));
  std::vector<float> feature_gradient(n * channels), weight_gradient(channels);
  const int32_t type = bfloat16 ? 2 : 0;
  REQUIRE(dela_spamp_forward(in, type, points.data(), 3, neighbors.data(), center_rows,
                             weight.data(), n, rows, k, channels, out, nullptr, threads) == 0);
  REQUIRE(dela_spamp_forward(in, type, points.data(), 3, neighbors.data(), center_rows,
                             weight.data(), n, rows, k, channels, out, winner.data(),
                             threads) == 0);
  REQUIRE(dela_spamp_backward(type, points.data(), 3, neighbors.data(), center_rows, weight.data(),
                              n, rows, k, channels, out, slope, winner.data(),
                              feature_gradient.data(), weight_gradient.data(), threads) == 0);
  for (float value : feature_gradient) REQUIRE(std::isfinite(value));
  for (float value : weight_gradient) REQUIRE(std::isfinite(value));
  const auto scale = random_floats(channels);
  const std::vector<float>& base = gradient;
  const std::vector<uint16_t>& base16 = gradient16;
  std::vector<float> sum32(out32.size());
  std::vector<uint16_t> sum16(out16.size());
  REQUIRE(dela_spamp_residual(in, type, points.data(), 3, neighbors.data(), center_rows,
                              weight.data(), slope, scale.data(), n, rows, k, channels,
                              bfloat16 ? static_cast<void*>(sum16.data()) : sum32.data(),
                              threads) == 0);
  const int64_t groups = channels / 4;
  for (int64_t m = 0; m < rows; ++m) {
    const int64_t i = with_centers ? centers[m] : m;
    for (int32_t c = 0; c < channels; ++c) {
      double best = -std::numeric_limits<double>::infinity();
      for (int32_t j = 0; j < k; ++j) {
        const int64_t there = neighbors[m * k + j];
        double distance = 1e-8;
        for (int a = 0; a < 3; ++a) {
          distance += std::pow(double(points[3 * there + a]) - points[3 * i + a] -
                                   weight[a * groups + c / 4],
                               2);
        }
        const double difference =
            double(features[there * channels + c]) - features[i * channels + c];
        best = std::max(best, difference * std::exp(-weight[3 * groups + c / 4] * distance));
      }
      const float found =
          bfloat16 ? from_bfloat16(out16[m * channels + c]) : out32[m * channels + c];
      REQUIRE(std::abs(found - best) < (bfloat16 ? 0.02 : 1e-5));
      const int64_t at = m * channels + c;
      const float sum = bfloat16 ? from_bfloat16(sum16[at]) : sum32[at];
      const float below = bfloat16 ? from_bfloat16(base16[at]) : base[at];
      REQUIRE(std::abs(sum - (below + scale[c] * best)) < (bfloat16 ? 0.02 : 1e-5));
    }
  }
}

void bad_index_case(const char* name) {
  std::vector<int32_t> table(5000 * 7, 3);
  table[4321 * 7 + 6] = -1;
  REQUIRE(dela_first_bad_row(table.data(), 5000, 7, 4, 2) == 4321);
  table[17 * 7] = 4;
  REQUIRE(dela_first_bad_row(table.data(), 5000, 7, 4, 2) == 17);
  REQUIRE(dela_first_bad_row(table.data(), 17, 7, 4, 2) == -1);
  REQUIRE(dela_first_bad_row(table.data(), 0, 7, 0, 2) == -1);
}

void wild_values_case(const char* name) {
  // Numbers that overflow or are none: any answer, but no trap and no stray access.
  const float wild[] = {NAN, INFINITY, -INFINITY, 1e38f, -1e38f, 1e-45f, 0.0f};
  std::vector<float> points(3 * 70), features(8 * 70), weight(12 * 8, 1.0f), out(8 * 70);
  for (size_t i = 0; i < points.size(); ++i) points[i] = wild[generator() % 7];
  for (size_t i = 0; i < features.size(); ++i) features[i] = wild[generator() % 7];
  const auto neighbors = random_rows(70 * 5, 70);
  std::vector<uint8_t> winner(8 * 70);
  std::vector<float> weight_gradient(12 * 8), feature_gradient(8 * 70);
  REQUIRE(dela_spse_forward(points.data(), 3, neighbors.data(), weight.data(), 70, 5, 8, 0, 0, 0.0f,
                            out.data(), winner.data(), 2) == 0);
  REQUIRE(dela_spse_backward(points.data(), 3, neighbors.data(), weight.data(), 70, 5, 8, 0, 0,
                             out.data(), features.data(), winner.data(), weight_gradient.data(),
                             2) == 0);
  REQUIRE(dela_spamp_forward(features.data(), 0, points.data(), 3, neighbors.data(), nullptr,
                             weight.data(), 70, 70, 5, 8, out.data(), winner.data(), 2) == 0);
  REQUIRE(dela_spamp_backward(0, points.data(), 3, neighbors.data(), nullptr, weight.data(), 70, 70,
                              5, 8, out.data(), features.data(), winner.data(),
                              feature_gradient.data(), weight_gradient.data(), 2) == 0);
}

}  // namespace

int main() {
  for (const char* name : {"portable", "v2", "v3", "v4", "neon"}) {
    if (dela_set_isa(name) != 0) continue;
    for (int32_t channels : {4, 12, 16, 20, 64, 76, 80, 96}) {
      for (int32_t k : {1, 3, 24, 33}) {
        spse_case(name, 37, k, channels, 0, 0, 2);
        spamp_case(name, 37, 37, k, channels, false, false, 2);
        spamp_case(name, 37, 11, k, channels, true, true, 2);
      }
    }
    for (int32_t channels : {1, 3, 17}) {
      for (int32_t attributes : {0, 1, 2, 3, 4, 9}) {
        for (int32_t directions : {0, 1, 3}) {
          spse_case(name, 21, 24, channels, attributes, directions, 1);
        }
      }
    }
    for (int32_t k : {128, 129, 256, 257, 300, 3000}) {
      spse_case(name, 5, k, 20, 1, 0, 2);
      spamp_case(name, 5, 5, k, 20, false, false, 2);
    }
    spse_case(name, 3, 65535, 4, 0, 0, 2);
    spamp_case(name, 3, 2, 65535, 4, true, false, 2);
    spse_case(name, 1500, 8, 16, 0, 0, 3);
    spamp_case(name, 1500, 1500, 8, 16, false, false, 3);
    spamp_case(name, 1500, 400, 8, 68, true, false, 3);
    spse_case(name, 0, 4, 16, 0, 0, 2);
    spse_case(name, 1, 1, 16, 0, 0, 2);
    spamp_case(name, 0, 0, 4, 16, false, false, 2);
    spamp_case(name, 9, 0, 4, 16, true, false, 2);
    spamp_case(name, 1, 1, 1, 16, false, true, 2);
    spamp_case(name, 4, 4, 2, 0, false, false, 2);
    bad_index_case(name);
    wild_values_case(name);
    std::printf("%s: clean\n", name);
  }
  return 0;
}
