// Per-pair formulas of svgd_step.
//
// sum_j k_ij (s_j + 2/h (x_i - x_j)) = sum_j k_ij w_j + 2/h x_i sum_j k_ij with w_j = s_j - 2/h x_j, which
// saves a subtraction per pair and coordinate. Particles are centred beforehand, so that little is lost in
// it.
#pragma once

#include "math/common.h"

namespace fisherkernels {

template <typename T>
FK_HOST_DEVICE T svgd_source(T score, T particle, T twice_inverse_bandwidth) {
  return score - twice_inverse_bandwidth * particle;
}

template <typename T>
FK_HOST_DEVICE T svgd_direction(T weighted, T mass, T particle, T twice_inverse_bandwidth, T inverse_count) {
  return (weighted + twice_inverse_bandwidth * particle * mass) * inverse_count;
}

}  // namespace fisherkernels
