// A scan's columns as the network sees them: scaled, some of them on a logarithmic scale, and cut.
//
// As dela/scan/attributes.py computes them, in double with each operation rounded once, then rounded to
// float32.
#include "cuda/geometry.cuh"

namespace dela {

// A column: n values of `kind`, and what becomes of them. With `log` other than 0 a value is first
// sign(value) ln(1 + |value| / log); then (value - offset) / scale.
struct Column {
  const void* values;
  double offset, scale, log;
  int32_t kind, at, first_block;  // `at`: its place among the attributes
};

namespace {

constexpr double kScaledLimit = 5.0;

template <class T>
DELA_DEVICE double value_of(const void* values, int64_t row) {
  return static_cast<double>(static_cast<const T*>(values)[row]);
}

// Numbers as in dela/pyramid/gpu_columns.py; 0 is the height above the lowest point.
DELA_DEVICE double raw_value(const Column& column, const void* points, int32_t is_double,
                             const uint64_t* bounds, int64_t row) {
  switch (column.kind) {
    case 0: return __dsub_rn(coordinate(points, is_double, 3 * row + 2), lowest(bounds, 2));
    case 1: return value_of<uint8_t>(column.values, row);
    case 2: return value_of<int8_t>(column.values, row);
    case 3: return value_of<uint16_t>(column.values, row);
    case 4: return value_of<short>(column.values, row);
    case 5: return value_of<uint32_t>(column.values, row);
    case 6: return value_of<int32_t>(column.values, row);
    case 7: return value_of<uint64_t>(column.values, row);
    case 8: return value_of<int64_t>(column.values, row);
    case 9: return value_of<float>(column.values, row);
    default: return value_of<double>(column.values, row);
  }
}

}  // namespace
}  // namespace dela

// Fills attributes [n, width] from up to eight columns, one column a block. `bounds`: of the points.
// `unknown`, a word for each attribute, zero before: values that are not a number.
DELA_KERNEL(6)
dela_attributes(dela::Jobs<dela::Column> columns, const void* points, const uint64_t* bounds,
                int32_t is_double, int32_t n, int32_t width, float* attributes,
                uint64_t* unknown) {
  int32_t number;
  const dela::Column column = columns.of_block(&number);
  const int64_t block = static_cast<int32_t>(blockIdx.x) - column.first_block;
  const int64_t row = block * dela::kBlock + threadIdx.x;
  if (row >= n) return;
  double value = dela::raw_value(column, points, is_double, bounds, row);
  if (value != value) atomicAdd(reinterpret_cast<unsigned long long*>(unknown + column.at), 1ull);
  if (column.log != 0.0) value = copysign(log1p(fabs(value) / column.log), value);
  value = __dsub_rn(value, column.offset) / column.scale;
  value = fmin(fmax(value, -dela::kScaledLimit), dela::kScaledLimit);
  attributes[row * width + column.at] = static_cast<float>(value);
}
