// activation_tangents on CUDA. Floor: as on CPU. The threads of a block share columns and split the tangents,
// whose sums meet in shared memory; tangents that are the samples' own count as those of one row of N·M
// columns.
#include "cuda/tiles.cuh"
#include "math/activation_tangents.h"

namespace fisherkernels::cuda {
namespace {

// threadIdx.x and blockIdx.x run over packs of all rows, threadIdx.y over tangents.
struct Stack {
  Stack(const Tensor& tangents, const Tensor& slope)
      : count(tangents.size(0)),
        rows(tangents.size(1) == slope.size(0) ? 1 : slope.size(0)),
        columns(rows == 1 ? slope.numel() : slope.size(1)) {}

  dim3 block() const {
    const int y = power_of_two_at_least(count, kBlock / kWarp);
    return dim3(kBlock / y, y);
  }
  unsigned blocks(int64_t width) const {
    const int64_t packs = rows * (columns / width), x = block().x;
    return static_cast<unsigned>((packs + x - 1) / x);
  }

  int64_t count, rows, columns;  // K; N or 1; M or N·M
};

template <typename T, int N>
__global__ void __launch_bounds__(kBlock, 2)
    activation_tangents_kernel(const T* __restrict__ tangents,   // [K, M]
                               const T* __restrict__ laplacian,  // [N, M] or null
                               const T* __restrict__ slope,      // [N, M]
                               const T* __restrict__ curvature,  // [N, M]
                               T* __restrict__ scaled,           // [K, N, M] or null
                               T* __restrict__ out_laplacian,    // [N, M]
                               int64_t count, int64_t rows, int64_t columns) {
  __shared__ T shared[kBlock * N];
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N, size = rows * columns;
  const bool active = at < size;
  Pack<T, N> by = splat<T, N>(0), squares = splat<T, N>(0);
  if (active) {
    by = load<N>(slope + at);
    const T* column = tangents + at % columns;
#pragma unroll 4
    for (int64_t k = threadIdx.y; k < count; k += blockDim.y) {
      auto t = load<N>(column + k * columns);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        squares[i] += t[i] * t[i];
        t[i] = activation_tangent(by[i], t[i]);
      }
      if (scaled != nullptr) store(scaled + k * size + at, t);
    }
  }
  squares = reduce_rows(squares, shared);
  if (!active || threadIdx.y > 0) return;
  auto out = load<N>(curvature + at);
  if (laplacian != nullptr) {
    const auto before = load<N>(laplacian + at);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = activation_laplacian(by[i], before[i], out[i], squares[i]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] *= squares[i];
  }
  store(out_laplacian + at, out);
}

// The gradients of laplacian, slope and curvature, and of tangents that are the samples' own.
template <typename T, int N>
__global__ void __launch_bounds__(kBlock, 2)
    activation_tangents_backward_kernel(const T* __restrict__ grad_scaled,     // [K, N, M] or null
                                        const T* __restrict__ grad_laplacian,  // [N, M] or null
                                        const T* __restrict__ tangents,        // [K, M]
                                        const T* __restrict__ laplacian,       // [N, M] or null
                                        const T* __restrict__ slope,           // [N, M]
                                        const T* __restrict__ curvature,       // [N, M]
                                        T* __restrict__ to_tangents,           // [K, M], null unless N = 1
                                        T* __restrict__ to_laplacian,          // [N, M] or null
                                        T* __restrict__ to_slope,              // [N, M] or null
                                        T* __restrict__ to_curvature,          // [N, M] or null
                                        int64_t count, int64_t rows, int64_t columns) {
  __shared__ T shared[kBlock * N];
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N, size = rows * columns;
  const bool active = at < size;
  Pack<T, N> by = splat<T, N>(0), grad = by, by_tangent = by, squares = by, sum = by;
  if (active) {
    by = load<N>(slope + at);
    if (grad_laplacian != nullptr) {
      grad = load<N>(grad_laplacian + at);
      by_tangent = load<N>(curvature + at);
#pragma unroll
      for (int i = 0; i < N; ++i) by_tangent[i] = activation_by_tangent(by_tangent[i], grad[i]);
    }
    const T* column = tangents + at % columns;
#pragma unroll 2
    for (int64_t k = threadIdx.y; k < count; k += blockDim.y) {
      const auto t = load<N>(column + k * columns);
      auto to = splat<T, N>(0);
      if (grad_scaled != nullptr) {
        const auto through = load<N>(grad_scaled + k * size + at);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          sum[i] += through[i] * t[i];
          to[i] = activation_tangent(by[i], through[i]);
        }
      }
      if (grad_laplacian != nullptr) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          squares[i] += t[i] * t[i];
          to[i] += by_tangent[i] * t[i];
        }
      }
      if (to_tangents != nullptr) store(to_tangents + k * size + at, to);
    }
  }
  sum = reduce_rows(sum, shared);
  squares = reduce_rows(squares, shared);
  if (!active || threadIdx.y > 0) return;
  if (laplacian != nullptr) {
    const auto l = load<N>(laplacian + at);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += grad[i] * l[i];
  }
  if (to_slope != nullptr) store(to_slope + at, sum);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    squares[i] *= grad[i];
    by[i] *= grad[i];
  }
  if (to_curvature != nullptr) store(to_curvature + at, squares);
  if (to_laplacian != nullptr) store(to_laplacian + at, by);
}

// The gradient of tangents that the samples share, summed over them: threadIdx.y runs over rows, blockIdx.y
// over tangents.
template <typename T, int N>
__global__ void __launch_bounds__(kBlock, 2)
    activation_tangents_shared_kernel(const T* __restrict__ grad_scaled,     // [K, N, M] or null
                                      const T* __restrict__ grad_laplacian,  // [N, M] or null
                                      const T* __restrict__ tangents,        // [K, M]
                                      const T* __restrict__ slope,           // [N, M]
                                      const T* __restrict__ curvature,       // [N, M]
                                      T* __restrict__ to_tangents,           // [K, M]
                                      int64_t count, int64_t rows, int64_t columns) {
  __shared__ T shared[kBlock * N];
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  const bool active = column < columns;
  for (int64_t k = blockIdx.y; k < count; k += gridDim.y) {
    Pack<T, N> sum = splat<T, N>(0), by_tangent = sum;
    if (active) {
#pragma unroll 2
      for (int64_t row = threadIdx.y; row < rows; row += blockDim.y) {
        const int64_t at = row * columns + column;
        if (grad_scaled != nullptr) {
          const auto by = load<N>(slope + at), through = load<N>(grad_scaled + k * rows * columns + at);
#pragma unroll
          for (int i = 0; i < N; ++i) sum[i] += activation_tangent(by[i], through[i]);
        }
        if (grad_laplacian != nullptr) {
          const auto bend = load<N>(curvature + at), grad = load<N>(grad_laplacian + at);
#pragma unroll
          for (int i = 0; i < N; ++i) by_tangent[i] += activation_by_tangent(bend[i], grad[i]);
        }
      }
      const auto t = load<N>(tangents + k * columns + column);
#pragma unroll
      for (int i = 0; grad_laplacian != nullptr && i < N; ++i) sum[i] += by_tangent[i] * t[i];
    }
    sum = reduce_rows(sum, shared);
    if (active && threadIdx.y == 0) store(to_tangents + k * columns + column, sum);
  }
}

std::tuple<Tensor, Tensor> activation_tangents(Tensor tangents_in, std::optional<Tensor> laplacian_in,
                                               Tensor slope_in, Tensor curvature_in, bool keep_tangents) {
  const Launch launch(slope_in);
  const Tensor tangents = as_contiguous(tangents_in), slope = as_contiguous(slope_in),
               curvature = as_contiguous(curvature_in);
  const std::optional<Tensor> laplacian = as_contiguous(laplacian_in);
  const std::vector<int64_t> shape{tangents.size(0), slope.size(0), slope.size(1)};
  Tensor scaled = empty(tangents, keep_tangents ? shape : std::vector<int64_t>{0});
  Tensor out_laplacian = empty(slope, shape_of(slope));
  if (slope.numel() == 0) return {scaled, out_laplacian};
  const Stack stack(tangents, slope);
  dispatch_full_precision("activation_tangents", slope.scalar_type(), [&]<typename T>() {
    dispatch_width<T>(stack.columns,
                      {read<T>(tangents), read<T>(laplacian), read<T>(slope), read<T>(curvature),
                       read<T>(scaled), read<T>(out_laplacian)},
                      [&]<int N>() {
                        activation_tangents_kernel<T, N>
                            <<<stack.blocks(N), stack.block(), 0, launch.stream>>>(
                                read<T>(tangents), read<T>(laplacian), read<T>(slope), read<T>(curvature),
                                write<T>(keep_tangents, scaled), write<T>(out_laplacian), stack.count,
                                stack.rows, stack.columns);
                      });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {scaled, out_laplacian};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> activation_tangents_backward(
    std::optional<Tensor> grad_scaled_in, std::optional<Tensor> grad_laplacian_in, Tensor tangents_in,
    std::optional<Tensor> laplacian_in, Tensor slope_in, Tensor curvature_in, std::vector<bool> output_mask) {
  const Launch launch(slope_in);
  const std::optional<Tensor> grad_scaled = as_contiguous(grad_scaled_in),
                              grad_laplacian = as_contiguous(grad_laplacian_in),
                              laplacian = as_contiguous(laplacian_in);
  const Tensor tangents = as_contiguous(tangents_in), slope = as_contiguous(slope_in),
               curvature = as_contiguous(curvature_in);
  const bool want_laplacian = output_mask[1] && grad_laplacian.has_value();
  const bool want_curvature = output_mask[3] && grad_laplacian.has_value();
  Tensor to_tangents = empty_if(output_mask[0], tangents), to_laplacian = empty_if(want_laplacian, slope),
         to_slope = empty_if(output_mask[2], slope), to_curvature = empty_if(want_curvature, slope);
  const Stack stack(tangents, slope);
  const bool shared = stack.rows != 1;
  dispatch_full_precision("activation_tangents_backward", slope.scalar_type(), [&]<typename T>() {
    dispatch_width<T>(
        stack.columns,
        {read<T>(grad_scaled), read<T>(grad_laplacian), read<T>(tangents), read<T>(laplacian), read<T>(slope),
         read<T>(curvature), read<T>(to_tangents), read<T>(to_laplacian), read<T>(to_slope),
         read<T>(to_curvature)},
        [&]<int N>() {
          const bool whole = output_mask[0] && !shared;
          if (slope.numel() > 0 && (whole || want_laplacian || output_mask[2] || want_curvature)) {
            activation_tangents_backward_kernel<T, N><<<stack.blocks(N), stack.block(), 0, launch.stream>>>(
                read<T>(grad_scaled), read<T>(grad_laplacian), read<T>(tangents), read<T>(laplacian),
                read<T>(slope), read<T>(curvature), write<T>(whole, to_tangents),
                write<T>(want_laplacian, to_laplacian), write<T>(output_mask[2], to_slope),
                write<T>(want_curvature, to_curvature), stack.count, stack.rows, stack.columns);
            STD_CUDA_KERNEL_LAUNCH_CHECK();
          }
          if (output_mask[0] && shared && tangents.numel() > 0) {
            const Tiles tiles(stack.rows, stack.columns / N);
            const dim3 grid(tiles.grid.x, static_cast<unsigned>(std::min<int64_t>(stack.count, 65535)));
            activation_tangents_shared_kernel<T, N><<<grid, tiles.block, 0, launch.stream>>>(
                read<T>(grad_scaled), read<T>(grad_laplacian), read<T>(tangents), read<T>(slope),
                read<T>(curvature), write<T>(to_tangents), stack.count, stack.rows, stack.columns);
            STD_CUDA_KERNEL_LAUNCH_CHECK();
          }
        });
  });
  return {to_tangents, to_laplacian, to_slope, to_curvature};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CUDA, m) {
  m.impl("activation_tangents", TORCH_BOX(&activation_tangents));
  m.impl("activation_tangents_backward", TORCH_BOX(&activation_tangents_backward));
}

}  // namespace fisherkernels::cuda
