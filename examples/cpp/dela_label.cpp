// Labels a scan without Python:
//
//     dela_label model.onnx scan.npy labels.npy [--column intensity=intensity.npy]
//                [--confidence confidence.npy] [--votes N] [--max-points N] [--drop-invalid]
//                [--threads N] [--onnxruntime libonnxruntime.so]
//
// scan.npy holds x, y, z [N, 3], each column one number for a point [N]. labels.npy then holds the
// label code of each point, confidence.npy how probable it is.
#include <chrono>
#include <cstdio>
#include <map>

#include <dela.hpp>

#include "npy.h"

namespace {

struct Arguments {
  std::vector<std::string> files;                // model, scan, labels
  std::map<std::string, std::string> columns;    // name -> file
  std::string confidence, onnxruntime;
  int32_t threads = 0;
  dela_label_options options = {sizeof(dela_label_options), 0, 0, 0};
};

int64_t number(const std::string& name, const std::string& text) {
  size_t used = 0;
  int64_t value = -1;
  try {
    value = std::stoll(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used == 0 || used != text.size() || value < 1 || value > INT32_MAX) {
    throw std::runtime_error(name + " is " + text + "; give a number above 0");
  }
  return value;
}

Arguments read_arguments(int count, char** words) {
  Arguments asked;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto value = [&] {
      if (i + 1 >= count) throw std::runtime_error(word + " wants a value");
      return std::string(words[++i]);
    };
    if (word == "--column") {
      const std::string pair = value();
      const size_t at = pair.find('=');
      if (at == std::string::npos) throw std::runtime_error("--column wants NAME=FILE");
      asked.columns[pair.substr(0, at)] = pair.substr(at + 1);
    } else if (word == "--confidence") {
      asked.confidence = value();
    } else if (word == "--onnxruntime") {
      asked.onnxruntime = value();
    } else if (word == "--votes") {
      asked.options.votes = static_cast<int32_t>(number(word, value()));
    } else if (word == "--max-points") {
      asked.options.max_points = number(word, value());
    } else if (word == "--threads") {
      asked.threads = static_cast<int32_t>(number(word, value()));
    } else if (word == "--drop-invalid") {
      asked.options.drop_invalid = 1;
    } else if (word.rfind("--", 0) == 0) {
      throw std::runtime_error("there is no option " + word);
    } else {
      asked.files.push_back(word);
    }
  }
  if (asked.files.size() != 3) {
    throw std::runtime_error("dela_label MODEL.onnx SCAN.npy LABELS.npy [options]");
  }
  return asked;
}

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

void label(const Arguments& asked) {
  const npy::Array points = npy::read(asked.files[1]);
  if (points.shape.size() != 2 || points.shape[1] != 3) {
    throw std::runtime_error(asked.files[1] + " is not [N, 3]; give x, y, z of every point");
  }
  std::map<std::string, npy::Array> arrays;
  std::vector<dela_column> columns;
  for (const auto& [name, file] : asked.columns) {
    const npy::Array& array = arrays[name] = npy::read(file);
    if (array.shape != std::vector<int64_t>{points.shape[0]}) {
      throw std::runtime_error(file + " does not hold one number for each point");
    }
    columns.push_back({name.c_str(), array.data.data(), array.type, 0});
  }
  const dela_cloud cloud = {points.data.data(), points.type,    0,
                            points.shape[0],    columns.data(), static_cast<int32_t>(columns.size())};

  auto start = std::chrono::steady_clock::now();
  const dela::Model model(asked.files[0], asked.onnxruntime, asked.threads);
  const double loaded = milliseconds_since(start);
  start = std::chrono::steady_clock::now();
  const dela::Labels found = model.label(cloud, &asked.options);
  const double labeled = milliseconds_since(start);

  npy::write(asked.files[2], "i4", found.labels);
  if (!asked.confidence.empty()) npy::write(asked.confidence, "f4", found.confidences);
  std::map<int32_t, int64_t> counts;
  for (const int32_t code : found.labels) ++counts[code];
  std::printf("%zu points; model loaded in %.1f ms, scan labeled in %.1f ms\n", found.labels.size(),
              loaded, labeled);
  for (int32_t i = 0; i < dela_model_class_count(model.get()); ++i) {
    const int32_t code = dela_model_class_code(model.get(), i);
    std::printf("%6d  %-20s %lld\n", code, dela_model_class_name(model.get(), i),
                static_cast<long long>(counts[code]));
  }
}

}  // namespace

int main(int count, char** words) {
  try {
    label(read_arguments(count, words));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dela_label: %s\n", error.what());
    return 1;
  }
  return 0;
}
