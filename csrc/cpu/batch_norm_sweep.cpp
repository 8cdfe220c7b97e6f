// Batch statistics and an activation behind them, y = a(w û + b) with û = (u - mean) rstd per channel: value,
// vector-Jacobian product, and the backward passes of both. Each reads what it needs from memory once: a
// channel's numbers, gathered where they lie in short runs, stay in a core's cache between the passes over
// them. Floor: 2 numbers read or written per element for the value, 3 for the product, 6 and 5 for their
// backward passes.
#include <array>
#include <cmath>

#include "cpu/buffers.h"
#include "cpu/lanes.h"
#include "cpu/scratch.h"
#include "cpu/sweep_activation.h"

namespace fisherkernels {
namespace {

constexpr int64_t kRun = 256;     // numbers: shorter runs of a channel are gathered
constexpr int64_t kBlock = 4096;  // numbers that are summed before the sum is added to those in double

template <typename T>
struct BatchNorm {
  int64_t samples, channels, size;  // u is [N, C, L]
  Kind kind;
  T negative_slope;  // 1 for the identity, 0 for ReLU
  double eps;
  const T *u, *weight, *bias;  // weight and bias may be null
  std::array<const T*, 2> others;
  std::array<T*, 3> outputs;
  const T *mean, *rstd;
  std::array<T*, 3> per_channel;  // outputs [C]
};

// A channel: `runs` of `length` numbers, `stride` apart.
template <typename T>
struct Channel {
  int64_t runs, length, stride, count;
  const T* u;
  std::array<const T*, 2> others;
  std::array<T*, 3> outputs;
  Kind kind;
  T slope, mean, rstd, weight, bias;
};

// A sum in lanes of T, added up in double from time to time.
template <typename T, int kBytes>
struct Sum {
  Vector<T, kBytes> lanes{};
  T rest = 0;
  double total = 0;

  FK_INLINE void add(const Vector<T, kBytes>& v) { lanes += v; }
  FK_INLINE void add(const T& v) { rest += v; }
  FK_INLINE void gather() {
    for (size_t k = 0; k < kBytes / sizeof(T); ++k) total += lanes[k];
    total += rest;
    lanes = Vector<T, kBytes>{};
    rest = 0;
  }
};

// body.at<V>(i) for all numbers of a channel, V a vector or, at the ends of runs, one number.
template <int kBytes, typename T, typename Body>
FK_INLINE void over(const Channel<T>& c, Body& body) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  for (int64_t run = 0; run < c.runs; ++run) {
    for (int64_t begin = 0; begin < c.length; begin += kBlock) {
      const int64_t end = run * c.stride + std::min(c.length, begin + kBlock);
      int64_t i = run * c.stride + begin;
      for (; i + kLanes <= end; i += kLanes) body.template at<Vector<T, kBytes>>(i);
      for (; i < end; ++i) body.template at<T>(i);
      body.gather();
    }
  }
}

// û, and a with its derivatives at w û + b.
template <bool kCurved, typename V, typename T>
FK_INLINE void look(V& unit, AtInput<V>& a, const Channel<T>& c, int64_t i) {
  V u;
  load_vector(u, c.u + i);
  unit = (u - c.mean) * c.rstd;
  const V x = unit * c.weight + c.bias, one = V{} + T(1);
  if constexpr (kCurved) {
    at_input(a, x, c.kind);
  } else {
    const V below = c.kind == Kind::kRelu ? (x < V{} ? V{} : x) : x * c.slope;  // NaN stays
    a = {x > V{} ? x : below, x > V{} ? one : V{} + c.slope, V{}};
  }
}

template <typename T, int kBytes>
struct MeanSum {
  const Channel<T>& c;
  Sum<T, kBytes> sum{};

  template <typename V>
  FK_INLINE void at(int64_t i) {
    V u;
    load_vector(u, c.u + i);
    sum.add(u);
  }
  FK_INLINE void gather() { sum.gather(); }
};

template <typename T, int kBytes>
struct SquareSum {
  const Channel<T>& c;
  Sum<T, kBytes> sum{}, square{};

  template <typename V>
  FK_INLINE void at(int64_t i) {
    V u;
    load_vector(u, c.u + i);
    u -= c.mean;
    sum.add(u);
    square.add(u * u);
  }
  FK_INLINE void gather() {
    sum.gather();
    square.gather();
  }
};

template <typename T, int kBytes, bool kCurved>
struct WriteValue {
  const Channel<T>& c;

  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit;
    AtInput<V> a;
    look<kCurved>(unit, a, c, i);
    store_vector(c.outputs[0] + i, a.value);
  }
  FK_INLINE void gather() {}
};

// Sums of q = a' c and of û q: c is the first of `others`.
template <typename T, int kBytes, bool kCurved>
struct ProductSums {
  const Channel<T>& c;
  Sum<T, kBytes> plain{}, scaled{};

  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit, q;
    AtInput<V> a;
    look<kCurved>(unit, a, c, i);
    load_vector(q, c.others[0] + i);
    q *= a.slope;
    plain.add(q);
    scaled.add(unit * q);
  }
  FK_INLINE void gather() {
    plain.gather();
    scaled.gather();
  }
};

// w r (q - plain - û scaled), means now, and beside it what the second of `others` gives, and a.
template <typename T, int kBytes, bool kCurved>
struct WriteProduct {
  const Channel<T>& c;
  T factor, plain, scaled;

  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit, q;
    AtInput<V> a;
    look<kCurved>(unit, a, c, i);
    load_vector(q, c.others[0] + i);
    q = factor * (q * a.slope - plain - unit * scaled);
    if (c.others[1]) {
      V more;
      load_vector(more, c.others[1] + i);
      q += more;
    }
    store_vector(c.outputs[0] + i, q);
    if (c.outputs[1]) store_vector(c.outputs[1] + i, a.value);
  }
  FK_INLINE void gather() {}
};

// What the backward pass of the product needs: q = a' c, c and the tangent t the two of `others`.
template <typename T, int kBytes, bool kCurved>
struct TangentSums {
  const Channel<T>& c;
  Sum<T, kBytes> plain{}, scaled{}, plain_t{}, scaled_t{}, both{};

  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit, q, t;
    AtInput<V> a;
    look<kCurved>(unit, a, c, i);
    load_vector(q, c.others[0] + i);
    load_vector(t, c.others[1] + i);
    q *= a.slope;
    plain.add(q);
    scaled.add(unit * q);
    plain_t.add(t);
    scaled_t.add(unit * t);
    both.add(q * t);
  }
  FK_INLINE void gather() {
    plain.gather();
    scaled.gather();
    plain_t.gather();
    scaled_t.gather();
    both.gather();
  }
};

// Means over the channel: A of q, K of û q, T of t, S of û t; G = mean(q t) - T A - S K. And of what a bent
// activation adds to the gradient of w û + b.
template <typename T>
struct TangentMeans {
  T a, k, t, s, g, bend = 0, bend_scaled = 0;
};

// w r (t - T - û S), the gradient of q.
template <typename V, typename T>
FK_INLINE void gradient_of_cotangent(V& to, const V& t, const V& unit, const TangentMeans<T>& m, T factor) {
  to = factor * (t - m.t - unit * m.s);
}

// Sums of a'' c times the gradient of q, and of û times that.
template <typename T, int kBytes>
struct BendSums {
  const Channel<T>& c;
  const TangentMeans<T>& m;
  T factor;
  Sum<T, kBytes> plain{}, scaled{};

  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit, given, t, e;
    AtInput<V> a;
    look<true>(unit, a, c, i);
    load_vector(given, c.others[0] + i);
    load_vector(t, c.others[1] + i);
    gradient_of_cotangent(e, t, unit, m, factor);
    e *= a.curvature * given;
    plain.add(e);
    scaled.add(unit * e);
  }
  FK_INLINE void gather() {
    plain.gather();
    scaled.gather();
  }
};

// The gradients of c and of u, and the product again.
template <typename T, int kBytes, bool kCurved>
struct WriteTangent {
  const Channel<T>& c;
  const TangentMeans<T>& m;
  T factor;  // w r

  template <typename V>
  FK_INLINE void at(int64_t i) {
    V unit, given, t, e;
    AtInput<V> a;
    look<kCurved>(unit, a, c, i);
    load_vector(given, c.others[0] + i);
    load_vector(t, c.others[1] + i);
    gradient_of_cotangent(e, t, unit, m, factor);
    const V q = given * a.slope;
    V to_u =
        -factor * c.rstd * (m.k * t + m.s * q - (m.k * m.t + m.s * m.a) + unit * (m.g - T(2) * m.k * m.s));
    if constexpr (kCurved) to_u += factor * (a.curvature * given * e - m.bend - unit * m.bend_scaled);
    store_vector(c.outputs[0] + i, V(e * a.slope));
    store_vector(c.outputs[1] + i, to_u);
    store_vector(c.outputs[2] + i, V(factor * (q - m.a - unit * m.k)));
  }
  FK_INLINE void gather() {}
};

template <typename T>
void copy_run(T* to, const T* from, int64_t n) {
  if (n < 16) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
  } else {
    memcpy(to, from, n * sizeof(T));
  }
}

// A channel's numbers where they lie or, in short runs, gathered; outputs go back at the end of a scope.
template <typename T>
class Gathered {
 public:
  Gathered(const BatchNorm<T>& b, int64_t channel, T* memory) : b_(b), offset_(channel * b.size) {
    const int64_t count = b.samples * b.size, stride = b.channels * b.size;
    const bool gather = memory != nullptr;
    c.runs = gather ? 1 : b.samples;
    c.length = c.stride = gather ? count : b.size;
    if (!gather) c.stride = stride;
    c.count = count;
    c.kind = b.kind;
    c.slope = b.negative_slope;
    c.weight = b.weight ? b.weight[channel] : T(1);
    c.bias = b.bias ? b.bias[channel] : T(0);
    if (b.mean) c.mean = b.mean[channel];
    if (b.rstd) c.rstd = b.rstd[channel];
    T* next = memory;
    const auto input = [&](const T* from) -> const T* {
      if (!gather || !from) return from ? from + offset_ : nullptr;
      T* to = next;
      next += count;
      for (int64_t n = 0; n < b.samples; ++n) copy_run(to + n * b.size, from + n * stride + offset_, b.size);
      return to;
    };
    c.u = input(b.u);
    for (size_t i = 0; i < c.others.size(); ++i) c.others[i] = input(b.others[i]);
    for (size_t i = 0; i < c.outputs.size(); ++i) {
      c.outputs[i] = b.outputs[i] ? (gather ? next : b.outputs[i] + offset_) : nullptr;
      next += gather ? count : 0;
    }
    gathered_ = gather;
  }

  void put_back() {
    if (!gathered_) return;
    for (size_t i = 0; i < c.outputs.size(); ++i) {
      if (!c.outputs[i]) continue;
      for (int64_t n = 0; n < b_.samples; ++n) {
        T* to = b_.outputs[i] + n * b_.channels * b_.size + offset_;
        copy_run(to, c.outputs[i] + n * b_.size, b_.size);
      }
    }
  }

  static constexpr int64_t kArrays = 6;

  Channel<T> c{};

 private:
  const BatchNorm<T>& b_;
  int64_t offset_;
  bool gathered_;
};

template <int kBytes, typename T>
FK_INLINE void statistics_of(Channel<T>& c, double eps, std::array<T, 3>& to) {
  MeanSum<T, kBytes> mean{c};
  over<kBytes>(c, mean);
  c.mean = static_cast<T>(mean.sum.total / c.count);
  SquareSum<T, kBytes> squares{c};
  over<kBytes>(c, squares);
  const double rest = squares.sum.total / c.count;  // the mean of what the first mean's rounding left
  double variance = squares.square.total / c.count - rest * rest;
  variance = variance < 0 ? 0 : variance;  // NaN stays
  c.mean = static_cast<T>(static_cast<double>(c.mean) + rest);
  c.rstd = static_cast<T>(1 / std::sqrt(variance + eps));
  to = {c.mean, c.rstd, static_cast<T>(variance)};
}

template <int kBytes, bool kCurved, typename T>
FK_INLINE void tangent_of(Channel<T>& c, std::array<T, 3>& to) {
  const double n = static_cast<double>(std::max<int64_t>(1, c.count));
  TangentSums<T, kBytes, kCurved> sums{c};
  over<kBytes>(c, sums);
  const double a = sums.plain.total / n, k = sums.scaled.total / n;
  const double t = sums.plain_t.total / n, s = sums.scaled_t.total / n;
  const double g = sums.both.total / n - t * a - s * k;
  TangentMeans<T> m{T(a), T(k), T(t), T(s), T(g)};
  const T factor = c.weight * c.rstd;
  double to_weight = n * c.rstd * g, to_bias = 0;
  if constexpr (kCurved) {
    BendSums<T, kBytes> bends{c, m, factor};
    over<kBytes>(c, bends);
    m.bend = static_cast<T>(bends.plain.total / n);
    m.bend_scaled = static_cast<T>(bends.scaled.total / n);
    to_weight += bends.scaled.total;
    to_bias = bends.plain.total;
  }
  WriteTangent<T, kBytes, kCurved> write{c, m, factor};
  over<kBytes>(c, write);
  to = {T(to_weight), T(to_bias), T(0)};
}

enum class Pass { kValue, kProduct, kTangent };

template <int kBytes, Pass kPass, bool kCurved, typename T>
FK_INLINE void channel_of(Channel<T>& c, double eps, std::array<T, 3>& to) {
  if constexpr (kPass == Pass::kValue) {
    statistics_of<kBytes>(c, eps, to);
    WriteValue<T, kBytes, kCurved> write{c};
    over<kBytes>(c, write);
  } else if constexpr (kPass == Pass::kProduct) {
    ProductSums<T, kBytes, kCurved> sums{c};
    over<kBytes>(c, sums);
    const double n = static_cast<double>(std::max<int64_t>(1, c.count));
    WriteProduct<T, kBytes, kCurved> write{c, c.weight * c.rstd, T(sums.plain.total / n),
                                           T(sums.scaled.total / n)};
    over<kBytes>(c, write);
    to = {T(sums.scaled.total), T(sums.plain.total), T(0)};
  } else {
    tangent_of<kBytes, kCurved>(c, to);
  }
}

template <int kBytes, Pass kPass, typename T>
FK_INLINE void channels_of(const BatchNorm<T>& b, int64_t begin, int64_t end) {
  const bool gather = b.size < kRun;
  const Scratch<T> scratch(gather ? Gathered<T>::kArrays * b.samples * b.size : 0);
  for (int64_t channel = begin; channel < end; ++channel) {
    Gathered<T> numbers(b, channel, gather ? scratch.data() : nullptr);
    std::array<T, 3> to{};
    if (is_curved(b.kind)) {
      channel_of<kBytes, kPass, true>(numbers.c, b.eps, to);
    } else {
      channel_of<kBytes, kPass, false>(numbers.c, b.eps, to);
    }
    numbers.put_back();
    for (size_t i = 0; i < to.size(); ++i) {
      if (b.per_channel[i]) b.per_channel[i][channel] = to[i];
    }
  }
}

template <int kBytes, typename T>
FK_INLINE void value_channels_of(const BatchNorm<T>& b, int64_t begin, int64_t end) {
  channels_of<kBytes, Pass::kValue>(b, begin, end);
}
template <int kBytes, typename T>
FK_INLINE void product_channels_of(const BatchNorm<T>& b, int64_t begin, int64_t end) {
  channels_of<kBytes, Pass::kProduct>(b, begin, end);
}
template <int kBytes, typename T>
FK_INLINE void tangent_channels_of(const BatchNorm<T>& b, int64_t begin, int64_t end) {
  channels_of<kBytes, Pass::kTangent>(b, begin, end);
}

FK_WIDTHS(value_channels, BatchNorm<float>)
FK_WIDTHS(value_channels, BatchNorm<double>)
FK_WIDTHS(product_channels, BatchNorm<float>)
FK_WIDTHS(product_channels, BatchNorm<double>)
FK_WIDTHS(tangent_channels, BatchNorm<float>)
FK_WIDTHS(tangent_channels, BatchNorm<double>)

// What all three operators are given.
struct Given {
  Tensor u;
  std::optional<Tensor> weight, bias;
  Kind kind;
  double negative_slope;

  Given(const Tensor& u, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
        int64_t activation, double slope)
      : u(as_contiguous(u)),
        weight(as_contiguous(weight)),
        bias(as_contiguous(bias)),
        kind(static_cast<Kind>(activation)),
        negative_slope(kind == Kind::kIdentity ? 1
                       : kind == Kind::kRelu   ? 0
                                               : slope) {
    STD_TORCH_CHECK(u.dim() > 1, "BatchNorm's operators: expected x [N, C, ...]");
    for (const auto& t : {this->weight, this->bias}) {
      if (t.has_value()) check_per_channel(*t);
    }
  }

  void check_per_channel(const Tensor& t) const {
    STD_TORCH_CHECK(t.scalar_type() == u.scalar_type() && t.numel() == u.size(1) && t.is_contiguous(),
                    "BatchNorm's operators: expected a number of x's dtype for each channel");
  }

  // A contiguous tensor that has x's shape and dtype.
  Tensor like_x(const Tensor& t) const {
    bool same = t.scalar_type() == u.scalar_type() && t.dim() == u.dim();
    for (int64_t d = 0; same && d < u.dim(); ++d) same = t.size(d) == u.size(d);
    STD_TORCH_CHECK(same, "BatchNorm's operators: expected a tensor of x's shape and dtype");
    return as_contiguous(t);
  }

  template <typename T>
  BatchNorm<T> at() const {
    BatchNorm<T> b{};
    b.samples = u.size(0);
    b.channels = u.size(1);
    b.size = b.samples * b.channels == 0 ? 1 : u.numel() / (b.samples * b.channels);
    b.kind = kind;
    b.negative_slope = static_cast<T>(negative_slope);
    b.u = pointer<T>(u);
    b.weight = pointer<T>(weight);
    b.bias = pointer<T>(bias);
    return b;
  }

  template <typename T>
  BatchNorm<T> at(const Tensor& mean, const Tensor& rstd) const {
    check_per_channel(mean);
    check_per_channel(rstd);
    BatchNorm<T> b = at<T>();
    b.mean = pointer<T>(mean);
    b.rstd = pointer<T>(rstd);
    return b;
  }

  Tensor like() const { return new_output(u, u.sizes()); }
  Tensor per_channel() const {
    const int64_t channels = u.size(1);
    return new_output(u, Sizes(&channels, 1));
  }
};

template <typename T, typename Channels>
void for_channels(const BatchNorm<T>& b, Channels channels) {
  for_rows(b.channels, b.samples * b.size, [&](int64_t begin, int64_t end) { channels(b, begin, end); });
}

// y, mean, rstd, variance.
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_value(const Tensor& u,
                                                            const std::optional<Tensor>& weight,
                                                            const std::optional<Tensor>& bias, double eps,
                                                            int64_t activation, double slope) {
  const Given given(u, weight, bias, activation, slope);
  const Tensor y = given.like(), mean = given.per_channel(), rstd = given.per_channel(),
               variance = given.per_channel();
  dispatch_full_precision(u, "batch_norm_value", [&](auto element) {
    using T = decltype(element);
    BatchNorm<T> b = given.at<T>();
    b.eps = eps;
    b.outputs = {output_pointer<T>(y), nullptr, nullptr};
    b.per_channel = {output_pointer<T>(mean), output_pointer<T>(rstd), output_pointer<T>(variance)};
    for_channels(b, [](const auto& c, int64_t begin, int64_t end) { value_channels(c, begin, end); });
  });
  return {y, mean, rstd, variance};
}

// The gradient of y taken to u, with `more` (the gradient of u itself) added where it is given; y again where
// it is wanted; the gradients of weight and bias.
std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_pull(
    const Tensor& gradient_in, const std::optional<Tensor>& more_in, const Tensor& u,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& mean,
    const Tensor& rstd, int64_t activation, double slope, bool value) {
  const Given given(u, weight, bias, activation, slope);
  const Tensor gradient = given.like_x(gradient_in);
  const std::optional<Tensor> more =
      more_in.has_value() ? std::optional<Tensor>(given.like_x(*more_in)) : std::nullopt;
  const Tensor to_u = given.like(), y = new_gradient(value, u, u.sizes()), to_weight = given.per_channel(),
               to_bias = given.per_channel();
  dispatch_full_precision(u, "batch_norm_pull", [&](auto element) {
    using T = decltype(element);
    BatchNorm<T> b = given.at<T>(mean, rstd);
    b.others = {pointer<T>(gradient), pointer<T>(more)};
    b.outputs = {output_pointer<T>(to_u), output_pointer<T>(y), nullptr};
    b.per_channel = {output_pointer<T>(to_weight), output_pointer<T>(to_bias), nullptr};
    for_channels(b, [](const auto& c, int64_t begin, int64_t end) { product_channels(c, begin, end); });
  });
  return {to_u, y, to_weight, to_bias};
}

// For the tangent t of a product with the cotangent c: the gradients of c and u, the product again, and the
// gradients of weight and bias.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_pull_backward(
    const Tensor& tangent_in, const Tensor& cotangent_in, const Tensor& u,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& mean,
    const Tensor& rstd, int64_t activation, double slope) {
  const Given given(u, weight, bias, activation, slope);
  const Tensor tangent = given.like_x(tangent_in), cotangent = given.like_x(cotangent_in);
  const Tensor to_cotangent = given.like(), to_u = given.like(), again = given.like(),
               to_weight = given.per_channel(), to_bias = given.per_channel();
  dispatch_full_precision(u, "batch_norm_pull_backward", [&](auto element) {
    using T = decltype(element);
    BatchNorm<T> b = given.at<T>(mean, rstd);
    b.others = {pointer<T>(cotangent), pointer<T>(tangent)};
    b.outputs = {output_pointer<T>(to_cotangent), output_pointer<T>(to_u), output_pointer<T>(again)};
    b.per_channel = {output_pointer<T>(to_weight), output_pointer<T>(to_bias), nullptr};
    for_channels(b, [](const auto& c, int64_t begin, int64_t end) { tangent_channels(c, begin, end); });
  });
  return {to_cotangent, to_u, again, to_weight, to_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("batch_norm_value", TORCH_BOX(&batch_norm_value));
  m.impl("batch_norm_pull", TORCH_BOX(&batch_norm_pull));
  m.impl("batch_norm_pull_backward", TORCH_BOX(&batch_norm_pull_backward));
}

}  // namespace fisherkernels
