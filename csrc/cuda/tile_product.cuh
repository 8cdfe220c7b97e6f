// Products of rows, a square tile of them at a time: sum[i][j] = Σ_c a_i[c] b_j[c].
//
// A block holds 32 columns of the tile's left and right rows in shared memory while the loads of the next 32
// are under way. Thread (x, y) of 16 by 16 keeps the sums of rows y, y + 16, ... and columns x, x + 16, ...
// in registers.
#pragma once

#include "cuda/pack.cuh"
#include "cuda/rows.cuh"

namespace fisherkernels::cuda {

constexpr int kSide = 16;  // threads along each side of a tile

template <typename T>
constexpr int kPerVector = 16 / sizeof(T);

// Columns in shared memory at a time: 128 bytes of a row, fewer where a thread would hold many single
// elements.
template <typename T, int N>
constexpr int kStagedColumns = N == 1 ? 16 : 128 / sizeof(T);

// kRows rows of staged columns; one vector more, so that neighbouring rows start in other banks.
template <typename T, int N, int kRows>
using Staged = Storage<T, kPerVector<T>>[kRows][kStagedColumns<T, N> / kPerVector<T> + 1];

// This thread's share of the staged elements, between global and shared memory.
template <typename T, int N, int kRows>
struct Share {
  static constexpr int kAcross = kStagedColumns<T, N> / N;
  static constexpr int kPacks = kRows * kAcross / kBlock;
  Pack<T, N> held[kPacks];

  // row(i, column) gives N elements of row i; zeros from column `end` on.
  template <typename Row>
  __device__ void fetch(Row&& row, int64_t start, int64_t end) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int slot = threadIdx.x + p * kBlock;
      const int64_t column = start + slot % kAcross * N;
      held[p] = column < end ? row(slot / kAcross, column) : splat<T, N>(0);
    }
  }

  __device__ void put(Staged<T, N, kRows>& staged) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int slot = threadIdx.x + p * kBlock, column = slot % kAcross * N;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        staged[slot / kAcross][column / kPerVector<T>].values[column % kPerVector<T> + i] = held[p][i];
      }
    }
  }
};

// Adds to sum[r][q] the product of rows y + 16 r and x + 16 q over columns begin..end, begin a multiple of N.
template <typename T, int N, int K, typename Left, typename Right>
__device__ void add_products(T (&sum)[K][K], Left&& left, Right&& right, int64_t begin, int64_t end) {
  constexpr int kRows = kSide * K, kVector = kPerVector<T>, kColumns = kStagedColumns<T, N>;
  __shared__ Staged<T, N, kRows> a, b;
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  Share<T, N, kRows> next_a, next_b;
  next_a.fetch(left, begin, end);
  next_b.fetch(right, begin, end);
  for (int64_t start = begin; start < end; start += kColumns) {
    next_a.put(a);
    next_b.put(b);
    __syncthreads();
    next_a.fetch(left, start + kColumns, end);
    next_b.fetch(right, start + kColumns, end);
#pragma unroll 1
    for (int c = 0; c < kColumns / kVector; ++c) {
      Storage<T, kVector> u[K];
#pragma unroll
      for (int r = 0; r < K; ++r) u[r] = a[y + kSide * r][c];
#pragma unroll
      for (int q = 0; q < K; ++q) {
        const Storage<T, kVector> v = b[x + kSide * q][c];
#pragma unroll
        for (int r = 0; r < K; ++r) {
          T dot = u[r].values[0] * v.values[0];  // summed apart: long sums have fewer roundings
#pragma unroll
          for (int i = 1; i < kVector; ++i) dot += u[r].values[i] * v.values[i];
          sum[r][q] += dot;
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace fisherkernels::cuda
