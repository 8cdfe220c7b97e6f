// gaussian_score on CPU. Floor at R = 4096 rows, D = 784, float32 (12.8 MB an array), gradient to mean:
// forward reads x, mean, writes residual; backward reads residual, writes grad_mean: 64 MB, 5 FLOPs an
// element.
#include "math/gaussian_score.h"

#include "cpu/buffers.h"
#include "cpu/tensors.h"

namespace fisherkernels {
namespace {

template <typename T>
struct GaussianScore {
  using A = accumulate_t<T>;
  const T* x;                 // [M, D]
  const T* mean;              // [R, D]
  const A* inverse_variance;  // [D]
  A sum_inverse_variance;
  A* value;            // [R]
  Output<T> residual;  // [R, D]
  int64_t x_rows, columns;
};

template <typename T>
FK_INLINE void forward_rows(const GaussianScore<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t r = begin; r < end; ++r) {
    Lanes<A> lanes;
    for (int64_t start = 0; start < a.columns; start += kTile) {
      const int64_t n = std::min(kTile, a.columns - start);
      const T* x = a.x + (r % a.x_rows) * a.columns + start;
      const T* mean = a.mean + r * a.columns + start;
      const A* inverse_variance = a.inverse_variance + start;
      A s[kTile];
      for (int64_t j = 0; j < n; ++j)
        s[j] = gaussian_score_residual(load(x[j]), load(mean[j]), inverse_variance[j]);
      lanes.add_squares(s, n);
      a.residual.write(r * a.columns + start, s, n);
    }
    a.value[r] = A(0.5) * lanes.sum() - a.sum_inverse_variance;
  }
  finish_streams();
}

FK_CLONES void gaussian_score_rows(const GaussianScore<float>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void gaussian_score_rows(const GaussianScore<double>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void gaussian_score_rows(const GaussianScore<BFloat16>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}

std::tuple<Tensor, Tensor> gaussian_score(const Tensor& x_in, const Tensor& mean_in, const Tensor& variance) {
  const Tensor x = as_contiguous(x_in), mean = as_contiguous(mean_in);
  const int64_t rows = mean.size(0), columns = mean.size(1);
  const Tensor value = new_output(mean, {rows}, accumulate_type(mean.scalar_type()));
  const Tensor residual = new_output(mean, {rows, columns});
  dispatch(mean, "gaussian_score", [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    std::vector<A> inverse_variance = values_as<A>(variance, "gaussian_score");
    for (A& v : inverse_variance) v = A(1) / v;
    if (variance.dim() == 0) inverse_variance.assign(columns, A(inverse_variance[0]));
    double sum = 0;
    for (A v : inverse_variance) sum += v;
    const GaussianScore<T> arguments{pointer<T>(x),
                                     pointer<T>(mean),
                                     inverse_variance.data(),
                                     static_cast<A>(sum),
                                     output_pointer<A>(value),
                                     output<T>(residual),
                                     x.size(0),
                                     columns};
    for_rows(rows, columns, [&](int64_t begin, int64_t end) { gaussian_score_rows(arguments, begin, end); });
  });
  return {value, residual};
}

template <typename T>
struct GaussianScoreBackward {
  using A = accumulate_t<T>;
  const A* grad_value;        // [R]
  const T* grad_residual;     // [R, D] or null
  const T* residual;          // [R, D]
  const A* inverse_variance;  // [D]
  Output<T> grad_x;           // [M, D] or null
  Output<T> grad_mean;        // [R, D] or null
  A* partial;                 // [chunks, D], Σ dL/ds s, or null
  int64_t x_rows, samples, columns, chunks;
};

template <typename T>
FK_INLINE void backward_chunks(const GaussianScoreBackward<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t last = (chunk + 1) * a.x_rows / a.chunks;
    for (int64_t m = chunk * a.x_rows / a.chunks; m < last; ++m) {
      for (int64_t start = 0; start < a.columns; start += kTile) {
        const int64_t n = std::min(kTile, a.columns - start);
        const A* inverse_variance = a.inverse_variance + start;
        A sum[kTile];  // over samples, of dL/dx
        if (a.grad_x) std::fill_n(sum, n, A(0));
        for (int64_t sample = 0; sample < a.samples; ++sample) {
          const int64_t r = sample * a.x_rows + m, offset = r * a.columns + start;
          const A grad_value = a.grad_value[r];
          const T* residual = a.residual + offset;
          A through[kTile];
          if (a.grad_residual) {
            const T* grad_residual = a.grad_residual + offset;
            for (int64_t j = 0; j < n; ++j) {
              through[j] = gaussian_score_through(grad_value, load(residual[j]), load(grad_residual[j]));
            }
          } else {
            for (int64_t j = 0; j < n; ++j) through[j] = grad_value * load(residual[j]);
          }
          if (a.partial) {
            A* partial = a.partial + chunk * a.columns + start;
            for (int64_t j = 0; j < n; ++j) partial[j] += through[j] * load(residual[j]);
          }
          for (int64_t j = 0; j < n; ++j) through[j] = gaussian_score_grad_x(through[j], inverse_variance[j]);
          if (a.grad_x) {
            for (int64_t j = 0; j < n; ++j) sum[j] += through[j];
          }
          if (a.grad_mean) {
            for (int64_t j = 0; j < n; ++j) through[j] = -through[j];
            a.grad_mean.write(offset, through, n);
          }
        }
        if (a.grad_x) a.grad_x.write(m * a.columns + start, sum, n);
      }
    }
  }
  finish_streams();
}

FK_CLONES void gaussian_score_backward_chunks(const GaussianScoreBackward<float>& a, int64_t begin,
                                              int64_t end) {
  backward_chunks(a, begin, end);
}
FK_CLONES void gaussian_score_backward_chunks(const GaussianScoreBackward<double>& a, int64_t begin,
                                              int64_t end) {
  backward_chunks(a, begin, end);
}
FK_CLONES void gaussian_score_backward_chunks(const GaussianScoreBackward<BFloat16>& a, int64_t begin,
                                              int64_t end) {
  backward_chunks(a, begin, end);
}

std::tuple<Tensor, Tensor, Tensor> gaussian_score_backward(const Tensor& grad_value_in,
                                                           const std::optional<Tensor>& grad_residual_in,
                                                           const Tensor& residual_in, const Tensor& variance,
                                                           int64_t x_rows, std::vector<bool> output_mask) {
  const Tensor grad_value = as_contiguous(grad_value_in), residual = as_contiguous(residual_in);
  const std::optional<Tensor> grad_residual = as_contiguous(grad_residual_in);
  const int64_t rows = residual.size(0), columns = residual.size(1);
  const Tensor grad_x = new_gradient(output_mask[0], residual, {x_rows, columns});
  const Tensor grad_mean = new_gradient(output_mask[1], residual, residual.sizes());
  const Tensor grad_variance = new_gradient(output_mask[2], variance, variance.sizes());
  dispatch(residual, "gaussian_score_backward", [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    std::vector<A> inverse_variance = values_as<A>(variance, "gaussian_score_backward");
    for (A& v : inverse_variance) v = A(1) / v;
    if (variance.dim() == 0) inverse_variance.assign(columns, A(inverse_variance[0]));
    const int64_t samples = x_rows ? rows / x_rows : 1;
    const int64_t chunks = chunk_count(x_rows, samples * columns);
    std::vector<A> partial(output_mask[2] ? chunks * columns : 0);
    const GaussianScoreBackward<T> arguments{pointer<A>(grad_value),
                                             pointer<T>(grad_residual),
                                             pointer<T>(residual),
                                             inverse_variance.data(),
                                             output<T>(grad_x),
                                             output<T>(grad_mean),
                                             output_mask[2] ? partial.data() : nullptr,
                                             x_rows,
                                             samples,
                                             columns,
                                             chunks};
    for_rows(chunks, kGrain,
             [&](int64_t begin, int64_t end) { gaussian_score_backward_chunks(arguments, begin, end); });
    if (!output_mask[2]) return;
    A sum_grad_value = 0;
    for (int64_t r = 0; r < rows; ++r) sum_grad_value += arguments.grad_value[r];
    std::vector<A> grad = sum_chunks(partial, chunks, columns);
    for (int64_t j = 0; j < columns; ++j) {
      grad[j] = gaussian_score_grad_variance(grad[j], sum_grad_value, inverse_variance[j]);
    }
    if (variance.dim() == 0) {
      A total = 0;
      for (A g : grad) total += g;
      grad.assign(1, total);
    }
    fill_from(grad_variance, grad, "gaussian_score_backward");
  });
  return {grad_x, grad_mean, grad_variance};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("gaussian_score", TORCH_BOX(&gaussian_score));
  m.impl("gaussian_score_backward", TORCH_BOX(&gaussian_score_backward));
}

}  // namespace fisherkernels
