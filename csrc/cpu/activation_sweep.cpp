// An activation by itself in a sweep: value, vector-Jacobian product, and the backward passes of both, from
// its key: its value, or for some its input. Floor: 2 numbers read or written per element for the value, 3
// for the product, 5 and 6 for the backward passes; each is read and written once.
#include "cpu/buffers.h"
#include "cpu/lanes.h"
#include "cpu/sweep_activation.h"

namespace fisherkernels {
namespace {

template <typename T>
struct Arrays {
  int64_t count;
  Kind kind;
  T negative_slope;
  const T *key, *first, *second;  // key alone: the activation's input
  std::array<T*, 3> to;
};

// x to a' x.
template <typename V>
FK_INLINE void scale(V& x, const V& key, const V& slope, Kind kind) {
  x = kind == Kind::kRelu ? (key <= V{} ? V{} : x) : x * slope;
}

struct Value {
  template <typename V, typename T>
  FK_INLINE static void at(const Arrays<T>& a, int64_t i) {
    V x;
    load_vector(x, a.key + i);
    activate(x, a.kind, a.negative_slope);
    store_vector(a.to[0] + i, x);
  }
};

// a' g plus the key's own gradient, which is the value's where that is the key; and the value again.
struct Pull {
  template <typename V, typename T>
  FK_INLINE static void at(const Arrays<T>& a, int64_t i) {
    V key, g, more{}, slope{}, drift;
    load_vector(key, a.key + i);
    load_vector(g, a.first + i);
    if (a.second) load_vector(more, a.second + i);
    if (a.kind != Kind::kRelu) slopes_of(slope, drift, key, a.kind, a.negative_slope);
    const bool input = keeps_input(a.kind);
    if (!input) g += more;
    scale(g, key, slope, a.kind);
    if (input) g += more;
    store_vector(a.to[0] + i, g);
    if (a.to[1]) {
      activate(key, a.kind, a.negative_slope);
      store_vector(a.to[1] + i, key);
    }
  }
};

// a' t, d a'/d key c t and a' c.
struct Tangent {
  template <typename V, typename T>
  FK_INLINE static void at(const Arrays<T>& a, int64_t i) {
    V key, t, c, slope{}, drift{};
    load_vector(key, a.key + i);
    load_vector(t, a.first + i);
    load_vector(c, a.second + i);
    if (a.kind != Kind::kRelu) slopes_of(slope, drift, key, a.kind, a.negative_slope);
    if (a.to[1]) store_vector(a.to[1] + i, V(drift * c * t));
    scale(t, key, slope, a.kind);
    scale(c, key, slope, a.kind);
    store_vector(a.to[0] + i, t);
    store_vector(a.to[2] + i, c);
  }
};

constexpr int64_t kBlock = 4096;  // numbers

template <int kBytes, typename Pass, typename T>
FK_INLINE void blocks_of(const Arrays<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  const int64_t last = std::min(a.count, end * kBlock);
  int64_t i = begin * kBlock;
  for (; i + kLanes <= last; i += kLanes) Pass::template at<Vector<T, kBytes>>(a, i);
  for (; i < last; ++i) Pass::template at<T>(a, i);
}

template <int kBytes, typename T>
FK_INLINE void value_blocks_of(const Arrays<T>& a, int64_t begin, int64_t end) {
  blocks_of<kBytes, Value>(a, begin, end);
}
template <int kBytes, typename T>
FK_INLINE void pull_blocks_of(const Arrays<T>& a, int64_t begin, int64_t end) {
  blocks_of<kBytes, Pull>(a, begin, end);
}
template <int kBytes, typename T>
FK_INLINE void tangent_blocks_of(const Arrays<T>& a, int64_t begin, int64_t end) {
  blocks_of<kBytes, Tangent>(a, begin, end);
}

FK_WIDTHS(value_blocks, Arrays<float>)
FK_WIDTHS(value_blocks, Arrays<double>)
FK_WIDTHS(pull_blocks, Arrays<float>)
FK_WIDTHS(pull_blocks, Arrays<double>)
FK_WIDTHS(tangent_blocks, Arrays<float>)
FK_WIDTHS(tangent_blocks, Arrays<double>)

template <typename T, typename Blocks>
void for_blocks(const Arrays<T>& a, Blocks blocks) {
  const int64_t count = (a.count + kBlock - 1) / kBlock;
  for_rows(count, kBlock, [&](int64_t begin, int64_t end) { blocks(a, begin, end); });
}

// The key, and what the operators have in common.
struct Given {
  Tensor key;
  Kind kind;
  double negative_slope;

  Given(const Tensor& key, int64_t activation, double slope)
      : key(as_contiguous(key)), kind(static_cast<Kind>(activation)), negative_slope(slope) {
    STD_TORCH_CHECK(kind >= Kind::kTanh && kind <= Kind::kGelu,
                    "the activations' operators: unknown activation");
  }

  Tensor like_key(const Tensor& t) const {
    return contiguous_like(t, key,
                           "the activations' operators: expected a tensor of the key's shape and dtype");
  }

  std::optional<Tensor> like_key(const std::optional<Tensor>& t) const {
    if (!t.has_value()) return std::nullopt;
    return like_key(*t);
  }

  Tensor like() const { return new_output(key, key.sizes()); }

  template <typename T>
  Arrays<T> at() const {
    return {key.numel(), kind, static_cast<T>(negative_slope), pointer<T>(key), nullptr, nullptr, {}};
  }
};

Tensor activation_value(const Tensor& x, int64_t activation, double slope) {
  const Given given(x, activation, slope);
  const Tensor y = given.like();
  dispatch_full_precision(x, "activation_value", [&](auto element) {
    using T = decltype(element);
    Arrays<T> a = given.at<T>();
    a.to[0] = output_pointer<T>(y);
    for_blocks(a, [](const auto& b, int64_t begin, int64_t end) { value_blocks(b, begin, end); });
  });
  return y;
}

// The gradient of the key, `more` of which is there already; and the value where it is wanted.
std::tuple<Tensor, Tensor> activation_pull(const Tensor& gradient_in, const std::optional<Tensor>& more_in,
                                           const Tensor& key, int64_t activation, double slope, bool value) {
  const Given given(key, activation, slope);
  STD_TORCH_CHECK(!value || keeps_input(given.kind), "activation_pull: the key is the value");
  const Tensor gradient = given.like_key(gradient_in);
  const std::optional<Tensor> more = given.like_key(more_in);
  const Tensor to_key = given.like(), y = new_gradient(value, given.key, given.key.sizes());
  dispatch_full_precision(key, "activation_pull", [&](auto element) {
    using T = decltype(element);
    Arrays<T> a = given.at<T>();
    a.first = pointer<T>(gradient);
    a.second = pointer<T>(more);
    a.to = {output_pointer<T>(to_key), output_pointer<T>(y), nullptr};
    for_blocks(a, [](const auto& b, int64_t begin, int64_t end) { pull_blocks(b, begin, end); });
  });
  return {to_key, y};
}

// For the tangent of a product with the cotangent c: the gradients of c and of a curved activation's key, and
// the product again.
std::tuple<Tensor, Tensor, Tensor> activation_pull_backward(const Tensor& tangent_in,
                                                            const Tensor& cotangent_in, const Tensor& key,
                                                            int64_t activation, double slope) {
  const Given given(key, activation, slope);
  const Tensor tangent = given.like_key(tangent_in), cotangent = given.like_key(cotangent_in);
  const Tensor to_cotangent = given.like(), again = given.like(),
               to_key = new_gradient(is_curved(given.kind), given.key, given.key.sizes());
  dispatch_full_precision(key, "activation_pull_backward", [&](auto element) {
    using T = decltype(element);
    Arrays<T> a = given.at<T>();
    a.first = pointer<T>(tangent);
    a.second = pointer<T>(cotangent);
    a.to = {output_pointer<T>(to_cotangent), output_pointer<T>(to_key), output_pointer<T>(again)};
    for_blocks(a, [](const auto& b, int64_t begin, int64_t end) { tangent_blocks(b, begin, end); });
  });
  return {to_cotangent, to_key, again};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("activation_value", TORCH_BOX(&activation_value));
  m.impl("activation_pull", TORCH_BOX(&activation_pull));
  m.impl("activation_pull_backward", TORCH_BOX(&activation_pull_backward));
}

}  // namespace fisherkernels
