// Activations with their derivatives, and what they are made of, for a number or a vector of numbers.
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

// log(1 + x) for x from 0 to 1: 2 atanh s by its series, s = x / (2 + x) at most 1/3.
template <typename V>
FK_HOST_DEVICE V log1p_of_unit(V x) {
  using T = typename ExpTypes<V>::Element;
  constexpr int kTerms = sizeof(T) == sizeof(float) ? 8 : 17;
  const V s = x / (x + T(2)), square = s * s;
  V sum = V{} + T(1) / T(2 * kTerms - 1);
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 16
#endif
  for (int k = kTerms - 2; k >= 0; --k) sum = sum * square + T(1) / T(2 * k + 1);
  return T(2) * s * sum;
}

// e^(u^2) erfc(u) (1 + 2u) for u >= 0, a polynomial in t = (u - 2.5) / (u + 2.5): its Chebyshev series, cut
// where the terms fall below the type's precision. Relative error below 2e-7 (float) and 4e-16 (double).
template <typename T>
struct ErfcSeries;
template <>
struct ErfcSeries<float> {
  static constexpr int kTerms = 11;
  static constexpr float kTerm[] = {1.26483818f,     -0.122357466f,   -0.0990242417f, 0.157644295f,
                                    -0.102970538f,   0.0326775701f,   0.00094675963f, -0.00418024663f,
                                    0.000463337521f, 0.000405488919f, -6.3917866e-05f};
};
template <>
struct ErfcSeries<double> {
  static constexpr int kTerms = 25;
  static constexpr double kTerm[] = {
      1.2648381843668615,      -0.12235676308240215,    -0.099024539573600537,   0.1576299190229927,
      -0.10296705603863399,    0.032760893275661333,    0.00093189281843529623,  -0.0043820784408475869,
      0.00049186580410214887,  0.00063212514641559491,  -8.8479206876698285e-05, -0.00011352632492718974,
      6.2660107849729757e-06,  2.2712248592600015e-05,  2.6086713496937893e-06,  -4.244612526599291e-06,
      -1.5844422539027936e-06, 5.6508978980072567e-07,  5.3238570551775471e-07,  -2.5957897797325721e-09,
      -1.2506129819585261e-07, -1.9529757279629242e-08, 1.9289162118600859e-08,  3.3505549185349607e-09,
      -1.4759816086462547e-09};
};

// The standard normal distribution at x: its function and its density.
template <typename V>
struct NormalAt {
  V below, density;
};

template <typename V>
FK_HOST_DEVICE NormalAt<V> standard_normal(V x) {
  using T = typename ExpTypes<V>::Element;
  using Series = ErfcSeries<T>;
  const V size = x > V{} ? x : -x, u = size * T(0.70710678118654752);
  const V t = (u - T(2.5)) / (u + T(2.5));
  V sum = V{} + Series::kTerm[Series::kTerms - 1];
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 32
#endif
  for (int k = Series::kTerms - 2; k >= 0; --k) sum = sum * t + Series::kTerm[k];
  const V fall = exp_of_negative<V>(T(-0.5) * size * size);
  const V tail = T(0.5) * fall * sum / (T(1) + T(2) * u);
  return {x > V{} ? T(1) - tail : tail, T(0.39894228040143268) * fall};
}

// x s(x), s = sigmoid: (x s)^(i) = i s^(i-1) + x s^(i). In products with what vanishes far out, x goes only
// as far as that is a normal number.
template <typename V>
FK_HOST_DEVICE Derivatives<V> silu_derivatives(V x) {
  using T = typename ExpTypes<V>::Element;
  const V within = clamped<V>(x, ExpConstants<T>::kPairLimit);
  const Derivatives<V> s = sigmoid_derivatives<V>(within);
  return {x > within ? x : within * s.value, s.value + within * s.slope,
          T(2) * s.slope + within * s.curvature, T(3) * s.curvature + within * s.third};
}

}  // namespace fisherkernels
