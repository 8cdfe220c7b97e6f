// Per-row formulas of score_moments: mean_s ‖s‖², ‖mean_s s‖² and their derivative.
#pragma once

#include "math/common.h"

namespace fisherkernels {

template <typename T>
FK_HOST_DEVICE T score_moments_mean_square(T sum_of_squares, T inverse_samples) {
  return sum_of_squares * inverse_samples;
}

// From Σ_j (Σ_s s_j)².
template <typename T>
FK_HOST_DEVICE T score_moments_square_mean(T squares_of_sums, T inverse_samples) {
  return squares_of_sums * inverse_samples * inverse_samples;
}

// dL/ds = by_score s + by_sum Σ_s s.
template <typename T>
FK_HOST_DEVICE T score_moments_by_score(T grad_mean_square, T inverse_samples) {
  return T(2) * grad_mean_square * inverse_samples;
}

template <typename T>
FK_HOST_DEVICE T score_moments_by_sum(T grad_square_mean, T inverse_samples) {
  return T(2) * grad_square_mean * inverse_samples * inverse_samples;
}

template <typename T>
FK_HOST_DEVICE T score_moments_grad(T by_score, T score, T by_sum, T sum) {
  return by_score * score + by_sum * sum;
}

}  // namespace fisherkernels
