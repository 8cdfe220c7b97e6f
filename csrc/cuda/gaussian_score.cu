#include "cuda/rows.cuh"
#include "cuda/tiles.cuh"
#include "math/gaussian_score.h"
#include "math/half_squared_norm.h"

namespace fisherkernels::cuda {
namespace {

template <typename T, int N, bool kPerColumn, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    gaussian_score_kernel(const T* __restrict__ x,         // [M, D]
                          const T* __restrict__ mean,      // [R, D]
                          const A* __restrict__ variance,  // [D] or [1]
                          A* __restrict__ value,           // [R]
                          T* __restrict__ residual,        // [R, D]
                          int64_t rows, int64_t x_rows, int64_t columns, int group) {
  const int64_t row = group_row(group);
  A squares = 0, inverses = 0;
  if (row < rows) {
    const T* x_row = x + paired_row(row, x_rows) * columns;
    const T* mean_row = mean + row * columns;
    T* residual_row = residual + row * columns;
    Pack<A, N> inverse;
    if constexpr (!kPerColumn) inverse = splat<A, N>(1 / variance[0]);
    for (int64_t column = (threadIdx.x % group) * N; column < columns; column += group * N) {
      const auto a = load<N>(x_row + column);
      const auto b = load<N>(mean_row + column);
      if constexpr (kPerColumn) inverse = reciprocal(load<N>(variance + column));
      Pack<A, N> r;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        r[i] = gaussian_score_residual(a[i], b[i], inverse[i]);
        squares += r[i] * r[i];
        inverses += inverse[i];
      }
      store(residual_row + column, r);
    }
  }
  const A sum = reduce_group(half_squared_norm_of_sum(squares) - inverses, group);
  if (row < rows && threadIdx.x % group == 0) value[row] = sum;
}

template <typename T, int N, bool kPerColumn, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    gaussian_score_backward_kernel(const A* __restrict__ grad_value,     // [R]
                                   const T* __restrict__ grad_residual,  // [R, D] or null
                                   const T* __restrict__ residual,       // [R, D]
                                   const A* __restrict__ variance,       // [D] or [1]
                                   T* __restrict__ grad_x,               // [M, D] or null
                                   T* __restrict__ grad_mean,            // [R, D] or null
                                   A* __restrict__ partials,             // [blocks, D or 1] or null
                                   int64_t x_rows, int64_t samples, int64_t columns) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  const bool active = column < columns;
  Pack<A, N> inverse = splat<A, N>(0), through_residual = splat<A, N>(0);
  A sum_grad_value = 0;
  if (active) {
    if constexpr (kPerColumn) {
      inverse = reciprocal(load<N>(variance + column));
    } else {
      inverse = splat<A, N>(1 / variance[0]);
    }
    for (int64_t m = blockIdx.y * blockDim.y + threadIdx.y; m < x_rows; m += gridDim.y * blockDim.y) {
      Pack<A, N> sum = splat<A, N>(0);
      for (int64_t l = 0; l < samples; ++l) {
        const int64_t row = l * x_rows + m, at = row * columns + column;
        const A g = grad_value[row];
        const auto r = load<N>(residual + at);
        Pack<A, N> outer = splat<A, N>(0), to_mean;
        if (grad_residual != nullptr) outer = load<N>(grad_residual + at);
        sum_grad_value += g;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const A through = gaussian_score_through(g, r[i], outer[i]);
          const A to_x = gaussian_score_grad_x(through, inverse[i]);
          to_mean[i] = -to_x;
          sum[i] += to_x;
          through_residual[i] += through * r[i];
        }
        if (grad_mean != nullptr) store(grad_mean + at, to_mean);
      }
      if (grad_x != nullptr) store(grad_x + m * columns + column, sum);
    }
  }
  if (partials == nullptr) return;
  Pack<A, N> grad_variance;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    grad_variance[i] = gaussian_score_grad_variance(through_residual[i], sum_grad_value, inverse[i]);
  }
  if constexpr (kPerColumn) {
    __shared__ A shared[kBlock * N];
    grad_variance = reduce_rows(grad_variance, shared);
    if (threadIdx.y == 0 && active) store(partials + blockIdx.y * columns + column, grad_variance);
  } else {
    A sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += grad_variance[i];
    sum = reduce_group(sum, kBlock);
    if (threadIdx.x == 0 && threadIdx.y == 0) partials[blockIdx.y * gridDim.x + blockIdx.x] = sum;
  }
}

std::tuple<Tensor, Tensor> gaussian_score(Tensor x_in, Tensor mean_in, Tensor variance_in) {
  const Launch launch(mean_in);
  const Tensor x = as_contiguous(x_in), mean = as_contiguous(mean_in);
  const ScalarType type = mean.scalar_type(), accumulate = accumulate_type(type);
  const Tensor variance = as_type(variance_in, accumulate);
  const int64_t rows = mean.size(0), columns = mean.size(1);
  const bool per_column = variance.dim() != 0;
  Tensor value = empty(mean, {rows}, accumulate), residual = empty(mean, {rows, columns});
  if (rows == 0) return {value, residual};
  dispatch_type("gaussian_score", type, [&]<typename T>() {
    using A = Accumulate<T>;
    dispatch_width<T>(
        columns, {read<T>(x), read<T>(mean), per_column ? read<A>(variance) : nullptr, read<T>(residual)},
        [&]<int N>() {
          const auto kernel =
              per_column ? gaussian_score_kernel<T, N, true> : gaussian_score_kernel<T, N, false>;
          const RowGroups groups(rows, columns / N);
          kernel<<<groups.blocks, kBlock, 0, launch.stream>>>(read<T>(x), read<T>(mean), read<A>(variance),
                                                              write<A>(value), write<T>(residual), rows,
                                                              x.size(0), columns, groups.group);
        });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {value, residual};
}

std::tuple<Tensor, Tensor, Tensor> gaussian_score_backward(Tensor grad_value_in,
                                                           std::optional<Tensor> grad_residual_in,
                                                           Tensor residual_in, Tensor variance_in,
                                                           int64_t x_rows, std::vector<bool> output_mask) {
  const Launch launch(residual_in);
  const Tensor residual = as_contiguous(residual_in);
  const auto grad_residual = as_contiguous(grad_residual_in);
  const ScalarType type = residual.scalar_type(), accumulate = accumulate_type(type);
  const Tensor grad_value = as_type(grad_value_in, accumulate), variance = as_type(variance_in, accumulate);
  const int64_t rows = residual.size(0), columns = residual.size(1), samples = x_rows > 0 ? rows / x_rows : 0;
  const bool per_column = variance.dim() != 0;
  Tensor grad_x = output_mask[0] ? empty(residual, {x_rows, columns}) : empty(residual, {0});
  Tensor grad_mean = empty_if(output_mask[1], residual);
  Tensor grad_variance = empty(variance_in, {0});
  dispatch_type("gaussian_score_backward", type, [&]<typename T>() {
    using A = Accumulate<T>;
    dispatch_width<T>(
        columns,
        {read<T>(grad_residual), read<T>(residual), per_column ? read<A>(variance) : nullptr, read<T>(grad_x),
         read<T>(grad_mean)},
        [&]<int N>() {
          const auto kernel = per_column ? gaussian_score_backward_kernel<T, N, true>
                                         : gaussian_score_backward_kernel<T, N, false>;
          const Tiles tiles(x_rows, columns / N);
          const int64_t blocks = per_column ? tiles.grid.y : int64_t(tiles.grid.y) * tiles.grid.x;
          Tensor partials =
              empty(residual, {output_mask[2] ? blocks : 0, per_column ? columns : 1}, accumulate);
          if (tiles.blocks() > 0) {
            kernel<<<tiles.grid, tiles.block, 0, launch.stream>>>(
                read<A>(grad_value), read<T>(grad_residual), read<T>(residual), read<A>(variance),
                write<T>(output_mask[0], grad_x), write<T>(output_mask[1], grad_mean),
                write<A>(output_mask[2], partials), x_rows, samples, columns);
            STD_CUDA_KERNEL_LAUNCH_CHECK();
          }
          if (output_mask[2]) {
            grad_variance = sum_rows<A>(partials, shape_of(variance), variance_in.scalar_type(), launch);
          }
        });
  });
  return {grad_x, grad_mean, grad_variance};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CUDA, m) {
  m.impl("gaussian_score", TORCH_BOX(&gaussian_score));
  m.impl("gaussian_score_backward", TORCH_BOX(&gaussian_score_backward));
}

}  // namespace fisherkernels::cuda
