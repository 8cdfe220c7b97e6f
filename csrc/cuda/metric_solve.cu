#include "cuda/triangular.cuh"

namespace fisherkernels::cuda {
namespace {

// What gram_kernel reads: the tangents, which it weights on one side of the product, and the data.
template <typename T>
struct Inputs {
  const T* jacobian;  // [d, N, D] with the strides below; columns lie side by side
  int64_t by_tangent, by_sample;
  const T* precision;  // [1 or N, 1 or D]
  int64_t precision_by_sample, precision_by_column;
  const T* data;                                 // [S, N, D]
  int64_t size, samples, columns, rows, chunks;  // d, N, D, d + S
};

// Rows and columns of a tile, in units of the threads along its side.
enum class GramTile { k32 = 2, k64 = 4 };

// One tile of the sums over one chunk of columns of one sample: blockIdx.x is sample and chunk, blockIdx.y
// the tile.
template <typename T, int N, GramTile kTile, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, kTile == GramTile::k64 && sizeof(T) == 8 ? 1 : 2)
    gram_kernel(Inputs<T> in, A* __restrict__ sums, int64_t chunk_columns, int64_t tiles_across) {
  constexpr int K = static_cast<int>(kTile), kRows = kSide * K;
  const int64_t n = blockIdx.x / in.chunks, begin = blockIdx.x % in.chunks * chunk_columns;
  const int64_t row = blockIdx.y / tiles_across * kRows, column = blockIdx.y % tiles_across * kRows;
  const bool has_data = row + kRows > in.size;
  if (!has_data && column > row) return;  // the upper triangle
  const T* precision = in.precision + n * in.precision_by_sample;
  const auto tangent = [&](int64_t k, int64_t c) {
    return load<N>(in.jacobian + k * in.by_tangent + n * in.by_sample + c);
  };
  const auto left = [&](int i, int64_t c) {
    const int64_t k = row + i;
    if (k >= in.rows) return splat<A, N>(0);
    if (k >= in.size) return load<N>(in.data + ((k - in.size) * in.samples + n) * in.columns + c);
    auto weighted = tangent(k, c);
#pragma unroll
    for (int e = 0; e < N; ++e) weighted[e] *= precision[(c + e) * in.precision_by_column];
    return weighted;
  };
  const auto right = [&](int i, int64_t c) {
    return column + i < in.size ? tangent(column + i, c) : splat<A, N>(0);
  };
  A sum[K][K] = {};
  add_products<A, N, K>(sum, left, right, begin, min(begin + chunk_columns, in.columns));
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
#pragma unroll
  for (int r = 0; r < K; ++r) {
#pragma unroll
    for (int q = 0; q < K; ++q) {
      const int64_t i = row + y + kSide * r, j = column + x + kSide * q;
      if (i < in.rows && j < in.size) sums[(blockIdx.x * in.rows + i) * in.size + j] = sum[r][q];
    }
  }
}

// About 512 blocks fill the largest devices; chunks of fewer than 256 columns would mostly wait for their
// first loads.
int64_t chunk_count(int64_t blocks, int64_t columns) {
  return std::max<int64_t>(1, std::min<int64_t>(512 / std::max<int64_t>(1, blocks), columns / 256));
}

std::tuple<Tensor, Tensor> metric_solve(Tensor jacobian_in, Tensor precision_in, Tensor rhs_in,
                                        std::optional<Tensor> data_in) {
  const Launch launch(jacobian_in);
  const Tensor jacobian = jacobian_in.stride(2) == 1 ? jacobian_in : torch::stable::contiguous(jacobian_in);
  const Tensor precision = as_contiguous(precision_in), rhs = as_contiguous(rhs_in);
  const auto data = as_contiguous(data_in);
  const ScalarType type = jacobian.scalar_type();
  const int64_t size = jacobian.size(0), samples = jacobian.size(1), columns = jacobian.size(2);
  const int64_t systems = rhs.size(0), rows = size + (data.has_value() ? systems : 0);
  Tensor solution = empty(rhs, {systems, samples, size}), factor = empty(rhs, {samples, size, size});
  if (size == 0 || samples == 0) return {solution, factor};
  const bool small = rows <= 2 * kSide;
  const int64_t side = (small ? 2 : 4) * kSide;
  const int64_t across = (size + side - 1) / side, down = (rows + side - 1) / side;
  const int64_t chunks = chunk_count(samples * across * down, columns);
  const int64_t per_chunk = (columns + chunks - 1) / chunks;
  const int64_t chunk_columns = (per_chunk + 31) / 32 * 32;  // whole vectors
  Tensor parts = empty(rhs, {samples, chunks, rows, size});
  dispatch_full_precision("metric_solve", type, [&]<typename T>() {
    const Inputs<T> in{read<T>(jacobian),
                       jacobian.stride(0),
                       jacobian.stride(1),
                       read<T>(precision),
                       precision.size(0) == 1 ? 0 : precision.size(1),
                       precision.size(1) == 1 ? 0 : 1,
                       read<T>(data),
                       size,
                       samples,
                       columns,
                       rows,
                       chunks};
    const dim3 grid(static_cast<unsigned>(samples * chunks), static_cast<unsigned>(across * down));
    dispatch_width<T>(columns | in.by_tangent | in.by_sample, {in.jacobian, in.data}, [&]<int N>() {
      const auto kernel = small ? gram_kernel<T, N, GramTile::k32> : gram_kernel<T, N, GramTile::k64>;
      kernel<<<grid, kBlock, 0, launch.stream>>>(in, write<T>(parts), chunk_columns, across);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    Sums<T> sums{read<T>(parts), chunks, rows, size};
    dispatch_width<T>(size, {read<T>(factor)}, [&]<int N>() {
      factor_kernel<T, N>
          <<<static_cast<unsigned>(samples), kBlock, 0, launch.stream>>>(sums, write<T>(factor), size);
    });
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    if (systems == 0) return;
    if (!data.has_value()) sums.chunks = 0;
    solve_kernel<T><<<static_cast<unsigned>(systems * samples), kBlock, 0, launch.stream>>>(
        read<T>(factor), read<T>(rhs), sums, write<T>(solution), samples, size);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {solution, factor};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CUDA, m) { m.impl("metric_solve", TORCH_BOX(&metric_solve)); }

}  // namespace fisherkernels::cuda
