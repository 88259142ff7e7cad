#include "cpu/softmax.h"

#include <algorithm>
#include <cmath>

DELA_EXPORT int32_t dela_softmax(const float* logits, int64_t rows, int64_t classes, float* out) {
  using namespace dela;
  if (rows < 0 || classes < 1) return kBadArgument;
  for (int64_t row = 0; row < rows; ++row, logits += classes, out += classes) {
    const float most = *std::max_element(logits, logits + classes);
    double sum = 0.0;
    for (int64_t i = 0; i < classes; ++i) {
      out[i] = std::exp(logits[i] - most);
      sum += static_cast<double>(out[i]);
    }
    const auto whole = static_cast<float>(sum);
    for (int64_t i = 0; i < classes; ++i) out[i] /= whole;
  }
  return kOk;
}
