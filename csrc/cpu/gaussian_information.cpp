// gaussian_information on CPU. Floor at N = 65536 rows, d = 64, float32 (16.8 MB an array): forward reads
// mean and log_std; backward reads them again and writes two gradients: 101 MB, two exponentials an element
// and pass, from one reduction.
#include "math/gaussian_information.h"

#include "cpu/buffers.h"
#include "cpu/lanes.h"
#include "cpu/tensors.h"

namespace fisherkernels {
namespace {

template <typename T>
struct GaussianInformation {
  using A = accumulate_t<T>;
  const T* mean;     // [N, d]
  const T* log_std;  // [N, d]
  A* kl;             // [N], forward only, as the next two
  A* trace;
  A* entropy_power;
  int64_t columns;
};

// Sums over the columns of a few rows, each in 128 bytes of independent lanes. The lanes of four rows are
// added up together: for one row alone that would take longer than its formulas.
template <typename A>
struct RowSums {
  static constexpr int64_t kRows = 16, kCount = Lanes<A>::kCount;
  A lane[kRows][kCount];

  FK_INLINE RowSums() {
    for (int64_t r = 0; r < kRows; ++r) std::fill_n(lane[r], kCount, A(0));
  }

  FK_INLINE void sum(A* out) const {
    std::fill_n(out, kRows, A(0));
    for (int64_t r = 0; r < kRows; r += 4) {
      Vector<A, 64> four[4], upper;
#pragma GCC unroll 4
      for (int64_t q = 0; q < 4; ++q) {
        load_vector(four[q], lane[r + q]);
        load_vector(upper, lane[r + q] + kCount / 2);
        four[q] += upper;
      }
      add_sums<A, 64>(out + r, four);
    }
  }
};

// Adds columns j = 0..n-1, n at most the number of lanes, of one row to its lanes.
template <typename T, typename A>
FK_INLINE void add_columns(A* divergence, A* precision, A* sum_log_std, const T* mean, const T* log_std,
                           int64_t n) {
#pragma GCC ivdep
  for (int64_t j = 0; j < n; ++j) {
    const A s = load(log_std[j]);
    const ExpPair<A> variance = variance_of(s);
    divergence[j] += gaussian_information_divergence<A>(load(mean[j]), variance);
    precision[j] += variance.inverse;
    sum_log_std[j] += s;
  }
}

template <typename T>
FK_INLINE void forward_block(const GaussianInformation<T>& a, int64_t first, int64_t rows) {
  using A = accumulate_t<T>;
  constexpr int64_t kCount = RowSums<A>::kCount;
  RowSums<A> divergence, precision, sum_log_std;
  for (int64_t r = 0; r < rows; ++r) {
    const T *mean = a.mean + (first + r) * a.columns, *log_std = a.log_std + (first + r) * a.columns;
    A *to_divergence = divergence.lane[r], *to_precision = precision.lane[r], *to_sum = sum_log_std.lane[r];
    int64_t j = 0;
    for (; j + kCount <= a.columns; j += kCount) {
      add_columns(to_divergence, to_precision, to_sum, mean + j, log_std + j, kCount);
    }
    if (j < a.columns) {
      add_columns(to_divergence, to_precision, to_sum, mean + j, log_std + j, a.columns - j);
    }
  }
  A kl[RowSums<A>::kRows], trace[RowSums<A>::kRows], power[RowSums<A>::kRows];
  divergence.sum(kl);
  precision.sum(trace);
  sum_log_std.sum(power);
  for (int64_t r = 0; r < rows; ++r) {
    a.kl[first + r] = A(0.5) * kl[r];
    a.trace[first + r] = trace[r];
    a.entropy_power[first + r] = entropy_power_of_sum(power[r], a.columns);
  }
}

template <typename T>
FK_INLINE void forward_rows(const GaussianInformation<T>& a, int64_t begin, int64_t end) {
  constexpr int64_t kRows = RowSums<accumulate_t<T>>::kRows;
  for (int64_t r = begin; r < end; r += kRows) forward_block(a, r, std::min(kRows, end - r));
}

FK_CLONES void gaussian_information_rows(const GaussianInformation<float>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void gaussian_information_rows(const GaussianInformation<double>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void gaussian_information_rows(const GaussianInformation<BFloat16>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}

std::tuple<Tensor, Tensor, Tensor> gaussian_information(const Tensor& mean_in, const Tensor& log_std_in) {
  const Tensor mean = as_contiguous(mean_in), log_std = as_contiguous(log_std_in);
  const int64_t rows = mean.size(0), columns = mean.size(1);
  const ScalarType type = accumulate_type(mean.scalar_type());
  const Tensor kl = new_output(mean, {rows}, type), trace = new_output(mean, {rows}, type);
  const Tensor entropy_power = new_output(mean, {rows}, type);
  dispatch(mean, "gaussian_information", [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const GaussianInformation<T> a{pointer<T>(mean),
                                   pointer<T>(log_std),
                                   output_pointer<A>(kl),
                                   output_pointer<A>(trace),
                                   output_pointer<A>(entropy_power),
                                   columns};
    for_rows(rows, columns, [&](int64_t begin, int64_t end) { gaussian_information_rows(a, begin, end); });
  });
  return {kl, trace, entropy_power};
}

template <typename T>
struct GaussianInformationBackward {
  using A = accumulate_t<T>;
  const A* grad_kl;  // each [N] or null
  const A* grad_trace;
  const A* grad_entropy_power;
  const T* mean;           // [N, d]
  const T* log_std;        // [N, d]
  const A* entropy_power;  // [N]
  Output<T> grad_mean;     // [N, d] or null
  Output<T> grad_log_std;  // [N, d] or null
  int64_t columns;
};

template <typename T>
FK_INLINE void backward_rows(const GaussianInformationBackward<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t r = begin; r < end; ++r) {
    const A grad_kl = a.grad_kl ? a.grad_kl[r] : A(0), grad_trace = a.grad_trace ? a.grad_trace[r] : A(0);
    const A grad_power = a.grad_entropy_power ? a.grad_entropy_power[r] : A(0);
    const A through_power = gaussian_information_through_power(grad_power, a.entropy_power[r], a.columns);
    for (int64_t start = 0; start < a.columns; start += kTile) {
      const int64_t n = std::min(kTile, a.columns - start), offset = r * a.columns + start;
      A grad[kTile];
      if (a.grad_mean) {
        const T* mean = a.mean + offset;
        for (int64_t j = 0; j < n; ++j) grad[j] = gaussian_information_grad_mean<A>(grad_kl, load(mean[j]));
        a.grad_mean.write(offset, grad, n);
      }
      if (a.grad_log_std) {
        const T* log_std = a.log_std + offset;
        for (int64_t j = 0; j < n; ++j) {
          grad[j] = gaussian_information_grad_log_std(grad_kl, grad_trace, through_power,
                                                      variance_of<A>(load(log_std[j])));
        }
        a.grad_log_std.write(offset, grad, n);
      }
    }
  }
  finish_streams();
}

FK_CLONES void gaussian_information_backward_rows(const GaussianInformationBackward<float>& a, int64_t begin,
                                                  int64_t end) {
  backward_rows(a, begin, end);
}
FK_CLONES void gaussian_information_backward_rows(const GaussianInformationBackward<double>& a, int64_t begin,
                                                  int64_t end) {
  backward_rows(a, begin, end);
}
FK_CLONES void gaussian_information_backward_rows(const GaussianInformationBackward<BFloat16>& a,
                                                  int64_t begin, int64_t end) {
  backward_rows(a, begin, end);
}

std::tuple<Tensor, Tensor> gaussian_information_backward(const std::optional<Tensor>& grad_kl_in,
                                                         const std::optional<Tensor>& grad_trace_in,
                                                         const std::optional<Tensor>& grad_entropy_power_in,
                                                         const Tensor& mean_in, const Tensor& log_std_in,
                                                         const Tensor& entropy_power_in,
                                                         std::vector<bool> output_mask) {
  const std::optional<Tensor> grad_kl = as_contiguous(grad_kl_in), grad_trace = as_contiguous(grad_trace_in);
  const std::optional<Tensor> grad_entropy_power = as_contiguous(grad_entropy_power_in);
  const Tensor mean = as_contiguous(mean_in), log_std = as_contiguous(log_std_in);
  const Tensor entropy_power = as_contiguous(entropy_power_in);
  const int64_t rows = mean.size(0), columns = mean.size(1);
  const Tensor grad_mean = new_gradient(output_mask[0], mean, mean.sizes());
  const Tensor grad_log_std = new_gradient(output_mask[1], log_std, log_std.sizes());
  dispatch(mean, "gaussian_information_backward", [&](auto element) {
    using T = decltype(element);
    using A = accumulate_t<T>;
    const GaussianInformationBackward<T> a{
        pointer<A>(grad_kl),  pointer<A>(grad_trace),  pointer<A>(grad_entropy_power),
        pointer<T>(mean),     pointer<T>(log_std),     pointer<A>(entropy_power),
        output<T>(grad_mean), output<T>(grad_log_std), columns};
    for_rows(rows, columns,
             [&](int64_t begin, int64_t end) { gaussian_information_backward_rows(a, begin, end); });
  });
  return {grad_mean, grad_log_std};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("gaussian_information", TORCH_BOX(&gaussian_information));
  m.impl("gaussian_information_backward", TORCH_BOX(&gaussian_information_backward));
}

}  // namespace fisherkernels
