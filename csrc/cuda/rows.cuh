// Row groups: the threads that share one row of a [R, D] matrix and reduce over its columns.
#pragma once

#include <algorithm>

#include "cuda/tensor.cuh"

namespace fisherkernels::cuda {

constexpr int kBlock = 256;
constexpr int kWarp = 32;

inline int power_of_two_at_least(int64_t value, int limit) {
  int power = 1;
  while (power < value && power < limit) power *= 2;
  return power;
}

// Threads per row: a power of two up to a warp, one thread per pack; the whole block for rows of over 1024
// packs.
struct RowGroups {
  RowGroups(int64_t rows, int64_t packs)
      : group(packs > 1024 ? kBlock : power_of_two_at_least(packs, kWarp)),
        blocks(static_cast<unsigned>((rows * group + kBlock - 1) / kBlock)) {}

  int group;
  unsigned blocks;
};

// The row of this thread; it may lie past the end, but every thread must reach reduce_group.
__device__ inline int64_t group_row(int group) {
  return static_cast<int64_t>(blockIdx.x) * (kBlock / group) + threadIdx.x / group;
}

// Row r of R = L * M rows is paired with row r % M of an argument with M rows.
__device__ inline int64_t paired_row(int64_t row, int64_t paired_rows) {
  return row < paired_rows ? row : row % paired_rows;
}

// Sum over the threads of a group, in a fixed order, in every thread of it.
template <typename A>
__device__ A reduce_group(A value, int group) {
  for (int offset = min(group, kWarp) / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  if (group > kWarp) {
    __shared__ A warps[kBlock / kWarp];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    if (thread % kWarp == 0) warps[thread / kWarp] = value;
    __syncthreads();
    value = 0;
#pragma unroll
    for (int i = 0; i < kBlock / kWarp; ++i) value += warps[i];
  }
  return value;
}

}  // namespace fisherkernels::cuda
