// Per-element formulas of half_squared_norm: ½ Σ t² and its derivative.
#pragma once

#include "math/common.h"

namespace fisherkernels {

template <typename T>
FK_HOST_DEVICE T half_squared_norm_of_sum(T sum_of_squares) {
  return T(0.5) * sum_of_squares;
}

template <typename T>
FK_HOST_DEVICE T half_squared_norm_grad(T grad_value, T t) {
  return grad_value * t;
}

}  // namespace fisherkernels
