// Probabilities of logits, for Python and for C programs alike: where two classes are level to the last
// bit, both decide for the same one.
#pragma once

#include "cpu/common.h"

// Probabilities [rows, classes] of logits [rows, classes]; `out` may be `logits`. A row with NaN or +inf
// becomes NaN.
DELA_EXPORT int32_t dela_softmax(const float* logits, int64_t rows, int64_t classes, float* out);
