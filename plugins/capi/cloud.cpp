#include "capi/cloud.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "capi/failure.h"
#include "capi/ground.h"
#include "cpu/geometry.h"

namespace dela::capi {
namespace {

// Of dela/scan/attributes.py: scaled values are cut to this range.
constexpr double kScaledLimit = 5.0;
const char* const kCategory = "category";

template <class T>
double value_at(const void* place) {
  T value;
  std::memcpy(&value, place, sizeof value);
  return static_cast<double>(value);
}

struct Type {
  double (*read)(const void*);
  int64_t bytes;
};

// Null for a type that dela.h does not name.
const Type* type_of(int32_t type) {
  static const Type types[] = {
      {value_at<double>, 8},   {value_at<float>, 4},   {value_at<int8_t>, 1},
      {value_at<uint8_t>, 1},  {value_at<int16_t>, 2}, {value_at<uint16_t>, 2},
      {value_at<int32_t>, 4},  {value_at<uint32_t>, 4}, {value_at<int64_t>, 8},
      {value_at<uint64_t>, 8},
  };
  return type >= 0 && type <= DELA_UINT64 ? &types[type] : nullptr;
}

void check_call(const dela_cloud& given) {
  if (given.count < 0 || given.column_count < 0) {
    fail(DELA_BAD_ARGUMENT, "the scan has %lld points and %d columns; give 0 or more",
         static_cast<long long>(given.count), given.column_count);
  }
  if (given.count == 0) {
    fail(DELA_BAD_INPUT, "the scan is empty; it needs at least one point");
  }
  if (given.count >= (int64_t{1} << 31) - 64) {
    fail(DELA_BAD_INPUT, "the scan has %s points; at most 2^31 - 65 fit int32 indices",
         with_commas(given.count).c_str());
  }
  if (given.points == nullptr || (given.columns == nullptr && given.column_count > 0)) {
    fail(DELA_BAD_ARGUMENT, "points or columns are NULL; give the scan's arrays");
  }
  if (given.type != DELA_FLOAT64 && given.type != DELA_FLOAT32) {
    fail(DELA_BAD_ARGUMENT, "points have the type %d; give DELA_FLOAT64 or DELA_FLOAT32",
         given.type);
  }
  for (int32_t i = 0; i < given.column_count; ++i) {
    const dela_column& column = given.columns[i];
    if (column.name == nullptr || column.data == nullptr) {
      fail(DELA_BAD_ARGUMENT, "column %d has no name or no data", i);
    }
    if (type_of(column.type) == nullptr) {
      fail(DELA_BAD_ARGUMENT, "column '%s' has the type %d, which is none of dela_type", column.name,
           column.type);
    }
  }
}

// Fills the points that count, in the caller's frame.
void take_points(const dela_cloud& given, bool drop_invalid, Cloud* cloud) {
  const Type& type = *type_of(given.type);
  const int64_t stride = given.stride != 0 ? given.stride : 3 * type.bytes;
  const auto* bytes = static_cast<const char*>(given.points);
  cloud->points.reserve(3 * given.count);
  int64_t bad = 0, first_bad = 0;
  for (int64_t i = 0; i < given.count; ++i) {
    double place[3];
    bool finite = true;
    for (int axis = 0; axis < 3; ++axis) {
      place[axis] = type.read(bytes + i * stride + axis * type.bytes);
      finite = finite && std::isfinite(place[axis]);
    }
    if (!finite) {
      if (bad++ == 0) first_bad = i;
      if (bad == 1 && drop_invalid) {
        for (int64_t row = 0; row < i; ++row) cloud->row.push_back(row);
      }
      continue;
    }
    cloud->points.insert(cloud->points.end(), place, place + 3);
    if (bad > 0) cloud->row.push_back(i);
  }
  if (bad == given.count) {
    fail(DELA_BAD_INPUT, "all %s points have NaN or infinite coordinates",
         with_commas(given.count).c_str());
  }
  if (bad > 0 && !drop_invalid) {
    fail(DELA_BAD_INPUT,
         "%lld of %lld points have NaN or infinite coordinates (first: row %lld); drop them with "
         "dela_label_options.drop_invalid",
         static_cast<long long>(bad), static_cast<long long>(given.count),
         static_cast<long long>(first_bad));
  }
}

void shift_to_corner(Cloud* cloud) {
  double low[3] = {cloud->points[0], cloud->points[1], cloud->points[2]};
  for (size_t i = 0; i < cloud->points.size(); ++i) {
    low[i % 3] = std::min(low[i % 3], cloud->points[i]);
  }
  for (size_t i = 0; i < cloud->points.size(); ++i) {
    double& value = cloud->points[i];
    value -= low[i % 3];
    if (!(value <= kLargestCoordinate)) {
      fail(DELA_BAD_INPUT, "a coordinate is %.6g from the lowest; the largest usable distance is %g",
           value, static_cast<double>(kLargestCoordinate));
    }
  }
}

const dela_column* find_column(const dela_cloud& given, const std::string& name) {
  for (int32_t i = 0; i < given.column_count; ++i) {
    if (name == given.columns[i].name) return &given.columns[i];
  }
  return nullptr;
}

[[noreturn]] void refuse_missing(const dela_cloud& given, const Contract& contract,
                                 const std::string& name) {
  if (name == kCategory) {
    fail(DELA_BAD_INPUT,
         "the scan has no column 'category'; the model tells parts of %d categories apart and needs "
         "each point's, 0..%d",
         contract.categories, contract.categories - 1);
  }
  std::string needed, present;
  for (const std::string& each : needed_columns(contract)) {
    needed += (needed.empty() ? "" : ", ") + each;
  }
  for (int32_t i = 0; i < given.column_count; ++i) {
    present += (present.empty() ? "" : ", ") + std::string(given.columns[i].name);
  }
  fail(DELA_BAD_INPUT, "the scan has no column '%s'; the model needs %s, the scan has %s",
       name.c_str(), needed.c_str(), present.empty() ? "coordinates only" : present.c_str());
}

// The values of one of the caller's columns for the points that count.
std::vector<double> raw_values(const dela_cloud& given, const Contract& contract,
                               const std::string& name, const Cloud& cloud) {
  const dela_column* column = find_column(given, name);
  if (column == nullptr) refuse_missing(given, contract, name);
  const Type& type = *type_of(column->type);
  const int64_t stride = column->stride != 0 ? column->stride : type.bytes;
  const auto* bytes = static_cast<const char*>(column->data);
  std::vector<double> values(cloud.count());
  int64_t bad = 0;
  for (int64_t i = 0; i < cloud.count(); ++i) {
    values[i] = type.read(bytes + (cloud.row.empty() ? i : cloud.row[i]) * stride);
    bad += std::isnan(values[i]);
  }
  if (bad > 0 && name != kCategory) {
    fail(DELA_BAD_INPUT,
         "column '%s' holds %lld NaN values of %lld; fill them in or remove those points",
         name.c_str(), static_cast<long long>(bad), static_cast<long long>(cloud.count()));
  }
  return values;
}

std::vector<double> category_values(const dela_cloud& given, const Contract& contract, int category,
                                    const Cloud& cloud) {
  std::vector<double> values = raw_values(given, contract, kCategory, cloud);
  for (double& value : values) {
    if (!(value >= 0 && value < contract.categories && value == std::floor(value))) {
      fail(DELA_BAD_INPUT, "column 'category' holds %g; the model's categories are 0..%d", value,
           contract.categories - 1);
    }
    value = value == category ? 1.0 : 0.0;
  }
  return values;
}

std::vector<double> column_values(const dela_cloud& given, const Contract& contract,
                                  const Column& column, const Cloud& cloud) {
  if (column.category >= 0) return category_values(given, contract, column.category, cloud);
  if (column.name == "height_above_ground") {
    return height_above_ground(cloud.points.data(), cloud.count());
  }
  if (column.name == "height") {
    // Points are counted from the lowest corner already.
    std::vector<double> values(cloud.count());
    for (int64_t i = 0; i < cloud.count(); ++i) values[i] = cloud.points[3 * i + 2];
    return values;
  }
  return raw_values(given, contract, column.name, cloud);
}

float scaled(double raw, const Column& column) {
  if (column.log > 0.0) {
    const double sign = raw > 0.0 ? 1.0 : raw < 0.0 ? -1.0 : 0.0;
    raw = sign * std::log1p(std::fabs(raw) / column.log);
  }
  const double value = (raw - column.offset) / column.scale;
  return static_cast<float>(std::min(std::max(value, -kScaledLimit), kScaledLimit));
}

}  // namespace

std::vector<std::string> needed_columns(const Contract& contract) {
  std::vector<std::string> names;
  for (const Column& column : contract.columns) {
    if (column.name == "height" || column.name == "height_above_ground") continue;
    const std::string name = column.category >= 0 ? kCategory : column.name;
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

Cloud read_cloud(const dela_cloud& given, const Contract& contract, bool drop_invalid) {
  check_call(given);
  Cloud cloud;
  take_points(given, drop_invalid, &cloud);
  shift_to_corner(&cloud);
  const auto columns = static_cast<int64_t>(contract.columns.size());
  cloud.attributes.resize(cloud.count() * columns);
  for (int64_t c = 0; c < columns; ++c) {
    const Column& column = contract.columns[c];
    const std::vector<double> raw = column_values(given, contract, column, cloud);
    for (int64_t i = 0; i < cloud.count(); ++i) {
      cloud.attributes[i * columns + c] = scaled(raw[i], column);
    }
  }
  return cloud;
}

}  // namespace dela::capi
