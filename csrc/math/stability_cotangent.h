// Per-element formulas of stability_cotangent: [ε/σ, ε² - 1] and its derivatives.
#pragma once

#include "math/common.h"
#include "math/exp.h"

namespace fisherkernels {

template <typename T>
FK_HOST_DEVICE T stability_mean_half(T eps, T inverse_std) {
  return eps * inverse_std;
}

template <typename T>
FK_HOST_DEVICE T stability_std_half(T eps) {
  return eps * eps - T(1);
}

template <typename T>
FK_HOST_DEVICE T stability_grad_eps(T grad_mean_half, T grad_std_half, T inverse_std, T eps) {
  return grad_mean_half * inverse_std + T(2) * eps * grad_std_half;
}

template <typename T>
FK_HOST_DEVICE T stability_grad_log_std(T grad_mean_half, T inverse_std, T eps) {
  return -grad_mean_half * inverse_std * eps;
}

}  // namespace fisherkernels
