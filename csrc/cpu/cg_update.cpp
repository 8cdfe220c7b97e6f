// cg_update on CPU. Floor: reads solution, residual, direction, product and step + 1 rows of history once,
// writes the first three and one row of history. A row lives in a workspace of two rows while its history
// streams by.
#include "math/cg_update.h"

#include "cpu/tensors.h"

namespace fisherkernels {
namespace {

template <typename T>
struct CgUpdate {
  T* solution;          // [R, d]
  T* residual;          // [R, d]
  T* direction;         // [R, d]
  T* history;           // [step + 2, R, d]
  T* squared_norm;      // [R]
  int32_t* status;      // [R]
  int32_t* iterations;  // [R]
  const T* product;     // [R, d]
  const T* threshold;   // [R]
  int64_t rows, columns, step;
};

// Products summed in 64 bytes' worth of independent lanes: rows are short.
template <typename T>
FK_INLINE T dot(const T* a, const T* b, int64_t n) {
  constexpr int64_t kLanes = 64 / sizeof(T);
  T lane[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lane[k] += a[j + k] * b[j + k];
  }
  for (int64_t k = 0; j + k < n; ++k) lane[k] += a[j + k] * b[j + k];
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t k = 0; k < width; ++k) lane[k] += lane[k + width];
  }
  return lane[0];
}

// work: two rows, for the updated residual and for its components along the earlier ones.
template <typename T>
FK_INLINE void update_rows(const CgUpdate<T>& a, T* __restrict work, int64_t begin, int64_t end) {
  const int64_t n = a.columns;
  T* __restrict updated = work;
  T* __restrict components = work + n;
  for (int64_t r = begin; r < end; ++r) {
    if (a.status[r] != kActive) continue;
    const T* __restrict product = a.product + r * n;
    T* __restrict residual = a.residual + r * n;
    T* __restrict direction = a.direction + r * n;
    const T before = a.squared_norm[r], threshold = a.threshold[r];
    const T curvature = dot<T>(direction, product, n);
    const T alpha = before / curvature;
    for (int64_t j = 0; j < n; ++j) {
      updated[j] = residual[j] - alpha * product[j];
      components[j] = 0;
    }
    for (int64_t k = 0; k <= a.step; ++k) {
      const T* __restrict unit = a.history + (k * a.rows + r) * n;
      const T component = dot<T>(unit, updated, n);
      for (int64_t j = 0; j < n; ++j) components[j] += component * unit[j];
    }
    for (int64_t j = 0; j < n; ++j) updated[j] -= components[j];
    const T after = dot<T>(updated, updated, n);
    const int32_t status = cg_status(before, curvature, after, threshold);
    a.status[r] = status;
    if (!takes_step(before, threshold, status)) continue;

    const T beta = after / before, scale = inverse_norm(after);
    T* __restrict solution = a.solution + r * n;
    T* __restrict unit = a.history + ((a.step + 1) * a.rows + r) * n;
    for (int64_t j = 0; j < n; ++j) {
      solution[j] += alpha * direction[j];
      direction[j] = updated[j] + beta * direction[j];
      residual[j] = updated[j];
      unit[j] = scale * updated[j];
    }
    a.squared_norm[r] = after;
    a.iterations[r] += 1;
  }
}

FK_CLONES void cg_update_rows(const CgUpdate<float>& a, float* work, int64_t begin, int64_t end) {
  update_rows(a, work, begin, end);
}
FK_CLONES void cg_update_rows(const CgUpdate<double>& a, double* work, int64_t begin, int64_t end) {
  update_rows(a, work, begin, end);
}

void cg_update(Tensor solution, Tensor residual, Tensor direction, Tensor history, Tensor squared_norm,
               Tensor status, Tensor iterations, const Tensor& product_in, const Tensor& threshold_in,
               int64_t step) {
  for (const Tensor* changed :
       {&solution, &residual, &direction, &history, &squared_norm, &status, &iterations}) {
    STD_TORCH_CHECK(changed->is_contiguous(), "cg_update: arguments changed in place must be contiguous");
  }
  const Tensor product = as_contiguous(product_in), threshold = as_contiguous(threshold_in);
  const int64_t rows = solution.size(0), columns = solution.size(1);
  if (rows == 0) return;
  dispatch_full_precision(solution, "cg_update", [&](auto element) {
    using T = decltype(element);
    const CgUpdate<T> a{output_pointer<T>(solution),
                        output_pointer<T>(residual),
                        output_pointer<T>(direction),
                        output_pointer<T>(history),
                        output_pointer<T>(squared_norm),
                        output_pointer<int32_t>(status),
                        output_pointer<int32_t>(iterations),
                        pointer<T>(product),
                        pointer<T>(threshold),
                        rows,
                        columns,
                        step};
    for_rows(rows, columns * (step + 8), [&](int64_t begin, int64_t end) {
      std::vector<T> work(2 * columns);
      cg_update_rows(a, work.data(), begin, end);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) { m.impl("cg_update", TORCH_BOX(&cg_update)); }

}  // namespace fisherkernels
