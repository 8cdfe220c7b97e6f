#include "cuda/tiles.cuh"
#include "math/stability_cotangent.h"

namespace fisherkernels::cuda {
namespace {

// A thread owns columns of one row of log_std, so that 1/σ is computed once for all of its samples.
template <typename T, int N, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    stability_cotangent_kernel(const T* __restrict__ eps,      // [R, d]
                               const T* __restrict__ log_std,  // [M, d]
                               T* __restrict__ cotangent,      // [R, 2d]
                               int64_t paired_rows, int64_t samples, int64_t columns) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (column >= columns) return;
  for (int64_t m = blockIdx.y * blockDim.y + threadIdx.y; m < paired_rows; m += gridDim.y * blockDim.y) {
    auto inverse_std = load<N>(log_std + m * columns + column);
#pragma unroll
    for (int i = 0; i < N; ++i) inverse_std[i] = inverse_std_of(inverse_std[i]);
    for (int64_t l = 0; l < samples; ++l) {
      const int64_t row = l * paired_rows + m;
      const auto e = load<N>(eps + row * columns + column);
      Pack<A, N> mean_half, std_half;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        mean_half[i] = stability_mean_half(e[i], inverse_std[i]);
        std_half[i] = stability_std_half(e[i]);
      }
      T* out = cotangent + row * 2 * columns + column;
      store(out, mean_half);
      store(out + columns, std_half);
    }
  }
}

template <typename T, int N, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    stability_cotangent_backward_kernel(const T* __restrict__ grad,     // [R, 2d]
                                        const T* __restrict__ eps,      // [R, d]
                                        const T* __restrict__ log_std,  // [M, d]
                                        T* __restrict__ grad_eps,       // [R, d] or null
                                        T* __restrict__ grad_log_std,   // [M, d] or null
                                        int64_t paired_rows, int64_t samples, int64_t columns) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (column >= columns) return;
  for (int64_t m = blockIdx.y * blockDim.y + threadIdx.y; m < paired_rows; m += gridDim.y * blockDim.y) {
    auto inverse_std = load<N>(log_std + m * columns + column);
#pragma unroll
    for (int i = 0; i < N; ++i) inverse_std[i] = inverse_std_of(inverse_std[i]);
    auto sum = splat<A, N>(0);
    for (int64_t l = 0; l < samples; ++l) {
      const int64_t row = l * paired_rows + m, at = row * columns + column;
      const auto e = load<N>(eps + at);
      const auto grad_mean_half = load<N>(grad + row * 2 * columns + column);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += stability_grad_log_std(grad_mean_half[i], inverse_std[i], e[i]);
      if (grad_eps != nullptr) {
        const auto grad_std_half = load<N>(grad + row * 2 * columns + columns + column);
        Pack<A, N> to_eps;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          to_eps[i] = stability_grad_eps(grad_mean_half[i], grad_std_half[i], inverse_std[i], e[i]);
        }
        store(grad_eps + at, to_eps);
      }
    }
    if (grad_log_std != nullptr) store(grad_log_std + m * columns + column, sum);
  }
}

Tensor stability_cotangent(Tensor eps_in, Tensor log_std_in) {
  const Launch launch(eps_in);
  const Tensor eps = as_contiguous(eps_in), log_std = as_contiguous(log_std_in);
  const int64_t rows = eps.size(0), columns = eps.size(1), paired_rows = log_std.size(0);
  Tensor cotangent = empty(eps, {rows, 2 * columns});
  if (rows == 0 || columns == 0) return cotangent;
  dispatch_type("stability_cotangent", eps.scalar_type(), [&]<typename T>() {
    dispatch_width<T>(columns, {read<T>(eps), read<T>(log_std), read<T>(cotangent)}, [&]<int N>() {
      const Tiles tiles(paired_rows, columns / N);
      stability_cotangent_kernel<T, N><<<tiles.grid, tiles.block, 0, launch.stream>>>(
          read<T>(eps), read<T>(log_std), write<T>(cotangent), paired_rows, rows / paired_rows, columns);
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return cotangent;
}

std::tuple<Tensor, Tensor> stability_cotangent_backward(Tensor grad_in, Tensor eps_in, Tensor log_std_in,
                                                        std::vector<bool> output_mask) {
  const Launch launch(eps_in);
  const Tensor grad = as_contiguous(grad_in), eps = as_contiguous(eps_in),
               log_std = as_contiguous(log_std_in);
  const int64_t rows = eps.size(0), columns = eps.size(1), paired_rows = log_std.size(0);
  Tensor grad_eps = empty_if(output_mask[0], eps), grad_log_std = empty_if(output_mask[1], log_std);
  if (paired_rows == 0 || columns == 0) return {grad_eps, grad_log_std};
  dispatch_type("stability_cotangent_backward", eps.scalar_type(), [&]<typename T>() {
    dispatch_width<T>(
        columns, {read<T>(grad), read<T>(eps), read<T>(log_std), read<T>(grad_eps), read<T>(grad_log_std)},
        [&]<int N>() {
          const Tiles tiles(paired_rows, columns / N);
          stability_cotangent_backward_kernel<T, N><<<tiles.grid, tiles.block, 0, launch.stream>>>(
              read<T>(grad), read<T>(eps), read<T>(log_std), write<T>(output_mask[0], grad_eps),
              write<T>(output_mask[1], grad_log_std), paired_rows, rows / paired_rows, columns);
        });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_eps, grad_log_std};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CUDA, m) {
  m.impl("stability_cotangent", TORCH_BOX(&stability_cotangent));
  m.impl("stability_cotangent_backward", TORCH_BOX(&stability_cotangent_backward));
}

}  // namespace fisherkernels::cuda
