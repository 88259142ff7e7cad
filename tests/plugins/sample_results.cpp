// Writes what the native library answers to fixed questions, so that two builds can be compared.
// Usage: sample_results FOLDER; writes `decisions` (int32: voxels, neighbors, samples) and
// `values` (float32 of both operators, forward and backward) and `halves` (SPAMP in float16, then in
// bfloat16).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

extern "C" {
int32_t dela_voxel_grid(const void*, int32_t, int64_t, double, int64_t, uint64_t, int32_t,
                        int32_t*, int32_t*, int64_t*);
int32_t dela_tree_build(const float*, int64_t, int32_t, void**);
void dela_tree_free(void*);
int32_t dela_tree_knn(const void*, const void*, int32_t, int32_t, int32_t, int32_t*);
int32_t dela_farthest_points(const float*, const int64_t*, int64_t, int64_t, int32_t, int32_t*);
int32_t dela_spse_forward(const float*, int64_t, const int32_t*, const float*, int64_t, int32_t,
                          int32_t, int32_t, int32_t, float, float*, void*, int32_t);
int32_t dela_spse_backward(const float*, int64_t, const int32_t*, const float*, int64_t, int32_t,
                           int32_t, int32_t, int32_t, const float*, const float*, const void*,
                           float*, int32_t);
int32_t dela_spamp_forward(const void*, int32_t, const float*, int64_t, const int32_t*,
                           const int32_t*, const float*, int64_t, int64_t, int32_t, int32_t, void*,
                           void*, int32_t);
int32_t dela_spamp_backward(int32_t, const float*, int64_t, const int32_t*, const int32_t*,
                            const float*, int64_t, int64_t, int32_t, int32_t, const void*,
                            const void*, const void*, float*, float*, int32_t);
}

namespace {

constexpr int64_t kPoints = 3000;
constexpr int32_t kNeighbors = 24, kChannels = 36, kThreads = 2;

std::vector<int32_t> decisions;
std::vector<float> values;
std::vector<uint16_t> halves;

void require(int32_t status) {
  if (status == 0) return;
  std::fprintf(stderr, "the library answers %d\n", status);
  std::exit(1);
}

// The same on every machine: neither the C library nor a distribution has a part in it.
float next_float() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<float>(static_cast<int32_t>(state >> 40) - (1 << 23)) * 0x1p-23f;
}

std::vector<float> floats(int64_t count, float low, float high) {
  std::vector<float> made(static_cast<size_t>(count));
  for (float& value : made) value = low + (high - low) * (0.5f + 0.5f * next_float());
  return made;
}

template <typename T>
void add_voxels(const std::vector<float>& points, double shift, double size, int64_t pick) {
  std::vector<T> moved(points.size());
  for (size_t i = 0; i < moved.size(); ++i) moved[i] = static_cast<T>(points[i] + shift);
  std::vector<int32_t> kept(kPoints), voxel(kPoints);
  int64_t count = 0;
  require(dela_voxel_grid(moved.data(), sizeof(T) == 8, kPoints, size, pick, 5, kThreads,
                          kept.data(), voxel.data(), &count));
  decisions.insert(decisions.end(), kept.begin(), kept.begin() + count);
  decisions.insert(decisions.end(), voxel.begin(), voxel.end());
}

std::vector<int32_t> add_neighbors(const std::vector<float>& points) {
  std::vector<int32_t> found(kPoints * kNeighbors);
  void* tree = nullptr;
  require(dela_tree_build(points.data(), kPoints, kThreads, &tree));
  require(dela_tree_knn(tree, tree, kNeighbors, 0, kThreads, found.data()));
  dela_tree_free(tree);
  decisions.insert(decisions.end(), found.begin(), found.end());
  return found;
}

void add_farthest(const std::vector<float>& points) {
  const int64_t starts[] = {0, kPoints / 3, kPoints};
  std::vector<int32_t> order(2 * 500);
  require(dela_farthest_points(points.data(), starts, 2, 500, kThreads, order.data()));
  decisions.insert(decisions.end(), order.begin(), order.end());
}

void add(const std::vector<float>& more) { values.insert(values.end(), more.begin(), more.end()); }

void add_spse(const std::vector<int32_t>& neighbors) {
  constexpr int32_t kAttributes = 4;
  const auto points = floats(kPoints * (3 + kAttributes), -1, 1);
  const auto weight = floats((12 + kAttributes) * kChannels, -1, 1);
  const auto slope = floats(kPoints * kChannels, -1, 1);
  std::vector<float> out(kPoints * kChannels), gradient(weight.size());
  std::vector<uint8_t> winner(out.size());
  require(dela_spse_forward(points.data(), 3 + kAttributes, neighbors.data(), weight.data(),
                            kPoints, kNeighbors, kChannels, kAttributes, 0, 1e-8f, out.data(),
                            winner.data(), kThreads));
  require(dela_spse_backward(points.data(), 3 + kAttributes, neighbors.data(), weight.data(),
                             kPoints, kNeighbors, kChannels, kAttributes, 0, out.data(),
                             slope.data(), winner.data(), gradient.data(), kThreads));
  add(out);
  add(gradient);
}

void add_spamp(const std::vector<float>& points, const std::vector<int32_t>& neighbors) {
  const auto features = floats(kPoints * kChannels, -2, 2);
  const auto weight = floats(kChannels, 0, 1);
  const auto slope = floats(kPoints * kChannels, -1, 1);
  std::vector<float> out(features.size()), feature_gradient(features.size()),
      weight_gradient(weight.size());
  std::vector<uint8_t> winner(out.size());
  require(dela_spamp_forward(features.data(), 0, points.data(), 3, neighbors.data(), nullptr,
                             weight.data(), kPoints, kPoints, kNeighbors, kChannels, out.data(),
                             winner.data(), kThreads));
  require(dela_spamp_backward(0, points.data(), 3, neighbors.data(), nullptr, weight.data(),
                              kPoints, kPoints, kNeighbors, kChannels, out.data(), slope.data(),
                              winner.data(), feature_gradient.data(), weight_gradient.data(),
                              kThreads));
  add(out);
  add(feature_gradient);
  add(weight_gradient);
}

// Type 1 is float16, 2 bfloat16; subnormal features and such of moderate size.
void add_16_bit(const std::vector<float>& points, const std::vector<int32_t>& neighbors,
                int32_t type) {
  std::vector<uint16_t> features(kPoints * kChannels), out(features.size());
  for (size_t i = 0; i < features.size(); ++i) {
    const uint16_t sign = i % 2 == 0 ? 0 : 0x8000;
    const uint16_t magnitude = static_cast<uint16_t>(i * 7 % (type == 1 ? 0x4800 : 0x4100));
    features[i] = sign | magnitude;
  }
  const auto weight = floats(kChannels, 0, 1);
  require(dela_spamp_forward(features.data(), type, points.data(), 3, neighbors.data(), nullptr,
                             weight.data(), kPoints, kPoints, kNeighbors, kChannels, out.data(),
                             nullptr, kThreads));
  halves.insert(halves.end(), out.begin(), out.end());
}

template <typename T>
void write(const std::string& path, const std::vector<T>& what) {
  FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr || std::fwrite(what.data(), sizeof(T), what.size(), file) != what.size() ||
      std::fclose(file) != 0) {
    std::fprintf(stderr, "cannot write %s\n", path.c_str());
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  auto points = floats(kPoints * 3, -5, 5);
  // Half on a lattice whose spacing float32 only rounds to: distances that are equal but for
  // rounding, and coordinates on the borders of voxels.
  for (int64_t i = 0; i < 3 * kPoints / 2; ++i) {
    points[i] = 0.7f * static_cast<float>(static_cast<int>(points[i]));
  }
  for (const double size : {0.04, 0.1, 0.3, 1.0}) {
    add_voxels<float>(points, 0, size, 0);
    add_voxels<double>(points, 6.5e6 + 1.0 / 3, size, -1);
  }
  const auto neighbors = add_neighbors(points);
  add_farthest(points);
  add_spse(neighbors);
  add_spamp(points, neighbors);
  add_16_bit(points, neighbors, 1);
  add_16_bit(points, neighbors, 2);
  write(std::string(argv[1]) + "/decisions", decisions);
  write(std::string(argv[1]) + "/values", values);
  write(std::string(argv[1]) + "/halves", halves);
  return 0;
}
