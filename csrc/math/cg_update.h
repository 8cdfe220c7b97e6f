// Per-row decisions of cg_update: what a row's status becomes, and whether it takes the step.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/common.h"

namespace fisherkernels {

constexpr int32_t kActive = 0;
constexpr int32_t kConverged = 1;
constexpr int32_t kNegativeCurvature = 2;
constexpr int32_t kNotFinite = 3;

template <typename T>
FK_HOST_DEVICE bool is_finite(T value) {
  return value - value == T(0);
}

// Status of an active row whose squared residual norm would go from `before` to `after` by the step.
template <typename T>
FK_HOST_DEVICE int32_t cg_status(T before, T curvature, T after, T threshold) {
  if (!is_finite(before)) return kNotFinite;
  if (before <= threshold) return kConverged;
  if (!is_finite(curvature)) return kNotFinite;
  if (curvature <= 0) return kNegativeCurvature;
  if (!is_finite(after)) return kNotFinite;
  return after <= threshold ? kConverged : kActive;
}

template <typename T>
FK_HOST_DEVICE bool takes_step(T before, T threshold, int32_t status) {
  return !(before <= threshold) && status <= kConverged;
}

// Factor that normalises a residual; 1 for a residual of zeros.
template <typename T>
FK_HOST_DEVICE T inverse_norm(T squared_norm) {
  return squared_norm > 0 ? 1 / std::sqrt(squared_norm) : T(1);
}

}  // namespace fisherkernels
