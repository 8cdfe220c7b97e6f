// BatchNorm or GroupNorm and an activation behind it: value, vector-Jacobian product, and the backward passes
// of both. Each reads what it needs from memory once: a set's numbers stay in a core's cache between the
// passes over them. Floor: 2 numbers read or written per element for the value, 3 for the product, 5 and 6
// for their backward passes.
#include "cpu/buffers.h"
#include "cpu/norm_passes.h"

namespace fisherkernels {
namespace {

enum class Sweep { kValue, kProduct, kTangent };

template <int kBytes, Sweep kSweep, bool kCurved, typename T>
FK_INLINE void set_of(Gathered<T>& numbers, double eps, RunSums* runs, std::array<T, 3>& to) {
  if constexpr (kSweep == Sweep::kValue) {
    value_of<kBytes, kCurved>(numbers, eps, to);
  } else if constexpr (kSweep == Sweep::kProduct) {
    product_of<kBytes, kCurved>(numbers.s, runs);
  } else {
    tangent_of<kBytes, kCurved>(numbers.s, runs);
  }
}

// The gradients of weight and bias: of every channel of a group, or of the channel that all runs are of.
template <typename T>
void put_gradients(const Norm<T>& norm, int64_t set, const RunSums* runs, int64_t count) {
  const int64_t parts = norm.groups ? count : 1;
  for (int64_t part = 0; part < parts; ++part) {
    double weight = 0, bias = 0;
    for (int64_t run = part; run < (norm.groups ? part + 1 : count); ++run) {
      weight += runs[run].to_weight;
      bias += runs[run].to_bias;
    }
    norm.per_part[0][set * parts + part] = static_cast<T>(weight);
    norm.per_part[1][set * parts + part] = static_cast<T>(bias);
  }
}

template <int kBytes, Sweep kSweep, typename T>
FK_INLINE void sets_of(const Norm<T>& norm, int64_t begin, int64_t end) {
  const Walk<T> walk(norm, kBytes / sizeof(T));
  constexpr int64_t kLine = 64 / sizeof(T);  // what follows begins at a cache line
  const int64_t sums =
      (walk.runs * static_cast<int64_t>(sizeof(RunSums) / sizeof(T)) + kLine - 1) / kLine * kLine;
  const Scratch<T> scratch(walk.scratch() + sums);
  RunSums* runs = reinterpret_cast<RunSums*>(scratch.data());
  for (int64_t set = begin; set < end; ++set) {
    Gathered<T> numbers(norm, walk, set, scratch.data() + sums);
    std::array<T, 3> to{};
    if (is_curved(norm.kind)) {
      set_of<kBytes, kSweep, true>(numbers, norm.eps, runs, to);
    } else {
      set_of<kBytes, kSweep, false>(numbers, norm.eps, runs, to);
    }
    numbers.put_back();
    if constexpr (kSweep == Sweep::kValue) {
      for (size_t i = 0; i < to.size(); ++i) norm.per_set[i][set] = to[i];
    } else {
      put_gradients(norm, set, runs, walk.runs);
    }
  }
}

template <int kBytes, typename T>
FK_INLINE void value_sets_of(const Norm<T>& norm, int64_t begin, int64_t end) {
  sets_of<kBytes, Sweep::kValue>(norm, begin, end);
}
template <int kBytes, typename T>
FK_INLINE void product_sets_of(const Norm<T>& norm, int64_t begin, int64_t end) {
  sets_of<kBytes, Sweep::kProduct>(norm, begin, end);
}
template <int kBytes, typename T>
FK_INLINE void tangent_sets_of(const Norm<T>& norm, int64_t begin, int64_t end) {
  sets_of<kBytes, Sweep::kTangent>(norm, begin, end);
}

FK_WIDTHS(value_sets, Norm<float>)
FK_WIDTHS(value_sets, Norm<double>)
FK_WIDTHS(product_sets, Norm<float>)
FK_WIDTHS(product_sets, Norm<double>)
FK_WIDTHS(tangent_sets, Norm<float>)
FK_WIDTHS(tangent_sets, Norm<double>)

// What all three operators are given.
struct Given {
  Tensor u;
  std::optional<Tensor> weight, bias;
  int64_t groups;
  Kind kind;
  double negative_slope;

  Given(const Tensor& u, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
        int64_t groups, int64_t activation, double slope)
      : u(as_contiguous(u)),
        weight(as_contiguous(weight)),
        bias(as_contiguous(bias)),
        groups(groups),
        kind(static_cast<Kind>(activation)),
        negative_slope(kind == Kind::kIdentity ? 1
                       : kind == Kind::kRelu   ? 0
                                               : slope) {
    STD_TORCH_CHECK(u.dim() > 1, "the norms' operators: expected x [N, C, ...]");
    STD_TORCH_CHECK(kind >= Kind::kIdentity && kind <= Kind::kGelu,
                    "the norms' operators: unknown activation");
    STD_TORCH_CHECK(groups == 0 || (groups > 0 && u.size(1) > 0 && u.size(1) % groups == 0),
                    "the norms' operators: expected C divisible by the groups, or 0 groups");
    for (const auto& t : {this->weight, this->bias}) {
      if (t.has_value()) check_numbers(*t, u.size(1), "channel");
    }
  }

  int64_t sets() const { return groups ? u.size(0) * groups : u.size(1); }

  void check_numbers(const Tensor& t, int64_t count, const char* owner) const {
    STD_TORCH_CHECK(t.scalar_type() == u.scalar_type() && t.numel() == count && t.is_contiguous(),
                    "the norms' operators: expected a number of x's dtype for each ", owner);
  }

  Tensor like_x(const Tensor& t) const {
    return contiguous_like(t, u, "the norms' operators: expected a tensor of x's shape and dtype");
  }

  template <typename T>
  Norm<T> at() const {
    Norm<T> norm{};
    norm.samples = u.size(0);
    norm.channels = u.size(1);
    norm.size = norm.samples * norm.channels == 0 ? 1 : u.numel() / (norm.samples * norm.channels);
    norm.groups = groups;
    norm.kind = kind;
    norm.negative_slope = static_cast<T>(negative_slope);
    norm.u = pointer<T>(u);
    norm.weight = pointer<T>(weight);
    norm.bias = pointer<T>(bias);
    return norm;
  }

  template <typename T>
  Norm<T> at(const Tensor& mean, const Tensor& rstd) const {
    check_numbers(mean, sets(), "set of numbers");
    check_numbers(rstd, sets(), "set of numbers");
    Norm<T> norm = at<T>();
    norm.mean = pointer<T>(mean);
    norm.rstd = pointer<T>(rstd);
    return norm;
  }

  Tensor like() const { return new_output(u, u.sizes()); }

  // [C], or [N, G].
  Tensor per_set() const {
    const int64_t sizes[] = {groups ? u.size(0) : u.size(1), groups};
    return new_output(u, Sizes(sizes, groups ? 2 : 1));
  }

  Tensor per_channel() const {
    const int64_t channels = u.size(1);
    return new_output(u, Sizes(&channels, 1));
  }

  // Gradients of weight and bias: [C], or [N, C] to be summed.
  Tensor parts() const {
    const int64_t sizes[] = {u.size(0), u.size(1)};
    return groups ? new_output(u, Sizes(sizes, 2)) : per_channel();
  }

  template <typename T>
  Tensor summed(const Tensor& parts) const {
    if (!groups) return parts;
    const Tensor sum = per_channel();
    const T* from = pointer<T>(parts);
    T* to = output_pointer<T>(sum);
    const int64_t samples = u.size(0), channels = u.size(1);
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0;
      for (int64_t n = 0; n < samples; ++n) total += from[n * channels + c];
      to[c] = static_cast<T>(total);
    }
    return sum;
  }
};

template <typename T, typename Sets>
void for_sets(const Norm<T>& norm, Sets sets) {
  for_rows(norm.sets(), norm.numbers(), [&](int64_t begin, int64_t end) { sets(norm, begin, end); });
}

// y, mean, rstd, variance.
std::tuple<Tensor, Tensor, Tensor, Tensor> norm_value(const Tensor& u, const std::optional<Tensor>& weight,
                                                      const std::optional<Tensor>& bias, int64_t groups,
                                                      double eps, int64_t activation, double slope) {
  const Given given(u, weight, bias, groups, activation, slope);
  const Tensor y = given.like(), mean = given.per_set(), rstd = given.per_set(), variance = given.per_set();
  dispatch_full_precision(u, "norm_value", [&](auto element) {
    using T = decltype(element);
    Norm<T> norm = given.at<T>();
    norm.eps = eps;
    norm.outputs = {output_pointer<T>(y), nullptr, nullptr};
    norm.per_set = {output_pointer<T>(mean), output_pointer<T>(rstd), output_pointer<T>(variance)};
    for_sets(norm, [](const auto& n, int64_t begin, int64_t end) { value_sets(n, begin, end); });
  });
  return {y, mean, rstd, variance};
}

// The gradient of y taken to u, with `more` (the gradient of u itself) added where it is given; y again where
// it is wanted; the gradients of weight and bias.
std::tuple<Tensor, Tensor, Tensor, Tensor> norm_pull(const Tensor& gradient_in,
                                                     const std::optional<Tensor>& more_in, const Tensor& u,
                                                     const std::optional<Tensor>& weight,
                                                     const std::optional<Tensor>& bias, const Tensor& mean,
                                                     const Tensor& rstd, int64_t groups, int64_t activation,
                                                     double slope, bool value) {
  const Given given(u, weight, bias, groups, activation, slope);
  const Tensor gradient = given.like_x(gradient_in);
  const std::optional<Tensor> more =
      more_in.has_value() ? std::optional<Tensor>(given.like_x(*more_in)) : std::nullopt;
  const Tensor to_u = given.like(), y = new_gradient(value, u, u.sizes());
  Tensor to_weight = given.parts(), to_bias = given.parts();
  dispatch_full_precision(u, "norm_pull", [&](auto element) {
    using T = decltype(element);
    Norm<T> norm = given.at<T>(mean, rstd);
    norm.others = {pointer<T>(gradient), pointer<T>(more)};
    norm.outputs = {output_pointer<T>(to_u), output_pointer<T>(y), nullptr};
    norm.per_part = {output_pointer<T>(to_weight), output_pointer<T>(to_bias)};
    for_sets(norm, [](const auto& n, int64_t begin, int64_t end) { product_sets(n, begin, end); });
    to_weight = given.summed<T>(to_weight);
    to_bias = given.summed<T>(to_bias);
  });
  return {to_u, y, to_weight, to_bias};
}

// For the tangent t of a product with the cotangent c: the gradients of c and u, the product again, and the
// gradients of weight and bias.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> norm_pull_backward(
    const Tensor& tangent_in, const Tensor& cotangent_in, const Tensor& u,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const Tensor& mean,
    const Tensor& rstd, int64_t groups, int64_t activation, double slope) {
  const Given given(u, weight, bias, groups, activation, slope);
  const Tensor tangent = given.like_x(tangent_in), cotangent = given.like_x(cotangent_in);
  const Tensor to_cotangent = given.like(), to_u = given.like(), again = given.like();
  Tensor to_weight = given.parts(), to_bias = given.parts();
  dispatch_full_precision(u, "norm_pull_backward", [&](auto element) {
    using T = decltype(element);
    Norm<T> norm = given.at<T>(mean, rstd);
    norm.others = {pointer<T>(cotangent), pointer<T>(tangent)};
    norm.outputs = {output_pointer<T>(to_cotangent), output_pointer<T>(to_u), output_pointer<T>(again)};
    norm.per_part = {output_pointer<T>(to_weight), output_pointer<T>(to_bias)};
    for_sets(norm, [](const auto& n, int64_t begin, int64_t end) { tangent_sets(n, begin, end); });
    to_weight = given.summed<T>(to_weight);
    to_bias = given.summed<T>(to_bias);
  });
  return {to_cotangent, to_u, again, to_weight, to_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("norm_value", TORCH_BOX(&norm_value));
  m.impl("norm_pull", TORCH_BOX(&norm_pull));
  m.impl("norm_pull_backward", TORCH_BOX(&norm_pull_backward));
}

}  // namespace fisherkernels
