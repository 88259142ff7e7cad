#include "label_node.hpp"

#include <chrono>
#include <rclcpp_components/register_node_macro.hpp>
#include <stdexcept>
#include <string>
#include <utility>

namespace dela_ros {
namespace {

// The field of each column that the network wants: its own name, or what a "column=field" says.
std::vector<FieldOf> fields_of(const dela::Model& model, const std::vector<std::string>& renamed) {
  std::vector<FieldOf> columns;
  for (const std::string& name : model.columns()) columns.push_back({name, name});
  for (const std::string& pair : renamed) {
    const size_t at = pair.find('=');
    bool known = false;
    for (FieldOf& column : columns) {
      if (at == std::string::npos || column.column != pair.substr(0, at)) continue;
      column.field = pair.substr(at + 1);
      known = true;
    }
    if (!known) {
      throw std::runtime_error("fields holds '" + pair +
                               "'; write column=field for a column that the network asks for");
    }
  }
  return columns;
}

}  // namespace

LabelNode::LabelNode(const rclcpp::NodeOptions& options) : rclcpp::Node("dela", options) {
  const auto model = declare_parameter<std::string>("model", "");
  const auto runtime = declare_parameter<std::string>("onnxruntime", "");
  const auto threads = declare_parameter<int64_t>("threads", 0);
  const auto renamed =
      declare_parameter<std::vector<std::string>>("fields", std::vector<std::string>{});
  const auto ground =
      declare_parameter<std::vector<int64_t>>("ground_labels", std::vector<int64_t>{2});
  for (const int64_t code : ground) ground_.insert(static_cast<int32_t>(code));
  options_.size = sizeof options_;
  options_.max_points = declare_parameter<int64_t>("max_points", 0);
  options_.drop_invalid = 1;  // drivers send NaN where nothing came back
  model_ = std::make_unique<dela::Model>(model, runtime, static_cast<int32_t>(threads));
  columns_ = fields_of(*model_, renamed);

  // Reliable, for that reaches listeners of both kinds.
  const rclcpp::QoS last(1);
  labeled_ = create_publisher<PointCloud2>("~/labeled", last);
  on_ground_ = create_publisher<PointCloud2>("~/ground", last);
  off_ground_ = create_publisher<PointCloud2>("~/no_ground", last);
  latency_ = create_publisher<std_msgs::msg::Float64>("~/latency", last);
  // One scan at a time: a scan that waited is older than the one that the robot wants.
  points_ = create_subscription<PointCloud2>(
      "points", rclcpp::SensorDataQoS().keep_last(1),
      [this](PointCloud2::ConstSharedPtr message) { hear(*message); });
}

void LabelNode::hear(const PointCloud2& message) {
  const auto start = std::chrono::steady_clock::now();
  try {
    LabeledMessage labeled(message, columns_);
    labeled.set(model_->label(labeled.cloud(), &options_));
    const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
    publish(std::move(labeled), spent.count());
  } catch (const std::exception& error) {
    RCLCPP_ERROR_THROTTLE(get_logger(), *get_clock(), 2000, "a scan is not labeled: %s",
                          error.what());
  }
}

void LabelNode::publish(LabeledMessage labeled, double milliseconds) {
  // What nobody hears is not made.
  if (on_ground_->get_subscription_count() > 0) {
    on_ground_->publish(labeled.select(ground_, true));
  }
  if (off_ground_->get_subscription_count() > 0) {
    off_ground_->publish(labeled.select(ground_, false));
  }
  labeled_->publish(labeled.take());
  std_msgs::msg::Float64 latency;
  latency.data = milliseconds;
  latency_->publish(latency);
}

}  // namespace dela_ros

RCLCPP_COMPONENTS_REGISTER_NODE(dela_ros::LabelNode)
