// A perceptron's value, a vector-Jacobian product of it, and both backward passes, on CPU. Floor: the FLOPs,
// 2 N Σ h_(l-1) h_l for each of the two and twice that for each backward pass.
//
// Every sweep is one product of matrices a layer. What comes behind a layer (bias and activation, or the
// activation's slope) is done to a tile of the product while it is in the first-level cache. Dropout behind
// an activation a is part of it, A = m s a with the mask m and the scale s = 1 / (1 - p): the key of those
// whose derivatives follow from their value is A, since A' = m s a' at A / s, also where m = 0.
#include "cpu/buffers.h"
#include "cpu/lanes.h"
#include "cpu/sweep_activation.h"
#include "cpu/tiled_product.h"

namespace fisherkernels {
namespace {

template <typename T>
struct Pointwise {
  Kind kind;
  T negative_slope;
  int64_t stride;  // of the rows of all matrices
  int64_t columns;
  T* rows;
  const T* bias;        // forward: rows = a(rows + bias), or null
  T* input;             // gets rows + bias, or null
  const T* key;         // otherwise: rows = a' (rows + added), or a' rows + added where the key is the input
  const T* added;       // or null
  T* before;            // gets the rows before they are scaled, or null
  const T* pulled;      // with `curvature`: the cotangent that the slope scaled in the product
  T* curvature;         // gets rows * pulled * d a' / d key, or null
  const uint8_t* mask;  // 0 where dropout behind the activation sets 0, or null
  T scale;              // elsewhere, then
};

// m s.
template <typename V, typename T>
FK_INLINE void load_drawn(V& drawn, const Pointwise<T>& p, int64_t at) {
  typedef uint8_t Bytes __attribute__((vector_size(sizeof(V) / sizeof(T))));
  Bytes mask;
  std::memcpy(&mask, p.mask + at, sizeof(mask));
  drawn = __builtin_convertvector(mask, V) * p.scale;
}

template <typename T, int kBytes>
FK_INLINE void pointwise_columns(const Pointwise<T>& p, int64_t at, int64_t column) {
  using V = Vector<T, kBytes>;
  V x, other;
  load_vector(x, p.rows + at);
  if (p.key == nullptr) {
    if (p.bias) {
      load_vector(other, p.bias + column);
      x += other;
    }
    if (p.input) store_vector(p.input + at, x);
    activate(x, p.kind, p.negative_slope);
    if (p.mask) {
      load_drawn(other, p, at);
      x *= other;
    }
  } else {
    V key, added{};
    load_vector(key, p.key + at);
    if (p.added) load_vector(added, p.added + at);
    if (!keeps_input(p.kind)) x += added;
    if (p.before) store_vector(p.before + at, x);
    if (p.kind == Kind::kRelu) {
      x = key <= V{} ? V{} : x;
      if (p.mask) x *= p.scale;
    } else {
      V slope, drift;
      const T by_key = p.mask && !keeps_input(p.kind) ? T(1) / p.scale : T(1);
      key *= by_key;
      slopes_of(slope, drift, key, p.kind, p.negative_slope);
      if (p.mask) {
        load_drawn(other, p, at);
        slope *= other;
        drift *= other * by_key;
      }
      if (p.curvature) {
        load_vector(other, p.pulled + at);
        other *= x * drift;
        store_vector(p.curvature + at, other);
      }
      x *= slope;
    }
    if (keeps_input(p.kind)) x += added;
  }
  store_vector(p.rows + at, x);
}

template <int kBytes, typename T>
FK_INLINE void pointwise_of(const Pointwise<T>& p, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  for (int64_t i = begin; i < end; ++i) {
    int64_t j = 0;
    for (; j + kLanes <= p.columns; j += kLanes) pointwise_columns<T, kBytes>(p, i * p.stride + j, j);
    for (; j < p.columns; j += 4) pointwise_columns<T, 4 * sizeof(T)>(p, i * p.stride + j, j);
  }
}

FK_WIDTHS(pointwise, Pointwise<float>)
FK_WIDTHS(pointwise, Pointwise<double>)

// The part of the matrices that a tile covers, with the columns that pad the last one.
template <typename T>
void pointwise_tile(Pointwise<T> p, int64_t row, int64_t end_row, int64_t column, int64_t end_column) {
  const int64_t at = row * p.stride + column;
  const auto move = [at](auto*& pointer) { pointer = pointer ? pointer + at : pointer; };
  move(p.rows);
  move(p.input);
  move(p.key);
  move(p.added);
  move(p.before);
  move(p.pulled);
  move(p.curvature);
  move(p.mask);
  p.bias = p.bias ? p.bias + column : nullptr;
  p.columns = padded_columns(end_column - column);
  pointwise(p, 0, end_row - row);
}

template <typename T>
void add_row(T* __restrict to, const T* __restrict from, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] += from[j];
}

// What is behind the weights, as operators are given it.
struct Behind {
  std::vector<int64_t> activations;
  std::vector<double> slopes;
  std::vector<double> scales;  // of the dropout behind each, 0 where there is none
  std::vector<Tensor> masks;   // of those that there are, padded rows
};

struct Layers {
  std::vector<Tensor> weights;  // [h_l, h_(l-1)]
  std::vector<Kind> kinds;      // behind each, or all but the last
  std::vector<double> slopes, scales;
  std::vector<Tensor> masks;  // by layer
  int64_t samples;

  Layers(const std::vector<Tensor>& given, const Behind& behind, int64_t samples)
      : slopes(behind.slopes), scales(behind.scales), samples(samples) {
    for (const Tensor& weight : given) weights.push_back(as_contiguous(weight));
    for (int64_t activation : behind.activations) kinds.push_back(static_cast<Kind>(activation));
    size_t next = 0;
    masks.resize(kinds.size());
    for (size_t l = 0; l < kinds.size(); ++l) {
      if (scales[l] != 0) masks[l] = as_contiguous(behind.masks[next++]);
    }
  }

  size_t count() const { return weights.size(); }
  bool active(size_t l) const { return l < kinds.size(); }
  int64_t outputs(size_t l) const { return weights[l].size(0); }
  int64_t inputs(size_t l) const { return weights[l].size(1); }
  int64_t stride(size_t l) const { return row_stride(outputs(l)); }

  // Padded rows behind layer l.
  Tensor rows(size_t l, const Tensor& like) const {
    const int64_t sizes[] = {samples, stride(l)};
    return new_output(like, Sizes(sizes, 2));
  }

  // Padded rows for those among the first `n` activations that `chosen` takes, in their order.
  template <typename Chosen>
  std::vector<Tensor> rows_of(Chosen chosen, size_t n, const Tensor& like) const {
    std::vector<Tensor> result;
    for (size_t l = 0; l < n && active(l); ++l) {
      if (chosen(kinds[l])) result.push_back(rows(l, like));
    }
    return result;
  }

  // What is behind layer l: columns and constants of its activation.
  template <typename T>
  Pointwise<T> behind(size_t l, T* rows) const {
    Pointwise<T> p{};
    p.kind = kinds[l];
    p.negative_slope = static_cast<T>(slopes[l]);
    p.stride = stride(l);
    p.rows = rows;
    if (scales[l] != 0) {
      p.mask = pointer<uint8_t>(masks[l]);
      p.scale = static_cast<T>(scales[l]);
    }
    return p;
  }
};

// out [N, h_l] = rows [N, h_(l-1)] W_lᵀ.
template <typename T, typename Behind>
void through_weight(Phases& phases, const Layers& net, size_t l, const T* rows, int64_t stride, T* out,
                    int64_t out_stride, Behind behind) {
  const int64_t inner = net.inputs(l);
  const Factors<T> factors{
      {rows, stride, 1}, {pointer<T>(net.weights[l]), 1, inner}, net.samples, inner, net.outputs(l)};
  add_product(phases, factors, out, out_stride, false, behind);
}

// out [N, h_(l-1)] = rows [N, h_l] W_l.
template <typename T, typename Behind>
void back_through_weight(Phases& phases, const Layers& net, size_t l, const T* rows, int64_t stride, T* out,
                         int64_t out_stride, Behind behind) {
  const int64_t columns = net.inputs(l);
  const Factors<T> factors{
      {rows, stride, 1}, {pointer<T>(net.weights[l]), columns, 1}, net.samples, net.outputs(l), columns};
  add_product(phases, factors, out, out_stride, false, behind);
}

constexpr auto kNothing = [](int64_t, int64_t, int64_t, int64_t) {};

// What `p` says to the tiles of a product.
template <typename T>
auto pointwise_behind(const Pointwise<T>& p) {
  return [p](int64_t row, int64_t end_row, int64_t column, int64_t end_column) {
    pointwise_tile(p, row, end_row, column, end_column);
  };
}

// to [h_l, h_(l-1)] = (or +=) cotangentᵀ operand.
template <typename T>
void weight_gradient(Phases& phases, const Layers& net, size_t l, const T* cotangent, int64_t stride,
                     const T* operand, int64_t operand_stride, const Tensor& to, bool add) {
  const int64_t columns = net.inputs(l);
  const Factors<T> factors{
      {cotangent, 1, stride}, {operand, operand_stride, 1}, net.outputs(l), net.samples, columns};
  add_product(phases, factors, output_pointer<T>(to), columns, add, kNothing);
}

// The tensors given for those among the first `n` activations that `chosen` takes, by layer: null for the
// others.
template <typename T, typename Chosen>
std::vector<T*> by_layer(const Layers& net, Chosen chosen, size_t n, const std::vector<Tensor>& given) {
  std::vector<T*> result(net.count());
  size_t next = 0;
  for (size_t l = 0; l < n && net.active(l); ++l) {
    if (chosen(net.kinds[l])) result[l] = output_pointer<T>(given[next++]);
  }
  return result;
}

// What no tile covers: gradients are looked at as a whole.
template <typename T>
void zero_pads(T* rows, int64_t n, int64_t columns, int64_t stride) {
  for (int64_t i = 0; i < n; ++i) std::fill(rows + i * stride + columns, rows + (i + 1) * stride, T(0));
}

template <typename T>
void copy_rows(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    std::copy_n(from + i * from_stride, columns, to + i * to_stride);
    if (to_stride > columns) std::fill(to + i * to_stride + columns, to + (i + 1) * to_stride, T(0));
  }
}

// What a sweep leaves behind a layer, of the first `n`, is needed up to the next one: two buffers, for odd
// and for even layers.
class Buffers {
 public:
  Buffers(const Layers& net, size_t n, const Tensor& like) {
    int64_t sizes[2] = {0, 0};
    for (size_t l = 0; l < n; ++l) sizes[l % 2] = std::max(sizes[l % 2], net.samples * net.stride(l));
    for (int i = 0; i < 2; ++i) memory_[i] = new_output(like, Sizes(&sizes[i], 1));
  }

  template <typename T>
  T* at(size_t l) const {
    return output_pointer<T>(memory_[l % 2]);
  }

 private:
  Tensor memory_[2];
};

constexpr int64_t kSliceRows = 32;

// f(begin, end) for slices of the samples, beside what else the phase does.
template <typename F>
void for_samples(Phases& phases, const Layers& net, int64_t work, F f) {
  const int64_t samples = net.samples;
  phases.add((samples + kSliceRows - 1) / kSliceRows, samples * work,
             [=](int64_t slice) { f(slice * kSliceRows, std::min(samples, (slice + 1) * kSliceRows)); });
}

// to = a'(y) times the rows behind the last layer, in a phase of its own.
template <typename T>
void scale_last(Phases& phases, const Layers& net, const Tensor& rows, const Tensor& value, T* to) {
  const size_t last = net.count() - 1;
  const int64_t columns = net.outputs(last);
  const T* from = pointer<T>(rows);
  Pointwise<T> p = net.behind(last, to);
  p.key = pointer<T>(value);
  for_samples(phases, net, columns, [=](int64_t begin, int64_t end) {
    copy_rows(to + begin * p.stride, p.stride, from + begin * columns, columns, end - begin, columns);
    pointwise_tile(p, begin, end, 0, columns);
  });
  phases.then();
}

// sums [h_l]: the columns of `rows`.
template <typename T>
void bias_gradient(Phases& phases, const Layers& net, size_t l, const T* rows, int64_t stride, T* sums) {
  const int64_t columns = net.outputs(l), samples = net.samples;
  constexpr int64_t kSlice = 128;
  phases.add((columns + kSlice - 1) / kSlice, samples * columns, [=](int64_t slice) {
    const int64_t begin = slice * kSlice, n = std::min(kSlice, columns - begin);
    std::fill_n(sums + begin, n, T(0));
    for (int64_t i = 0; i < samples; ++i) add_row(sums + begin, rows + i * stride + begin, n);
  });
}

std::vector<Tensor> all_contiguous(std::vector<Tensor> tensors) {
  for (Tensor& t : tensors) t = as_contiguous(t);
  return tensors;
}

// The value where no activation is behind the last layer, else empty; each activation's key, rows padded; and
// what those gave whose keys are what they were given.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> mlp_value(
    const Tensor& x_in, std::vector<Tensor> weights, std::vector<Tensor> biases,
    std::vector<int64_t> activations, std::vector<double> slopes, std::vector<double> scales,
    std::vector<Tensor> masks) {
  const Tensor x = as_contiguous(x_in);
  const Layers net(weights, {activations, slopes, scales, masks}, x.size(0));
  const size_t last = net.count() - 1;
  STD_TORCH_CHECK(!net.active(last) || !keeps_input(net.kinds[last]),
                  "mlp_value: the last activation must be one whose derivatives follow from its value");
  std::vector<Tensor> hidden;
  for (size_t l = 0; net.active(l); ++l) hidden.push_back(net.rows(l, x));
  const std::vector<Tensor> activated = net.rows_of(keeps_input, last, x);
  const int64_t sizes[] = {net.samples, net.outputs(last)};
  const Tensor value = new_gradient(!net.active(last), x, Sizes(sizes, 2));
  dispatch_full_precision(x, "mlp_value", [&](auto element) {
    using T = decltype(element);
    Phases phases;
    std::vector<std::vector<T>> padded_biases(last + 1);
    const std::vector<T*> beside = by_layer<T>(net, keeps_input, last, activated);
    const T* rows = pointer<T>(x);
    int64_t stride = net.inputs(0);
    for (size_t l = 0; l <= last; ++l) {
      std::vector<T>& bias = padded_biases[l];
      if (biases[l].numel() > 0) {
        bias.assign(net.stride(l), T(0));
        const Tensor given = as_contiguous(biases[l]);
        std::copy_n(pointer<T>(given), net.outputs(l), bias.data());
      }
      const T* added = bias.empty() ? nullptr : bias.data();
      if (net.active(l)) {
        T* out = beside[l] ? beside[l] : output_pointer<T>(hidden[l]);
        Pointwise<T> p = net.behind(l, out);
        p.bias = added;
        p.input = beside[l] ? output_pointer<T>(hidden[l]) : nullptr;
        through_weight(phases, net, l, rows, stride, out, p.stride, pointwise_behind(p));
        phases.then();
        rows = out;
        stride = p.stride;
      } else {
        T* out = output_pointer<T>(value);
        const int64_t columns = net.outputs(l);
        through_weight(phases, net, l, rows, stride, out, columns,
                       [=](int64_t a, int64_t b, int64_t c, int64_t d) {
                         for (int64_t i = a; i < b && added; ++i)
                           add_row(out + i * columns + c, added + c, d - c);
                       });
      }
    }
    phases.run();
  });
  return {value, hidden, activated};
}

// Jᵀ cotangent; the cotangents before each activation but one behind the last layer, and behind the curved of
// these.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> mlp_vjp(
    const Tensor& cotangent_in, std::vector<Tensor> hidden, std::vector<Tensor> weights,
    std::vector<int64_t> activations, std::vector<double> slopes, std::vector<double> scales,
    std::vector<Tensor> masks) {
  const Tensor cotangent = as_contiguous(cotangent_in);
  hidden = all_contiguous(std::move(hidden));
  const Layers net(weights, {activations, slopes, scales, masks}, cotangent.size(0));
  const size_t last = net.count() - 1;
  const int64_t sizes[] = {net.samples, net.inputs(0)};
  const Tensor pulled = new_output(cotangent, Sizes(sizes, 2));
  std::vector<Tensor> before;
  for (size_t l = 0; l < last; ++l) before.push_back(net.rows(l, cotangent));
  const std::vector<Tensor> behind = net.rows_of(is_curved, last, cotangent);
  const Tensor scaled = net.active(last) ? net.rows(last, cotangent) : cotangent;
  dispatch_full_precision(cotangent, "mlp_vjp", [&](auto element) {
    using T = decltype(element);
    Phases phases;
    const std::vector<T*> unscaled = by_layer<T>(net, is_curved, last, behind);
    if (net.active(last)) scale_last(phases, net, cotangent, hidden[last], output_pointer<T>(scaled));
    const T* rows = pointer<T>(scaled);
    int64_t stride = scaled.size(1);
    for (size_t l = last; l > 0; --l) {
      Pointwise<T> p = net.behind(l - 1, output_pointer<T>(before[l - 1]));
      p.key = pointer<T>(hidden[l - 1]);
      p.before = unscaled[l - 1];
      back_through_weight(phases, net, l, rows, stride, p.rows, p.stride, pointwise_behind(p));
      phases.then();
      rows = p.rows;
      stride = p.stride;
    }
    back_through_weight(phases, net, 0, rows, stride, output_pointer<T>(pulled), net.inputs(0), kNothing);
    phases.run();
  });
  return {pulled, before, behind};
}

// From the gradient of Jᵀ cotangent: that of the cotangent; those of the curved activations' keys go to
// `to_hidden`, the weights' to `to_weights`, where it has any.
Tensor mlp_vjp_backward(const Tensor& tangent_in, const Tensor& cotangent_in, std::vector<Tensor> before,
                        std::vector<Tensor> behind, std::vector<Tensor> hidden, std::vector<Tensor> weights,
                        std::vector<int64_t> activations, std::vector<double> slopes,
                        std::vector<double> scales, std::vector<Tensor> masks, std::vector<Tensor> to_weights,
                        std::vector<Tensor> to_hidden) {
  const Tensor tangent = as_contiguous(tangent_in), cotangent = as_contiguous(cotangent_in);
  before = all_contiguous(std::move(before));
  behind = all_contiguous(std::move(behind));
  hidden = all_contiguous(std::move(hidden));
  const Layers net(weights, {activations, slopes, scales, masks}, tangent.size(0));
  const size_t last = net.count() - 1;
  const Tensor to_cotangent = new_output(cotangent, cotangent.sizes());
  const bool direct = !net.active(last) || net.stride(last) == net.outputs(last);
  const Buffers buffers(net, direct ? last : net.count(), tangent);
  const Tensor behind_last = direct ? cotangent : net.rows(last, cotangent);
  dispatch_full_precision(tangent, "mlp_vjp_backward", [&](auto element) {
    using T = decltype(element);
    Phases phases;
    std::vector<T*> unscaled = by_layer<T>(net, is_curved, last, behind),
                    curvature = by_layer<T>(net, is_curved, net.count(), to_hidden);
    const T* rows = pointer<T>(tangent);
    int64_t stride = net.inputs(0);
    T* result = output_pointer<T>(to_cotangent);
    for (size_t l = 0; l <= last; ++l) {
      T* out = l == last && direct ? result : buffers.at<T>(l);
      const T* arrived = pointer<T>(l < last ? before[l] : cotangent);
      if (!to_weights.empty()) {
        if (l == last && net.active(l)) {
          scale_last(phases, net, cotangent, hidden[l], out);  // used before the product is put there
          arrived = out;
        }
        weight_gradient(phases, net, l, arrived, net.active(l) ? net.stride(l) : net.outputs(l), rows, stride,
                        to_weights[l], false);
      }
      if (arrived == out) phases.then();
      if (!net.active(l)) {
        through_weight(phases, net, l, rows, stride, out, net.outputs(l), kNothing);
        break;
      }
      Pointwise<T> p = net.behind(l, out);
      p.key = pointer<T>(hidden[l]);
      p.pulled = l < last ? unscaled[l] : pointer<T>(behind_last);
      p.curvature = curvature[l];
      if (p.curvature) zero_pads(p.curvature, net.samples, padded_columns(net.outputs(l)), p.stride);
      if (l == last && !direct) {
        copy_rows(output_pointer<T>(behind_last), p.stride, pointer<T>(cotangent), net.outputs(l),
                  net.samples, net.outputs(l));
      }
      through_weight(phases, net, l, rows, stride, out, p.stride, pointwise_behind(p));
      phases.then();
      rows = out;
      stride = p.stride;
    }
    phases.run();
    if (!direct) copy_rows(result, net.outputs(last), rows, stride, net.samples, net.outputs(last));
  });
  return to_cotangent;
}

// From the gradients of the value and of the keys of the activations before it (an empty list: none of any):
// that of x, empty unless of_input; the weights' and biases' go to `to_weights` and `to_biases`, where these
// have any, the weights' are added there with `add`.
Tensor mlp_value_backward(const Tensor& gradient_in, std::vector<Tensor> by_hidden, const Tensor& x_in,
                          std::vector<Tensor> hidden, std::vector<Tensor> activated,
                          std::vector<Tensor> weights, std::vector<int64_t> activations,
                          std::vector<double> slopes, std::vector<double> scales, std::vector<Tensor> masks,
                          std::vector<Tensor> to_weights, std::vector<Tensor> to_biases, bool add,
                          bool of_input) {
  const Tensor gradient = as_contiguous(gradient_in), x = as_contiguous(x_in);
  by_hidden = all_contiguous(std::move(by_hidden));
  hidden = all_contiguous(std::move(hidden));
  activated = all_contiguous(std::move(activated));
  const Layers net(weights, {activations, slopes, scales, masks}, x.size(0));
  const size_t last = net.count() - 1;
  const Tensor to_x = new_gradient(of_input, x, x.sizes());
  const Buffers buffers(net, net.active(last) ? net.count() : last, x);
  const bool of_weights = !to_weights.empty();
  dispatch_full_precision(x, "mlp_value_backward", [&](auto element) {
    using T = decltype(element);
    Phases phases;
    const std::vector<T*> beside = by_layer<T>(net, keeps_input, last, activated);
    const auto operand = [&](size_t l) {
      if (l == 0) return pointer<T>(x);
      return beside[l - 1] ? beside[l - 1] : pointer<T>(hidden[l - 1]);
    };
    const T* rows = pointer<T>(gradient);
    int64_t stride = net.outputs(last);
    if (net.active(last)) {
      scale_last(phases, net, gradient, hidden[last], buffers.at<T>(last));
      rows = buffers.at<T>(last);
      stride = net.stride(last);
    }
    for (size_t l = last + 1; l-- > 0;) {
      if (of_weights) {
        weight_gradient(phases, net, l, rows, stride, operand(l), l > 0 ? net.stride(l - 1) : net.inputs(0),
                        to_weights[l], add);
        bias_gradient(phases, net, l, rows, stride, output_pointer<T>(to_biases[l]));
      }
      if (l == 0) {
        if (of_input)
          back_through_weight(phases, net, 0, rows, stride, output_pointer<T>(to_x), net.inputs(0), kNothing);
        break;
      }
      T* out = buffers.at<T>(l - 1);
      Pointwise<T> p = net.behind(l - 1, out);
      p.key = pointer<T>(hidden[l - 1]);
      p.added = by_hidden.empty() ? nullptr : pointer<T>(by_hidden[l - 1]);
      back_through_weight(phases, net, l, rows, stride, out, p.stride, pointwise_behind(p));
      phases.then();
      rows = out;
      stride = p.stride;
    }
    phases.run();
  });
  return to_x;
}

std::vector<Tensor> new_gradients(const std::vector<Tensor>& weights, bool wanted) {
  std::vector<Tensor> result;
  for (const Tensor& weight : weights) {
    if (wanted) result.push_back(new_output(weight, weight.sizes()));
  }
  return result;
}

// mlp_vjp_backward's in new tensors: of the cotangent, the weights, and the curved activations' keys.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> mlp_vjp_gradients(
    const Tensor& tangent, const Tensor& cotangent, std::vector<Tensor> before, std::vector<Tensor> behind,
    std::vector<Tensor> hidden, std::vector<Tensor> weights, std::vector<int64_t> activations,
    std::vector<double> slopes, std::vector<double> scales, std::vector<Tensor> masks, bool of_weights) {
  const std::vector<Tensor> to_weights = new_gradients(weights, of_weights);
  const Layers net(weights, {activations, slopes, scales, masks}, tangent.size(0));
  const std::vector<Tensor> to_hidden = net.rows_of(is_curved, net.count(), tangent);
  const Tensor to_cotangent = mlp_vjp_backward(tangent, cotangent, before, behind, hidden, weights,
                                               activations, slopes, scales, masks, to_weights, to_hidden);
  return {to_cotangent, to_weights, to_hidden};
}

// mlp_value_backward's in new tensors: of x, the weights and the biases.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>> mlp_value_gradients(
    const Tensor& gradient, std::vector<Tensor> by_hidden, const Tensor& x, std::vector<Tensor> hidden,
    std::vector<Tensor> activated, std::vector<Tensor> weights, std::vector<int64_t> activations,
    std::vector<double> slopes, std::vector<double> scales, std::vector<Tensor> masks, bool of_weights,
    bool of_input) {
  const std::vector<Tensor> to_weights = new_gradients(weights, of_weights);
  std::vector<Tensor> to_biases;
  for (const Tensor& weight : to_weights) {
    const int64_t outputs = weight.size(0);
    to_biases.push_back(new_output(weight, Sizes(&outputs, 1)));
  }
  const Tensor to_x = mlp_value_backward(gradient, by_hidden, x, hidden, activated, weights, activations,
                                         slopes, scales, masks, to_weights, to_biases, false, of_input);
  return {to_x, to_weights, to_biases};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("mlp_value", TORCH_BOX(&mlp_value));
  m.impl("mlp_vjp", TORCH_BOX(&mlp_vjp));
  m.impl("mlp_vjp_backward", TORCH_BOX(&mlp_vjp_backward));
  m.impl("mlp_value_backward", TORCH_BOX(&mlp_value_backward));
  m.impl("mlp_vjp_gradients", TORCH_BOX(&mlp_vjp_gradients));
  m.impl("mlp_value_gradients", TORCH_BOX(&mlp_value_gradients));
}

}  // namespace fisherkernels
