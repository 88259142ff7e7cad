// dela.h for C++: models that free themselves, and exceptions in place of statuses. Header only, so
// the exceptions are thrown by the program's own code.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "dela.h"

namespace dela {

// What went wrong, in the library's words.
class Error : public std::runtime_error {
 public:
  explicit Error(dela_status status) : std::runtime_error(dela_last_error()), status(status) {}
  const dela_status status;
};

struct Labels {
  std::vector<int32_t> labels;      // label code of each point's class, -1 where it was left out
  std::vector<float> confidences;   // probability of that class
};

class Model {
 public:
  // Throws Error, as everything here.
  explicit Model(const std::string& path, const std::string& onnxruntime = "",
                 int32_t threads = 0) {
    dela_load_options options = {sizeof options, nullptr, threads};
    if (!onnxruntime.empty()) options.onnxruntime = onnxruntime.c_str();
    dela_model* model = nullptr;
    check(dela_model_load(path.c_str(), &options, &model));
    model_.reset(model);
  }

  Labels label(const dela_cloud& cloud, const dela_label_options* options = nullptr) const {
    const size_t count = cloud.count > 0 ? static_cast<size_t>(cloud.count) : 0;
    Labels result{std::vector<int32_t>(count), std::vector<float>(count)};
    check(dela_model_label(model_.get(), &cloud, options, result.labels.data(),
                           result.confidences.data()));
    return result;
  }

  // Names of the columns that a scan must have.
  std::vector<std::string> columns() const {
    std::vector<std::string> names(static_cast<size_t>(dela_model_column_count(get())));
    for (size_t i = 0; i < names.size(); ++i) {
      names[i] = dela_model_column_name(get(), static_cast<int32_t>(i));
    }
    return names;
  }

  const dela_model* get() const { return model_.get(); }

 private:
  static void check(dela_status status) {
    if (status != DELA_OK) throw Error(status);
  }
  struct Free {
    void operator()(dela_model* model) const { dela_model_free(model); }
  };
  std::unique_ptr<dela_model, Free> model_;
};

}  // namespace dela
