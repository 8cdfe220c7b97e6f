// gaussian_information on CPU. Floor at N = 65536 rows, d = 64, float32 (16.8 MB an array): forward reads
// mean and log_std; backward reads them again and writes two gradients: 101 MB, two exponentials an element
// and pass, from one reduction.
//
// Overflow is looked for in a block of rows, not in every element: the block is computed as if there were
// none, beside the largest |log σ|, and once more with care where that was too large.
#include "math/gaussian_information.h"

#include "cpu/buffers.h"
#include "cpu/lanes.h"
#include "cpu/tensors.h"

namespace fisherkernels {
namespace {

constexpr int64_t kBlock = 16;  // rows

template <typename A>
constexpr A kLargestLogStd = ExpConstants<A>::kPairLimit / 2;

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

// Sums over columns, lane by lane.
template <typename V>
struct Sums {
  V divergence{}, precision{}, log_std{};

  // Of n columns: where n is less than a vector's lanes, the others' log σ = 0 would add to the precision.
  template <bool kWithin, bool kAll>
  FK_INLINE void add(const V& mean, const V& log_std_in, [[maybe_unused]] int64_t n) {
    ExpPair<V> variance = variance_of<kWithin>(log_std_in);
    if constexpr (!kAll) {
      for (int64_t k = n; k < kLanes; ++k) variance.inverse[k] = 0;
    }
    divergence += gaussian_information_divergence(mean, variance);
    precision += variance.inverse;
    log_std += log_std_in;
  }

  static constexpr int64_t kLanes = sizeof(V) / sizeof(V{}[0]);
};

template <bool kWithin, typename V, typename T>
FK_INLINE void sum_row(Sums<V>& sums, Magnitude<V>& magnitude, const T* mean, const T* log_std,
                       int64_t columns) {
  constexpr int64_t kLanes = Sums<V>::kLanes;
  V m, s;
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    load_vector(m, mean + j);
    load_vector(s, log_std + j);
    if constexpr (kWithin) magnitude.add(s);
    sums.template add<kWithin, true>(m, s, kLanes);
  }
  if (j < columns) {
    load_first(m, mean + j, columns - j);
    load_first(s, log_std + j, columns - j);
    if constexpr (kWithin) magnitude.add(s);
    sums.template add<kWithin, false>(m, s, columns - j);
  }
}

// Divergence, precision and log σ summed over the columns of a block of rows. False where kWithin was wrong.
template <int kBytes, bool kWithin, typename T>
FK_INLINE bool sum_block(const GaussianInformation<T>& a, int64_t first, int64_t rows,
                         accumulate_t<T> (&out)[3][kBlock]) {
  using A = accumulate_t<T>;
  using V = Vector<A, kBytes>;
  Magnitude<V> magnitude;
  for (int64_t four = 0; four < rows; four += 4) {
    V divergence[4], precision[4], log_std[4];
    for (int64_t r = 0; r < 4; ++r) {
      Sums<V> sums;
      const int64_t at = (first + four + r) * a.columns;
      if (four + r < rows) sum_row<kWithin>(sums, magnitude, a.mean + at, a.log_std + at, a.columns);
      divergence[r] = sums.divergence;
      precision[r] = sums.precision;
      log_std[r] = sums.log_std;
    }
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      store_vector(out[i] + four, Vector<A, 4 * sizeof(A)>{});
      add_sums<A, kBytes>(out[i] + four, i == 0 ? divergence : i == 1 ? precision : log_std);
    }
  }
  return !kWithin || magnitude.within(kLargestLogStd<A>);
}

template <int kBytes, typename T>
FK_INLINE void gaussian_information_rows_of(const GaussianInformation<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t rows = std::min(kBlock, end - first);
    A sums[3][kBlock];
    if (!sum_block<kBytes, true>(a, first, rows, sums)) sum_block<kBytes, false>(a, first, rows, sums);
    A power[kBlock];
    for (int64_t r = 0; r < kBlock; ++r) power[r] = entropy_power_of_sum(sums[2][r], a.columns);
    for (int64_t r = 0; r < rows; ++r) {
      a.kl[first + r] = A(0.5) * sums[0][r];
      a.trace[first + r] = sums[1][r];
      a.entropy_power[first + r] = power[r];
    }
  }
}

FK_WIDTHS(gaussian_information_rows, GaussianInformation<float>)
FK_WIDTHS(gaussian_information_rows, GaussianInformation<double>)
FK_WIDTHS(gaussian_information_rows, GaussianInformation<BFloat16>)

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

// to[j] = formula(from[j]), for vectors.
template <int kBytes, bool kStream, typename T, typename F>
FK_INLINE void map_row(T* to, const T* from, int64_t columns, const F& formula) {
  using A = accumulate_t<T>;
  using V = Vector<A, kBytes>;
  constexpr int64_t kLanes = kBytes / sizeof(A);
  V in, out;
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    load_vector(in, from + j);
    formula(out, in);
    if constexpr (kStream) {
      stream_vector(to + j, out);
    } else {
      store_vector(to + j, out);
    }
  }
  if (j < columns) {
    load_first(in, from + j, columns - j);
    formula(out, in);
    store_first(to + j, out, columns - j);
  }
}

template <int kBytes, typename T, typename F>
FK_INLINE void write_row(const Output<T>& output, int64_t offset, const T* from, int64_t columns,
                         const F& formula) {
  T* to = output.data + offset;
  if (output.stream && reinterpret_cast<uintptr_t>(to) % kBytes == 0) {
    map_row<kBytes, true>(to, from + offset, columns, formula);
  } else {
    map_row<kBytes, false>(to, from + offset, columns, formula);
  }
}

// False where kWithin was wrong.
template <int kBytes, bool kWithin, typename T>
FK_INLINE bool backward_block(const GaussianInformationBackward<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  using V = Vector<A, kBytes>;
  Magnitude<V> magnitude;
  for (int64_t r = begin; r < end; ++r) {
    const A grad_kl = a.grad_kl ? a.grad_kl[r] : A(0), grad_trace = a.grad_trace ? a.grad_trace[r] : A(0);
    const A grad_power = a.grad_entropy_power ? a.grad_entropy_power[r] : A(0);
    const A through_power = gaussian_information_through_power(grad_power, a.entropy_power[r], a.columns);
    if (a.grad_mean) {
      write_row<kBytes>(a.grad_mean, r * a.columns, a.mean, a.columns,
                        [&](V& grad, const V& mean) { grad = gaussian_information_grad_mean(grad_kl, mean); });
    }
    if (a.grad_log_std) {
      write_row<kBytes>(a.grad_log_std, r * a.columns, a.log_std, a.columns, [&](V& grad, const V& log_std) {
        if constexpr (kWithin) magnitude.add(log_std);
        grad = gaussian_information_grad_log_std<kWithin>(grad_kl, grad_trace, through_power,
                                                          variance_of<kWithin>(log_std));
      });
    }
  }
  return !kWithin || magnitude.within(kLargestLogStd<A>);
}

template <int kBytes, typename T>
FK_INLINE void gaussian_information_backward_rows_of(const GaussianInformationBackward<T>& a, int64_t begin,
                                                     int64_t end) {
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t last = std::min(first + kBlock, end);
    if (!backward_block<kBytes, true>(a, first, last)) {
      finish_streams();  // what follows writes the same memory
      backward_block<kBytes, false>(a, first, last);
    }
  }
  finish_streams();
}

FK_WIDTHS(gaussian_information_backward_rows, GaussianInformationBackward<float>)
FK_WIDTHS(gaussian_information_backward_rows, GaussianInformationBackward<double>)
FK_WIDTHS(gaussian_information_backward_rows, GaussianInformationBackward<BFloat16>)

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
