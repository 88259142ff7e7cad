// A node that labels the points of every scan it hears.
#pragma once

#include <memory>
#include <unordered_set>
#include <vector>

#include <rclcpp/rclcpp.hpp>
#include <sensor_msgs/msg/point_cloud2.hpp>
#include <std_msgs/msg/float64.hpp>

#include "cloud_message.hpp"

namespace dela_ros {

// Subscribes to `points`; publishes `~/labeled` (all points, with the fields label and confidence),
// `~/ground` and `~/no_ground` (parts of it) and `~/latency` (milliseconds from the callback's start to
// the labels). Parameters:
//
//   model           file that `dela export` wrote
//   onnxruntime     ONNX Runtime's library; "": found by dela
//   threads         that compute; 0: as many as there are cores
//   max_points      voxels in one run of the network; 0: 200,000
//   fields          for columns whose field has another name: "intensity=reflectivity" ...
//   ground_labels   label codes that are ground
class LabelNode : public rclcpp::Node {
 public:
  // Throws dela::Error when the model does not load, so that the launch fails at once.
  explicit LabelNode(const rclcpp::NodeOptions& options);

 private:
  void hear(const PointCloud2& message);
  void publish(LabeledMessage labeled, double milliseconds);

  std::unique_ptr<dela::Model> model_;
  std::vector<FieldOf> columns_;
  std::unordered_set<int32_t> ground_;
  dela_label_options options_{};
  rclcpp::Publisher<PointCloud2>::SharedPtr labeled_, on_ground_, off_ground_;
  rclcpp::Publisher<std_msgs::msg::Float64>::SharedPtr latency_;
  rclcpp::Subscription<PointCloud2>::SharedPtr points_;
};

}  // namespace dela_ros
