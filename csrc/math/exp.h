// exp(x) without branches or calls, so that a compiler vectorises loops around it.
//
// x = n ln 2 + r with |r| <= ln(2)/2: n by adding and subtracting 1.5 * 2^(mantissa bits), r in two steps (ln
// 2 split into a short high part, exact times n, and the rest), e^r by its Taylor polynomial, 2^n in two
// factors so that results below the normal range and overflow to infinity come out right. Clamping keeps NaN:
// a comparison with NaN is false. Relative error below 2e-7 (float) and 4e-16 (double).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "math/common.h"

namespace fisherkernels {

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Int = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr Int kBias = 127;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kLow = -104.0f, kHigh = 89.0f;
  static constexpr float kLowNormal = -87.3365447505531f;  // -126 ln 2
  static constexpr float kPairLimit = 88.3762626647949f;   // 127.5 ln 2
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693145751953125f, kLn2Low = 1.42860682030941723e-6f;
  static constexpr int kDegree = 7;
};

template <>
struct ExpConstants<double> {
  using Int = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr Int kBias = 1023;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLow = -746.0, kHigh = 710.0;
  static constexpr double kLowNormal = -708.396418532264;  // -1022 ln 2
  static constexpr double kPairLimit = 709.436139303104;   // 1023.5 ln 2
  static constexpr double kLog2e = 1.44269504088896341;
  static constexpr double kLn2High = 0x1.62e42fefp-1, kLn2Low = 0x1.473de6af278edp-34;
  static constexpr int kDegree = 13;
};

// What exp_pair_within computes with: T is a number, or a vector of numbers (GCC's vector_size).
template <typename T, typename = void>
struct ExpTypes {
  using Element = T;
  using Bits = std::make_unsigned_t<typename ExpConstants<T>::Int>;
};

template <typename T>
struct ExpTypes<T, std::void_t<decltype(std::declval<T&>()[0])>> {
  using Element = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<T&>()[0])>>;
  typedef typename ExpTypes<Element>::Bits Bits __attribute__((vector_size(sizeof(T))));
};

template <typename T>
FK_HOST_DEVICE T power_of_two(typename ExpConstants<T>::Int n) {
  using C = ExpConstants<T>;
  const typename C::Int bits = (n + C::kBias) << C::kMantissaBits;
  T result;
  memcpy(&result, &bits, sizeof(T));
  return result;
}

// The integer that `rounded` - kRound holds, read from its bits.
template <typename T>
FK_HOST_DEVICE typename ExpConstants<T>::Int rounded_to_int(T rounded) {
  using C = ExpConstants<T>;
  const T zero = C::kRound;
  typename C::Int bits, origin;
  memcpy(&bits, &rounded, sizeof(T));
  memcpy(&origin, &zero, sizeof(T));
  return bits - origin;
}

// Σ_k r^((k - kFirst)/kStep) / k! for k = kFirst, kFirst + kStep, ... up to kDegree.
template <int kFirst, int kStep, typename T>
FK_HOST_DEVICE T taylor(T r) {
  constexpr double kInverseFactorial[] = {1.0,
                                          1.0,
                                          1.0 / 2,
                                          1.0 / 6,
                                          1.0 / 24,
                                          1.0 / 120,
                                          1.0 / 720,
                                          1.0 / 5040,
                                          1.0 / 40320,
                                          1.0 / 362880,
                                          1.0 / 3628800,
                                          1.0 / 39916800,
                                          1.0 / 479001600,
                                          1.0 / 6227020800.0};
  using Element = typename ExpTypes<T>::Element;
  constexpr int kDegree = ExpConstants<Element>::kDegree;
  constexpr int kLast = kDegree - (kDegree - kFirst) % kStep;
  T sum = T{} + static_cast<Element>(kInverseFactorial[kLast]);
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 16
#endif
  for (int k = kLast - kStep; k >= kFirst; k -= kStep) {
    sum = sum * r + static_cast<Element>(kInverseFactorial[k]);
  }
  return sum;
}

template <typename T>
FK_HOST_DEVICE T exp(T x) {
#if defined(__CUDA_ARCH__)
  return ::exp(x);
#else
  using C = ExpConstants<T>;
  x = x < C::kLow ? C::kLow : x;
  x = x > C::kHigh ? C::kHigh : x;
  const T rounded = x * C::kLog2e + C::kRound;
  const T n = rounded - C::kRound;
  const T half = n * T(0.5) + C::kRound;  // 2^n = 2^(n/2) 2^(n - n/2)
  const T r = (x - n * C::kLn2High) - n * C::kLn2Low;
  const auto first = rounded_to_int<T>(half);
  const auto second = rounded_to_int<T>(rounded) - first;
  return taylor<0, 1>(r) * power_of_two<T>(first) * power_of_two<T>(second);
#endif
}

// e^x for x <= 0, a number or a vector of numbers; where that is below the smallest normal number, that one.
template <typename T>
FK_HOST_DEVICE T exp_of_negative(T x) {
#if defined(__CUDA_ARCH__)
  return ::exp(x);
#else
  using Element = typename ExpTypes<T>::Element;
  using Bits = typename ExpTypes<T>::Bits;
  using C = ExpConstants<Element>;
  constexpr Element kOrigin = C::kRound + Element(C::kBias);
  const T low = T{} + C::kLowNormal;
  x = x < low ? low : x;  // keeps NaN
  const T rounded = x * C::kLog2e + kOrigin;
  const T n = rounded - kOrigin;
  const T r = (x - n * C::kLn2High) - n * C::kLn2Low;
  Bits bits;
  memcpy(&bits, &rounded, sizeof(T));
  bits <<= C::kMantissaBits;
  T scale;
  memcpy(&scale, &bits, sizeof(T));
  return taylor<0, 1>(r) * scale;
#endif
}

// e^x and e^-x from one reduction.
template <typename T>
struct ExpPair {
  T growth;   // e^x - 1
  T excess;   // e^x - 1 - x, which keeps its digits near zero
  T inverse;  // e^-x
};

// exp_pair for |x| <= kPairLimit. e^±r - 1 = (cosh r - 1) ± sinh r: the even and the odd half of one
// polynomial. n comes with the exponent's bias added, so that one shift makes 2^n of it.
template <typename T>
FK_HOST_DEVICE ExpPair<T> exp_pair_within(T x) {
  using Element = typename ExpTypes<T>::Element;
  using Bits = typename ExpTypes<T>::Bits;
  using C = ExpConstants<Element>;
  constexpr Element kOrigin = C::kRound + Element(C::kBias);
  const T rounded = x * C::kLog2e + kOrigin;
  const T n = rounded - kOrigin;
  const T r = (x - n * C::kLn2High) - n * C::kLn2Low;
  Bits bits;
  memcpy(&bits, &rounded, sizeof(T));
  bits <<= C::kMantissaBits;
  T scale, inverse_scale;
  memcpy(&scale, &bits, sizeof(T));
  bits = (static_cast<typename ExpTypes<Element>::Bits>(2 * C::kBias) << C::kMantissaBits) - bits;
  memcpy(&inverse_scale, &bits, sizeof(T));
  const T square = r * r;
  const T even = square * taylor<2, 2>(square);     // cosh r - 1
  const T odd = r * square * taylor<3, 2>(square);  // sinh r - r
  const T beyond = scale - Element(1);              // of e^x - 1, and of it less x: exact for n = 0
  return {scale * (even + (odd + r)) + beyond, scale * (even + odd) + ((scale * r - x) + beyond),
          inverse_scale * (even - (odd + r)) + inverse_scale};
}

// For every x. 2^n and 2^-n are one factor each, so that infinity and zero begin at |x| = 127.5 ln 2 (float):
// within a factor of two of the type's largest and smallest normal number.
template <typename T>
FK_HOST_DEVICE ExpPair<T> exp_pair(T x) {
  using Element = typename ExpTypes<T>::Element;
  constexpr Element kLimit = ExpConstants<Element>::kPairLimit;
  const T infinity = T{} + static_cast<Element>(__builtin_inf()), zero{};
  const auto large = x > kLimit, small = x < -kLimit;
  const ExpPair<T> within = exp_pair_within(x);
  return {large ? infinity : (small ? zero - Element(1) : within.growth),
          large ? infinity : (small ? -Element(1) - x : within.excess),
          large ? zero : (small ? infinity : within.inverse)};
}

template <typename T>
FK_HOST_DEVICE T inverse_std_of(T log_std) {
  return fisherkernels::exp(-log_std);
}

}  // namespace fisherkernels
