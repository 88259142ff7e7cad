// The C functions of dela.h: where failures become statuses and words.
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "capi/cloud.h"
#include "capi/contract.h"
#include "capi/failure.h"
#include "capi/include/dela.h"
#include "capi/session.h"
#include "capi/threads.h"
#include "capi/votes.h"

extern "C" int32_t dela_watch_waiting();  // of plugins/cpu/waiting.cpp

struct dela_model {
  std::unique_ptr<dela::capi::Session> session;
  dela::capi::Contract contract;
  std::vector<std::string> columns;  // that a scan must have
  int threads;                       // of the geometry
};

namespace {

using namespace dela::capi;

constexpr int64_t kMaxPoints = 200'000;

// Of this thread's last failure; of fixed size, so that telling never needs memory.
thread_local char last_error[1000] = "";

dela_status told(dela_status status, const char* words) {
  std::snprintf(last_error, sizeof last_error, "%s", words);
  return status;
}

template <class Body>
dela_status guarded(Body body) noexcept {
  try {
    body();
    return DELA_OK;
  } catch (const Failure& failure) {
    return told(failure.status, failure.what());
  } catch (const std::bad_alloc&) {
    return told(DELA_OUT_OF_MEMORY, "out of memory; label smaller scans or set a lower max_points");
  } catch (const std::exception& error) {
    return told(DELA_FAILED, error.what());
  } catch (...) {
    return told(DELA_FAILED, "an unknown failure");
  }
}

// A caller's options as this version knows them: what is beyond the caller's size has its default.
template <class Options>
Options options_of(const Options* given, const char* name) {
  Options options{};
  if (given == nullptr) return options;
  if (given->size < sizeof(size_t) || given->size > sizeof options) {
    fail(DELA_BAD_ARGUMENT, "%s.size is %zu; set it to sizeof(%s), %zu here", name, given->size, name,
         sizeof options);
  }
  const auto* from = reinterpret_cast<const char*>(given);
  std::copy(from, from + given->size, reinterpret_cast<char*>(&options));
  return options;
}

std::unique_ptr<dela_model> load(const std::string& path, const dela_load_options& options) {
  if (options.threads < 0 || options.threads > 4096) {
    fail(DELA_BAD_ARGUMENT, "threads is %d; give 0 to 4096", options.threads);
  }
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) fail(DELA_BAD_MODEL, "there is no file %s to read", path.c_str());
  std::fclose(file);
  const ThreadCounts threads = count_threads(options.threads);
  auto model = std::make_unique<dela_model>();
  model->session = std::make_unique<Session>(
      path, options.onnxruntime == nullptr ? "" : options.onnxruntime, threads.session);
  model->contract = read_contract(model->session->properties(), path);
  check_graph(model->contract, model->session->inputs(), model->session->outputs(), path);
  model->columns = needed_columns(model->contract);
  model->threads = threads.geometry;
  dela_watch_waiting();
  return model;
}

Votes votes_of(const dela_label_options& options, const dela_model& model) {
  if (options.max_points < 0 || options.votes < 0) {
    fail(DELA_BAD_ARGUMENT, "max_points is %lld and votes %d; give 0 (the default) or more",
         static_cast<long long>(options.max_points), options.votes);
  }
  return {options.max_points == 0 ? kMaxPoints : options.max_points,
          options.votes == 0 ? 1 : options.votes, model.threads};
}

}  // namespace

dela_status dela_model_load(const char* path, const dela_load_options* options, dela_model** model) {
  if (path == nullptr || model == nullptr) {
    return told(DELA_BAD_ARGUMENT, "dela_model_load wants a path and a place for the model");
  }
  *model = nullptr;
  return guarded([&] {
    *model = load(path, options_of(options, "dela_load_options")).release();
  });
}

void dela_model_free(dela_model* model) { delete model; }

dela_status dela_model_label(const dela_model* model, const dela_cloud* cloud,
                             const dela_label_options* options, int32_t* labels,
                             float* confidences) {
  if (model == nullptr || cloud == nullptr || labels == nullptr) {
    return told(DELA_BAD_ARGUMENT, "dela_model_label wants a model, a scan and a place for labels");
  }
  return guarded([&] {
    const dela_label_options chosen = options_of(options, "dela_label_options");
    const Votes votes = votes_of(chosen, *model);
    const Cloud points = read_cloud(*cloud, model->contract, chosen.drop_invalid != 0);
    const Answer answer = take_votes(*model->session, model->contract, points, votes);
    if (!points.row.empty()) {
      std::fill_n(labels, cloud->count, -1);
      if (confidences != nullptr) std::fill_n(confidences, cloud->count, 0.0f);
    }
    for (int64_t i = 0; i < points.count(); ++i) {
      const int64_t row = points.row.empty() ? i : points.row[i];
      labels[row] = model->contract.classes[answer.classes[i]].code;
      if (confidences != nullptr) confidences[row] = answer.confidences[i];
    }
  });
}

int32_t dela_model_class_count(const dela_model* model) {
  return model == nullptr ? 0 : static_cast<int32_t>(model->contract.classes.size());
}

const char* dela_model_class_name(const dela_model* model, int32_t index) {
  if (index < 0 || index >= dela_model_class_count(model)) return nullptr;
  return model->contract.classes[index].name.c_str();
}

int32_t dela_model_class_code(const dela_model* model, int32_t index) {
  if (index < 0 || index >= dela_model_class_count(model)) return -1;
  return model->contract.classes[index].code;
}

int32_t dela_model_column_count(const dela_model* model) {
  return model == nullptr ? 0 : static_cast<int32_t>(model->columns.size());
}

const char* dela_model_column_name(const dela_model* model, int32_t index) {
  if (index < 0 || index >= dela_model_column_count(model)) return nullptr;
  return model->columns[index].c_str();
}

const char* dela_last_error() { return last_error; }
