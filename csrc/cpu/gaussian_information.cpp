// gaussian_information on CPU. Floor at N = 65536 rows, d = 64, float32 (16.8 MB an array): forward reads
// mean and log_std; backward reads them again and writes two gradients: 101 MB. Two exponentials an element
// and pass, from one reduction: 16 multiplications (or FMAs), 8 additions and 4 integer operations, which
// AVX2 does for 8 elements at a time in 37 instructions. Forward is bound by these, backward by memory.
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

  template <bool kWithin>
  FK_INLINE void add(const V& mean, const V& s) {
    const ExpPair<V> variance = variance_of<kWithin>(s);
    divergence += gaussian_information_divergence(mean, variance);
    precision += variance.inverse;
    log_std += s;
  }

  // Of the last n lanes alone.
  template <bool kWithin>
  FK_INLINE void add_last(const V& mean, const V& s, int64_t n) {
    Sums terms;
    terms.template add<kWithin>(mean, s);
    keep_last(terms.divergence, n);
    keep_last(terms.precision, n);
    keep_last(terms.log_std, n);
    divergence += terms.divergence;
    precision += terms.precision;
    log_std += terms.log_std;
  }
};

// Of the row at `begin` of both arrays.
template <bool kWithin, typename V, typename T>
FK_INLINE void sum_row(Sums<V>& sums, Magnitude<V>& magnitude, const T* mean, const T* log_std, int64_t begin,
                       int64_t columns) {
  constexpr int64_t kLanes = lane_count<V>;
  const int64_t end = begin + columns;
  V m, s;
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) {
    load_vector(m, mean + at);
    load_vector(s, log_std + at);
    if constexpr (kWithin) magnitude.add(s);
    sums.template add<kWithin>(m, s);
  }
  if (at < end) {
    load_before(m, mean, end);
    load_before(s, log_std, end);
    if constexpr (kWithin) magnitude.add(s);
    sums.template add_last<kWithin>(m, s, end - at);
  }
}

// Divergence, precision and log σ summed over the columns of a block of rows. False where kWithin was wrong.
template <int kBytes, bool kWithin, typename T>
FK_INLINE bool sum_block(const GaussianInformation<T>& a, int64_t first, int64_t rows,
                         accumulate_t<T> (&out)[3][kBlock]) {
  using A = accumulate_t<T>;
  using V = Vector<A, kBytes>;
  Magnitude<V> magnitude;
  std::fill_n(out[0], 3 * kBlock, A(0));
  for (int64_t four = 0; four < rows; four += 4) {
    V divergence[4], precision[4], log_std[4];
    for (int64_t q = 0; q < 4; ++q) {
      Sums<V> sums;
      if (four + q < rows) {
        sum_row<kWithin>(sums, magnitude, a.mean, a.log_std, (first + four + q) * a.columns, a.columns);
      }
      divergence[q] = sums.divergence;
      precision[q] = sums.precision;
      log_std[q] = sums.log_std;
    }
    add_sums<A, kBytes>(out[0] + four, divergence);
    add_sums<A, kBytes>(out[1] + four, precision);
    add_sums<A, kBytes>(out[2] + four, log_std);
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
    for (int64_t r = 0; r < kBlock; ++r) {
      sums[0][r] *= A(0.5);
      sums[2][r] = entropy_power_of_sum(sums[2][r], a.columns);
    }
    A* const to[] = {a.kl + first, a.trace + first, a.entropy_power + first};
    for (int i = 0; i < 3; ++i) {
      if (rows == kBlock) {
        memcpy(to[i], sums[i], sizeof(sums[i]));
      } else {
        std::copy_n(sums[i], rows, to[i]);
      }
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

// to = formula(from) for the row at `begin` of both arrays, vector by vector.
template <int kBytes, bool kStream, typename T, typename F>
FK_INLINE void map_row(T* to, const T* from, int64_t begin, int64_t columns, const F& formula) {
  using V = Vector<accumulate_t<T>, kBytes>;
  constexpr int64_t kLanes = lane_count<V>;
  const int64_t end = begin + columns;
  V in, out;
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) {
    load_vector(in, from + at);
    formula(out, in);
    if constexpr (kStream) {
      stream_vector(to + at, out);
    } else {
      store_vector(to + at, out);
    }
  }
  if (at < end) {
    load_before(in, from, end);
    formula(out, in);
    store_before(to, end, out, std::min(columns, kLanes));
  }
}

template <int kBytes, typename T, typename F>
FK_INLINE void write_row(const Output<T>& output, const T* from, int64_t begin, int64_t columns,
                         const F& formula) {
  if (output.stream && reinterpret_cast<uintptr_t>(output.data + begin) % kBytes == 0) {
    map_row<kBytes, true>(output.data, from, begin, columns, formula);
  } else {
    map_row<kBytes, false>(output.data, from, begin, columns, formula);
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
      write_row<kBytes>(a.grad_mean, a.mean, r * a.columns, a.columns, [&](V& grad, const V& mean) {
        grad = gaussian_information_grad_mean(grad_kl, mean);
      });
    }
    if (a.grad_log_std) {
      write_row<kBytes>(a.grad_log_std, a.log_std, r * a.columns, a.columns, [&](V& grad, const V& log_std) {
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
