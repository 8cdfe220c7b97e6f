// N neighbouring elements of a row, moved by one memory access and computed with in the type of the sums.
#pragma once

#include "cuda/tensor.cuh"

namespace fisherkernels::cuda {

template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Storage {
  T values[N];
};

template <typename A, int N>
struct Pack {
  A values[N];

  __device__ A& operator[](int i) { return values[i]; }
  __device__ const A& operator[](int i) const { return values[i]; }
};

template <int N, typename T>
__device__ Pack<Accumulate<T>, N> load(const T* pointer) {
  const auto raw = *reinterpret_cast<const Storage<T, N>*>(pointer);
  Pack<Accumulate<T>, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack[i] = static_cast<Accumulate<T>>(raw.values[i]);
  return pack;
}

template <int N, typename T>
__device__ void store(T* pointer, const Pack<Accumulate<T>, N>& pack) {
  Storage<T, N> raw;
#pragma unroll
  for (int i = 0; i < N; ++i) raw.values[i] = static_cast<T>(pack[i]);
  *reinterpret_cast<Storage<T, N>*>(pointer) = raw;
}

template <typename A, int N>
__device__ Pack<A, N> splat(A value) {
  Pack<A, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack[i] = value;
  return pack;
}

template <typename A, int N>
__device__ Pack<A, N> reciprocal(const Pack<A, N>& pack) {
  Pack<A, N> inverse;
#pragma unroll
  for (int i = 0; i < N; ++i) inverse[i] = 1 / pack[i];
  return inverse;
}

}  // namespace fisherkernels::cuda
