#include "tensorrt_native/operators.h"

#include <cstring>
#include <initializer_list>

namespace dela::trt {
namespace {

constexpr int kFixedRows = 12, kPosition = 3, kGroup = 4;

bool set_grid(int64_t threads, Plan& plan, Problem& problem) {
  if (threads > cuda::kMostThreads) {
    return problem.say("%lld values to compute are more than the kernels can number; run fewer "
                       "points at a time", static_cast<long long>(threads));
  }
  plan.blocks = static_cast<unsigned>(cuda::divide_up(threads, cuda::kThreads));
  return true;
}

bool expect(int64_t found, int64_t wanted, const char* what, Problem& problem) {
  return found == wanted || problem.say("%s is %lld, expected %lld", what,
                                        static_cast<long long>(found),
                                        static_cast<long long>(wanted));
}

void set_sizes(std::initializer_list<int64_t> sizes, Plan& plan) {
  plan.size_count = 0;
  for (const int64_t size : sizes) plan.sizes[plan.size_count++] = static_cast<int32_t>(size);
}

// points [n, 3 + e + l], neighbors [n, k], weight [12 + e + l, c]
bool plan_spse(const Attributes& attributes, const TensorDesc* in, Plan& plan, Problem& problem) {
  const int64_t n = in[0].dims.size[0], k = in[1].dims.size[1], c = in[2].dims.size[1];
  const int64_t columns = in[0].dims.size[1], l = attributes.directions;
  const int64_t e = columns - kPosition - l;
  if (e < 0) {
    return problem.say("points have %lld columns, too few for %lld directions",
                       static_cast<long long>(columns), static_cast<long long>(l));
  }
  if (!expect(in[1].dims.size[0], n, "number of rows of neighbors", problem) ||
      !expect(in[2].dims.size[0], kFixedRows + e + l, "number of rows of weight", problem)) {
    return false;
  }
  const int32_t rows = cuda::spse_rows(n, c);
  plan.kernel = cuda::spse_kernel(static_cast<int32_t>(e), static_cast<int32_t>(l));
  int32_t epsilon_bits;
  std::memcpy(&epsilon_bits, &attributes.epsilon, sizeof(epsilon_bits));
  set_sizes({n, k, c, e, l, rows, epsilon_bits}, plan);
  return set_grid(cuda::spse_threads(n, c, rows), plan, problem);
}

bool plan_maximum(const TensorDesc* in, bool residual, Plan& plan, Problem& problem) {
  const int64_t n = in[0].dims.size[0], c = in[0].dims.size[1];
  const int64_t m = in[2].dims.size[0], k = in[2].dims.size[1];
  if (!expect(in[1].dims.size[0], n, "number of points", problem) ||
      !expect(in[1].dims.size[1], kPosition, "number of columns of points", problem) ||
      !expect(in[3].dims.size[0], m, "number of centers", problem) ||
      !expect(in[4].dims.size[0], 4, "number of rows of weight", problem) ||
      !expect(in[4].dims.size[1], c / kGroup, "number of columns of weight", problem)) {
    return false;
  }
  if (m > 0 && n == 0) return problem.say("there are centers but no points");
  const int type = in[0].type == DataType::kFloat ? 0 : in[0].type == DataType::kHalf ? 1 : 2;
  const cuda::SpampKernel chosen = cuda::spamp_kernel(type, c, residual);
  plan.kernel = chosen.number;
  set_sizes({n, m, k, c}, plan);
  return set_grid(m * (c / chosen.width), plan, problem);
}

// features [n, c], points [n, 3], neighbors [m, k], centers [m], weight [4, c / 4]
bool plan_spamp(const Attributes&, const TensorDesc* in, Plan& plan, Problem& problem) {
  return plan_maximum(in, false, plan, problem);
}

// the same, then base [m, c], scale [c]
bool plan_residual(const Attributes&, const TensorDesc* in, Plan& plan, Problem& problem) {
  return expect(in[5].dims.size[0], in[2].dims.size[0], "number of rows of base", problem) &&
         expect(in[5].dims.size[1], in[0].dims.size[1], "number of channels of base", problem) &&
         expect(in[6].dims.size[0], in[0].dims.size[1], "number of scales", problem) &&
         plan_maximum(in, true, plan, problem);
}

}  // namespace

const Operator kOperators[] = {
    {"SPSE", 3, {Kind::kFloat, Kind::kInt32, Kind::kFloat}, {2, 2, 2}, Kind::kFloat,
     {0, 0}, {2, 1}, 2, 1, plan_spse},
    {"SPAMP", 5, {Kind::kFeatures, Kind::kFloat, Kind::kInt32, Kind::kInt32, Kind::kFloat},
     {2, 2, 2, 1, 2}, Kind::kFeatures, {2, 0}, {0, 1}, 0, kGroup, plan_spamp},
    {"SPAMPResidual", 7, {Kind::kFeatures, Kind::kFloat, Kind::kInt32, Kind::kInt32, Kind::kFloat,
     Kind::kFeatures, Kind::kFloat}, {2, 2, 2, 1, 2, 2, 1}, Kind::kFeatures, {2, 0}, {0, 1}, 0,
     kGroup, plan_residual},
};
const int kOperatorCount = sizeof(kOperators) / sizeof(kOperators[0]);

bool allows(const Operator& one, int position, DataType type, DataType features) noexcept {
  const Kind kind = position < one.input_count ? one.kinds[position] : one.output;
  if (kind == Kind::kInt32) return type == DataType::kInt32;
  if (kind == Kind::kFloat) return type == DataType::kFloat;
  if (position > 0) return type == features;
  return type == DataType::kFloat || type == DataType::kHalf || type == DataType::kBFloat16;
}

DataType output_type(const Operator& one, DataType features) noexcept {
  return one.output == Kind::kFeatures ? features : DataType::kFloat;
}

bool fits_group(const Operator& one, int64_t channels, Problem& problem) noexcept {
  return channels % one.channel_group == 0 ||
         problem.say("%lld channels are no multiple of %d", static_cast<long long>(channels),
                     one.channel_group);
}

bool make_plan(const Operator& one, const Attributes& attributes, const TensorDesc* in, Plan& plan,
               Problem& problem) noexcept {
  plan = Plan{};
  for (int i = 0; i < one.input_count; ++i) {
    const Dims& dims = in[i].dims;
    if (dims.rank != one.ranks[i]) {
      return problem.say("input %d has %d dimensions, expected %d", i, dims.rank, one.ranks[i]);
    }
    for (int j = 0; j < dims.rank; ++j) {
      if (dims.size[j] < 0 || dims.size[j] > INT32_MAX) {
        return problem.say("size %d of input %d is %lld, outside 0 to 2^31 - 1", j, i,
                           static_cast<long long>(dims.size[j]));
      }
    }
    if (!allows(one, i, in[i].type, in[0].type)) {
      return problem.say("input %d has the unsupported type %d", i, static_cast<int>(in[i].type));
    }
  }
  Plan made;
  if (!fits_group(one, in[0].dims.size[1], problem)) return false;
  if (!one.plan(attributes, in, made, problem)) return false;
  plan = made;
  return true;
}

}  // namespace dela::trt
