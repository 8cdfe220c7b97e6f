#include "cuda/rows.cuh"
#include "cuda/tiles.cuh"
#include "math/score_moments.h"

namespace fisherkernels::cuda {
namespace {

template <typename T, int N, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    score_moments_kernel(const T* __restrict__ scores,  // [S, N, D]
                         A* __restrict__ mean_square,   // [N]
                         A* __restrict__ square_mean,   // [N]
                         int64_t samples, int64_t rows, int64_t columns, A inverse_samples, int group) {
  const int64_t row = group_row(group);
  A squares = 0, squares_of_sums = 0;
  if (row < rows) {
    for (int64_t column = (threadIdx.x % group) * N; column < columns; column += group * N) {
      const T* first = scores + row * columns + column;
      auto sum = splat<A, N>(0);
      for (int64_t sample = 0; sample < samples; ++sample) {
        const auto s = load<N>(first + sample * rows * columns);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          sum[i] += s[i];
          squares += s[i] * s[i];
        }
      }
#pragma unroll
      for (int i = 0; i < N; ++i) squares_of_sums += sum[i] * sum[i];
    }
  }
  squares = reduce_group(squares, group);
  if (group > kWarp) __syncthreads();  // both sums go through the same shared memory
  squares_of_sums = reduce_group(squares_of_sums, group);
  if (row < rows && threadIdx.x % group == 0) {
    mean_square[row] = score_moments_mean_square(squares, inverse_samples);
    square_mean[row] = score_moments_square_mean(squares_of_sums, inverse_samples);
  }
}

// A thread owns columns of one row in all samples: it meets them twice, the second time in a cache.
template <typename T, int N, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    score_moments_backward_kernel(const A* __restrict__ grad_mean_square,  // [N]
                                  const A* __restrict__ grad_square_mean,  // [N]
                                  const T* __restrict__ scores,            // [S, N, D]
                                  T* __restrict__ grad,                    // [S, N, D]
                                  int64_t samples, int64_t rows, int64_t columns, A inverse_samples) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (column >= columns) return;
  for (int64_t row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y) {
    const A by_score = score_moments_by_score(grad_mean_square[row], inverse_samples);
    const A by_sum = score_moments_by_sum(grad_square_mean[row], inverse_samples);
    const int64_t first = row * columns + column;
    auto sum = splat<A, N>(0);
    for (int64_t sample = 0; sample < samples; ++sample) {
      const auto s = load<N>(scores + sample * rows * columns + first);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += s[i];
    }
    for (int64_t sample = 0; sample < samples; ++sample) {
      const int64_t at = sample * rows * columns + first;
      auto s = load<N>(scores + at);
#pragma unroll
      for (int i = 0; i < N; ++i) s[i] = score_moments_grad(by_score, s[i], by_sum, sum[i]);
      store(grad + at, s);
    }
  }
}

std::tuple<Tensor, Tensor> score_moments(Tensor scores_in) {
  const Launch launch(scores_in);
  const Tensor scores = as_contiguous(scores_in);
  const ScalarType type = scores.scalar_type(), accumulate = accumulate_type(type);
  const int64_t samples = scores.size(0), rows = scores.size(1), columns = scores.size(2);
  Tensor mean_square = empty(scores, {rows}, accumulate), square_mean = empty(scores, {rows}, accumulate);
  if (rows == 0) return {mean_square, square_mean};
  dispatch_type("score_moments", type, [&]<typename T>() {
    using A = Accumulate<T>;
    dispatch_width<T>(columns, {read<T>(scores)}, [&]<int N>() {
      const RowGroups groups(rows, columns / N);
      score_moments_kernel<T, N><<<groups.blocks, kBlock, 0, launch.stream>>>(
          read<T>(scores), write<A>(mean_square), write<A>(square_mean), samples, rows, columns,
          A(1) / static_cast<A>(samples), groups.group);
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {mean_square, square_mean};
}

Tensor score_moments_backward(Tensor grad_mean_square_in, Tensor grad_square_mean_in, Tensor scores_in) {
  const Launch launch(scores_in);
  const Tensor scores = as_contiguous(scores_in);
  const ScalarType type = scores.scalar_type(), accumulate = accumulate_type(type);
  const Tensor grad_mean_square = as_type(grad_mean_square_in, accumulate),
               grad_square_mean = as_type(grad_square_mean_in, accumulate);
  const int64_t samples = scores.size(0), rows = scores.size(1), columns = scores.size(2);
  Tensor grad = empty(scores, shape_of(scores));
  if (rows == 0 || columns == 0) return grad;
  dispatch_type("score_moments_backward", type, [&]<typename T>() {
    using A = Accumulate<T>;
    dispatch_width<T>(columns, {read<T>(scores), read<T>(grad)}, [&]<int N>() {
      const Tiles tiles(rows, columns / N);
      score_moments_backward_kernel<T, N><<<tiles.grid, tiles.block, 0, launch.stream>>>(
          read<A>(grad_mean_square), read<A>(grad_square_mean), read<T>(scores), write<T>(grad), samples,
          rows, columns, A(1) / static_cast<A>(samples));
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CUDA, m) {
  m.impl("score_moments", TORCH_BOX(&score_moments));
  m.impl("score_moments_backward", TORCH_BOX(&score_moments_backward));
}

}  // namespace fisherkernels::cuda
