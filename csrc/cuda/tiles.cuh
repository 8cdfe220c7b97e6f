// Tiles: blocks of (columns, rows) threads over a [M, D] matrix, and deterministic sums over its rows in two
// stages.
#pragma once

#include "cuda/pack.cuh"
#include "cuda/rows.cuh"

namespace fisherkernels::cuda {

// threadIdx.x and blockIdx.x run over packs, threadIdx.y and blockIdx.y over rows, which every thread strides
// through.
struct Tiles {
  Tiles(int64_t rows, int64_t packs, int64_t depth = 1) {
    const int x = power_of_two_at_least(packs, kWarp);
    block = dim3(x, kBlock / x);
    const int64_t across = (packs + x - 1) / x;
    const int64_t down = (rows + block.y - 1) / block.y;
    // About 1,024 blocks fill the largest devices; more would only add partial sums.
    const int64_t wanted = 1024 / std::max<int64_t>(1, std::min<int64_t>(1024, across * depth));
    grid = dim3(static_cast<unsigned>(across), static_cast<unsigned>(std::min(down, wanted)),
                static_cast<unsigned>(depth));
  }

  int64_t blocks() const { return static_cast<int64_t>(grid.x) * grid.y; }

  dim3 block;
  dim3 grid;
};

// Sum of a value over the rows (threadIdx.y) of the block, valid in the threads with threadIdx.y == 0.
template <typename A, int N>
__device__ Pack<A, N> reduce_rows(Pack<A, N> value, A* shared) {
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    const int slot = (threadIdx.y * blockDim.x + threadIdx.x) * N;
    __syncthreads();
    if (threadIdx.y >= half && threadIdx.y < 2 * half) {
#pragma unroll
      for (int i = 0; i < N; ++i) shared[slot + i] = value[i];
    }
    __syncthreads();
    if (threadIdx.y < half) {
#pragma unroll
      for (int i = 0; i < N; ++i) value[i] += shared[slot + half * blockDim.x * N + i];
    }
  }
  return value;
}

// Second stage: partials [S, C] -> sums [C].
template <typename A>
__global__ void __launch_bounds__(kBlock, 2)
    sum_rows_kernel(const A* __restrict__ partials, A* __restrict__ sums, int64_t rows, int64_t columns) {
  __shared__ A shared[kBlock];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  Pack<A, 1> sum{{A(0)}};
  if (column < columns) {
    for (int64_t row = threadIdx.y; row < rows; row += blockDim.y) sum[0] += partials[row * columns + column];
  }
  sum = reduce_rows(sum, shared);
  if (threadIdx.y == 0 && column < columns) sums[column] = sum[0];
}

// partials [S, C] -> [C] in the type asked for, shaped as `shape`.
template <typename A>
Tensor sum_rows(const Tensor& partials, const std::vector<int64_t>& shape, ScalarType type,
                const Launch& launch) {
  const int64_t rows = partials.size(0), columns = partials.size(1);
  Tensor sums = empty(partials, shape);
  const int x = power_of_two_at_least(columns, kWarp);
  const unsigned blocks = static_cast<unsigned>((columns + x - 1) / x);
  if (blocks > 0) {
    sum_rows_kernel<A>
        <<<blocks, dim3(x, kBlock / x), 0, launch.stream>>>(read<A>(partials), write<A>(sums), rows, columns);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return as_type(sums, type);
}

}  // namespace fisherkernels::cuda
