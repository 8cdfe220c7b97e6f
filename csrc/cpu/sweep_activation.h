// The activations that sweeps of a network know, by their number, and their derivatives.
#pragma once

#include "cpu/vector.h"
#include "math/activation.h"

namespace fisherkernels {

// Derivatives of the first four follow from their value, of the others from what they are given: an
// activation's key.
enum class Kind : int64_t {
  kIdentity = -1,
  kTanh = 0,
  kSigmoid = 1,
  kRelu = 2,
  kLeakyRelu = 3,
  kSilu = 4,
  kElu = 5,       // alpha 1
  kSoftplus = 6,  // beta 1, linear above kSoftplusLimit
  kGelu = 7,      // exact
};

constexpr double kSoftplusLimit = 20;

inline bool is_curved(Kind kind) {
  return kind == Kind::kTanh || kind == Kind::kSigmoid || kind >= Kind::kSilu;
}
FK_INLINE bool keeps_input(Kind kind) { return kind >= Kind::kSilu; }

// a, a' and a''.
template <typename V>
struct AtInput {
  V value, slope, curvature;
};

// At its input x, of a curved activation.
template <typename V>
FK_INLINE void at_input(AtInput<V>& to, const V& x, Kind kind) {
  using T = typename ExpTypes<V>::Element;
  const V one = V{} + T(1);
  if (kind == Kind::kSilu || kind == Kind::kTanh || kind == Kind::kSigmoid) {
    const Derivatives<V> d = kind == Kind::kSilu   ? silu_derivatives<V>(x)
                             : kind == Kind::kTanh ? tanh_derivatives<V>(x)
                                                   : sigmoid_derivatives<V>(x);
    to = {d.value, d.slope, d.curvature};
  } else if (kind == Kind::kElu) {
    const V below = x > V{} ? V{} : x, fall = exp_of_negative<V>(below);
    const V growth = exp_pair_within<V>(clamped<V>(below, ExpConstants<T>::kPairLimit)).growth;
    to = {x > V{} ? x : growth, fall, x >= V{} ? V{} : fall};
  } else if (kind == Kind::kGelu) {
    constexpr T kLimit = sizeof(T) == sizeof(float) ? 12.5 : 37;  // the tail further out is no normal number
    const V within = clamped<V>(x, kLimit);
    const NormalAt<V> normal = standard_normal<V>(within);
    to = {(x > V{} ? x : within) * normal.below, normal.below + within * normal.density,
          normal.density * (T(2) - within * within)};
  } else {
    const Derivatives<V> s = sigmoid_derivatives<V>(x);
    const V limit = V{} + T(kSoftplusLimit);
    const V log = log1p_of_unit<V>(exp_of_negative<V>(x > V{} ? -x : x));
    to = {x > limit ? x : (x > V{} ? x : V{}) + log, x > limit ? one : s.value, x > limit ? V{} : s.slope};
  }
}

template <typename V, typename T>
FK_INLINE void activate(V& x, Kind kind, T negative_slope) {
  if (kind == Kind::kTanh) {
    x = tanh_derivatives<V>(x).value;
  } else if (kind == Kind::kSigmoid) {
    x = sigmoid<V>(x);
  } else if (kind == Kind::kRelu) {
    x = x < V{} ? V{} : x;  // NaN stays
  } else if (kind == Kind::kLeakyRelu) {
    x = x > V{} ? x : x * negative_slope;
  } else {
    AtInput<V> a;
    at_input(a, x, kind);
    x = a.value;
  }
}

// a' and d a' / d key, of all but ReLU.
template <typename V, typename T>
FK_INLINE void slopes_of(V& slope, V& drift, const V& key, Kind kind, T negative_slope) {
  const V one = V{} + T(1);
  drift = V{};
  if (kind == Kind::kTanh) {
    slope = one - key * key;
    drift = T(-2) * key;
  } else if (kind == Kind::kSigmoid) {
    slope = key * (one - key);
    drift = one - T(2) * key;
  } else if (kind == Kind::kLeakyRelu) {
    slope = key > V{} ? one : V{} + negative_slope;
  } else {
    AtInput<V> a;
    at_input(a, key, kind);
    slope = a.slope;
    drift = a.curvature;
  }
}

}  // namespace fisherkernels
