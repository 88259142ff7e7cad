#include "cloud_message.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace dela_ros {
namespace {

using sensor_msgs::msg::PointField;

constexpr int32_t kUnlabeled = -1;  // of points that were left out
constexpr size_t kAdded = sizeof(int32_t) + sizeof(float);

struct Type {
  dela_type type;
  size_t bytes;
};

Type type_of(const PointField& field) {
  switch (field.datatype) {
    case PointField::INT8:
      return {DELA_INT8, 1};
    case PointField::UINT8:
      return {DELA_UINT8, 1};
    case PointField::INT16:
      return {DELA_INT16, 2};
    case PointField::UINT16:
      return {DELA_UINT16, 2};
    case PointField::INT32:
      return {DELA_INT32, 4};
    case PointField::UINT32:
      return {DELA_UINT32, 4};
    case PointField::FLOAT32:
      return {DELA_FLOAT32, 4};
    case PointField::FLOAT64:
      return {DELA_FLOAT64, 8};
    default:
      throw std::runtime_error("field " + field.name + " has the unknown type " +
                               std::to_string(field.datatype));
  }
}

PointField make_field(const std::string& name, size_t offset, uint8_t type) {
  PointField field;
  field.name = name;
  field.offset = static_cast<uint32_t>(offset);
  field.datatype = type;
  field.count = 1;
  return field;
}

void check(const PointCloud2& message) {
  if (message.is_bigendian) throw std::runtime_error("the message is big-endian");
  const size_t row = size_t{message.width} * message.point_step;
  if (message.row_step < row || message.data.size() < size_t{message.row_step} * message.height) {
    throw std::runtime_error("the message holds " + std::to_string(message.data.size()) +
                             " bytes; its size and steps say more");
  }
  for (const PointField& field : message.fields) {
    const size_t bytes = type_of(field).bytes * std::max<uint32_t>(field.count, 1);
    if (field.offset + bytes > message.point_step) {
      throw std::runtime_error("field " + field.name + " lies beyond the point");
    }
    if (field.name == "label" || field.name == "confidence") {
      throw std::runtime_error("the message has a field " + field.name + " already");
    }
  }
}

}  // namespace

LabeledMessage::LabeledMessage(const PointCloud2& message, const std::vector<FieldOf>& columns) {
  check(message);
  copy_points(message);
  describe_points();
  describe_columns(columns);
  message_->fields.push_back(make_field("label", label_offset_, PointField::INT32));
  message_->fields.push_back(
      make_field("confidence", label_offset_ + sizeof(int32_t), PointField::FLOAT32));
}

void LabeledMessage::copy_points(const PointCloud2& message) {
  message_ = std::make_unique<PointCloud2>();
  message_->header = message.header;
  message_->height = message.height;
  message_->width = message.width;
  message_->fields = message.fields;
  message_->is_bigendian = false;
  message_->is_dense = message.is_dense;
  label_offset_ = (size_t{message.point_step} + 3) / 4 * 4;
  const size_t step = label_offset_ + kAdded;
  count_ = size_t{message.width} * message.height;
  if (step * count_ > std::numeric_limits<uint32_t>::max()) {
    throw std::runtime_error("the labeled message would be too large");
  }
  message_->point_step = static_cast<uint32_t>(step);
  message_->row_step = static_cast<uint32_t>(step * message.width);
  message_->data.resize(step * count_);
  for (size_t point = 0; point < count_; ++point) {
    const size_t row = point / message.width, column = point % message.width;
    std::memcpy(message_->data.data() + point * step,
                message.data.data() + row * message.row_step + column * message.point_step,
                message.point_step);
  }
}

const PointField& LabeledMessage::field(const std::string& name) const {
  for (const PointField& field : message_->fields) {
    if (field.name == name) return field;
  }
  throw std::runtime_error("the message has no field " + name);
}

void LabeledMessage::describe_points() {
  const PointField* axes[3] = {&field("x"), &field("y"), &field("z")};
  const Type type = type_of(*axes[0]);
  bool beside = true;
  for (size_t axis = 0; axis < 3; ++axis) {
    if (type_of(*axes[axis]).type != type.type ||
        (type.type != DELA_FLOAT32 && type.type != DELA_FLOAT64)) {
      throw std::runtime_error("x, y and z are not all float32 or all float64");
    }
    beside = beside && axes[axis]->offset == axes[0]->offset + axis * type.bytes;
  }
  cloud_.count = static_cast<int64_t>(count_);
  cloud_.type = type.type;
  if (beside) {
    cloud_.points = message_->data.data() + axes[0]->offset;
    cloud_.stride = message_->point_step;
    return;
  }
  if (type.type != DELA_FLOAT32) {
    throw std::runtime_error("x, y and z are float64 and do not lie side by side");
  }
  coordinates_.resize(3 * count_);
  for (size_t i = 0; i < coordinates_.size(); ++i) {
    const size_t place = i / 3 * message_->point_step + axes[i % 3]->offset;
    std::memcpy(&coordinates_[i], message_->data.data() + place, sizeof(float));
  }
  cloud_.points = coordinates_.data();
}

void LabeledMessage::describe_columns(const std::vector<FieldOf>& columns) {
  names_.reserve(columns.size());
  for (const FieldOf& column : columns) {
    const PointField& found = field(column.field);
    names_.push_back(column.column);
    columns_.push_back({names_.back().c_str(), message_->data.data() + found.offset,
                        type_of(found).type, message_->point_step});
  }
  cloud_.columns = columns_.data();
  cloud_.column_count = static_cast<int32_t>(columns_.size());
}

void LabeledMessage::set(const dela::Labels& found) {
  for (size_t point = 0; point < count_; ++point) {
    uint8_t* place = message_->data.data() + point * message_->point_step + label_offset_;
    std::memcpy(place, &found.labels[point], sizeof(int32_t));
    std::memcpy(place + sizeof(int32_t), &found.confidences[point], sizeof(float));
  }
}

int32_t LabeledMessage::label_of(size_t point) const {
  int32_t label;
  std::memcpy(&label, message_->data.data() + point * message_->point_step + label_offset_,
              sizeof label);
  return label;
}

std::unique_ptr<PointCloud2> LabeledMessage::select(const std::unordered_set<int32_t>& labels,
                                                    bool among) const {
  auto part = std::make_unique<PointCloud2>();
  part->header = message_->header;
  part->fields = message_->fields;
  part->is_bigendian = false;
  part->is_dense = true;
  part->point_step = message_->point_step;
  for (size_t point = 0; point < count_; ++point) {
    const int32_t label = label_of(point);
    if (label == kUnlabeled || (labels.count(label) != 0) != among) continue;
    const auto begin =
        message_->data.begin() + static_cast<std::ptrdiff_t>(point * message_->point_step);
    part->data.insert(part->data.end(), begin, begin + message_->point_step);
  }
  part->height = 1;
  part->width = static_cast<uint32_t>(part->data.size() / part->point_step);
  part->row_step = part->width * part->point_step;
  return part;
}

}  // namespace dela_ros
