// Sends the node one PointCloud2 and writes what it publishes as .npy files:
//
//     run_node MODEL ONNXRUNTIME records.npy HEIGHT POINT_STEP ROW_STEP FIELD,OFFSET,TYPE... [-- column=field...]
//
// records.npy holds the message's bytes (uint8). For every topic that got a message its bytes go to
// labeled.npy, ground.npy, no_ground.npy; the message's shape and fields are printed.
#include <cstdio>
#include <cstdlib>
#include <string>

#include <rclcpp/rclcpp.hpp>
#include <sensor_msgs/msg/point_cloud2.hpp>
#include <std_msgs/msg/float64.hpp>

#include "../../../examples/cpp/npy.h"

using sensor_msgs::msg::PointCloud2;

std::shared_ptr<rclcpp::Node> make_component(const rclcpp::NodeOptions& options);

namespace {

std::shared_ptr<PointCloud2> read_message(char** words) {
  auto message = std::make_shared<PointCloud2>();
  const npy::Array bytes = npy::read(words[0]);
  message->data.assign(bytes.data.begin(), bytes.data.end());
  message->header.frame_id = "lidar";
  message->height = static_cast<uint32_t>(std::atoi(words[1]));
  message->point_step = static_cast<uint32_t>(std::atoi(words[2]));
  message->row_step = static_cast<uint32_t>(std::atoi(words[3]));
  message->width = message->row_step / message->point_step;
  for (char** word = words + 4; *word != nullptr && std::string(*word) != "--"; ++word) {
    const std::string text = *word;
    const size_t first = text.find(','), second = text.find(',', first + 1);
    sensor_msgs::msg::PointField field;
    field.name = text.substr(0, first);
    field.offset = static_cast<uint32_t>(std::stoi(text.substr(first + 1)));
    field.datatype = static_cast<uint8_t>(std::stoi(text.substr(second + 1)));
    field.count = 1;
    message->fields.push_back(field);
  }
  return message;
}

void write_topic(const rclcpp::Node& node, const std::string& name) {
  const auto& heard = node.topic<rclcpp::Publisher<PointCloud2>>("~/" + name)->published;
  if (heard.empty()) return;
  const PointCloud2& message = heard.back();
  std::printf("%s %s %u %u %u %u", name.c_str(), message.header.frame_id.c_str(), message.height,
              message.width, message.point_step, message.row_step);
  for (const auto& field : message.fields) {
    std::printf(" %s,%u,%d", field.name.c_str(), field.offset, field.datatype);
  }
  std::printf("\n");
  npy::write(name + ".npy", "u1", message.data);
}

}  // namespace

int main(int count, char** words) {
  std::vector<std::string> renamed;
  bool names = false;
  for (int i = 1; i < count; ++i) {
    if (names) renamed.push_back(words[i]);
    names = names || std::string(words[i]) == "--";
  }
  try {
    const auto node = make_component(rclcpp::NodeOptions().parameter_overrides(
        {{"model", std::string(words[1])},
         {"onnxruntime", std::string(words[2])},
         {"fields", renamed},
         {"ground_labels", std::vector<int64_t>{2}}}));
    node->topic<rclcpp::Publisher<PointCloud2>>("~/ground")->subscribers = 1;
    node->topic<rclcpp::Publisher<PointCloud2>>("~/no_ground")->subscribers = 1;
    node->topic<rclcpp::Subscription<PointCloud2>>("points")->callback(read_message(words + 3));
    for (const char* name : {"labeled", "ground", "no_ground"}) write_topic(*node, name);
    for (const auto& each :
         node->topic<rclcpp::Publisher<std_msgs::msg::Float64>>("~/latency")->published) {
      std::printf("latency %g\n", each.data);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
