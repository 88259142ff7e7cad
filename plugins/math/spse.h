// SPSE's algebra per channel, in double: what is done once per call, outside the loop over points.
//
// With W (3 x 3, row r maps coordinate r to the axes) and centre p, the loop needs
// |W^T (d - p)|^2 = |R d + b|^2, where W^T = Q R, R is upper triangular and b = -R p:
// six multiply-adds instead of nine, without the cancellation of the expanded quadratic form.
#pragma once

#include <cmath>

namespace dela {

// Rows of the factored form: R00 R01 R02 R11 R12 R22 b0 b1 b2.
constexpr int kFactoredRows = 9;

// `weight` points at row 0 of one channel, rows `stride` floats apart (9 of W, 3 of p).
static inline void factor_ellipsoid(const float* weight, long stride, double factored[9]) {
  double column[3][3], r[3][3] = {};  // column[i]: what coordinate i adds along each axis
  for (int i = 0; i < 3; ++i) {
    for (int a = 0; a < 3; ++a) column[i][a] = weight[(3 * i + a) * stride];
  }
  for (int i = 0; i < 3; ++i) {  // modified Gram-Schmidt
    const double length = std::sqrt(column[i][0] * column[i][0] + column[i][1] * column[i][1] +
                                    column[i][2] * column[i][2]);
    r[i][i] = length;
    if (!(length > 0)) continue;
    double q[3];
    for (int a = 0; a < 3; ++a) q[a] = column[i][a] / length;
    for (int j = i + 1; j < 3; ++j) {
      r[i][j] = q[0] * column[j][0] + q[1] * column[j][1] + q[2] * column[j][2];
      for (int a = 0; a < 3; ++a) column[j][a] -= r[i][j] * q[a];
    }
  }
  const double p[3] = {weight[9 * stride], weight[10 * stride], weight[11 * stride]};
  const double upper[6] = {r[0][0], r[0][1], r[0][2], r[1][1], r[1][2], r[2][2]};
  for (int i = 0; i < 6; ++i) factored[i] = upper[i];
  factored[6] = -(r[0][0] * p[0] + r[0][1] * p[1] + r[0][2] * p[2]);
  factored[7] = -(r[1][1] * p[1] + r[1][2] * p[2]);
  factored[8] = -r[2][2] * p[2];
}

// The backward pass only sums moments of e = d - p over the winners, with h = gradient / out:
// h ex ex, h ex ey, h ex ez, h ey ey, h ey ez, h ez ez, h ex, h ey, h ez. From them
// dW[r][a] = sum_b W[b][a] S[r][b] and dp = -W W^T T.
constexpr int kMomentRows = 9;

static inline void ellipsoid_gradient(const float* weight, long stride, const double moments[9],
                                      float* gradient) {
  const double s[3][3] = {{moments[0], moments[1], moments[2]},
                          {moments[1], moments[3], moments[4]},
                          {moments[2], moments[4], moments[5]}};
  double w[3][3], along[3];
  for (int r = 0; r < 3; ++r) {
    for (int a = 0; a < 3; ++a) w[r][a] = weight[(3 * r + a) * stride];
  }
  for (int a = 0; a < 3; ++a) {
    along[a] = w[0][a] * moments[6] + w[1][a] * moments[7] + w[2][a] * moments[8];
  }
  for (int r = 0; r < 3; ++r) {
    for (int a = 0; a < 3; ++a) {
      gradient[(3 * r + a) * stride] =
          static_cast<float>(w[0][a] * s[r][0] + w[1][a] * s[r][1] + w[2][a] * s[r][2]);
    }
    gradient[(9 + r) * stride] =
        static_cast<float>(-(w[r][0] * along[0] + w[r][1] * along[1] + w[r][2] * along[2]));
  }
}

}  // namespace dela
