// factor_solve on CPU. Floor: the factors are read once, and 2 S d² FLOPs a sample.
#include "cpu/buffers.h"
#include "cpu/scratch.h"
#include "cpu/tensors.h"
#include "cpu/triangular.h"

namespace fisherkernels {
namespace {

template <typename T>
struct FactorSolve {
  const T* factor;                 // [N, d, d]
  const T* rhs;                    // [S, N, d]
  T* solution;                     // [S, N, d]
  int64_t size, samples, systems;  // d, N, S
};

template <int kBytes, typename T>
FK_INLINE void factor_solve_samples_of(const FactorSolve<T>& a, int64_t begin, int64_t end) {
  const int64_t rows = rounded(a.size), stride = padded<T>(a.size);
  const Scratch<T> memory((rows + 3) * stride);
  T* lower = memory.data();
  T* inverse = lower + rows * stride;
  T* b = inverse + stride;
  T* vector = b + stride;
  for (int64_t n = begin; n < end; ++n) {
    const T* factor = a.factor + n * a.size * a.size;
    for (int64_t k = 0; k < rows; ++k) {
      T* row = lower + k * stride;
      const int64_t filled = k < a.size ? k + 1 : 0;
      memcpy(row, factor + k * a.size, filled * sizeof(T));
      std::fill_n(row + filled, stride - filled, T(0));
      inverse[k] = k < a.size ? T(1) / row[k] : T(1);
    }
    for (int64_t s = 0; s < a.systems; ++s) {
      const int64_t at = (s * a.samples + n) * a.size;
      T mark = 0;
      for (int64_t k = 0; k < a.size; ++k) mark += poison(a.rhs[at + k]);
      memcpy(b, a.rhs + at, a.size * sizeof(T));
      std::fill_n(b + a.size, stride - a.size, T(0));
      solve_lower<T, kBytes>(lower, stride, a.size, inverse, b, vector);
      for (int64_t k = 0; k < a.size; ++k) a.solution[at + k] = b[k] + mark;
    }
  }
}

FK_WIDTHS(factor_solve_samples, FactorSolve<float>)
FK_WIDTHS(factor_solve_samples, FactorSolve<double>)

Tensor factor_solve(const Tensor& factor_in, const Tensor& rhs_in) {
  const Tensor factor = as_contiguous(factor_in), rhs = as_contiguous(rhs_in);
  const int64_t size = factor.size(1), samples = factor.size(0), systems = rhs.size(0);
  const Tensor solution = new_output(rhs, rhs.sizes());
  if (systems == 0) return solution;
  dispatch_full_precision(rhs, "factor_solve", [&](auto element) {
    using T = decltype(element);
    const FactorSolve<T> a{
        pointer<T>(factor), pointer<T>(rhs), output_pointer<T>(solution), size, samples, systems};
    for_rows(samples, (systems + 1) * (size + 1) * (size + 1),
             [&](int64_t begin, int64_t end) { factor_solve_samples(a, begin, end); });
  });
  return solution;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) { m.impl("factor_solve", TORCH_BOX(&factor_solve)); }

}  // namespace fisherkernels
