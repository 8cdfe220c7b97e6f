// mlp_laplacian on CPU. Floor: the FLOPs of (K + 2) N rows through every layer, three times that with the
// backward pass; the rows of the hidden layers are written once and read once where they are kept, and never
// leave the caches where they are not.
//
// A block of samples goes through all layers before the next one starts. A sample has K + 2 rows side by
// side: value, Laplacian, tangents. One product a layer takes them all, and they are still in the
// second-level cache when the activation comes to them. Backward goes through a block's layers the same way,
// from the last to the first, with the activations computed anew.
#include <bit>

#include "cpu/buffers.h"
#include "cpu/lanes.h"
#include "cpu/matmul.h"
#include "cpu/scratch.h"
#include "cpu/tensors.h"
#include "math/activation.h"

namespace fisherkernels {
namespace {

// Rows before an activation, of samples begin..end: `before` [samples, K + 2, stride].
template <typename T>
struct Activate {
  Activation kind;
  T* before;          // its value gets the bias
  const T* bias;      // [stride] or null
  T* after;           // [samples, rows, stride], forward
  const T* gradient;  // by `after`, backward
  T* to_before;       // [samples, K + 2, stride], backward
  int64_t columns, stride, stack;
  int64_t rows;  // of `after`: 2, without the tangents, or K + 2
};

template <typename V>
FK_INLINE void derivatives_of(Derivatives<V>& d, Activation kind, const V& x) {
  if (kind == Activation::kTanh) {
    d = tanh_derivatives<V>(x);
  } else if (kind == Activation::kSigmoid) {
    d = sigmoid_derivatives<V>(x);
  } else {
    d = silu_derivatives<V>(x);
  }
}

template <typename T, int kBytes>
FK_INLINE void activate_columns(const Activate<T>& a, int64_t sample, int64_t column) {
  using V = Vector<T, kBytes>;
  T* before = a.before + sample * (a.stack + 2) * a.stride + column;
  T* after = a.after + sample * a.rows * a.stride + column;
  V x, laplacian, squares{};
  load_vector(x, before);
  if (a.bias) {
    V bias;
    load_vector(bias, a.bias + column);
    x += bias;
    store_vector(before, x);
  }
  Derivatives<V> d;
  derivatives_of(d, a.kind, x);
  const int64_t stride = a.stride, end = (a.stack + 2) * stride;
  load_vector(laplacian, before + stride);
  if (a.rows > 2) {
    for (int64_t at = 2 * stride; at < end; at += stride) {
      V t;
      load_vector(t, before + at);
      squares += t * t;
      store_vector(after + at, d.slope * t);
    }
  } else {
    for (int64_t at = 2 * stride; at < end; at += stride) {
      V t;
      load_vector(t, before + at);
      squares += t * t;
    }
  }
  store_vector(after, d.value);
  store_vector(after + stride, d.slope * laplacian + d.curvature * squares);
}

template <typename T, int kBytes>
FK_INLINE void activate_backward_columns(const Activate<T>& a, int64_t sample, int64_t column) {
  using V = Vector<T, kBytes>;
  const T* before = a.before + sample * (a.stack + 2) * a.stride + column;
  const T* gradient = a.gradient + sample * a.rows * a.stride + column;
  T* to = a.to_before + sample * (a.stack + 2) * a.stride + column;
  V x, laplacian, by_value, by_laplacian, squares{}, by_slope;
  load_vector(x, before);
  load_vector(laplacian, before + a.stride);
  load_vector(by_value, gradient);
  load_vector(by_laplacian, gradient + a.stride);
  Derivatives<V> d;
  derivatives_of(d, a.kind, x);
  by_slope = by_laplacian * laplacian;
  const V by_tangent = T(2) * d.curvature * by_laplacian;
  const int64_t stride = a.stride, end = (a.stack + 2) * stride;
  const bool tangents = a.rows > 2;
  for (int64_t at = 2 * stride; at < end; at += stride) {
    V t, to_t;
    load_vector(t, before + at);
    squares += t * t;
    to_t = by_tangent * t;
    if (tangents) {
      V g;
      load_vector(g, gradient + at);
      by_slope += g * t;
      to_t += d.slope * g;
    }
    store_vector(to + at, to_t);
  }
  store_vector(to, d.slope * by_value + d.curvature * by_slope + d.third * (by_laplacian * squares));
  store_vector(to + stride, d.slope * by_laplacian);
}

template <int kBytes, typename T>
FK_INLINE void activate_of(const Activate<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  for (int64_t sample = begin; sample < end; ++sample) {
    int64_t j = 0;
    for (; j + kLanes <= a.columns; j += kLanes) activate_columns<T, kBytes>(a, sample, j);
    for (; j < a.columns; j += 4) activate_columns<T, 4 * sizeof(T)>(a, sample, j);
  }
}

template <int kBytes, typename T>
FK_INLINE void activate_backward_of(const Activate<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = kBytes / sizeof(T);
  for (int64_t sample = begin; sample < end; ++sample) {
    int64_t j = 0;
    for (; j + kLanes <= a.columns; j += kLanes) activate_backward_columns<T, kBytes>(a, sample, j);
    for (; j < a.columns; j += 4) activate_backward_columns<T, 4 * sizeof(T)>(a, sample, j);
  }
}

FK_WIDTHS(activate, Activate<float>)
FK_WIDTHS(activate, Activate<double>)
FK_WIDTHS(activate_backward, Activate<float>)
FK_WIDTHS(activate_backward, Activate<double>)

constexpr int64_t kBlockRows = 192;   // at least: the weights' gradients are read and written once a block
constexpr int64_t kChunkRows = 1024;  // about, of a chunk with its own sums of weights' gradients

template <typename T>
struct Layer {
  Activation kind;
  const T* weight;  // [outputs, units]
  int64_t units, outputs;
  int64_t stride, out_stride;  // of rows before and behind it
  std::vector<T> bias;         // [out_stride] or empty
  std::vector<T> packed;       // weightᵀ in panels, forward; weight, backward
  int64_t hidden;              // where the rows before its activation start, but for the first layer's
  int64_t to_weight, to_bias;  // where its gradients start in a chunk's
};

template <typename T>
struct Network {
  std::vector<Layer<T>> layers;
  const T* first;     // [N, units of the first layer]
  const T* tangents;  // [K, 1 or N, the same]
  bool shared, keep_tangents;
  int64_t samples, stack, widest, block;
  int64_t hidden;     // elements that the hidden layers' rows have
  int64_t gradients;  // elements of a chunk's gradients: weights, biases, shared tangents

  int64_t rows() const { return stack + 2; }
  int64_t rows_after(size_t l) const { return keep_tangents || l + 1 < layers.size() ? rows() : 2; }
  int64_t buffer() const { return block * rows() * widest; }
};

template <typename T>
Network<T> network_of(const Tensor& first, const Tensor& tangents, const std::vector<Tensor>& weights,
                      const std::vector<Tensor>& biases, const std::vector<int64_t>& activations,
                      bool keep_tangents) {
  Network<T> net{};
  net.first = pointer<T>(first);
  net.tangents = pointer<T>(tangents);
  net.samples = first.size(0);
  net.stack = tangents.size(0);
  net.shared = tangents.size(1) != net.samples;
  net.keep_tangents = keep_tangents;
  for (size_t l = 0; l < weights.size(); ++l) {
    Layer<T> layer{};
    layer.kind = static_cast<Activation>(activations[l]);
    layer.weight = pointer<T>(weights[l]);
    layer.outputs = weights[l].size(0);
    layer.units = weights[l].size(1);
    layer.stride = row_stride(layer.units);
    layer.out_stride = row_stride(layer.outputs);
    if (biases[l].numel() > 0) {
      layer.bias.assign(layer.out_stride, T(0));
      std::copy_n(pointer<T>(biases[l]), layer.outputs, layer.bias.data());
    }
    if (l > 0) {
      layer.hidden = net.hidden;
      net.hidden += net.samples * net.rows() * layer.stride;
    }
    layer.to_weight = net.gradients;
    layer.to_bias = layer.to_weight + layer.outputs * layer.stride;
    net.gradients = layer.to_bias + layer.out_stride;
    net.widest = std::max({net.widest, layer.stride, layer.out_stride});
    net.layers.push_back(std::move(layer));
  }
  net.block = std::max<int64_t>(1, std::min(net.samples, (kBlockRows + net.rows() - 1) / net.rows()));
  if (net.shared) net.gradients += net.stack * net.layers[0].stride;
  return net;
}

// Panels of the weights, for rows times weightᵀ or, backward, for rows times weight.
template <typename T>
void pack_layer(Layer<T>& layer, bool backward) {
  const int64_t inner = backward ? layer.outputs : layer.units;
  const int64_t columns = backward ? layer.units : layer.outputs;
  layer.packed.resize(inner * padded_columns(columns));
  const Packing<T> packing{layer.packed.data(),        layer.weight, backward ? layer.units : 1,
                           backward ? 1 : layer.units, inner,        columns};
  for_rows(columns, inner, [&](int64_t begin, int64_t end) { pack(packing, begin, end); });
}

// `n` rows as wide as `stride`, `step` apart, from rows of `columns` elements, `by_row` apart; null for
// zeros.
template <typename T>
void spread_rows(T* to, int64_t step, const T* from, int64_t by_row, int64_t n, int64_t columns,
                 int64_t stride) {
  for (int64_t i = 0; i < n; ++i, to += step) {
    if (from) std::copy_n(from + i * by_row, columns, to);
    std::fill(to + (from ? columns : 0), to + stride, T(0));
  }
}

// The rows before the first activation, of samples first..last.
template <typename T>
void gather_first(const Network<T>& net, int64_t first, int64_t last, T* to) {
  const Layer<T>& layer = net.layers[0];
  const int64_t by_sample = net.rows() * layer.stride, n = last - first;
  spread_rows(to, by_sample, net.first + first * layer.units, layer.units, n, layer.units, layer.stride);
  spread_rows<T>(to + layer.stride, by_sample, nullptr, 0, n, layer.units, layer.stride);
  for (int64_t k = 0; k < net.stack; ++k) {
    const T* from = net.tangents + (net.shared ? k : k * net.samples + first) * layer.units;
    spread_rows(to + (k + 2) * layer.stride, by_sample, from, net.shared ? 0 : layer.units, n, layer.units,
                layer.stride);
  }
}

template <typename T>
void multiply_rows(const T* left, int64_t left_stride, const std::vector<T>& packed, T* out,
                   int64_t out_stride, int64_t rows, int64_t inner, int64_t columns) {
  columns = padded_columns(columns);
  multiply(Product<T>{left, left_stride, 1, packed.data(), 0, out, out_stride, rows, inner, columns, false});
}

// The rows before every activation but the first of samples first..last, from those before the first;
// where(l) is where layer l's go. With `to` the rows of the output too.
template <typename T, typename Where>
void forward_block(const Network<T>& net, int64_t first, int64_t last, T* before, T* after,
                   const Where& where, T* to) {
  const int64_t n = last - first;
  gather_first(net, first, last, before);
  for (size_t l = 0; l < net.layers.size(); ++l) {
    const Layer<T>& layer = net.layers[l];
    const bool ends = l + 1 == net.layers.size();
    const T* bias = l > 0 && !net.layers[l - 1].bias.empty() ? net.layers[l - 1].bias.data() : nullptr;
    if (ends && to == nullptr && bias == nullptr) return;
    const int64_t rows = net.rows_after(l);
    const int64_t columns = padded_columns(layer.units);
    activate(Activate<T>{layer.kind, before, bias, after, nullptr, nullptr, columns, layer.stride, net.stack,
                         rows},
             0, n);
    if (ends && to == nullptr) return;
    T* next = ends ? to : where(l + 1);
    multiply_rows(after, layer.stride, layer.packed, next, layer.out_stride, n * rows, layer.units,
                  layer.outputs);
    before = next;
  }
}

template <typename T>
struct Results {
  T *value, *laplacian;  // [N, M]
  T* tangents;           // [N, K, M] or null
};

template <typename T>
void scatter(const Network<T>& net, int64_t first, int64_t last, const T* from, const Results<T>& results) {
  const Layer<T>& layer = net.layers.back();
  const int64_t outputs = layer.outputs, rows = net.rows_after(net.layers.size() - 1);
  for (int64_t n = first; n < last; ++n, from += rows * layer.out_stride) {
    for (int64_t j = 0; j < outputs; ++j) {
      results.value[n * outputs + j] = layer.bias.empty() ? from[j] : from[j] + layer.bias[j];
      results.laplacian[n * outputs + j] = from[layer.out_stride + j];
    }
    for (int64_t k = 0; k + 2 < rows; ++k) {
      std::copy_n(from + (k + 2) * layer.out_stride, outputs,
                  results.tangents + (n * net.stack + k) * outputs);
    }
  }
}

template <typename T>
int64_t block_work(const Network<T>& net) {
  int64_t work = 0;
  for (const Layer<T>& layer : net.layers) work += layer.units * layer.outputs;
  return net.block * net.rows() * work / 8;
}

template <typename T>
void forward_all(Network<T>& net, T* hidden, const Results<T>& results) {
  for (Layer<T>& layer : net.layers) pack_layer(layer, false);
  const int64_t blocks = (net.samples + net.block - 1) / net.block, buffer = net.buffer();
  for_rows(blocks, block_work(net), [&](int64_t begin, int64_t end) {
    const Scratch<T> memory(3 * buffer);
    T *before = memory.data(), *after = before + buffer, *out = after + buffer;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * net.block, last = std::min(first + net.block, net.samples);
      forward_block(
          net, first, last, before, after,
          [&](size_t l) {
            const Layer<T>& layer = net.layers[l];
            return hidden ? hidden + layer.hidden + first * net.rows() * layer.stride : before;
          },
          out);
      scatter(net, first, last, out, results);
    }
  });
}

template <typename T>
struct Gradients {
  const T *value, *laplacian, *tangents;  // of the results, or null: [N, M], [N, M], [N, K, M]
  T* to_first;                            // [N, units of the first layer]
  T* to_tangents;                         // [K, N, the same], or null where they are shared
  bool of_weights;
};

template <typename T>
void gather_gradients(const Network<T>& net, int64_t first, int64_t last, const Gradients<T>& given, T* to) {
  const Layer<T>& layer = net.layers.back();
  const int64_t outputs = layer.outputs, rows = net.rows_after(net.layers.size() - 1);
  const int64_t step = rows * layer.out_stride, n = last - first;
  auto from = [&](const T* all, int64_t by_sample) { return all ? all + first * by_sample : nullptr; };
  spread_rows(to, step, from(given.value, outputs), outputs, n, outputs, layer.out_stride);
  spread_rows(to + layer.out_stride, step, from(given.laplacian, outputs), outputs, n, outputs,
              layer.out_stride);
  for (int64_t k = 0; k + 2 < rows; ++k) {
    const T* tangent = from(given.tangents, net.stack * outputs);
    spread_rows(to + (k + 2) * layer.out_stride, step, tangent ? tangent + k * outputs : nullptr,
                net.stack * outputs, n, outputs, layer.out_stride);
  }
}

// A chunk's sums += what a block adds to the gradients of a layer's weight and bias.
template <typename T>
void add_to_weight(const Layer<T>& layer, const T* gradient, const T* after, int64_t samples, int64_t rows,
                   T* sums) {
  multiply(Product<T>{gradient, 1, layer.out_stride, after, layer.stride, sums + layer.to_weight,
                      layer.stride, layer.outputs, samples * rows, padded_columns(layer.units), true});
  T* to_bias = sums + layer.to_bias;
  for (int64_t n = 0; n < samples; ++n) {
    const T* row = gradient + n * rows * layer.out_stride;
    for (int64_t j = 0; j < layer.out_stride; ++j) to_bias[j] += row[j];
  }
}

// The gradients before the first activation: out, or added to a chunk's sums.
template <typename T>
void scatter_first(const Network<T>& net, int64_t first, int64_t last, const T* from, const Gradients<T>& g,
                   T* sums) {
  const Layer<T>& layer = net.layers[0];
  T* shared = sums + net.gradients - net.stack * layer.stride;
  for (int64_t n = first; n < last; ++n, from += net.rows() * layer.stride) {
    std::copy_n(from, layer.units, g.to_first + n * layer.units);
    for (int64_t k = 0; k < net.stack; ++k) {
      const T* row = from + (k + 2) * layer.stride;
      if (net.shared) {
        for (int64_t j = 0; j < layer.stride; ++j) shared[k * layer.stride + j] += row[j];
      } else {
        std::copy_n(row, layer.units, g.to_tangents + (k * net.samples + n) * layer.units);
      }
    }
  }
}

// `forward`: the network with weights packed for a forward pass, where the hidden layers' rows were not kept.
template <typename T>
void backward_chunk(const Network<T>& net, const Network<T>* forward, const T* hidden, const Gradients<T>& g,
                    int64_t begin, int64_t end, T* sums) {
  const int64_t buffer = net.buffer();
  const int64_t kept = forward ? net.hidden / std::max<int64_t>(1, net.samples) * net.block : 0;
  const Scratch<T> memory(4 * buffer + kept);
  T *start = memory.data(), *after = start + buffer, *by_after = after + buffer,
    *by_before = by_after + buffer;
  T* again = by_before + buffer;
  for (int64_t first = begin; first < end; first += net.block) {
    const int64_t last = std::min(first + net.block, end), n = last - first;
    const auto before = [&](size_t l) -> T* {
      const Layer<T>& layer = net.layers[l];
      if (l == 0) return start;
      if (forward) return again + layer.hidden / net.samples * net.block;
      return const_cast<T*>(hidden) + layer.hidden + first * net.rows() * layer.stride;
    };
    if (forward) {
      forward_block<T>(*forward, first, last, start, after, before, nullptr);
    } else {
      gather_first(net, first, last, start);
    }
    gather_gradients(net, first, last, g, by_before);
    for (size_t l = net.layers.size(); l-- > 0;) {
      const Layer<T>& layer = net.layers[l];
      const int64_t rows = net.rows_after(l);
      const Activate<T> step{
          layer.kind,   before(l), nullptr, after, by_after, by_before, padded_columns(layer.units),
          layer.stride, net.stack, rows};
      if (g.of_weights) {
        activate(step, 0, n);
        add_to_weight(layer, by_before, after, n, rows, sums);
      }
      multiply_rows(by_before, layer.out_stride, layer.packed, by_after, layer.stride, n * rows,
                    layer.outputs, layer.units);
      activate_backward(step, 0, n);
    }
    scatter_first(net, first, last, by_before, g, sums);
  }
}

template <typename T>
std::vector<T> backward_all(Network<T>& net, const T* hidden, const Gradients<T>& g) {
  for (Layer<T>& layer : net.layers) pack_layer(layer, true);
  Network<T> forward;
  const bool again = hidden == nullptr && net.layers.size() > 1;
  if (again) {
    forward = net;
    for (Layer<T>& layer : forward.layers) pack_layer(layer, false);
  }
  // A power of two, so that as many threads have equal shares; of the shape alone, so that the sums are too.
  const int64_t fill = std::min<int64_t>(64, net.samples * net.rows() / kChunkRows);
  const auto chunks = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(1, fill))));
  std::vector<T> sums(chunks * net.gradients);
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      backward_chunk(net, again ? &forward : nullptr, hidden, g, c * net.samples / chunks,
                     (c + 1) * net.samples / chunks, sums.data() + c * net.gradients);
    }
  });
  return sum_chunks(sums, chunks, net.gradients);
}

std::vector<Tensor> all_contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& t : tensors) result.push_back(as_contiguous(t));
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mlp_laplacian(const Tensor& first_in, const Tensor& tangents_in,
                                                         std::vector<Tensor> weights_in,
                                                         std::vector<Tensor> biases_in,
                                                         std::vector<int64_t> activations, bool keep_tangents,
                                                         bool keep_hidden) {
  const Tensor first = as_contiguous(first_in), tangents = as_contiguous(tangents_in);
  const std::vector<Tensor> weights = all_contiguous(weights_in), biases = all_contiguous(biases_in);
  const int64_t sizes[] = {first.size(0), tangents.size(0), weights.back().size(0)};
  const int64_t matrix[] = {sizes[0], sizes[2]};
  const Tensor value = new_output(first, Sizes(matrix, 2)), laplacian = new_output(first, Sizes(matrix, 2));
  const Tensor new_tangents = new_gradient(keep_tangents, first, Sizes(sizes, 3));
  Tensor hidden = new_gradient(false, first, Sizes(sizes, 1));
  dispatch_full_precision(first, "mlp_laplacian", [&](auto element) {
    using T = decltype(element);
    Network<T> net = network_of<T>(first, tangents, weights, biases, activations, keep_tangents);
    if (keep_hidden) hidden = new_output(first, Sizes(&net.hidden, 1));
    forward_all(
        net, keep_hidden ? output_pointer<T>(hidden) : nullptr,
        Results<T>{output_pointer<T>(value), output_pointer<T>(laplacian), output_pointer<T>(new_tangents)});
  });
  return {value, laplacian, new_tangents, hidden};
}

template <typename T>
void copy_rows(T* to, const T* from, int64_t rows, int64_t columns, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * stride, columns, to + i * columns);
}

std::tuple<Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>> mlp_laplacian_backward(
    const std::optional<Tensor>& grad_value_in, const std::optional<Tensor>& grad_laplacian_in,
    const std::optional<Tensor>& grad_tangents_in, const Tensor& first_in, const Tensor& tangents_in,
    std::vector<Tensor> weights_in, std::vector<Tensor> biases_in, const Tensor& hidden,
    std::vector<int64_t> activations, bool keep_tangents, bool of_weights) {
  const Tensor first = as_contiguous(first_in), tangents = as_contiguous(tangents_in);
  const std::vector<Tensor> weights = all_contiguous(weights_in), biases = all_contiguous(biases_in);
  const std::optional<Tensor> grad_value = as_contiguous(grad_value_in),
                              grad_laplacian = as_contiguous(grad_laplacian_in),
                              grad_tangents = as_contiguous(grad_tangents_in);
  const Tensor to_first = new_output(first, first.sizes()),
               to_tangents = new_output(tangents, tangents.sizes());
  std::vector<Tensor> to_weights, to_biases;
  for (size_t l = 0; l < weights.size(); ++l) {
    to_weights.push_back(new_gradient(of_weights, weights[l], weights[l].sizes()));
    to_biases.push_back(new_gradient(of_weights, biases[l], biases[l].sizes()));
  }
  dispatch_full_precision(first, "mlp_laplacian_backward", [&](auto element) {
    using T = decltype(element);
    Network<T> net = network_of<T>(first, tangents, weights, biases, activations, keep_tangents);
    const bool kept = hidden.numel() == net.hidden;
    const Gradients<T> g{pointer<T>(grad_value),
                         pointer<T>(grad_laplacian),
                         pointer<T>(grad_tangents),
                         output_pointer<T>(to_first),
                         net.shared ? nullptr : output_pointer<T>(to_tangents),
                         of_weights};
    const std::vector<T> sums = backward_all(net, kept ? pointer<T>(hidden) : nullptr, g);
    for (size_t l = 0; of_weights && l < weights.size(); ++l) {
      const Layer<T>& layer = net.layers[l];
      copy_rows(output_pointer<T>(to_weights[l]), sums.data() + layer.to_weight, layer.outputs, layer.units,
                layer.stride);
      if (!layer.bias.empty()) {
        std::copy_n(sums.data() + layer.to_bias, layer.outputs, output_pointer<T>(to_biases[l]));
      }
    }
    const Layer<T>& layer = net.layers[0];
    if (net.shared) {
      copy_rows(output_pointer<T>(to_tangents), sums.data() + net.gradients - net.stack * layer.stride,
                net.stack, layer.units, layer.stride);
    }
  });
  return {to_first, to_tangents, to_weights, to_biases};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("mlp_laplacian", TORCH_BOX(&mlp_laplacian));
  m.impl("mlp_laplacian_backward", TORCH_BOX(&mlp_laplacian_backward));
}

}  // namespace fisherkernels
