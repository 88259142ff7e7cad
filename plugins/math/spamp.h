// SPAMP's constants: exp(-s (1e-8 + |e|^2)) is computed as 2^(t) with t = -s log2(e) (...).
#pragma once

namespace dela {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kDistanceOffset = 1e-8f;

// 2^r = 1 + r (c0 + r (c1 + ...)) for |r| <= 1/2: relative error 1.7e-7 in float32, exact at 0.
// Least-maximum fit of the relative error with the constant term held at 1.
constexpr float kExp2Coefficients[5] = {0.693147f, 0.24022242f, 0.055507336f, 0.009671513f,
                                        0.0013264727f};

}  // namespace dela
