// Per-element formulas of activation_tangents: a stack of tangents and a Laplacian through y = a(x), slope =
// a'(x), curvature = a''(x), and their derivatives.
#pragma once

#include "math/common.h"

namespace fisherkernels {

template <typename T>
FK_HOST_DEVICE T activation_tangent(T slope, T tangent) {
  return slope * tangent;
}

// squares = Σ_k tangent_k².
template <typename T>
FK_HOST_DEVICE T activation_laplacian(T slope, T laplacian, T curvature, T squares) {
  return slope * laplacian + curvature * squares;
}

// The gradient of tangent_k through the Laplacian, over tangent_k.
template <typename T>
FK_HOST_DEVICE T activation_by_tangent(T curvature, T grad_laplacian) {
  return T(2) * curvature * grad_laplacian;
}

}  // namespace fisherkernels
