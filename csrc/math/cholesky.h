// Scalar formulas of metric_solve and factor_solve.
#pragma once

#include <cmath>
#include <limits>

#include "math/common.h"

namespace fisherkernels {

template <typename T>
inline constexpr T kLargest = std::numeric_limits<T>::max();
template <typename T>
inline constexpr T kNan = std::numeric_limits<T>::quiet_NaN();

// 1 / sqrt(pivot), NaN where the matrix is not positive definite or not finite.
template <typename T>
FK_HOST_DEVICE T inverse_root(T pivot) {
  return pivot > T(0) && pivot <= kLargest<T> ? T(1) / std::sqrt(pivot) : kNan<T>;
}

// A diagonal element of the metric from that of the Gram matrix.
template <typename T>
FK_HOST_DEVICE T metric_diagonal(T gram) {
  return gram + T(1);
}

// Zero, or NaN for a right-hand side that is not finite: added to a solution, it marks all of it.
template <typename T>
FK_HOST_DEVICE T poison(T rhs) {
  return rhs * T(0);
}

}  // namespace fisherkernels
