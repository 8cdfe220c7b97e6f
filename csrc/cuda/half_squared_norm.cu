#include "cuda/rows.cuh"
#include "cuda/tiles.cuh"
#include "math/half_squared_norm.h"

namespace fisherkernels::cuda {
namespace {

template <typename T, int N, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    half_squared_norm_kernel(const T* __restrict__ t,  // [R, D]
                             A* __restrict__ value,    // [R]
                             int64_t rows, int64_t columns, int group) {
  const int64_t row = group_row(group);
  A squares = 0;
  if (row < rows) {
    for (int64_t column = (threadIdx.x % group) * N; column < columns; column += group * N) {
      const auto a = load<N>(t + row * columns + column);
#pragma unroll
      for (int i = 0; i < N; ++i) squares += a[i] * a[i];
    }
  }
  squares = reduce_group(squares, group);
  if (row < rows && threadIdx.x % group == 0) value[row] = half_squared_norm_of_sum(squares);
}

template <typename T, int N, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    half_squared_norm_backward_kernel(const A* __restrict__ grad_value,  // [R]
                                      const T* __restrict__ t,           // [R, D]
                                      T* __restrict__ grad,              // [R, D]
                                      int64_t rows, int64_t columns) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (column >= columns) return;
  for (int64_t row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y) {
    const A g = grad_value[row];
    auto a = load<N>(t + row * columns + column);
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] = half_squared_norm_grad(g, a[i]);
    store(grad + row * columns + column, a);
  }
}

Tensor half_squared_norm(Tensor t_in) {
  const Launch launch(t_in);
  const Tensor t = as_contiguous(t_in);
  const ScalarType type = t.scalar_type();
  const int64_t rows = t.size(0), columns = t.size(1);
  Tensor value = empty(t, {rows}, accumulate_type(type));
  if (rows == 0) return value;
  dispatch_type("half_squared_norm", type, [&]<typename T>() {
    dispatch_width<T>(columns, {read<T>(t)}, [&]<int N>() {
      const RowGroups groups(rows, columns / N);
      half_squared_norm_kernel<T, N><<<groups.blocks, kBlock, 0, launch.stream>>>(
          read<T>(t), write<Accumulate<T>>(value), rows, columns, groups.group);
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return value;
}

Tensor half_squared_norm_backward(Tensor grad_value_in, Tensor t_in) {
  const Launch launch(t_in);
  const Tensor t = as_contiguous(t_in);
  const ScalarType type = t.scalar_type();
  const Tensor grad_value = as_type(grad_value_in, accumulate_type(type));
  const int64_t rows = t.size(0), columns = t.size(1);
  Tensor grad = empty(t, {rows, columns});
  if (rows == 0 || columns == 0) return grad;
  dispatch_type("half_squared_norm_backward", type, [&]<typename T>() {
    dispatch_width<T>(columns, {read<T>(t), read<T>(grad)}, [&]<int N>() {
      const Tiles tiles(rows, columns / N);
      half_squared_norm_backward_kernel<T, N><<<tiles.grid, tiles.block, 0, launch.stream>>>(
          read<Accumulate<T>>(grad_value), read<T>(t), write<T>(grad), rows, columns);
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CUDA, m) {
  m.impl("half_squared_norm", TORCH_BOX(&half_squared_norm));
  m.impl("half_squared_norm_backward", TORCH_BOX(&half_squared_norm_backward));
}

}  // namespace fisherkernels::cuda
