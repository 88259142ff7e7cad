// SPSE's algebra per channel: what is done once per channel, outside the loop over points. In
// double on the CPU, once per call; in float on a GPU, once per thread.
//
// With W (3 x 3, row r maps coordinate r to the axes) and centre p, the loop needs
// |W^T (d - p)|^2 = |R d + b|^2, where W^T = Q R, R is upper triangular and b = -R p:
// six multiply-adds instead of nine, without the cancellation of the expanded quadratic form.
#pragma once

#include "math/portable.h"

namespace dela {

// Rows of the factored form: R00 R01 R02 R11 R12 R22 b0 b1 b2.
constexpr int kFactoredRows = 9;

// `weight` holds one channel: 9 of W, 3 of p. A column of length 0 or NaN has that length in R and
// no direction.
template <class Real>
DELA_MATH void factor_ellipsoid(const Real weight[12], Real factored[kFactoredRows]) {
  Real column[3][3], r[3][3];  // column[i]: what coordinate i adds along each axis
  for (int i = 0; i < 3; ++i) {
    for (int a = 0; a < 3; ++a) column[i][a] = weight[3 * i + a];
  }
  for (int i = 0; i < 3; ++i) {  // modified Gram-Schmidt
    const Real square = column[i][0] * column[i][0] + column[i][1] * column[i][1] +
                        column[i][2] * column[i][2];
    const Real root = inverse_root(square);
    const Real inverse = square > kLeastSquare ? root : Real(0);
    r[i][i] = square > kLeastSquare ? square * root : square;
    Real q[3];
    for (int a = 0; a < 3; ++a) q[a] = column[i][a] * inverse;
    for (int j = i + 1; j < 3; ++j) {
      r[i][j] = q[0] * column[j][0] + q[1] * column[j][1] + q[2] * column[j][2];
      for (int a = 0; a < 3; ++a) column[j][a] -= r[i][j] * q[a];
    }
  }
  const Real px = weight[9], py = weight[10], pz = weight[11];
  factored[0] = r[0][0];
  factored[1] = r[0][1];
  factored[2] = r[0][2];
  factored[3] = r[1][1];
  factored[4] = r[1][2];
  factored[5] = r[2][2];
  factored[6] = -(r[0][0] * px + r[0][1] * py + r[0][2] * pz);
  factored[7] = -(r[1][1] * py + r[1][2] * pz);
  factored[8] = -r[2][2] * pz;
}

// The backward pass only sums moments of e = d - p over the winners, with h = gradient / out:
// h ex ex, h ex ey, h ex ez, h ey ey, h ey ez, h ez ez, h ex, h ey, h ez. From them
// dW[r][a] = sum_b W[b][a] S[r][b] and dp = -W W^T T.
constexpr int kMomentRows = 9;

// `weight` and `gradient` point at row 0 of one channel, rows `stride` floats apart.
DELA_MATH void ellipsoid_gradient(const float* weight, long stride, const double moments[9],
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
