// posterior_residual on CPU. Floor at R = 4096 rows, d = 784, float32 (12.8 MB an array), standard normal
// prior, gradients to log_std, z, decoder_vjp: forward reads eps, log_std, z, v; backward reads them again
// (storing the residual would cost the write and the read that it saves) and writes three gradients: 141 MB,
// two exp an element.
#include "math/posterior_residual.h"

#include "cpu/buffers.h"
#include "cpu/tensors.h"

namespace fisherkernels {
namespace {

template <typename T>
struct PosteriorResidual {
  using A = accumulate_t<T>;
  const T* eps;            // [R, d]
  const T* log_std;        // [M, d]
  const T* z;              // [R, d]
  const T* decoder_vjp;    // [R, d]
  const T* prior_score;    // [R, d] or null
  const A* score_weights;  // [K, d], or null where there is no polynomial

  A* value;                // [R], forward only
  const A* grad_value;     // [R], backward only
  Output<T> grad_eps;      // each [R, d] or null
  Output<T> grad_log_std;  // [M, d] or null
  Output<T> grad_z;
  Output<T> grad_decoder_vjp;
  Output<T> grad_prior_score;
  A* partial;                                      // [chunks, K, d], Σ dL/dt z^(k-1), or null
  int64_t pairs, samples, columns, order, chunks;  // M, L, d, K
};

// Horner's scheme over G consecutive weights, highest first, from zero or continued: the value in `score`
// and, with Slope, its derivative in `slope`; weights are strided by d.
template <int G, bool Continue, bool Slope, typename T, typename A>
FK_INLINE void horner_group(A* score, A* slope, const T* z, const A* weights, int64_t stride, int64_t n) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) {
    const A position = load(z[j]);
    A value = Continue ? score[j] : A(0), derivative = Continue && Slope ? slope[j] : A(0);
#pragma GCC unroll 4
    for (int k = G - 1; k >= 0; --k) {
      if constexpr (Slope) derivative = horner(derivative, position, value);
      value = horner(value, position, weights[k * stride + j]);
    }
    score[j] = value;
    if constexpr (Slope) slope[j] = derivative;
  }
}

// Σ_k weights[k] z^k, k = 0..terms-1, for a tile of columns: the odd ones first, then four weights a pass.
template <bool Slope, typename T, typename A>
FK_INLINE void polynomial(A* score, A* slope, const T* z, const A* weights, int64_t stride, int64_t terms,
                          int64_t n) {
  const A* next = weights + (terms - 1) / 4 * 4 * stride;
  switch ((terms - 1) % 4) {
    case 0:
      horner_group<1, false, Slope>(score, slope, z, next, stride, n);
      break;
    case 1:
      horner_group<2, false, Slope>(score, slope, z, next, stride, n);
      break;
    case 2:
      horner_group<3, false, Slope>(score, slope, z, next, stride, n);
      break;
    case 3:
      horner_group<4, false, Slope>(score, slope, z, next, stride, n);
      break;
  }
  while (next != weights) {
    next -= 4 * stride;
    horner_group<4, true, Slope>(score, slope, z, next, stride, n);
  }
}

// sums[k] += power z^k for k = 0..G-1; leaves power z^G in `power`.
template <int G, typename T, typename A>
FK_INLINE void power_group(A* sums, A* power, const T* z, int64_t stride, int64_t n) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) {
    const A position = load(z[j]);
    A p = power[j];
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) {
      sums[k * stride + j] += p;
      p *= position;
    }
    power[j] = p;
  }
}

// sums[k] += power z^k, k = 0..order-1, for a tile of columns; sums are strided by d. Overwrites `power`.
template <typename T, typename A>
FK_INLINE void add_powers(A* sums, A* power, const T* z, int64_t stride, int64_t order, int64_t n) {
  int64_t k = 0;
  for (; k + 4 <= order; k += 4) power_group<4>(sums + k * stride, power, z, stride, n);
  for (; k < order; ++k) power_group<1>(sums + k * stride, power, z, stride, n);
}

// The tile of t = -ε/σ - s - v at `offset` of the [R, d] arguments and at column
// `start`; with Slope also that of the polynomial.
template <bool Slope, typename T, typename A>
FK_INLINE void residual_tile(const PosteriorResidual<T>& a, A* t, A* slope, const A* inverse_std,
                             int64_t offset, int64_t start, int64_t n) {
  const T *eps = a.eps + offset, *decoder_vjp = a.decoder_vjp + offset;
  if (a.prior_score) {
    const T* score = a.prior_score + offset;
    for (int64_t j = 0; j < n; ++j) {
      t[j] = posterior_residual_element(load(eps[j]), inverse_std[j], load(score[j]), load(decoder_vjp[j]));
    }
  } else if (a.score_weights) {
    A score[kTile];
    polynomial<Slope>(score, slope, a.z + offset, a.score_weights + start, a.columns, a.order, n);
    for (int64_t j = 0; j < n; ++j) {
      t[j] = posterior_residual_element(load(eps[j]), inverse_std[j], score[j], load(decoder_vjp[j]));
    }
  } else {
    const T* position = a.z + offset;
    for (int64_t j = 0; j < n; ++j) {
      t[j] =
          posterior_residual_element(load(eps[j]), inverse_std[j], -load(position[j]), load(decoder_vjp[j]));
    }
  }
}

// 1/σ of a tile. With a polynomial the arguments are read in separate short bursts, which leaves the
// hardware's prefetcher behind: this loop, slow for its exp, then asks for the tiles that follow in them on
// its way.
template <typename T, typename A>
FK_INLINE void inverse_std_tile(const PosteriorResidual<T>& a, A* inverse_std, const T* log_std,
                                int64_t offset, int64_t n) {
  int64_t j = 0;
  if (a.score_weights) {
    constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
    const T *eps = a.eps + offset + n, *z = a.z + offset + n, *decoder_vjp = a.decoder_vjp + offset + n;
    for (; j + kLine <= n; j += kLine) {
      for (int64_t i = j; i < j + kLine; ++i) inverse_std[i] = inverse_std_of(load(log_std[i]));
      __builtin_prefetch(eps + j);
      __builtin_prefetch(z + j);
      __builtin_prefetch(decoder_vjp + j);
    }
  }
  for (; j < n; ++j) inverse_std[j] = inverse_std_of(load(log_std[j]));
}

template <typename T>
FK_INLINE void forward_rows(const PosteriorResidual<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t r = begin; r < end; ++r) {
    Lanes<A> lanes;
    for (int64_t start = 0; start < a.columns; start += kTile) {
      const int64_t n = std::min(kTile, a.columns - start);
      const T* log_std = a.log_std + (r % a.pairs) * a.columns + start;
      A inverse_std[kTile], t[kTile];
      inverse_std_tile(a, inverse_std, log_std, r * a.columns + start, n);
      residual_tile<false>(a, t, t, inverse_std, r * a.columns + start, start, n);
      lanes.add_squares(t, n);
    }
    a.value[r] = A(0.5) * lanes.sum();
  }
}

// Gradients of one tile of one row, from t in `through`; adds that of log_std to `sum_log_std`.
template <typename T, typename A>
FK_INLINE void gradient_tile(const PosteriorResidual<T>& a, A grad_value, A* through, A* slope,
                             const A* inverse_std, A* sum_log_std, int64_t chunk, int64_t offset,
                             int64_t start, int64_t n) {
  A grad[kTile];
  const T* eps = a.eps + offset;
  for (int64_t j = 0; j < n; ++j) {
    through[j] *= grad_value;
    sum_log_std[j] +=
        posterior_residual_grad_log_std(through[j], inverse_std[j], static_cast<A>(load(eps[j])));
  }
  if (a.grad_eps) {
    for (int64_t j = 0; j < n; ++j) grad[j] = posterior_residual_grad_eps(through[j], inverse_std[j]);
    a.grad_eps.write(offset, grad, n);
  }
  if (a.grad_z) {
    if (a.score_weights == nullptr) std::fill_n(slope, n, A(-1));
    for (int64_t j = 0; j < n; ++j) grad[j] = posterior_residual_grad_z(through[j], slope[j]);
    a.grad_z.write(offset, grad, n);
  }
  for (int64_t j = 0; j < n; ++j) grad[j] = -through[j];
  if (a.grad_decoder_vjp) a.grad_decoder_vjp.write(offset, grad, n);
  if (a.grad_prior_score) a.grad_prior_score.write(offset, grad, n);
  if (a.partial) {
    add_powers(a.partial + chunk * a.order * a.columns + start, through, a.z + offset, a.columns, a.order, n);
  }
}

// One tile of the rows that share row m of log_std.
template <typename T>
FK_INLINE void backward_tile(const PosteriorResidual<T>& a, int64_t chunk, int64_t m, int64_t start,
                             int64_t n) {
  using A = accumulate_t<T>;
  const T* log_std = a.log_std + m * a.columns + start;
  A inverse_std[kTile], sum_log_std[kTile], through[kTile], slope[kTile];
  inverse_std_tile(a, inverse_std, log_std, m * a.columns + start, n);
  std::fill_n(sum_log_std, n, A(0));
  for (int64_t sample = 0; sample < a.samples; ++sample) {
    const int64_t r = sample * a.pairs + m, offset = r * a.columns + start;
    const A grad_value = a.grad_value[r];
    residual_tile<true>(a, through, slope, inverse_std, offset, start, n);
    gradient_tile(a, grad_value, through, slope, inverse_std, sum_log_std, chunk, offset, start, n);
  }
  if (a.grad_log_std) a.grad_log_std.write(m * a.columns + start, sum_log_std, n);
}

template <typename T>
FK_INLINE void backward_chunks(const PosteriorResidual<T>& a, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t last = (chunk + 1) * a.pairs / a.chunks;
    for (int64_t m = chunk * a.pairs / a.chunks; m < last; ++m) {
      for (int64_t start = 0; start < a.columns; start += kTile) {
        backward_tile(a, chunk, m, start, std::min(kTile, a.columns - start));
      }
    }
  }
  finish_streams();
}

FK_CLONES void posterior_residual_rows(const PosteriorResidual<float>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void posterior_residual_rows(const PosteriorResidual<double>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void posterior_residual_rows(const PosteriorResidual<BFloat16>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void posterior_residual_backward_chunks(const PosteriorResidual<float>& a, int64_t begin,
                                                  int64_t end) {
  backward_chunks(a, begin, end);
}
FK_CLONES void posterior_residual_backward_chunks(const PosteriorResidual<double>& a, int64_t begin,
                                                  int64_t end) {
  backward_chunks(a, begin, end);
}
FK_CLONES void posterior_residual_backward_chunks(const PosteriorResidual<BFloat16>& a, int64_t begin,
                                                  int64_t end) {
  backward_chunks(a, begin, end);
}

// The polynomial's weights [K, d], transposed from coefficients [d, K] so that a tile of columns is
// contiguous.
template <typename A>
struct Weights {
  std::vector<A> score;

  explicit Weights(const std::optional<Tensor>& coefficients) {
    if (!coefficients.has_value()) return;
    const int64_t columns = coefficients->size(0), order = coefficients->size(1);
    const std::vector<A> values = values_as<A>(*coefficients, "posterior_residual");
    score.resize(values.size());

    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t k = 0; k < order; ++k) {
        score[k * columns + j] = score_weight(values[j * order + k], k + 1);
      }
    }
  }
};

template <typename T>
PosteriorResidual<T> inputs(const Tensor& eps, const Tensor& log_std, const Tensor& z,
                            const Tensor& decoder_vjp, const std::optional<Tensor>& prior_score,
                            const std::optional<Tensor>& coefficients,
                            const Weights<accumulate_t<T>>& weights) {
  PosteriorResidual<T> a{};
  a.eps = pointer<T>(eps);
  a.log_std = pointer<T>(log_std);
  a.z = pointer<T>(z);
  a.decoder_vjp = pointer<T>(decoder_vjp);
  a.prior_score = pointer<T>(prior_score);
  a.pairs = log_std.size(0);
  a.samples = a.pairs ? eps.size(0) / a.pairs : 1;
  a.columns = eps.size(1);
  if (coefficients.has_value()) {
    a.order = coefficients->size(1);
    a.score_weights = weights.score.data();
  }
  return a;
}

Tensor posterior_residual(const Tensor& eps_in, const Tensor& log_std_in, const Tensor& z_in,
                          const std::optional<Tensor>& coefficients, const Tensor& decoder_vjp_in,
                          const std::optional<Tensor>& prior_score_in) {
  const Tensor eps = as_contiguous(eps_in), log_std = as_contiguous(log_std_in), z = as_contiguous(z_in);
  const Tensor decoder_vjp = as_contiguous(decoder_vjp_in);
  const std::optional<Tensor> prior_score = as_contiguous(prior_score_in);
  const Tensor value = new_output(eps, {eps.size(0)}, accumulate_type(eps.scalar_type()));
  dispatch(eps, "posterior_residual", [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const Weights<A> weights(coefficients);
    PosteriorResidual<T> a = inputs<T>(eps, log_std, z, decoder_vjp, prior_score, coefficients, weights);
    a.value = output_pointer<A>(value);
    for_rows(eps.size(0), a.columns,
             [&](int64_t begin, int64_t end) { posterior_residual_rows(a, begin, end); });
  });
  return value;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> posterior_residual_backward(
    const Tensor& grad_value_in, const Tensor& eps_in, const Tensor& log_std_in, const Tensor& z_in,
    const std::optional<Tensor>& coefficients, const Tensor& decoder_vjp_in,
    const std::optional<Tensor>& prior_score_in, std::vector<bool> output_mask) {
  const Tensor eps = as_contiguous(eps_in), log_std = as_contiguous(log_std_in), z = as_contiguous(z_in);
  const Tensor decoder_vjp = as_contiguous(decoder_vjp_in), grad_value = as_contiguous(grad_value_in);
  const std::optional<Tensor> prior_score = as_contiguous(prior_score_in);
  const Tensor& coefficients_or_eps = coefficients.has_value() ? *coefficients : eps;
  const Tensor grad_eps = new_gradient(output_mask[0], eps, eps.sizes());
  const Tensor grad_log_std = new_gradient(output_mask[1], log_std, log_std.sizes());
  const Tensor grad_z = new_gradient(output_mask[2], eps, eps.sizes());
  const Tensor grad_coefficients =
      new_gradient(output_mask[3], coefficients_or_eps, coefficients_or_eps.sizes());
  const Tensor grad_decoder_vjp = new_gradient(output_mask[4], eps, eps.sizes());
  const Tensor grad_prior_score = new_gradient(output_mask[5], eps, eps.sizes());
  dispatch(eps, "posterior_residual_backward", [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const Weights<A> weights(coefficients);
    PosteriorResidual<T> a = inputs<T>(eps, log_std, z, decoder_vjp, prior_score, coefficients, weights);
    a.grad_value = pointer<A>(grad_value);
    a.grad_eps = output<T>(grad_eps);
    a.grad_log_std = output<T>(grad_log_std);
    a.grad_z = output<T>(grad_z);
    a.grad_decoder_vjp = output<T>(grad_decoder_vjp);
    a.grad_prior_score = output<T>(grad_prior_score);
    a.chunks = chunk_count(a.pairs, a.samples * a.columns);
    std::vector<A> partial(output_mask[3] ? a.chunks * a.order * a.columns : 0);
    a.partial = output_mask[3] ? partial.data() : nullptr;
    for_rows(a.chunks, kGrain,
             [&](int64_t begin, int64_t end) { posterior_residual_backward_chunks(a, begin, end); });
    if (!output_mask[3]) return;
    const std::vector<A> sum = sum_chunks(partial, a.chunks, a.order * a.columns);  // [K, d]
    std::vector<A> grad(sum.size());                                                // [d, K]
    for (int64_t j = 0; j < a.columns; ++j) {
      for (int64_t k = 0; k < a.order; ++k)
        grad[j * a.order + k] = -score_weight(sum[k * a.columns + j], k + 1);
    }
    fill_from(grad_coefficients, grad, "posterior_residual_backward");
  });
  return {grad_eps, grad_log_std, grad_z, grad_coefficients, grad_decoder_vjp, grad_prior_score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("posterior_residual", TORCH_BOX(&posterior_residual));
  m.impl("posterior_residual_backward", TORCH_BOX(&posterior_residual_backward));
}

}  // namespace fisherkernels
