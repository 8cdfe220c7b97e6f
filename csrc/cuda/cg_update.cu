// cg_update on CUDA. Floor: reads solution, residual, direction, product and step + 1 rows of history once,
// writes the first three and one row of history. The threads that share a row keep it in registers while its
// history streams by.
#include "cuda/pack.cuh"
#include "cuda/rows.cuh"
#include "math/cg_update.h"

namespace fisherkernels::cuda {
namespace {

// Earlier residuals that are loaded before the first of them is needed.
constexpr int kAhead = 4;

// Packs of a row that one thread holds in registers, at most.
constexpr int kHeld = 4;

template <typename T>
struct CgUpdate {
  T* solution;          // [R, d]
  T* residual;          // [R, d]
  T* direction;         // [R, d]
  const T* history;     // [step + 1, R, d]
  T* next;              // [R, d], history's next entry
  T* squared_norm;      // [R]
  int32_t* status;      // [R]
  int32_t* iterations;  // [R]
  const T* product;     // [R, d]
  const T* threshold;   // [R]
  int64_t rows, columns, step;
};

// The sums over a group's threads, in every thread of it; every thread of the block must come here.
template <int M, typename T>
__device__ void reduce_groups(T (&values)[M], int group) {
  for (int offset = min(group, kWarp) / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int m = 0; m < M; ++m) values[m] += __shfl_xor_sync(0xffffffffu, values[m], offset);
  }
  if (group > kWarp) {
    __shared__ T warps[M][kBlock / kWarp];
    __syncthreads();  // the sums of the last call have been read
#pragma unroll
    for (int m = 0; m < M; ++m) {
      if (threadIdx.x % kWarp == 0) warps[m][threadIdx.x / kWarp] = values[m];
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; ++m) {
      values[m] = 0;
#pragma unroll
      for (int i = 0; i < kBlock / kWarp; ++i) values[m] += warps[m][i];
    }
  }
}

template <typename T, int N>
__device__ T dot(const Pack<T, N>& a, const Pack<T, N>& b) {
  T sum = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += a[i] * b[i];
  return sum;
}

template <typename T, int N>
__device__ void add_scaled(Pack<T, N>& to, T scale, const Pack<T, N>& pack) {
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] += scale * pack[i];
}

// One thread per row records its outcome.
template <typename T>
__device__ void finish_row(const CgUpdate<T>& a, int64_t row, int32_t status, bool steps, T after) {
  a.status[row] = status;
  if (steps) {
    a.squared_norm[row] = after;
    a.iterations[row] += 1;
  }
}

// Rows of at most kHeld packs per thread of a group; kPacks of them.
template <typename T, int N, int kPacks, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, kPacks > 2 ? 1 : 2) cg_update_kernel(CgUpdate<T> a, int group) {
  const int64_t row = group_row(group);
  const int lane = threadIdx.x % group;
  const bool active = row < a.rows && a.status[row] == kActive;
  const T before = active ? a.squared_norm[row] : T(0);
  const T threshold = active ? a.threshold[row] : T(0);

  int64_t at[kPacks];
  bool inside[kPacks];
  Pack<T, N> direction[kPacks], updated[kPacks], along[kPacks];  // along: the product at first
  T curvature[1] = {0};
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const int64_t column = static_cast<int64_t>(lane + k * group) * N;
    at[k] = row * a.columns + column;
    inside[k] = active && column < a.columns;
    direction[k] = inside[k] ? load<N>(a.direction + at[k]) : splat<T, N>(0);
    along[k] = inside[k] ? load<N>(a.product + at[k]) : splat<T, N>(0);
    updated[k] = inside[k] ? load<N>(a.residual + at[k]) : splat<T, N>(0);
    curvature[0] += dot(direction[k], along[k]);
  }
  reduce_groups(curvature, group);
  const T alpha = before / curvature[0];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    add_scaled(updated[k], -alpha, along[k]);
    along[k] = splat<T, N>(0);
  }

  for (int64_t first = 0; first <= a.step; first += kAhead) {
    Pack<T, N> unit[kAhead][kPacks];
    T component[kAhead];
#pragma unroll
    for (int m = 0; m < kAhead; ++m) {
      const T* entry = a.history + (first + m) * a.rows * a.columns;
      component[m] = 0;
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        unit[m][k] = inside[k] && first + m <= a.step ? load<N>(entry + at[k]) : splat<T, N>(0);
        component[m] += dot(unit[m][k], updated[k]);
      }
    }
    reduce_groups(component, group);
#pragma unroll
    for (int m = 0; m < kAhead; ++m) {
#pragma unroll
      for (int k = 0; k < kPacks; ++k) add_scaled(along[k], component[m], unit[m][k]);
    }
  }

  T after[1] = {0};
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    add_scaled(updated[k], T(-1), along[k]);
    after[0] += dot(updated[k], updated[k]);
  }
  reduce_groups(after, group);
  if (!active) return;

  const int32_t status = cg_status(before, curvature[0], after[0], threshold);
  const bool steps = takes_step(before, threshold, status);
  if (lane == 0) finish_row(a, row, status, steps, after[0]);
  if (!steps) return;
  const T beta = after[0] / before, scale = inverse_norm(after[0]);
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    if (!inside[k]) continue;
    auto solution = load<N>(a.solution + at[k]);
    add_scaled(solution, alpha, direction[k]);
    store(a.solution + at[k], solution);
    store(a.residual + at[k], updated[k]);
    auto unit = splat<T, N>(0), turned = updated[k];
    add_scaled(unit, scale, updated[k]);
    store(a.next + at[k], unit);
    add_scaled(turned, beta, direction[k]);
    store(a.direction + at[k], turned);
  }
}

// A block per row for rows beyond that. The updated residual waits in history's next entry.
template <typename T>
__global__ void __launch_bounds__(kBlock) cg_update_long_kernel(CgUpdate<T> a) {
  const int64_t row = blockIdx.x, start = row * a.columns;
  const bool active = a.status[row] == kActive;
  const int64_t columns = active ? a.columns : 0;
  const T before = a.squared_norm[row], threshold = a.threshold[row];

  T curvature[1] = {0};
  for (int64_t j = threadIdx.x; j < columns; j += kBlock) {
    curvature[0] += a.direction[start + j] * a.product[start + j];
  }
  reduce_groups(curvature, kBlock);
  const T alpha = before / curvature[0];
  for (int64_t j = threadIdx.x; j < columns; j += kBlock) {
    a.next[start + j] = a.residual[start + j] - alpha * a.product[start + j];
  }

  for (int64_t first = 0; first <= a.step; first += kAhead) {
    T component[kAhead] = {};
    for (int64_t j = threadIdx.x; j < columns; j += kBlock) {
      const T updated = a.residual[start + j] - alpha * a.product[start + j];
#pragma unroll
      for (int m = 0; m < kAhead; ++m) {
        if (first + m <= a.step) {
          component[m] += a.history[(first + m) * a.rows * a.columns + start + j] * updated;
        }
      }
    }
    reduce_groups(component, kBlock);
    for (int64_t j = threadIdx.x; j < columns; j += kBlock) {
      T along = 0;
#pragma unroll
      for (int m = 0; m < kAhead; ++m) {
        if (first + m <= a.step) {
          along += component[m] * a.history[(first + m) * a.rows * a.columns + start + j];
        }
      }
      a.next[start + j] -= along;
    }
  }

  T after[1] = {0};
  for (int64_t j = threadIdx.x; j < columns; j += kBlock) after[0] += a.next[start + j] * a.next[start + j];
  reduce_groups(after, kBlock);
  if (!active) return;

  const int32_t status = cg_status(before, curvature[0], after[0], threshold);
  const bool steps = takes_step(before, threshold, status);
  if (threadIdx.x == 0) finish_row(a, row, status, steps, after[0]);
  if (!steps) return;
  const T beta = after[0] / before, scale = inverse_norm(after[0]);
  for (int64_t j = threadIdx.x; j < columns; j += kBlock) {
    const T updated = a.next[start + j], direction = a.direction[start + j];
    a.solution[start + j] += alpha * direction;
    a.residual[start + j] = updated;
    a.direction[start + j] = updated + beta * direction;
    a.next[start + j] = scale * updated;
  }
}

void cg_update(Tensor solution, Tensor residual, Tensor direction, Tensor history, Tensor squared_norm,
               Tensor status, Tensor iterations, Tensor product_in, Tensor threshold_in, int64_t step) {
  for (const Tensor* changed :
       {&solution, &residual, &direction, &history, &squared_norm, &status, &iterations}) {
    STD_TORCH_CHECK(changed->is_contiguous(), "cg_update: arguments changed in place must be contiguous");
  }
  const Launch launch(solution);
  const Tensor product = as_contiguous(product_in), threshold = as_contiguous(threshold_in);
  const int64_t rows = solution.size(0), columns = solution.size(1);
  if (rows == 0) return;
  dispatch_full_precision("cg_update", solution.scalar_type(), [&]<typename T>() {
    T* next = write<T>(history) + (step + 1) * rows * columns;
    const CgUpdate<T> a{write<T>(solution),
                        write<T>(residual),
                        write<T>(direction),
                        read<T>(history),
                        next,
                        write<T>(squared_norm),
                        write<int32_t>(status),
                        write<int32_t>(iterations),
                        read<T>(product),
                        read<T>(threshold),
                        rows,
                        columns,
                        step};
    dispatch_width<T>(columns, {a.solution, a.residual, a.direction, a.history, a.product}, [&]<int N>() {
      const int64_t packs = columns / N;
      const int group = packs > kHeld * kWarp ? kBlock : power_of_two_at_least(packs, kWarp);
      const auto blocks = static_cast<unsigned>((rows * group + kBlock - 1) / kBlock);
      if (packs > kHeld * kBlock) {
        cg_update_long_kernel<T><<<blocks, kBlock, 0, launch.stream>>>(a);
      } else if (packs > 2 * group) {
        cg_update_kernel<T, N, kHeld><<<blocks, kBlock, 0, launch.stream>>>(a, group);
      } else if (packs > group) {
        cg_update_kernel<T, N, 2><<<blocks, kBlock, 0, launch.stream>>>(a, group);
      } else {
        cg_update_kernel<T, N, 1><<<blocks, kBlock, 0, launch.stream>>>(a, group);
      }
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CUDA, m) { m.impl("cg_update", TORCH_BOX(&cg_update)); }

}  // namespace fisherkernels::cuda
