// A network in ONNX Runtime, whose shared library is loaded when the first one is.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "capi/contract.h"
#include "onnxruntime/ort_abi.h"

namespace dela::capi {

// An array that a run reads: float32 or int32, of one or two dimensions.
struct Feed {
  std::string name;
  int type;  // ort::kFloat or ort::kInt32
  const void* data;
  std::vector<int64_t> shape;
};

class Session {
 public:
  // `library`: path of ONNX Runtime's shared library, or "" to look for it. `threads`: of the session.
  // Throws Failure: DELA_NO_RUNTIME or DELA_BAD_MODEL.
  Session(const std::string& path, const std::string& library, int threads);

  const Properties& properties() const { return properties_; }
  const std::vector<GraphTensor>& inputs() const { return inputs_; }
  const std::vector<GraphTensor>& outputs() const { return outputs_; }

  // The one output, float32 [rows, columns], of these inputs; threads may call it at once. Throws
  // Failure(DELA_FAILED).
  std::vector<float> run(const std::vector<Feed>& feeds, int64_t rows, int64_t columns) const;

 private:
  std::string path_;
  const OrtApi* table_ = nullptr;
  std::shared_ptr<void> session_;
  Properties properties_;
  std::vector<GraphTensor> inputs_, outputs_;
};

}  // namespace dela::capi
