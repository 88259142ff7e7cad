// Edge cases of the native TensorRT plugins, for a build with sanitizers, on a driver that refuses
// what it is told to.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "fake_driver.h"
#include "tensorrt_native/trt_abi.h"

using namespace dela::trt;

extern "C" {
void dela_trt_set_listener(void (*)(const char*));
Versioned* const* getCreators(int32_t&);
}

namespace {

#define REQUIRE(condition)                                       \
  do {                                                           \
    if (!(condition)) {                                          \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                              \
    }                                                            \
  } while (false)

struct Messages {
  std::string last;
  bool holds(const char* text) const { return last.find(text) != std::string::npos; }
} messages;

using Shapes = std::vector<std::vector<int64_t>>;

PluginCreator& creator(const char* name) {
  int32_t count = 0;
  Versioned* const* all = getCreators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* one = static_cast<PluginCreator*>(all[i]);
    if (std::strcmp(one->getPluginName(), name) == 0) return *one;
  }
  std::exit(1);
}

PluginRuntime* running(PluginV3* plugin) {
  return static_cast<PluginRuntime*>(plugin->getCapabilityInterface(Capability::kRuntime));
}

PluginV3* attached(const char* name) {
  PluginV3* plugin = creator(name).createPlugin(name, nullptr, Phase::kRuntime);
  REQUIRE(plugin != nullptr);
  PluginV3* result = running(plugin)->attachToContext(nullptr);
  delete plugin;
  return result;
}

std::vector<TensorDesc> described(const Shapes& shapes, DataType features) {
  std::vector<TensorDesc> all;
  for (const auto& shape : shapes) {
    TensorDesc one{};
    one.dims.rank = static_cast<int32_t>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) one.dims.size[i] = shape[i];
    one.type = all.empty() ? features : DataType::kFloat;
    all.push_back(one);
  }
  if (shapes.size() == 3) all[1].type = DataType::kInt32;
  if (shapes.size() == 5) all[2].type = all[3].type = DataType::kInt32;
  return all;
}

int32_t set_shapes(PluginV3* plugin, const Shapes& shapes, DataType features = DataType::kFloat) {
  const auto in = described(shapes, features);
  return running(plugin)->onShapeChange(in.data(), static_cast<int32_t>(in.size()), nullptr, 1);
}

// Exactly as many addresses as there are inputs, in an allocation of their own.
int32_t enqueue(PluginV3* plugin, size_t inputs) {
  std::vector<const void*> addresses;
  for (size_t i = 0; i < inputs; ++i) addresses.push_back(reinterpret_cast<void*>(4096 * (i + 1)));
  const std::vector<void*> outputs{reinterpret_cast<void*>(1 << 20)};
  return running(plugin)->enqueue(nullptr, nullptr, addresses.data(), outputs.data(), nullptr,
                                  reinterpret_cast<void*>(77));
}

void refuse(std::initializer_list<int> statuses) {
  fake_driver.loads = 0;
  std::fill(std::begin(fake_driver.refusals), std::end(fake_driver.refusals), 0);
  std::copy(statuses.begin(), statuses.end(), fake_driver.refusals);
}

void images_make_way_for_the_next() {
  fake_driver.context = nullptr;
  REQUIRE(attached("SPSE") == nullptr && messages.holds("no CUDA context is current"));
  int context = 0;
  fake_driver.context = &context;
  fake_driver.capability = 75;
  REQUIRE(attached("SPSE") == nullptr && messages.holds("compute capability 7.5"));
  fake_driver.capability = 89;
  // sm_89, sm_87, sm_86 and sm_80 are refused, each for another reason: PTX is left.
  refuse({200, 209, 218, 222});
  PluginV3* plugin = attached("SPSE");
  REQUIRE(plugin != nullptr && fake_driver.loads == 5 && fake_driver.modules == 1);
  REQUIRE(std::strstr(reinterpret_cast<const char*>(fake_driver.image), ".version 7.8") != nullptr);
  delete plugin;
  REQUIRE(fake_driver.modules == 0);
  refuse({0});
  plugin = attached("SPAMP");
  REQUIRE(plugin != nullptr && fake_driver.loads == 1);
  REQUIRE(std::memcmp(fake_driver.image, "\x7f" "ELF", 4) == 0);
  // The kernels of a context are loaded once, and live as long as one plugin uses them.
  PluginV3* second = attached("SPSE");
  REQUIRE(fake_driver.loads == 1);
  delete plugin;
  REQUIRE(fake_driver.modules == 1);
  fake_driver.push_status = 1;  // the context is gone, and the module with it
  delete second;
  REQUIRE(fake_driver.modules == 1);
  fake_driver.push_status = 0;
  fake_driver.modules = 0;
}

void failures_are_told() {
  refuse({209, 209, 209, 209, 209});
  REQUIRE(attached("SPSE") == nullptr && fake_driver.loads == 5);
  REQUIRE(messages.holds("update the driver"));
  refuse({2});  // out of memory: no other image would do
  REQUIRE(attached("SPSE") == nullptr && fake_driver.loads == 1);
  refuse({});
  fake_driver.function_status = 1;
  REQUIRE(attached("SPSE") == nullptr && messages.holds("dela_spse_0: invalid argument"));
  REQUIRE(fake_driver.modules == 0);
  fake_driver.function_status = 0;
  PluginV3* plugin = attached("SPSE");
  REQUIRE(enqueue(plugin, 3) == 1 && messages.holds("run before its shapes were set"));
  REQUIRE(set_shapes(plugin, {{100, 7}, {100, 6}, {16, 20}}) == 0);
  fake_driver.launch_status = 1;
  REQUIRE(enqueue(plugin, 3) == 1 && messages.holds("dela_spse_4 with 4 blocks failed: invalid"));
  fake_driver.launch_status = 0;
  REQUIRE(set_shapes(plugin, {{100, 7}, {100, 6}, {15, 20}}) == 1);
  REQUIRE(enqueue(plugin, 3) == 1);
  delete plugin;
}

void launches_carry_addresses_and_sizes() {
  PluginV3* plugin = attached("SPAMP");
  REQUIRE(set_shapes(plugin, {{50, 24}, {50, 3}, {33, 7}, {33}, {4, 6}}, DataType::kHalf) == 0);
  const int before = fake_driver.launches;
  REQUIRE(enqueue(plugin, 5) == 0 && fake_driver.launches == before + 1);
  REQUIRE(std::strcmp(fake_driver.kernel, "dela_spamp_f16_8") == 0);
  REQUIRE(fake_driver.grid == 1 && fake_driver.block == 128);
  REQUIRE(fake_driver.stream == reinterpret_cast<void*>(77));
  const int sizes[4] = {50, 33, 7, 24};
  REQUIRE(std::memcmp(fake_driver.sizes, sizes, sizeof(sizes)) == 0);
  for (size_t i = 0; i < 5; ++i) {
    REQUIRE(fake_driver.inputs[i] == reinterpret_cast<void*>(4096 * (i + 1)));
  }
  REQUIRE(fake_driver.output == reinterpret_cast<void*>(1 << 20));
  REQUIRE(set_shapes(plugin, {{50, 24}, {50, 3}, {0, 7}, {0}, {4, 6}}) == 0);
  REQUIRE(enqueue(plugin, 5) == 0 && fake_driver.launches == before + 1);
  delete plugin;
}

void fields_of_any_kind_are_read_or_refused() {
  const float epsilon = 0.5f;
  const int64_t wide = 1;
  const Field good[] = {{"plugin_namespace", "dela_native", static_cast<FieldType>(6), 11},
                        {nullptr, nullptr, FieldType::kFloat32, 0},
                        {"epsilon", &epsilon, FieldType::kFloat32, 1},
                        {"directions", &wide, FieldType::kInt64, 1}};
  const FieldCollection all{4, good};
  PluginV3* plugin = creator("SPSE").createPlugin("x", &all, Phase::kBuild);
  REQUIRE(plugin != nullptr);
  PluginV3* copy = plugin->clone();
  delete plugin;
  const FieldCollection* kept = running(copy)->getFieldsToSerialize();
  REQUIRE(kept->count == 2 && *static_cast<const float*>(kept->fields[0].data) == epsilon);
  REQUIRE(*static_cast<const int32_t*>(kept->fields[1].data) == 1);
  delete copy;
  const Field absent{"epsilon", nullptr, FieldType::kFloat32, 1};
  const FieldCollection bad{1, &absent};
  REQUIRE(creator("SPSE").createPlugin("x", &bad, Phase::kBuild) == nullptr);
  // SPAMP has no fields and minds none.
  plugin = creator("SPAMP").createPlugin("x", &bad, Phase::kBuild);
  REQUIRE(plugin != nullptr);
  delete plugin;
}

void threads_share_the_kernels() {
  refuse({});
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([i] {
      for (int j = 0; j < 50; ++j) {
        PluginV3* plugin = attached(i % 2 ? "SPSE" : "SPAMP");
        const Shapes spse{{9, 3}, {9, 2}, {12, 4}}, spamp{{9, 8}, {9, 3}, {5, 2}, {5}, {4, 2}};
        REQUIRE(set_shapes(plugin, i % 2 ? spse : spamp) == 0);
        REQUIRE(enqueue(plugin, i % 2 ? 3 : 5) == 0);
        delete plugin;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  REQUIRE(fake_driver.modules == 0);
}

}  // namespace

int main() {
  dela_trt_set_listener([](const char* line) { messages.last = line; });
  images_make_way_for_the_next();
  failures_are_told();
  launches_carry_addresses_and_sizes();
  fields_of_any_kind_are_read_or_refused();
  threads_share_the_kernels();
  REQUIRE(fake_driver.mode_changes % 2 == 0);
  dela_trt_set_listener(nullptr);
  return 0;
}
