// What the per-element formulas in this folder share: they compile for the host and, under nvcc, for the
// device.
#pragma once

#if defined(__CUDACC__)
#define FK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FK_HOST_DEVICE __attribute__((always_inline)) inline
#endif
