// Per-element formulas of gaussian_information: KL(N(μ, σ²) || N(0, 1)), 1/σ², entropy power, and their
// derivatives. `variance` is exp_pair(2 log σ): σ² - 1, σ² - 1 - 2 log σ and 1/σ².
#pragma once

#include <cstdint>

#include "math/common.h"
#include "math/exp.h"

namespace fisherkernels {

// Of a number, or of a vector of numbers. kWithin: all |log σ| <= kPairLimit / 2, so that all is finite.
template <bool kWithin = false, typename T>
FK_HOST_DEVICE ExpPair<T> variance_of(T log_std) {
  if constexpr (kWithin) return exp_pair_within(log_std + log_std);
  return exp_pair(log_std + log_std);
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
template <typename W, typename T>
FK_HOST_DEVICE T weighted(W weight, T value) {
  return weight == W(0) ? T{} : weight * value;
}

// What every log σ_j of a row gets through the entropy power.
template <typename T>
FK_HOST_DEVICE T gaussian_information_through_power(T grad_power, T power, int64_t columns) {
  return weighted(grad_power * T(2) / static_cast<T>(columns), power);
}

template <typename W, typename T>
FK_HOST_DEVICE T gaussian_information_grad_mean(W grad_kl, T mean) {
  return grad_kl * mean;
}

// kFinite: no quantity has overflowed, so that a weight of zero needs no care.
template <bool kFinite = false, typename W, typename T>
FK_HOST_DEVICE T gaussian_information_grad_log_std(W grad_kl, W grad_trace, W through_power,
                                                   const ExpPair<T>& variance) {
  const W by_inverse = W(2) * grad_trace;
  if constexpr (kFinite) return grad_kl * variance.growth - (by_inverse * variance.inverse - through_power);
  return weighted(grad_kl, variance.growth) - weighted(by_inverse, variance.inverse) + through_power;
}

}  // namespace fisherkernels
