#include "capi/contract.h"

#include <algorithm>
#include <cmath>

#include "capi/failure.h"
#include "capi/json.h"
#include "onnxruntime/ort_abi.h"

namespace dela::capi {
namespace {

constexpr int32_t kMostNeighbors = 1 << 20;
constexpr long long kMostPoints = INT32_MAX - 64;

const std::string* property(const Properties& properties, const std::string& key) {
  for (const auto& entry : properties) {
    if (entry.first == key) return &entry.second;
  }
  return nullptr;
}

// The numbers of a list, one for each stage; none where the list is missing.
std::vector<double> numbers(const json::Value& config, const char* key) {
  std::vector<double> result;
  const json::Value* found = config.find(key);
  if (found == nullptr) return result;
  for (const json::Value& value : found->list(key)) result.push_back(value.number(key));
  return result;
}

Column read_column(const json::Value& value) {
  Column column;
  column.name = value.at("name").text("the name of a column");
  const std::pair<const char*, double*> fields[] = {
      {"scale", &column.scale}, {"offset", &column.offset}, {"log", &column.log}};
  for (const auto& [key, out] : fields) {
    if (const json::Value* given = value.find(key)) *out = given->number(column.name + "." + key);
  }
  if (column.scale == 0.0) throw json::Error("column " + column.name + " has the scale 0");
  if (column.log < 0.0) throw json::Error("column " + column.name + " has a log below 0");
  return column;
}

void read_columns(const json::Value& config, Contract* contract) {
  size_t directions = 0;
  for (const char* key : {"attributes", "directions"}) {
    const json::Value* list = config.find(key);
    if (list == nullptr) continue;
    directions = list->list(key).size();
    for (const json::Value& value : list->list(key)) {
      contract->columns.push_back(read_column(value));
    }
  }
  if (config.find("directions") != nullptr && directions == 3) {
    contract->first_vector = static_cast<int>(contract->columns.size()) - 3;
  }
  if (const json::Value* categories = config.find("categories")) {
    contract->categories = static_cast<int>(categories->list("categories").size());
  }
  for (int i = 0; i < contract->categories; ++i) {
    Column column;
    column.name = "category_" + std::to_string(i);
    column.category = i;
    contract->columns.push_back(column);
  }
  if (contract->classification && !contract->columns.empty()) {
    throw json::Error("classification takes coordinates alone, and it has columns");
  }
}

void read_stages(const json::Value& config, Contract* contract) {
  for (const json::Value& value : config.at("neighbors").list("neighbors")) {
    contract->neighbors.push_back(
        static_cast<int32_t>(value.integer("an entry of neighbors", 1, kMostNeighbors)));
  }
  const size_t stages = contract->neighbors.size();
  if (stages == 0) throw json::Error("neighbors is empty");
  if (contract->classification) {
    for (const json::Value& value : config.at("points").list("points")) {
      contract->points.push_back(value.integer("an entry of points", 1, kMostPoints));
    }
    const auto& points = contract->points;
    if (points.size() != stages || !std::is_sorted(points.rbegin(), points.rend())) {
      throw json::Error("points must have an entry for each stage, none above the last one's");
    }
    return;
  }
  contract->grid = numbers(config, "grid");
  const auto& grid = contract->grid;
  bool rising = grid.size() == stages;
  for (size_t i = 0; rising && i < stages; ++i) rising = grid[i] > (i == 0 ? 0.0 : grid[i - 1]);
  if (!rising) throw json::Error("grid must have an entry for each stage, each above the last one");
}

void read_classes(const json::Value& config, Contract* contract) {
  for (const json::Value& value : config.at("classes").list("classes")) {
    contract->classes.push_back(
        {value.at("name").text("the name of a class"),
         static_cast<int32_t>(value.at("code").integer("the code of a class", INT32_MIN, INT32_MAX))});
  }
  if (contract->classes.empty()) throw json::Error("classes is empty");
}

Contract read_config(const json::Value& config) {
  Contract contract;
  const std::string& task = config.at("task").text("task");
  contract.classification = task == "classification";
  if (!contract.classification && task != "segmentation") {
    throw json::Error("task is '" + task + "'; it must be segmentation or classification");
  }
  if (const json::Value* axis = config.find("vote_axis")) {
    const std::string& name = axis->text("vote_axis");
    const size_t at = std::string("xyz").find(name);
    if (name.size() > 1 || at == std::string::npos) {
      throw json::Error("vote_axis is '" + name + "'; it must be x, y, z or empty");
    }
    contract.vote_axis = name.empty() ? -1 : static_cast<int>(at);
  }
  read_classes(config, &contract);
  read_stages(config, &contract);
  read_columns(config, &contract);
  return contract;
}

void check_version(const Properties& properties, const std::string& source, int newest) {
  const std::string* version = property(properties, "format_version");
  const bool number = version != nullptr && !version->empty() && version->size() < 9 &&
                      version->find_first_not_of("0123456789") == std::string::npos;
  if (!number || std::stoi(*version) < 1) {
    fail(DELA_BAD_MODEL, "%s: format version '%s' is not a number above 0", source.c_str(),
         version == nullptr ? "" : version->c_str());
  }
  if (std::stoi(*version) > newest) {
    const std::string* writer = property(properties, "dela_version");
    fail(DELA_BAD_MODEL,
         "%s has format version %s, this libdela reads up to %d; install dela %s or newer, which "
         "wrote it",
         source.c_str(), version->c_str(), newest, writer == nullptr ? "?" : writer->c_str());
  }
}

const char* type_name(int type) {
  switch (type) {
    case ort::kFloat:
      return "float32";
    case ort::kInt32:
      return "int32";
    default:
      return "of another type";
  }
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) {
    if (text.size() > 1) text += ", ";
    text += size < 0 ? "?" : std::to_string(size);
  }
  return text + "]";
}

bool fits(const GraphTensor& found, const GraphTensor& wanted) {
  if (found.type != wanted.type || found.shape.size() != wanted.shape.size()) return false;
  for (size_t i = 0; i < wanted.shape.size(); ++i) {
    const int64_t asked = wanted.shape[i], has = found.shape[i];
    if (asked >= 0 && has >= 0 && asked != has) return false;
  }
  return true;
}

// The graph's inputs in the order of dela/families/dela/family.py:DelaFamily.inputs.
std::vector<GraphTensor> expected_inputs(const Contract& contract) {
  std::vector<GraphTensor> expected{{"points", ort::kFloat, {-1, 3}}};
  if (!contract.columns.empty()) {
    expected.push_back(
        {"attributes", ort::kFloat, {-1, static_cast<int64_t>(contract.columns.size())}});
  }
  for (int stage = 0; stage < contract.stages(); ++stage) {
    expected.push_back({"neighbors_" + std::to_string(stage), ort::kInt32,
                        {-1, static_cast<int64_t>(contract.neighbors[stage])}});
  }
  for (const char* list : {"kept_", "nearest_"}) {
    if (contract.classification && list[0] == 'n') break;
    for (int stage = 1; stage < contract.stages(); ++stage) {
      expected.push_back({list + std::to_string(stage), ort::kInt32, {-1}});
    }
  }
  return expected;
}

}  // namespace

Contract read_contract(const Properties& properties, const std::string& source) {
  const std::string* format = property(properties, "format");
  if (format == nullptr || *format != "dela-onnx") {
    fail(DELA_BAD_MODEL, "%s is not a dela network: it carries no dela metadata; export one with "
         "`dela export`", source.c_str());
  }
  const std::string* text = property(properties, "config");
  if (text == nullptr) {
    fail(DELA_BAD_MODEL, "%s: its metadata lacks 'config'; export it again", source.c_str());
  }
  try {
    const json::Value config = json::Value::parse(*text);
    const json::Value* family = config.find("family");
    check_version(properties, source, family == nullptr ? 1 : 2);
    if (family != nullptr && family->text("family") != "dela") {
      fail(DELA_BAD_MODEL, "%s is a network of the family '%s'; libdela runs those of dela, run it "
           "with `dela predict`", source.c_str(), family->text("family").c_str());
    }
    return read_config(config);
  } catch (const json::Error& error) {
    fail(DELA_BAD_MODEL, "%s: its metadata is damaged: %s", source.c_str(), error.what());
  }
}

void check_graph(const Contract& contract, const std::vector<GraphTensor>& inputs,
                 const std::vector<GraphTensor>& outputs, const std::string& source) {
  const std::vector<GraphTensor> expected = expected_inputs(contract);
  for (const GraphTensor& wanted : expected) {
    const auto found = std::find_if(inputs.begin(), inputs.end(), [&](const GraphTensor& input) {
      return input.name == wanted.name;
    });
    if (found == inputs.end()) {
      fail(DELA_BAD_MODEL, "%s: its inputs do not fit its metadata; missing: %s", source.c_str(),
           wanted.name.c_str());
    }
    if (!fits(*found, wanted)) {
      fail(DELA_BAD_MODEL, "%s: input %s is %s %s; its metadata needs %s %s", source.c_str(),
           wanted.name.c_str(), type_name(found->type), shape_text(found->shape).c_str(),
           type_name(wanted.type), shape_text(wanted.shape).c_str());
    }
  }
  if (inputs.size() != expected.size()) {
    fail(DELA_BAD_MODEL, "%s: it takes %zu inputs, its metadata describes %zu; export it again",
         source.c_str(), inputs.size(), expected.size());
  }
  const GraphTensor logits{
      "logits", ort::kFloat, {-1, static_cast<int64_t>(contract.classes.size())}};
  if (outputs.size() != 1 || outputs[0].name != logits.name || !fits(outputs[0], logits)) {
    fail(DELA_BAD_MODEL, "%s: its output does not fit its metadata; %zu classes need logits %s",
         source.c_str(), contract.classes.size(), shape_text(logits.shape).c_str());
  }
}

}  // namespace dela::capi
