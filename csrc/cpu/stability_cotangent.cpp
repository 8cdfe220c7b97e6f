// stability_cotangent on CPU. Floor at R = 65536 rows, d = 64, float32 (16.8 MB an array), gradient to
// log_std: forward reads eps, log_std, writes two halves; backward reads one half of the gradient (both when
// eps wants one), eps, log_std, writes grad_log_std: 134 MB, one exp an element and pass.
#include "math/stability_cotangent.h"

#include "cpu/buffers.h"
#include "cpu/tensors.h"

namespace fisherkernels {
namespace {

template <typename T>
struct StabilityCotangent {
  const T* eps;                     // [R, d]
  const T* log_std;                 // [M, d]
  Output<T> cotangent;              // [R, 2d], forward only
  const T* grad;                    // [R, 2d], backward only
  Output<T> grad_eps;               // [R, d] or null
  Output<T> grad_log_std;           // [M, d] or null
  int64_t pairs, samples, columns;  // M, L, d
};

template <typename T>
FK_INLINE void forward_rows(const StabilityCotangent<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t start = 0; start < a.columns; start += kTile) {
      const int64_t n = std::min(kTile, a.columns - start);
      const T* eps = a.eps + r * a.columns + start;
      const T* log_std = a.log_std + (r % a.pairs) * a.columns + start;
      A mean_half[kTile], std_half[kTile];
      for (int64_t j = 0; j < n; ++j) {
        const A e = load(eps[j]);
        mean_half[j] = stability_mean_half(e, inverse_std_of(load(log_std[j])));
        std_half[j] = stability_std_half(e);
      }
      a.cotangent.write(2 * r * a.columns + start, mean_half, n);
      a.cotangent.write((2 * r + 1) * a.columns + start, std_half, n);
    }
  }
  finish_streams();
}

template <typename T>
FK_INLINE void backward_rows(const StabilityCotangent<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t start = 0; start < a.columns; start += kTile) {
      const int64_t n = std::min(kTile, a.columns - start);
      const T* log_std = a.log_std + m * a.columns + start;
      A inverse_std[kTile], sum[kTile];
      for (int64_t j = 0; j < n; ++j) inverse_std[j] = inverse_std_of(load(log_std[j]));
      std::fill_n(sum, n, A(0));
      for (int64_t sample = 0; sample < a.samples; ++sample) {
        const int64_t r = sample * a.pairs + m;
        const T* eps = a.eps + r * a.columns + start;
        const T* grad_mean_half = a.grad + 2 * r * a.columns + start;
        for (int64_t j = 0; j < n; ++j) {
          sum[j] += stability_grad_log_std(load(grad_mean_half[j]), inverse_std[j], load(eps[j]));
        }
        if (a.grad_eps) {
          const T* grad_std_half = grad_mean_half + a.columns;
          A grad[kTile];
          for (int64_t j = 0; j < n; ++j) {
            grad[j] = stability_grad_eps(load(grad_mean_half[j]), load(grad_std_half[j]), inverse_std[j],
                                         load(eps[j]));
          }
          a.grad_eps.write(r * a.columns + start, grad, n);
        }
      }
      if (a.grad_log_std) a.grad_log_std.write(m * a.columns + start, sum, n);
    }
  }
  finish_streams();
}

FK_CLONES void stability_cotangent_rows(const StabilityCotangent<float>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void stability_cotangent_rows(const StabilityCotangent<double>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void stability_cotangent_rows(const StabilityCotangent<BFloat16>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void stability_cotangent_backward_rows(const StabilityCotangent<float>& a, int64_t begin,
                                                 int64_t end) {
  backward_rows(a, begin, end);
}
FK_CLONES void stability_cotangent_backward_rows(const StabilityCotangent<double>& a, int64_t begin,
                                                 int64_t end) {
  backward_rows(a, begin, end);
}
FK_CLONES void stability_cotangent_backward_rows(const StabilityCotangent<BFloat16>& a, int64_t begin,
                                                 int64_t end) {
  backward_rows(a, begin, end);
}

Tensor stability_cotangent(const Tensor& eps_in, const Tensor& log_std_in) {
  const Tensor eps = as_contiguous(eps_in), log_std = as_contiguous(log_std_in);
  const int64_t rows = eps.size(0), columns = eps.size(1);
  const Tensor cotangent = new_output(eps, {rows, 2 * columns});
  dispatch(eps, "stability_cotangent", [&](auto element) {
    using T = decltype(element);
    StabilityCotangent<T> a{};
    a.eps = pointer<T>(eps);
    a.log_std = pointer<T>(log_std);
    a.cotangent = output<T>(cotangent);
    a.pairs = log_std.size(0);
    a.columns = columns;
    for_rows(rows, columns, [&](int64_t begin, int64_t end) { stability_cotangent_rows(a, begin, end); });
  });
  return cotangent;
}

std::tuple<Tensor, Tensor> stability_cotangent_backward(const Tensor& grad_in, const Tensor& eps_in,
                                                        const Tensor& log_std_in,
                                                        std::vector<bool> output_mask) {
  const Tensor grad = as_contiguous(grad_in), eps = as_contiguous(eps_in),
               log_std = as_contiguous(log_std_in);
  const int64_t pairs = log_std.size(0), columns = eps.size(1), samples = pairs ? eps.size(0) / pairs : 1;
  const Tensor grad_eps = new_gradient(output_mask[0], eps, eps.sizes());
  const Tensor grad_log_std = new_gradient(output_mask[1], log_std, log_std.sizes());
  dispatch(eps, "stability_cotangent_backward", [&](auto element) {
    using T = decltype(element);
    const StabilityCotangent<T> a{pointer<T>(eps),
                                  pointer<T>(log_std),
                                  {},
                                  pointer<T>(grad),
                                  output<T>(grad_eps),
                                  output<T>(grad_log_std),
                                  pairs,
                                  samples,
                                  columns};
    for_rows(pairs, samples * columns,
             [&](int64_t begin, int64_t end) { stability_cotangent_backward_rows(a, begin, end); });
  });
  return {grad_eps, grad_log_std};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("stability_cotangent", TORCH_BOX(&stability_cotangent));
  m.impl("stability_cotangent_backward", TORCH_BOX(&stability_cotangent_backward));
}

}  // namespace fisherkernels
