// Per-element formulas of gaussian_information: KL(N(μ, σ²) || N(0, 1)), 1/σ², entropy power, and their
// derivatives. `variance` is exp_pair(2 log σ): σ² - 1, σ² - 1 - 2 log σ and 1/σ².
#pragma once

#include <cstdint>

#include "math/common.h"
#include "math/exp.h"

namespace fisherkernels {

template <typename T>
FK_HOST_DEVICE ExpPair<T> variance_of(T log_std) {
  return exp_pair(T(2) * log_std);
}

// μ² + σ² - 1 - 2 log σ: twice the divergence.
template <typename T>
FK_HOST_DEVICE T gaussian_information_divergence(T mean, const ExpPair<T>& variance) {
  return mean * mean + variance.excess;
}

// (Π_j σ_j²)^(1/d)
template <typename T>
FK_HOST_DEVICE T entropy_power_of_sum(T sum_log_std, int64_t columns) {
  return fisherkernels::exp(T(2) / static_cast<T>(columns) * sum_log_std);
}

// A weight of zero leaves a quantity out, even where it has overflowed.
template <typename T>
FK_HOST_DEVICE T weighted(T weight, T value) {
  return weight == T(0) ? T(0) : weight * value;
}

// What every log σ_j of a row gets through the entropy power.
template <typename T>
FK_HOST_DEVICE T gaussian_information_through_power(T grad_power, T power, int64_t columns) {
  return weighted(grad_power * T(2) / static_cast<T>(columns), power);
}

template <typename T>
FK_HOST_DEVICE T gaussian_information_grad_mean(T grad_kl, T mean) {
  return grad_kl * mean;
}

template <typename T>
FK_HOST_DEVICE T gaussian_information_grad_log_std(T grad_kl, T grad_trace, T through_power,
                                                   const ExpPair<T>& variance) {
  return weighted(grad_kl, variance.growth) - weighted(T(2) * grad_trace, variance.inverse) + through_power;
}

}  // namespace fisherkernels
