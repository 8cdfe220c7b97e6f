// Per-element formulas of gaussian_score: s = (x - mean) / γ and its derivatives.
#pragma once

#include "math/common.h"

namespace fisherkernels {

template <typename T>
FK_HOST_DEVICE T gaussian_score_residual(T x, T mean, T inverse_variance) {
  return (x - mean) * inverse_variance;
}

// dL/ds of one element, from the row's dL/dvalue and the element's own gradient.
template <typename T>
FK_HOST_DEVICE T gaussian_score_through(T grad_value, T residual, T grad_residual) {
  return grad_value * residual + grad_residual;
}

// dL/dx; dL/dmean is its negative.
template <typename T>
FK_HOST_DEVICE T gaussian_score_grad_x(T through, T inverse_variance) {
  return through * inverse_variance;
}

// dL/dγ_j from sums over all rows: Σ dL/ds s and Σ dL/dvalue.
template <typename T>
FK_HOST_DEVICE T gaussian_score_grad_variance(T sum_through_residual, T sum_grad_value, T inverse_variance) {
  return (sum_grad_value * inverse_variance - sum_through_residual) * inverse_variance;
}

}  // namespace fisherkernels
