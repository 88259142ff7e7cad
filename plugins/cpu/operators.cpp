// The operators' C ABI: OpenMP loops over the kernels of the instruction set in use.
#include "cpu/operators.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

namespace dela {
namespace {

// Rows per task of a forward loop, and per partial sum of a backward one. The latter fixes the
// order of additions, so it must not depend on the number of threads.
constexpr int64_t kForwardRows = 128;
constexpr int64_t kSpampChunkRows = 128;
constexpr int64_t kSpseChunkRows = 512;
constexpr int64_t kSpseChunks = 64;
// Threads own whole cache lines of a row: this many channels of float32.
constexpr int64_t kOwnedChannels = 16;
// Floats of `passed` at a time: half a megabyte per thread stays in its cache.
constexpr int64_t kPassedFloats = 1 << 17;
constexpr int64_t kFewChunks = 16;

// Uninitialised floats, aligned to a cache line; `get()` is null when memory ran out.
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<float*>(::operator new(
            sizeof(float) * static_cast<size_t>(count), std::align_val_t{64}, std::nothrow))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* get() const { return data_; }

 private:
  float* data_;
};

bool fits(int64_t n_points, int64_t n_rows, int32_t k, int32_t channels) {
  return n_points >= 0 && n_points <= INT32_MAX && n_rows >= 0 && channels >= 0 && k >= 1 &&
         k <= kMaxNeighbors;
}

int64_t pieces(int64_t total, int64_t size) { return (total + size - 1) / size; }

// Threads for so many tasks: no more than there are tasks, at least one.
int team_for(int64_t tasks, int32_t requested) {
  return static_cast<int>(
      std::max<int64_t>(1, std::min<int64_t>(tasks, resolve_threads(requested))));
}

}  // namespace

int64_t first_bad_row(const int32_t* values, int64_t rows, int64_t columns, int64_t limit,
                      int32_t threads) {
  if (columns <= 0) return -1;
  const int64_t step = std::max<int64_t>(1, 16384 / columns), tasks = pieces(rows, step);
  const int team = team_for(tasks, threads);
  int64_t worst = rows;
#pragma omp parallel for schedule(static) reduction(min : worst) num_threads(team) if (team > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t begin = task * step, end = std::min(rows, begin + step);
    if (DELA_DISPATCH(indices_within, values + begin * columns, (end - begin) * columns, limit)) {
      continue;
    }
    for (int64_t row = begin; row < end; ++row) {
      if (!DELA_DISPATCH(indices_within, values + row * columns, columns, limit)) {
        worst = std::min(worst, row);
        break;
      }
    }
  }
  return worst == rows ? -1 : worst;
}

namespace {

int32_t spse_forward(const Spse& op, float* out, void* winner, int32_t threads) {
  if (op.n_rows == 0 || op.channels == 0) return kOk;
  Buffer prepared(DELA_DISPATCH(spse_prepared_floats, op));
  if (prepared.get() == nullptr) return kOutOfMemory;
  DELA_DISPATCH(spse_prepare, op, prepared.get());
  const int64_t tasks = pieces(op.n_rows, kForwardRows);
  const int team = team_for(tasks, threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(team) if (team > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t begin = task * kForwardRows, end = std::min(op.n_rows, begin + kForwardRows);
    DELA_DISPATCH(spse_rows, op, prepared.get(), begin, end, out, winner);
  }
  return kOk;
}

int32_t spse_backward(const Spse& op, const SpseGradient& given, float* weight_gradient,
                      int32_t threads) {
  if (op.channels == 0) return kOk;
  const int64_t chunks =
      std::min(kSpseChunks, std::max<int64_t>(1, op.n_rows / kSpseChunkRows));
  const int64_t size = DELA_DISPATCH(spse_moment_floats, op);
  Buffer moments(chunks * size);
  if (moments.get() == nullptr) return kOutOfMemory;
  const int team = team_for(chunks, threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(team) if (team > 1)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    float* own = moments.get() + chunk * size;
    std::memset(own, 0, sizeof(float) * static_cast<size_t>(size));
    DELA_DISPATCH(spse_backward_rows, op, given, op.n_rows * chunk / chunks,
                  op.n_rows * (chunk + 1) / chunks, own);
  }
  DELA_DISPATCH(spse_weight_gradient, op, moments.get(), chunks, weight_gradient);
  return kOk;
}

int32_t spamp_forward(const Spamp& op, void* out, void* winner, int32_t threads) {
  if (op.n_rows == 0 || op.channels == 0) return kOk;
  Buffer prepared(DELA_DISPATCH(spamp_prepared_floats, op));
  if (prepared.get() == nullptr) return kOutOfMemory;
  DELA_DISPATCH(spamp_prepare, op, prepared.get());
  const int64_t tasks = pieces(op.n_rows, kForwardRows);
  const int team = team_for(tasks, threads);
#pragma omp parallel for schedule(dynamic, 1) num_threads(team) if (team > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t begin = task * kForwardRows, end = std::min(op.n_rows, begin + kForwardRows);
    DELA_DISPATCH(spamp_rows, op, prepared.get(), begin, end, out, winner);
  }
  return kOk;
}

int32_t spamp_backward(const Spamp& op, const SpampGradient& given, float* feature_gradient,
                       float* weight_gradient, int32_t threads) {
  if (op.channels == 0) return kOk;
  const int64_t channels = op.channels;
  const int64_t chunks = pieces(op.n_rows, kSpampChunkRows);
  const int team = team_for(chunks, threads);
  // Chunks between two meetings of the threads: what fits their caches, and an eighth of all.
  const int64_t cached = team * std::max<int64_t>(1, kPassedFloats / (kSpampChunkRows * channels));
  const int64_t together = std::min(
      chunks, std::max<int64_t>(team, std::min(cached, std::max(kFewChunks, chunks / 8))));
  const int64_t size = DELA_DISPATCH(spamp_sum_floats, op);
  Buffer sums(chunks * size), passed(together * kSpampChunkRows * channels);
  if (sums.get() == nullptr || passed.get() == nullptr) return kOutOfMemory;
  const int64_t lines = pieces(channels, kOwnedChannels);
  const int64_t owners = std::min<int64_t>(team, lines);
#pragma omp parallel num_threads(team) if (team > 1)
  {
#pragma omp for schedule(static)
    for (int64_t n = 0; n < op.n_points; ++n) {
      std::memset(feature_gradient + n * channels, 0, sizeof(float) * static_cast<size_t>(channels));
    }
    for (int64_t first = 0; first < chunks; first += together) {
      const int64_t last = std::min(chunks, first + together);
      const int64_t base = first * kSpampChunkRows;
#pragma omp for schedule(dynamic, 1)
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t begin = chunk * kSpampChunkRows;
        const int64_t end = std::min(op.n_rows, begin + kSpampChunkRows);
        float* own = sums.get() + chunk * size;
        std::memset(own, 0, sizeof(float) * static_cast<size_t>(size));
        DELA_DISPATCH(spamp_backward_rows, op, given, begin, end,
                      passed.get() + (begin - base) * channels, own);
      }
#pragma omp for schedule(static)
      for (int64_t owner = 0; owner < owners; ++owner) {
        const int64_t end = std::min(op.n_rows, last * kSpampChunkRows);
        DELA_DISPATCH(spamp_backward_channels, op, given.winner, passed.get(), base, end,
                      lines * owner / owners * kOwnedChannels,
                      std::min(channels, lines * (owner + 1) / owners * kOwnedChannels),
                      feature_gradient);
      }
    }
  }
  DELA_DISPATCH(spamp_weight_gradient, op, sums.get(), chunks, weight_gradient);
  return kOk;
}

}  // namespace
}  // namespace dela

using dela::FeatureType;
using dela::Spamp;
using dela::Spse;

// Every function answers a status code; 0 is done. `threads` < 1 means every core. Index tables
// must have been checked with dela_first_bad_row.

DELA_EXPORT int64_t dela_first_bad_row(const int32_t* values, int64_t rows, int64_t columns,
                                       int64_t limit, int32_t threads) {
  return dela::first_bad_row(values, rows, columns, limit, threads);
}

// `winner` is null, or [n, channels] uint8 when k <= 256, else uint16.
DELA_EXPORT int32_t dela_spse_forward(const float* points, int64_t stride,
                                      const int32_t* neighbors, const float* weight, int64_t n,
                                      int32_t k, int32_t channels, int32_t attributes,
                                      int32_t directions, float epsilon, float* out, void* winner,
                                      int32_t threads) {
  const Spse op{points, stride, neighbors, weight,     epsilon,   n,
                n,      k,      channels,  attributes, directions};
  if (!dela::fits(n, n, k, channels) || attributes < 0 || directions < 0) {
    return dela::kBadArgument;
  }
  return dela::spse_forward(op, out, winner, threads);
}

DELA_EXPORT int32_t dela_spse_backward(const float* points, int64_t stride,
                                       const int32_t* neighbors, const float* weight, int64_t n,
                                       int32_t k, int32_t channels, int32_t attributes,
                                       int32_t directions, const float* out, const float* gradient,
                                       const void* winner, float* weight_gradient,
                                       int32_t threads) {
  const Spse op{points, stride, neighbors, weight,     0.0f,      n,
                n,      k,      channels,  attributes, directions};
  if (!dela::fits(n, n, k, channels) || attributes < 0 || directions < 0) {
    return dela::kBadArgument;
  }
  return dela::spse_backward(op, {out, gradient, winner}, weight_gradient, threads);
}

// `type` of the features, and of `out`: 0 float32, 1 float16, 2 bfloat16. `centers` may be null.
DELA_EXPORT int32_t dela_spamp_forward(const void* features, int32_t type, const float* points,
                                       int64_t stride, const int32_t* neighbors,
                                       const int32_t* centers, const float* weight, int64_t n,
                                       int64_t rows, int32_t k, int32_t channels, void* out,
                                       void* winner, int32_t threads) {
  const Spamp op{features, static_cast<FeatureType>(type), points, stride, neighbors, centers,
                 weight,   n, rows, k, channels, nullptr, nullptr};
  if (!dela::fits(n, rows, k, channels) || channels % 4 != 0 || type < 0 || type > 2) {
    return dela::kBadArgument;
  }
  return dela::spamp_forward(op, out, winner, threads);
}

// `base` [rows, channels] plus `scale` [channels] times SPAMP; `base` and `out` are of `type`.
DELA_EXPORT int32_t dela_spamp_residual(const void* features, int32_t type, const float* points,
                                        int64_t stride, const int32_t* neighbors,
                                        const int32_t* centers, const float* weight,
                                        const void* base, const float* scale, int64_t n,
                                        int64_t rows, int32_t k, int32_t channels, void* out,
                                        int32_t threads) {
  const Spamp op{features, static_cast<FeatureType>(type), points, stride, neighbors, centers,
                 weight,   n, rows, k, channels, base, scale};
  if (!dela::fits(n, rows, k, channels) || channels % 4 != 0 || type < 0 || type > 2) {
    return dela::kBadArgument;
  }
  return dela::spamp_forward(op, out, nullptr, threads);
}

// `out` and `gradient` are of `type`; `feature_gradient` [n, channels] is float32.
DELA_EXPORT int32_t dela_spamp_backward(int32_t type, const float* points, int64_t stride,
                                        const int32_t* neighbors, const int32_t* centers,
                                        const float* weight, int64_t n, int64_t rows, int32_t k,
                                        int32_t channels, const void* out, const void* gradient,
                                        const void* winner, float* feature_gradient,
                                        float* weight_gradient, int32_t threads) {
  const Spamp op{nullptr, static_cast<FeatureType>(type), points, stride, neighbors, centers,
                 weight,  n, rows, k, channels, nullptr, nullptr};
  if (!dela::fits(n, rows, k, channels) || channels % 4 != 0 || type < 0 || type > 2) {
    return dela::kBadArgument;
  }
  return dela::spamp_backward(op, {out, gradient, winner}, feature_gradient, weight_gradient,
                              threads);
}
