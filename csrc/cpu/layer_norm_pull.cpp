// The vector-Jacobian product of layer normalisation, and its backward pass, on CPU: row by row, what is
// needed again is still in the cache. Floor: 3 numbers read or written per element for the product, 5 for its
// backward pass.
#include "cpu/buffers.h"
#include "cpu/lanes.h"

namespace fisherkernels {
namespace {

// With u = (x - m) r and g = w c: Jᵀ c = r (g - E g - u E[u g]), E the mean over a row of n.
template <typename T>
struct NormRows {
  int64_t n;
  const T *x, *weight, *mean, *rstd, *cotangent;
  T* to_x;
  const T* tangent;  // of the backward pass
  T *to_cotangent, *to_weight;
};

template <typename V, typename T>
FK_INLINE void store_row(T* row, int64_t j, int64_t n, const V& from) {
  std::memcpy(row + j, &from, static_cast<size_t>(std::min(lane_count<V>, n - j)) * sizeof(T));
}

// u and g from element j of row i on, 0 behind the row.
template <typename V, typename T>
FK_INLINE void load_factors(V& u, V& g, V& weight, const NormRows<T>& rows, int64_t i, int64_t j) {
  load_row(u, rows.x + i * rows.n, j, rows.n, rows.mean[i]);
  u = (u - rows.mean[i]) * rows.rstd[i];
  load_row(g, rows.cotangent + i * rows.n, j, rows.n, T(0));
  if (rows.weight) load_row(weight, rows.weight, j, rows.n, T(0));
  g *= weight;
}

template <int kBytes, typename T>
FK_INLINE void pull_rows_of(const NormRows<T>& rows, int64_t begin, int64_t end) {
  using V = Vector<T, kBytes>;
  const int64_t n = rows.n;
  for (int64_t i = begin; i < end; ++i) {
    V u, g, weight = V{} + T(1), of_g{}, of_ug{};
    for (int64_t j = 0; j < n; j += lane_count<V>) {
      load_factors(u, g, weight, rows, i, j);
      of_g += g;
      of_ug += u * g;
    }
    const T mean_g = sum_of(of_g) / n, along_u = sum_of(of_ug) / n, r = rows.rstd[i];
    for (int64_t j = 0; j < n; j += lane_count<V>) {
      load_factors(u, g, weight, rows, i, j);
      g = r * (g - mean_g - u * along_u);
      store_row(rows.to_x + i * n, j, n, g);
    }
  }
}

// For the tangent t of Jᵀ c, with g' = g - E g - u E[u g] and t' likewise: r w t' for c, r Σ c t' over the
// rows for w, and -r² (u k + E[u t] g' + E[u g] t') for x, k = E[g' t'] + E[u g] E[u t] (1 - E u²).
template <int kBytes, typename T>
FK_INLINE void backward_rows_of(const NormRows<T>& rows, int64_t begin, int64_t end) {
  using V = Vector<T, kBytes>;
  const int64_t n = rows.n;
  for (int64_t i = begin; i < end; ++i) {
    const T *tangent = rows.tangent + i * n, *cotangent = rows.cotangent + i * n;
    V u, g, t, c, weight = V{} + T(1), of_g{}, of_ug{}, of_t{}, of_ut{}, of_gt{}, of_uu{};
    for (int64_t j = 0; j < n; j += lane_count<V>) {
      load_factors(u, g, weight, rows, i, j);
      load_row(t, tangent, j, n, T(0));
      of_g += g;
      of_ug += u * g;
      of_t += t;
      of_ut += u * t;
      of_uu += u * u;
    }
    const T mean_g = sum_of(of_g) / n, g_along_u = sum_of(of_ug) / n;
    const T mean_t = sum_of(of_t) / n, t_along_u = sum_of(of_ut) / n, r = rows.rstd[i];
    for (int64_t j = 0; j < n; j += lane_count<V>) {
      load_factors(u, g, weight, rows, i, j);
      load_row(t, tangent, j, n, mean_t);  // nothing is added behind the row
      of_gt += (g - mean_g - u * g_along_u) * (t - mean_t - u * t_along_u);
    }
    const T both = sum_of(of_gt) / n + g_along_u * t_along_u * (T(1) - sum_of(of_uu) / n);
    for (int64_t j = 0; j < n; j += lane_count<V>) {
      load_factors(u, g, weight, rows, i, j);
      load_row(t, tangent, j, n, T(0));
      g -= mean_g + u * g_along_u;
      t -= mean_t + u * t_along_u;
      u = -r * r * (u * both + t_along_u * g + g_along_u * t);
      store_row(rows.to_x + i * n, j, n, u);
      t *= r;
      if (rows.to_weight) {
        load_row(c, cotangent, j, n, T(0));
        load_row(g, rows.to_weight, j, n, T(0));
        g += c * t;
        store_row(rows.to_weight, j, n, g);
      }
      t *= weight;
      store_row(rows.to_cotangent + i * n, j, n, t);
    }
  }
}

FK_WIDTHS(pull_rows, NormRows<float>)
FK_WIDTHS(pull_rows, NormRows<double>)
FK_WIDTHS(backward_rows, NormRows<float>)
FK_WIDTHS(backward_rows, NormRows<double>)

template <typename T>
NormRows<T> rows_of(const Tensor& cotangent, const Tensor& x, const std::optional<Tensor>& weight,
                    const Tensor& mean, const Tensor& rstd, const Tensor& to_x) {
  NormRows<T> rows{};
  rows.n = x.size(1);
  rows.x = pointer<T>(x);
  rows.weight = pointer<T>(weight);
  rows.mean = pointer<T>(mean);
  rows.rstd = pointer<T>(rstd);
  rows.cotangent = pointer<T>(cotangent);
  rows.to_x = output_pointer<T>(to_x);
  return rows;
}

// The cotangent of x. All [M, n] but the weight [n] or none, and mean and 1/sqrt(variance + eps), [M].
Tensor layer_norm_pull(const Tensor& cotangent_in, const Tensor& x_in, const std::optional<Tensor>& weight_in,
                       const Tensor& mean_in, const Tensor& rstd_in) {
  const Tensor cotangent = as_contiguous(cotangent_in), x = as_contiguous(x_in),
               mean = as_contiguous(mean_in), rstd = as_contiguous(rstd_in);
  const std::optional<Tensor> weight = as_contiguous(weight_in);
  const Tensor to_x = new_output(x, x.sizes());
  dispatch_full_precision(x, "layer_norm_pull", [&](auto element) {
    using T = decltype(element);
    const NormRows<T> rows = rows_of<T>(cotangent, x, weight, mean, rstd, to_x);
    for_rows(x.size(0), rows.n, [&](int64_t begin, int64_t end) { pull_rows(rows, begin, end); });
  });
  return to_x;
}

// From the gradient of what that gives: those of cotangent, x and weight.
std::tuple<Tensor, Tensor, Tensor> layer_norm_pull_backward(const Tensor& tangent_in,
                                                            const Tensor& cotangent_in, const Tensor& x_in,
                                                            const std::optional<Tensor>& weight_in,
                                                            const Tensor& mean_in, const Tensor& rstd_in) {
  const Tensor tangent = as_contiguous(tangent_in), cotangent = as_contiguous(cotangent_in),
               x = as_contiguous(x_in), mean = as_contiguous(mean_in), rstd = as_contiguous(rstd_in);
  const std::optional<Tensor> weight = as_contiguous(weight_in);
  const Tensor to_x = new_output(x, x.sizes()), to_cotangent = new_output(x, x.sizes());
  const int64_t n = x.size(1), count = x.size(0), of_weight = weight.has_value() ? n : 0;
  const Tensor to_weight = new_output(x, Sizes(&of_weight, 1));
  dispatch_full_precision(x, "layer_norm_pull_backward", [&](auto element) {
    using T = decltype(element);
    const int64_t chunks = chunk_count(count, n);
    std::vector<T> partial(chunks * of_weight);
    NormRows<T> rows = rows_of<T>(cotangent, x, weight, mean, rstd, to_x);
    rows.tangent = pointer<T>(tangent);
    rows.to_cotangent = output_pointer<T>(to_cotangent);
    for_rows(chunks, count * n / chunks, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        NormRows<T> own = rows;
        own.to_weight = of_weight ? partial.data() + chunk * of_weight : nullptr;
        backward_rows(own, count * chunk / chunks, count * (chunk + 1) / chunks);
      }
    });
    const std::vector<T> total = sum_chunks(partial, chunks, of_weight);
    std::copy(total.begin(), total.end(), output_pointer<T>(to_weight));
  });
  return {to_cotangent, to_x, to_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("layer_norm_pull", TORCH_BOX(&layer_norm_pull));
  m.impl("layer_norm_pull_backward", TORCH_BOX(&layer_norm_pull_backward));
}

}  // namespace fisherkernels
