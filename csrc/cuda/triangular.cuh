// Cholesky factorisation and triangular solves of one matrix by one block, in tiles of 32 by 32.
#pragma once

#include "cuda/tile_product.cuh"
#include "math/cholesky.h"

namespace fisherkernels::cuda {

constexpr int kTileRows = 32;

template <typename T>
using Tile = T[kTileRows][kTileRows + 1];

// Sums over chunks of columns, [N, chunks, d + S, d]: the Gram matrix's lower triangle, then Jᵀ data.
template <typename T>
struct Sums {
  const T* parts;
  int64_t chunks, rows, size;  // rows = d + S

  __device__ T operator()(int64_t n, int64_t row, int64_t column) const {
    T sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      sum += parts[((n * chunks + chunk) * rows + row) * size + column];
    }
    return sum;
  }
};

// f(i, j) for the elements of a tile, a thread keeping to one column.
template <typename F>
__device__ void for_tile(F&& f) {
  const int j = threadIdx.x % kTileRows;
  for (int i = threadIdx.x / kTileRows; i < kTileRows; i += kBlock / kTileRows) f(i, j);
}

// Columns of a tile eliminated one after the other: tile[i][k] stays unscaled until all are done. `diagonal`
// is L's diagonal tile and `inverse` the inverses of its diagonal, both given, or found where the tile is the
// diagonal one.
template <typename T, bool kDiagonal>
__device__ bool eliminate(Tile<T>& tile, Tile<T>& diagonal, T* inverse) {
  bool usable = true;
  for (int k = 0; k < kTileRows; ++k) {
    const T scale = kDiagonal ? inverse_root(tile[k][k]) : inverse[k];
    usable = usable && scale == scale;
    for_tile([&](int i, int j) {
      if (j <= k || (kDiagonal && i < j)) return;
      const T pivot_row = kDiagonal ? tile[j][k] * scale : diagonal[j][k];
      tile[i][j] -= tile[i][k] * scale * pivot_row;
    });
    if (kDiagonal && threadIdx.x == 0) inverse[k] = scale;
    __syncthreads();
  }
  for_tile([&](int i, int j) {
    const T value = tile[i][j] * inverse[j];
    if constexpr (kDiagonal) {
      diagonal[i][j] = i < j ? T(0) : value;
    } else {
      tile[i][j] = value;
    }
  });
  __syncthreads();
  return usable;
}

// Lower Cholesky factor of Gram + I, one block a sample; NaN in the lower triangle where that is not positive
// definite.
template <typename T, int N>
__global__ void __launch_bounds__(kBlock, 2) factor_kernel(Sums<T> sums, T* factors, int64_t size) {
  constexpr int K = kTileRows / kSide;
  __shared__ Tile<T> tile, diagonal;
  __shared__ T inverse[kTileRows];
  const int64_t n = blockIdx.x;
  T* factor = factors + n * size * size;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  bool usable = true;
  for (int64_t first = 0; first < size; first += kTileRows) {
    for (int64_t row = first; row < size; row += kTileRows) {
      T product[K][K] = {};
      const auto rows_from = [&](int64_t start) {
        return [=](int i, int64_t column) {
          return start + i < size ? load<N>(factor + (start + i) * size + column) : splat<T, N>(0);
        };
      };
      add_products<T, N, K>(product, rows_from(row), rows_from(first), 0, first);
#pragma unroll
      for (int r = 0; r < K; ++r) {
#pragma unroll
        for (int q = 0; q < K; ++q) {
          const int64_t i = row + y + kSide * r, j = first + x + kSide * q;
          T value = i == j ? T(1) : T(0);  // the identity behind the matrix
          if (i < size && j <= i)
            value = (i == j ? metric_diagonal(sums(n, i, j)) : sums(n, i, j)) - product[r][q];
          tile[y + kSide * r][x + kSide * q] = value;
        }
      }
      __syncthreads();
      const bool on_diagonal = row == first;
      if (on_diagonal) {
        usable = eliminate<T, true>(tile, diagonal, inverse) && usable;
      } else {
        eliminate<T, false>(tile, diagonal, inverse);
      }
      for_tile([&](int i, int j) {
        if (row + i < size && first + j < size) {
          factor[(row + i) * size + first + j] = on_diagonal ? diagonal[i][j] : tile[i][j];
        }
        if (!on_diagonal && first + i < size && row + j < size) factor[(first + i) * size + row + j] = 0;
      });
      __syncthreads();
    }
  }
  if (usable) return;
  for (int64_t at = threadIdx.x; at < size * size; at += kBlock) {
    if (at % size <= at / size) factor[at] = kNan<T>;
  }
}

// (L Lᵀ)⁻¹ (rhs + Jᵀ data), one block a sample and system. The solution lies in global memory while it is
// found.
template <typename T>
__global__ void __launch_bounds__(kBlock, 2)
    solve_kernel(const T* __restrict__ factors, const T* __restrict__ rhs, Sums<T> sums, T* solutions,
                 int64_t samples, int64_t size) {
  constexpr int kLanes = kBlock / kTileRows;
  __shared__ Tile<T> tile;
  __shared__ T vector[kTileRows], parts[kLanes][kTileRows];
  const int64_t at = blockIdx.x, n = at % samples, system = at / samples;
  const T* factor = factors + n * size * size;
  T* solution = solutions + at * size;
  const int thread = threadIdx.x;
  const bool leads = thread < kTileRows;
  const auto load_tile = [&](int64_t first) {
    for_tile([&](int i, int j) {
      const bool inside = first + i < size && j <= i;
      tile[i][j] = inside ? factor[(first + i) * size + first + j] : T(i == j);
    });
  };
  T mark = 0;
  for (int64_t first = 0; first < size; first += kTileRows) {
    const int i = thread / kLanes;  // eight threads a row
    T dot = 0;
    if (first + i < size) {
      for (int64_t j = thread % kLanes; j < first; j += kLanes)
        dot += factor[(first + i) * size + j] * solution[j];
    }
    dot = reduce_group(dot, kLanes);
    load_tile(first);
    if (thread % kLanes == 0) {
      T value = 0;
      if (first + i < size) value = rhs[at * size + first + i] + sums(n, size + system, first + i);
      parts[0][i] = poison(value);
      vector[i] = value - dot;
    }
    __syncthreads();
    if (leads) mark += parts[0][thread];
    for (int k = 0; k < kTileRows; ++k) {
      const T y = vector[k] / tile[k][k];
      if (leads && thread > k) vector[thread] -= tile[thread][k] * y;
      __syncthreads();
    }
    if (leads && first + thread < size) solution[first + thread] = vector[thread] / tile[thread][thread];
    __syncthreads();
  }
  mark = reduce_group(mark, kTileRows);
  for (int64_t first = (size - 1) / kTileRows * kTileRows; first >= 0 && size > 0; first -= kTileRows) {
    const int j = thread % kTileRows;
    T dot = 0;
    if (first + j < size) {
      for (int64_t i = first + kTileRows + thread / kTileRows; i < size; i += kLanes) {
        dot += factor[i * size + first + j] * solution[i];
      }
    }
    parts[thread / kTileRows][j] = dot;
    load_tile(first);
    __syncthreads();
    if (leads) {
      T value = first + j < size ? solution[first + j] : T(0);
#pragma unroll
      for (int l = 0; l < kLanes; ++l) value -= parts[l][j];
      vector[j] = value;
    }
    __syncthreads();
    for (int k = kTileRows - 1; k >= 0; --k) {
      const T value = vector[k] / tile[k][k];
      if (leads && thread < k) vector[thread] -= tile[k][thread] * value;
      __syncthreads();
    }
    if (leads && first + thread < size)
      solution[first + thread] = vector[thread] / tile[thread][thread] + mark;
    __syncthreads();
  }
}

}  // namespace fisherkernels::cuda
