// A norm and an activation behind it, y = a(w û + b) with û = (u - mean) rstd: what is done with the numbers
// of one set for the value, the vector-Jacobian product, and the product's backward pass.
//
// The product, with q = w a' c and means over the set, A of q and K of û q:
//   r (q - A - û K).
// Its backward pass for a tangent t, with means T of t, S of û t and G = mean(q t) - T A - S K: the gradients
//   of q:  e = r (t - T - û S),
//   of the activation's input:  h = w a'' c e,
//   of u:  r (w h - mean(w h) - û mean(û w h)) - r² (K t + S q - K T - S A + û (G - 2 K S)).
//
// A curved activation costs more than a number's way to the cache and back: the first pass evaluates it and
// leaves what follows from it in the outputs, for the next ones.
#pragma once

#include <cmath>

#include "cpu/norm_set.h"

namespace fisherkernels {

template <typename V, typename T>
FK_INLINE void load_unit(V& unit, const Set<T>& s, int64_t i) {
  V u;
  load_vector(u, s.u + i);
  unit = (u - s.mean) * s.rstd;
}

// û, and a with its derivatives at w û + b.
template <bool kCurved, typename V, typename T>
FK_INLINE void look(V& unit, AtInput<V>& a, const Set<T>& s, int64_t i) {
  load_unit(unit, s, i);
  const V x = unit * s.weight + s.bias, one = V{} + T(1);
  if constexpr (kCurved) {
    at_input(a, x, s.kind);
  } else {
    const V below = s.kind == Kind::kRelu ? (x < V{} ? V{} : x) : x * s.slope;  // NaN stays
    a = {x > V{} ? x : below, x > V{} ? one : V{} + s.slope, V{}};
  }
}

struct Pass {
  FK_INLINE void gather() {}
  FK_INLINE void leave(int64_t) {}
};

template <typename T, int kBytes>
struct MeanSum : Pass {
  const Set<T>& s;
  Sum<T, kBytes> sum{};

  explicit MeanSum(const Set<T>& set) : s(set) {}
  template <typename V>
  FK_INLINE void at(int64_t i) {
    V u;
    load_vector(u, s.u + i);
    sum.add(u);
  }
  FK_INLINE void gather() { sum.gather(); }
};

template <typename T, int kBytes>
struct SquareSum : Pass {
  const Set<T>& s;
  Sum<T, kBytes> sum{}, square{};

  explicit SquareSum(const Set<T>& set) : s(set) {}
  template <typename V>
  FK_INLINE void at(int64_t i) {
    V u;
    load_vector(u, s.u + i);
    u -= s.mean;
    sum.add(u);
    square.add(u * u);
  }
  FK_INLINE void gather() {
    sum.gather();
    square.gather();
  }
};

template <typename T, int kBytes, bool kCurved>
struct WriteValue : Pass {
  const Set<T>& s;

  explicit WriteValue(const Set<T>& set) : s(set) {}
  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit;
    AtInput<V> a;
    look<kCurved>(unit, a, s, i);
    store_vector(s.outputs[0] + i, a.value);
  }
};

// Sums over a run of p = a' c, û p and p t, and the gradients of its weight and bias.
struct RunSums {
  double plain, scaled, both;
  double to_weight, to_bias;
};

// Sums of p = a' c and of û p in each run, and with the weights in all; c is the first of `others`.
template <typename T, int kBytes, bool kCurved>
struct ProductSums : Pass {
  const Set<T>& s;
  RunSums* runs;
  Sum<T, kBytes> plain{}, scaled{};
  double a = 0, k = 0;

  ProductSums(const Set<T>& set, RunSums* of_runs) : s(set), runs(of_runs) {}
  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit, p;
    AtInput<V> act;
    look<kCurved>(unit, act, s, i);
    load_vector(p, s.others[0] + i);
    p *= act.slope;
    plain.add(p);
    scaled.add(unit * p);
    if constexpr (kCurved) {
      store_vector(s.outputs[0] + i, V(p * s.weight));
      if (s.outputs[1]) store_vector(s.outputs[1] + i, act.value);
    }
  }
  FK_INLINE void gather() {
    plain.gather();
    scaled.gather();
  }
  FK_INLINE void leave(int64_t run) {
    runs[run] = {plain.take(), scaled.take(), 0, 0, 0};
    runs[run].to_weight = runs[run].scaled;  // as the value's backward pass
    runs[run].to_bias = runs[run].plain;
    a += s.weight * runs[run].plain;
    k += s.weight * runs[run].scaled;
  }
};

// The product, and beside it what the second of `others` gives, and a.
template <typename T, int kBytes, bool kCurved>
struct WriteProduct : Pass {
  const Set<T>& s;
  T a, k;

  WriteProduct(const Set<T>& set, double mean, double scaled)
      : s(set), a(static_cast<T>(mean)), k(static_cast<T>(scaled)) {}
  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit, q;
    if constexpr (kCurved) {
      load_unit(unit, s, i);
      load_vector(q, s.outputs[0] + i);
    } else {
      AtInput<V> act;
      look<false>(unit, act, s, i);
      load_vector(q, s.others[0] + i);
      q *= act.slope * s.weight;
      if (s.outputs[1]) store_vector(s.outputs[1] + i, act.value);
    }
    q = s.rstd * (q - a - unit * k);
    if (s.others[1]) {
      V more;
      load_vector(more, s.others[1] + i);
      q += more;
    }
    store_vector(s.outputs[0] + i, q);
  }
};

// The means that the product's backward pass needs; of w h, and û w h, bend and bend_scaled.
template <typename T>
struct TangentMeans {
  T a, k, t, s, g, bend = 0, bend_scaled = 0;
};

// The sums behind those; c and the tangent t are the two of `others`. Left in the outputs: w a', w a'' c and
// q.
template <typename T, int kBytes, bool kCurved>
struct TangentSums : Pass {
  const Set<T>& s;
  RunSums* runs;
  Sum<T, kBytes> plain{}, scaled{}, both{}, plain_t{}, scaled_t{};
  double a = 0, k = 0, g = 0;

  TangentSums(const Set<T>& set, RunSums* of_runs) : s(set), runs(of_runs) {}
  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit, p, t;
    AtInput<V> act;
    look<kCurved>(unit, act, s, i);
    load_vector(p, s.others[0] + i);
    load_vector(t, s.others[1] + i);
    p *= act.slope;
    plain.add(p);
    scaled.add(unit * p);
    both.add(p * t);
    plain_t.add(t);
    scaled_t.add(unit * t);
    if constexpr (kCurved) {
      V given;
      load_vector(given, s.others[0] + i);
      store_vector(s.outputs[0] + i, V(s.weight * act.slope));
      store_vector(s.outputs[1] + i, V(s.weight * act.curvature * given));
      store_vector(s.outputs[2] + i, V(s.weight * p));
    }
  }
  FK_INLINE void gather() {
    plain.gather();
    scaled.gather();
    both.gather();
    plain_t.gather();
    scaled_t.gather();
  }
  FK_INLINE void leave(int64_t run) {
    runs[run] = {plain.take(), scaled.take(), both.take(), 0, 0};
    a += s.weight * runs[run].plain;
    k += s.weight * runs[run].scaled;
    g += s.weight * runs[run].both;
  }
};

template <typename V, typename T>
FK_INLINE void gradient_of_q(V& to, const V& t, const V& unit, const TangentMeans<T>& m, T rstd) {
  to = rstd * (t - m.t - unit * m.s);
}

// Sums of h and of û h in each run, and with the weights in all.
template <typename T, int kBytes>
struct BendSums : Pass {
  const Set<T>& s;
  const TangentMeans<T>& m;
  RunSums* runs;
  Sum<T, kBytes> plain{}, scaled{};
  double bend = 0, bend_scaled = 0;

  BendSums(const Set<T>& set, const TangentMeans<T>& means, RunSums* of_runs)
      : s(set), m(means), runs(of_runs) {}
  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit, bent, t, h;
    load_unit(unit, s, i);
    load_vector(t, s.others[1] + i);
    load_vector(bent, s.outputs[1] + i);
    gradient_of_q(h, t, unit, m, s.rstd);
    h *= bent;
    plain.add(h);
    scaled.add(unit * h);
  }
  FK_INLINE void gather() {
    plain.gather();
    scaled.gather();
  }
  FK_INLINE void leave(int64_t run) {
    runs[run].to_bias = plain.take();
    runs[run].to_weight = scaled.take();
    bend += s.weight * runs[run].to_bias;
    bend_scaled += s.weight * runs[run].to_weight;
  }
};

// The gradients of c and of u, and the product again.
template <typename T, int kBytes, bool kCurved>
struct WriteTangent : Pass {
  const Set<T>& s;
  const TangentMeans<T>& m;

  WriteTangent(const Set<T>& set, const TangentMeans<T>& means) : s(set), m(means) {}
  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit, t, e, slope, q;
    load_vector(t, s.others[1] + i);
    if constexpr (kCurved) {
      load_unit(unit, s, i);
      load_vector(slope, s.outputs[0] + i);
      load_vector(q, s.outputs[2] + i);
    } else {
      AtInput<V> act;
      look<false>(unit, act, s, i);
      load_vector(q, s.others[0] + i);
      slope = act.slope * s.weight;
      q *= slope;
    }
    gradient_of_q(e, t, unit, m, s.rstd);
    V to_u =
        -s.rstd * s.rstd * (m.k * t + m.s * q - (m.k * m.t + m.s * m.a) + unit * (m.g - T(2) * m.k * m.s));
    if constexpr (kCurved) {
      V bent;
      load_vector(bent, s.outputs[1] + i);
      to_u += s.rstd * (s.weight * bent * e - m.bend - unit * m.bend_scaled);
    }
    store_vector(s.outputs[0] + i, V(e * slope));
    store_vector(s.outputs[1] + i, to_u);
    store_vector(s.outputs[2] + i, V(s.rstd * (q - m.a - unit * m.k)));
  }
};

template <int kBytes, typename T>
FK_INLINE void statistics_of(Gathered<T>& numbers, double eps, std::array<T, 3>& to) {
  Set<T>& s = numbers.s;
  Set<T> whole = s;
  if (s.stride == s.length) {  // the runs are one
    whole.length *= s.runs;
    whole.runs = 1;
  }
  MeanSum<T, kBytes> mean(whole);
  over<kBytes>(whole, mean);
  whole.mean = s.mean = static_cast<T>(mean.sum.total / s.count);
  numbers.pad_with_mean();
  SquareSum<T, kBytes> squares(whole);
  over<kBytes>(whole, squares);
  const double rest = squares.sum.total / s.count;  // the mean of what the first mean's rounding left
  double variance = squares.square.total / s.count - rest * rest;
  variance = variance < 0 ? 0 : variance;  // NaN stays
  s.mean = static_cast<T>(static_cast<double>(s.mean) + rest);
  s.rstd = static_cast<T>(1 / std::sqrt(variance + eps));
  to = {s.mean, s.rstd, static_cast<T>(variance)};
}

template <int kBytes, bool kCurved, typename T>
FK_INLINE void value_of(Gathered<T>& numbers, double eps, std::array<T, 3>& to) {
  statistics_of<kBytes>(numbers, eps, to);
  WriteValue<T, kBytes, kCurved> write(numbers.s);
  over<kBytes>(numbers.s, write);
}

template <int kBytes, bool kCurved, typename T>
FK_INLINE void product_of(Set<T>& s, RunSums* runs) {
  ProductSums<T, kBytes, kCurved> sums(s, runs);
  over<kBytes>(s, sums);
  const double n = static_cast<double>(std::max<int64_t>(1, s.count));
  WriteProduct<T, kBytes, kCurved> write(s, sums.a / n, sums.k / n);
  over<kBytes>(s, write);
}

template <int kBytes, bool kCurved, typename T>
FK_INLINE void tangent_of(Set<T>& s, RunSums* runs) {
  const double n = static_cast<double>(std::max<int64_t>(1, s.count));
  TangentSums<T, kBytes, kCurved> sums(s, runs);
  over<kBytes>(s, sums);
  const double a = sums.a / n, k = sums.k / n, t = sums.plain_t.total / n, scaled_t = sums.scaled_t.total / n;
  TangentMeans<T> m{T(a), T(k), T(t), T(scaled_t), T(sums.g / n - t * a - scaled_t * k)};
  if constexpr (kCurved) {
    BendSums<T, kBytes> bends(s, m, runs);
    over<kBytes>(s, bends);
    m.bend = static_cast<T>(bends.bend / n);
    m.bend_scaled = static_cast<T>(bends.bend_scaled / n);
  }
  WriteTangent<T, kBytes, kCurved> write(s, m);
  over<kBytes>(s, write);
  for (int64_t run = 0; run < s.runs && s.count > 0; ++run) {
    RunSums& r = runs[run];
    r.to_weight += s.rstd * (r.both - t * r.plain - scaled_t * r.scaled);
  }
}

}  // namespace fisherkernels
