// Between sensor_msgs/PointCloud2 and dela's scans.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include <dela.hpp>
#include <sensor_msgs/msg/point_cloud2.hpp>

namespace dela_ros {

using PointCloud2 = sensor_msgs::msg::PointCloud2;

// A column of the network and the field of the message that holds it.
struct FieldOf {
  std::string column, field;
};

// A copy of a message whose points each have two more fields, `label` (int32) and `confidence` (float32).
// The scan to label is read where it lies in the copy.
class LabeledMessage {
 public:
  // Throws std::runtime_error for a message that is not consistent or lacks a field.
  LabeledMessage(const PointCloud2& message, const std::vector<FieldOf>& columns);

  // The scan; valid as long as this object.
  const dela_cloud& cloud() const { return cloud_; }

  // Writes labels and confidences, one of each for a point.
  void set(const dela::Labels& found);

  // The points whose label is (or is not) one of these, as an unordered message; points without a label
  // are in neither.
  std::unique_ptr<PointCloud2> select(const std::unordered_set<int32_t>& labels, bool among) const;

  // The whole message; this object is of no use afterwards.
  std::unique_ptr<PointCloud2> take() { return std::move(message_); }

 private:
  void copy_points(const PointCloud2& message);
  void describe_points();
  void describe_columns(const std::vector<FieldOf>& columns);
  const sensor_msgs::msg::PointField& field(const std::string& name) const;
  int32_t label_of(size_t point) const;

  std::unique_ptr<PointCloud2> message_;
  std::vector<float> coordinates_;  // where x, y, z do not lie side by side
  std::vector<dela_column> columns_;
  std::vector<std::string> names_;
  dela_cloud cloud_{};
  size_t count_ = 0, label_offset_ = 0;
};

}  // namespace dela_ros
