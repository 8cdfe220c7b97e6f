#include "cuda/rows.cuh"
#include "cuda/tiles.cuh"
#include "math/gaussian_information.h"
#include "math/half_squared_norm.h"

namespace fisherkernels::cuda {
namespace {

template <typename T, int N, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    gaussian_information_kernel(const T* __restrict__ mean,     // [N, d]
                                const T* __restrict__ log_std,  // [N, d]
                                A* __restrict__ kl,             // [N]
                                A* __restrict__ trace,          // [N]
                                A* __restrict__ entropy_power,  // [N]
                                int64_t rows, int64_t columns, int group) {
  const int64_t row = group_row(group);
  Pack<A, 3> sums = splat<A, 3>(0);  // of the divergence, 1/σ² and log σ
  if (row < rows) {
    for (int64_t column = (threadIdx.x % group) * N; column < columns; column += group * N) {
      const auto m = load<N>(mean + row * columns + column);
      const auto s = load<N>(log_std + row * columns + column);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const ExpPair<A> variance = variance_of(s[i]);
        sums[0] += gaussian_information_divergence(m[i], variance);
        sums[1] += variance.inverse;
        sums[2] += s[i];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (i > 0 && group > kWarp) __syncthreads();  // the sum before has been read by all
    sums[i] = reduce_group(sums[i], group);
  }
  if (row < rows && threadIdx.x % group == 0) {
    kl[row] = half_squared_norm_of_sum(sums[0]);
    trace[row] = sums[1];
    entropy_power[row] = entropy_power_of_sum(sums[2], columns);
  }
}

template <typename T, int N, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    gaussian_information_backward_kernel(const A* __restrict__ grad_kl,             // each [N] or null
                                         const A* __restrict__ grad_trace,          //
                                         const A* __restrict__ grad_entropy_power,  //
                                         const T* __restrict__ mean,                // [N, d]
                                         const T* __restrict__ log_std,             // [N, d]
                                         const A* __restrict__ entropy_power,       // [N]
                                         T* __restrict__ grad_mean,                 // [N, d] or null
                                         T* __restrict__ grad_log_std,              // [N, d] or null
                                         int64_t rows, int64_t columns) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (column >= columns) return;
  for (int64_t row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y) {
    const int64_t at = row * columns + column;
    const A to_kl = grad_kl != nullptr ? grad_kl[row] : 0;
    if (grad_mean != nullptr) {
      auto m = load<N>(mean + at);
#pragma unroll
      for (int i = 0; i < N; ++i) m[i] = gaussian_information_grad_mean(to_kl, m[i]);
      store(grad_mean + at, m);
    }
    if (grad_log_std != nullptr) {
      const A to_trace = grad_trace != nullptr ? grad_trace[row] : 0;
      const A to_power = grad_entropy_power != nullptr ? grad_entropy_power[row] : 0;
      const A through_power = gaussian_information_through_power(to_power, entropy_power[row], columns);
      auto s = load<N>(log_std + at);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        s[i] = gaussian_information_grad_log_std(to_kl, to_trace, through_power, variance_of(s[i]));
      }
      store(grad_log_std + at, s);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> gaussian_information(Tensor mean_in, Tensor log_std_in) {
  const Launch launch(mean_in);
  const Tensor mean = as_contiguous(mean_in), log_std = as_contiguous(log_std_in);
  const ScalarType type = mean.scalar_type(), accumulate = accumulate_type(type);
  const int64_t rows = mean.size(0), columns = mean.size(1);
  Tensor kl = empty(mean, {rows}, accumulate), trace = empty(mean, {rows}, accumulate);
  Tensor entropy_power = empty(mean, {rows}, accumulate);
  if (rows == 0) return {kl, trace, entropy_power};
  dispatch_type("gaussian_information", type, [&]<typename T>() {
    using A = Accumulate<T>;
    dispatch_width<T>(columns, {read<T>(mean), read<T>(log_std)}, [&]<int N>() {
      const RowGroups groups(rows, columns / N);
      gaussian_information_kernel<T, N><<<groups.blocks, kBlock, 0, launch.stream>>>(
          read<T>(mean), read<T>(log_std), write<A>(kl), write<A>(trace), write<A>(entropy_power), rows,
          columns, groups.group);
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {kl, trace, entropy_power};
}

std::tuple<Tensor, Tensor> gaussian_information_backward(std::optional<Tensor> grad_kl_in,
                                                         std::optional<Tensor> grad_trace_in,
                                                         std::optional<Tensor> grad_entropy_power_in,
                                                         Tensor mean_in, Tensor log_std_in,
                                                         Tensor entropy_power_in,
                                                         std::vector<bool> output_mask) {
  const Launch launch(mean_in);
  const std::optional<Tensor> grad_kl = as_contiguous(grad_kl_in), grad_trace = as_contiguous(grad_trace_in);
  const std::optional<Tensor> grad_entropy_power = as_contiguous(grad_entropy_power_in);
  const Tensor mean = as_contiguous(mean_in), log_std = as_contiguous(log_std_in);
  const Tensor entropy_power = as_contiguous(entropy_power_in);
  const int64_t rows = mean.size(0), columns = mean.size(1);
  Tensor grad_mean = empty_if(output_mask[0], mean), grad_log_std = empty_if(output_mask[1], log_std);
  if (rows == 0) return {grad_mean, grad_log_std};
  dispatch_type("gaussian_information_backward", mean.scalar_type(), [&]<typename T>() {
    using A = Accumulate<T>;
    dispatch_width<T>(
        columns, {read<T>(mean), read<T>(log_std), read<T>(grad_mean), read<T>(grad_log_std)}, [&]<int N>() {
          const Tiles tiles(rows, columns / N);
          gaussian_information_backward_kernel<T, N><<<tiles.grid, tiles.block, 0, launch.stream>>>(
              read<A>(grad_kl), read<A>(grad_trace), read<A>(grad_entropy_power), read<T>(mean),
              read<T>(log_std), read<A>(entropy_power), write<T>(output_mask[0], grad_mean),
              write<T>(output_mask[1], grad_log_std), rows, columns);
        });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_mean, grad_log_std};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CUDA, m) {
  m.impl("gaussian_information", TORCH_BOX(&gaussian_information));
  m.impl("gaussian_information_backward", TORCH_BOX(&gaussian_information_backward));
}

}  // namespace fisherkernels::cuda
