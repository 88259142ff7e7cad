// As much of rclcpp as the node uses, for compiling and running it without ROS 2: topics are kept by
// their name in one process, and a publisher keeps what it was given.
#pragma once

#include <any>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace rclcpp {

struct QoS {
  QoS(size_t depth) : depth(depth) {}  // implicit, as rclcpp's
  QoS& keep_last(size_t count) {
    depth = count;
    return *this;
  }
  size_t depth;
};
struct SensorDataQoS : QoS {
  SensorDataQoS() : QoS(5) {}
};

class Parameter {
 public:
  template <class Value>
  Parameter(std::string name, Value value) : name(std::move(name)), value(std::move(value)) {}
  std::string name;
  std::any value;
};

class NodeOptions {
 public:
  NodeOptions& parameter_overrides(std::vector<Parameter> parameters) {
    overrides = std::move(parameters);
    return *this;
  }
  std::vector<Parameter> overrides;
};

template <class Message>
class Publisher {
 public:
  using SharedPtr = std::shared_ptr<Publisher>;
  void publish(std::unique_ptr<Message> message) { published.push_back(std::move(*message)); }
  void publish(const Message& message) { published.push_back(message); }
  size_t get_subscription_count() const { return subscribers; }

  std::vector<Message> published;
  size_t subscribers = 0;
};

template <class Message>
class Subscription {
 public:
  using SharedPtr = std::shared_ptr<Subscription>;
  std::function<void(std::shared_ptr<const Message>)> callback;
};

struct Logger {};
struct Clock {};

class Node {
 public:
  Node(const std::string&, const NodeOptions& options) : options_(options) {}
  virtual ~Node() = default;

  template <class Value>
  Value declare_parameter(const std::string& name, const Value& fallback) {
    for (const Parameter& each : options_.overrides) {
      if (each.name == name) return std::any_cast<Value>(each.value);
    }
    return fallback;
  }
  template <class Message>
  typename Publisher<Message>::SharedPtr create_publisher(const std::string& topic, const QoS&) {
    auto publisher = std::make_shared<Publisher<Message>>();
    topics[topic] = publisher;
    return publisher;
  }
  template <class Message, class Callback>
  typename Subscription<Message>::SharedPtr create_subscription(const std::string& topic,
                                                                const QoS&, Callback callback) {
    auto subscription = std::make_shared<Subscription<Message>>();
    subscription->callback = std::move(callback);
    topics[topic] = subscription;
    return subscription;
  }
  Logger get_logger() const { return {}; }
  std::shared_ptr<Clock> get_clock() const { return std::make_shared<Clock>(); }

  template <class Topic>
  std::shared_ptr<Topic> topic(const std::string& name) const {
    return std::any_cast<std::shared_ptr<Topic>>(topics.at(name));
  }
  std::map<std::string, std::any> topics;

 private:
  NodeOptions options_;
};

}  // namespace rclcpp

#define RCLCPP_ERROR_THROTTLE(logger, clock, milliseconds, ...) \
  do {                                                          \
    (void)(logger), (void)(clock), (void)(milliseconds);        \
    std::fprintf(stderr, __VA_ARGS__);                          \
    std::fputc('\n', stderr);                                   \
  } while (false)
