// half_squared_norm on CPU. Floor: forward reads t once; backward reads t and writes its gradient once.
#include "math/half_squared_norm.h"

#include "cpu/buffers.h"
#include "cpu/tensors.h"

namespace fisherkernels {
namespace {

template <typename T>
struct HalfSquaredNorm {
  using A = accumulate_t<T>;
  const T* t;           // [R, D]
  const A* grad_value;  // [R], backward only
  A* value;             // [R], forward only
  Output<T> grad;       // [R, D], backward only
  int64_t columns;
};

template <typename T>
FK_INLINE void forward_rows(const HalfSquaredNorm<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t r = begin; r < end; ++r) {
    Lanes<A> lanes;
    lanes.add_squares(a.t + r * a.columns, a.columns);
    a.value[r] = half_squared_norm_of_sum(lanes.sum());
  }
}

template <typename T>
FK_INLINE void backward_rows(const HalfSquaredNorm<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t r = begin; r < end; ++r) {
    const A grad_value = a.grad_value[r];
    for (int64_t start = 0; start < a.columns; start += kTile) {
      const int64_t n = std::min(kTile, a.columns - start);
      const T* t = a.t + r * a.columns + start;
      A grad[kTile];
      for (int64_t j = 0; j < n; ++j) grad[j] = half_squared_norm_grad(grad_value, load(t[j]));
      a.grad.write(r * a.columns + start, grad, n);
    }
  }
  finish_streams();
}

FK_CLONES void half_squared_norm_rows(const HalfSquaredNorm<float>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void half_squared_norm_rows(const HalfSquaredNorm<double>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void half_squared_norm_rows(const HalfSquaredNorm<BFloat16>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void half_squared_norm_backward_rows(const HalfSquaredNorm<float>& a, int64_t begin, int64_t end) {
  backward_rows(a, begin, end);
}
FK_CLONES void half_squared_norm_backward_rows(const HalfSquaredNorm<double>& a, int64_t begin, int64_t end) {
  backward_rows(a, begin, end);
}
FK_CLONES void half_squared_norm_backward_rows(const HalfSquaredNorm<BFloat16>& a, int64_t begin,
                                               int64_t end) {
  backward_rows(a, begin, end);
}

Tensor half_squared_norm(const Tensor& t_in) {
  const Tensor t = as_contiguous(t_in);
  const int64_t rows = t.size(0), columns = t.size(1);
  const Tensor value = new_output(t, {rows}, accumulate_type(t.scalar_type()));
  dispatch(t, "half_squared_norm", [&](auto element) {
    using T = decltype(element);
    const HalfSquaredNorm<T> a{pointer<T>(t), nullptr, output_pointer<accumulate_t<T>>(value), {}, columns};
    for_rows(rows, columns, [&](int64_t begin, int64_t end) { half_squared_norm_rows(a, begin, end); });
  });
  return value;
}

Tensor half_squared_norm_backward(const Tensor& grad_value_in, const Tensor& t_in) {
  const Tensor t = as_contiguous(t_in), grad_value = as_contiguous(grad_value_in);
  const int64_t rows = t.size(0), columns = t.size(1);
  const Tensor grad = new_output(t, t.sizes());
  dispatch(t, "half_squared_norm_backward", [&](auto element) {
    using T = decltype(element);
    const HalfSquaredNorm<T> a{pointer<T>(t), pointer<accumulate_t<T>>(grad_value), nullptr, output<T>(grad),
                               columns};
    for_rows(rows, columns,
             [&](int64_t begin, int64_t end) { half_squared_norm_backward_rows(a, begin, end); });
  });
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("half_squared_norm", TORCH_BOX(&half_squared_norm));
  m.impl("half_squared_norm_backward", TORCH_BOX(&half_squared_norm_backward));
}

}  // namespace fisherkernels
