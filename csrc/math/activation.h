// Activations with their first three derivatives, of a number or of a vector of numbers.
#pragma once

#include "math/exp.h"

namespace fisherkernels {

enum class Activation : int64_t { kTanh = 0, kSigmoid = 1, kSilu = 2 };

template <typename V>
struct Derivatives {
  V value, slope, curvature, third;
};

// x within ±limit; NaN stays.
template <typename V>
FK_HOST_DEVICE V clamped(V x, typename ExpTypes<V>::Element limit) {
  const V most = V{} + limit, least = V{} - limit;
  x = x > most ? most : x;
  return x < least ? least : x;
}

// tanh x = (e^2x - 1) / (e^2x + 1), which is ±1 to the last digit where x is clamped.
template <typename V>
FK_HOST_DEVICE Derivatives<V> tanh_derivatives(V x) {
  using T = typename ExpTypes<V>::Element;
  const V growth = exp_pair_within<V>(clamped<V>(x, T(20)) * T(2)).growth;
  const V value = growth / (growth + T(2));
  const V slope = T(1) - value * value;
  return {value, slope, T(-2) * value * slope, slope * (T(6) * value * value - T(2))};
}

template <typename V>
FK_HOST_DEVICE V sigmoid(V x) {
  using T = typename ExpTypes<V>::Element;
  return T(1) / (T(1) + exp_pair_within<V>(clamped<V>(x, ExpConstants<T>::kPairLimit)).inverse);
}

template <typename V>
FK_HOST_DEVICE Derivatives<V> sigmoid_derivatives(V x) {
  using T = typename ExpTypes<V>::Element;
  const V s = sigmoid<V>(x), slope = s * (T(1) - s), odd = T(1) - T(2) * s;
  return {s, slope, slope * odd, slope * (odd * odd - T(2) * slope)};
}

// x s(x), s = sigmoid: (x s)^(i) = i s^(i-1) + x s^(i).
template <typename V>
FK_HOST_DEVICE Derivatives<V> silu_derivatives(V x) {
  using T = typename ExpTypes<V>::Element;
  const Derivatives<V> s = sigmoid_derivatives<V>(x);
  return {x * s.value, s.value + x * s.slope, T(2) * s.slope + x * s.curvature,
          T(3) * s.curvature + x * s.third};
}

}  // namespace fisherkernels
