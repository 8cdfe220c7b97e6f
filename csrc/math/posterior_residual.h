// Per-element formulas of posterior_residual: t = -ε/σ - s(z) - v and its derivatives.
#pragma once

#include <cstdint>

#include "math/common.h"
#include "math/exp.h"

namespace fisherkernels {

template <typename T>
FK_HOST_DEVICE T posterior_residual_element(T eps, T inverse_std, T score, T decoder_vjp) {
  return -eps * inverse_std - score - decoder_vjp;
}

// Score of log p = Σ_k η_k z^k, k = 1..order: weight k η_k of z^(k-1), and k (k-1) η_k of z^(k-2) in its
// slope.
template <typename T>
FK_HOST_DEVICE T score_weight(T coefficient, int64_t k) {
  return static_cast<T>(k) * coefficient;
}

template <typename T>
FK_HOST_DEVICE T slope_weight(T coefficient, int64_t k) {
  return static_cast<T>(k) * static_cast<T>(k - 1) * coefficient;
}

// One step of Horner's scheme.
template <typename T>
FK_HOST_DEVICE T horner(T sum, T z, T weight) {
  return sum * z + weight;
}

// Gradients; through = dL/dvalue * t. Those of decoder_vjp and prior_score are -through.
template <typename T>
FK_HOST_DEVICE T posterior_residual_grad_eps(T through, T inverse_std) {
  return -through * inverse_std;
}

template <typename T>
FK_HOST_DEVICE T posterior_residual_grad_log_std(T through, T inverse_std, T eps) {
  return through * inverse_std * eps;
}

template <typename T>
FK_HOST_DEVICE T posterior_residual_grad_z(T through, T slope) {
  return -through * slope;
}

}  // namespace fisherkernels
