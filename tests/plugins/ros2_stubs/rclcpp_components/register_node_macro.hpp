// In place of a class loader's entry: a function that makes the node.
#pragma once

#include <memory>
#include <rclcpp/rclcpp.hpp>

#define RCLCPP_COMPONENTS_REGISTER_NODE(Class)                                      \
  std::shared_ptr<rclcpp::Node> make_component(const rclcpp::NodeOptions& options) { \
    return std::make_shared<Class>(options);                                        \
  }
