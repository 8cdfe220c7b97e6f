#include "cuda/rows.cuh"
#include "cuda/tiles.cuh"
#include "math/half_squared_norm.h"
#include "math/posterior_residual.h"

namespace fisherkernels::cuda {
namespace {

// Where the prior's score comes from.
enum class Prior { kNormal, kPolynomial, kGiven };

// Orders of the polynomial whose gradients one thread keeps in registers; more take further blocks
// (blockIdx.z).
constexpr int kOrders = 8;

// Score of the prior at the columns of a pack, and its slope with respect to z.
template <Prior kPrior, typename A, int N>
__device__ void prior_score_and_slope(const Pack<A, N>& z, const A* coefficients, int order,
                                      Pack<A, N>& score, Pack<A, N>& slope) {
  if constexpr (kPrior == Prior::kNormal) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      score[i] = -z[i];
      slope[i] = -1;
    }
  } else if constexpr (kPrior == Prior::kGiven) {
    score = z;
    slope = splat<A, N>(0);
  } else {
    score = slope = splat<A, N>(0);
    for (int k = order; k > 0; --k) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A coefficient = coefficients[i * order + k - 1];
        score[i] = horner(score[i], z[i], score_weight(coefficient, k));
        if (k > 1) slope[i] = horner(slope[i], z[i], slope_weight(coefficient, k));
      }
    }
  }
}

template <typename T, int N, Prior kPrior, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 2)
    posterior_residual_kernel(const T* __restrict__ eps,           // [R, d]
                              const T* __restrict__ log_std,       // [M, d]
                              const T* __restrict__ z,             // [R, d]; the prior's score under kGiven
                              const A* __restrict__ coefficients,  // [d, K] under kPolynomial
                              const T* __restrict__ decoder_vjp,   // [R, d]
                              A* __restrict__ value,               // [R]
                              int64_t rows, int64_t paired_rows, int64_t columns, int order, int group) {
  const int64_t row = group_row(group);
  A squares = 0;
  if (row < rows) {
    const int64_t paired = paired_row(row, paired_rows) * columns;
    for (int64_t column = (threadIdx.x % group) * N; column < columns; column += group * N) {
      const int64_t at = row * columns + column;
      const auto e = load<N>(eps + at);
      const auto s = load<N>(log_std + paired + column);
      const auto v = load<N>(decoder_vjp + at);
      Pack<A, N> score, slope;
      prior_score_and_slope<kPrior>(load<N>(z + at), coefficients + column * order, order, score, slope);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A r = posterior_residual_element(e[i], inverse_std_of(s[i]), score[i], v[i]);
        squares += r * r;
      }
    }
  }
  squares = reduce_group(squares, group);
  if (row < rows && threadIdx.x % group == 0) value[row] = half_squared_norm_of_sum(squares);
}

template <typename T>
struct Gradients {
  T* eps;          // [R, d]; each null where not wanted
  T* log_std;      // [M, d]
  T* z;            // [R, d]
  T* decoder_vjp;  // [R, d]
  T* prior_score;  // [R, d]
};

// A thread owns columns of one row of log_std and runs through its samples; blocks with blockIdx.z > 0 only
// add the gradients of the coefficients of their orders.
template <typename T, int N, Prior kPrior, typename A = Accumulate<T>>
__global__ void __launch_bounds__(kBlock, 1)
    posterior_residual_backward_kernel(const A* __restrict__ grad_value,  // [R]
                                       const T* __restrict__ eps,         // [R, d]
                                       const T* __restrict__ log_std,     // [M, d]
                                       const T* __restrict__ z,  // [R, d]; the prior's score under kGiven
                                       const A* __restrict__ coefficients,  // [d, K] under kPolynomial
                                       const T* __restrict__ decoder_vjp,   // [R, d]
                                       const Gradients<T> grads,
                                       A* __restrict__ partials,  // [blocks, d, K] or null
                                       int64_t paired_rows, int64_t samples, int64_t columns, int order) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  const int first_order = blockIdx.z * kOrders;
  const bool active = column < columns, primary = blockIdx.z == 0;
  constexpr int kSums = kPrior == Prior::kPolynomial ? kOrders : 1;
  Pack<A, N> sums[kSums];
#pragma unroll
  for (int k = 0; k < kSums; ++k) sums[k] = splat<A, N>(0);
  if (active) {
    for (int64_t m = blockIdx.y * blockDim.y + threadIdx.y; m < paired_rows; m += gridDim.y * blockDim.y) {
      auto inverse_std = load<N>(log_std + m * columns + column);
#pragma unroll
      for (int i = 0; i < N; ++i) inverse_std[i] = inverse_std_of(inverse_std[i]);
      auto to_log_std = splat<A, N>(0);
      for (int64_t l = 0; l < samples; ++l) {
        const int64_t row = l * paired_rows + m, at = row * columns + column;
        const A g = grad_value[row];
        const auto e = load<N>(eps + at);
        const auto v = load<N>(decoder_vjp + at);
        const auto point = load<N>(z + at);
        Pack<A, N> score, slope, through, out;
        prior_score_and_slope<kPrior>(point, coefficients + column * order, order, score, slope);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          through[i] = g * posterior_residual_element(e[i], inverse_std[i], score[i], v[i]);
          to_log_std[i] += posterior_residual_grad_log_std(through[i], inverse_std[i], e[i]);
        }
        if (primary) {
          if (grads.eps != nullptr) {
#pragma unroll
            for (int i = 0; i < N; ++i) out[i] = posterior_residual_grad_eps(through[i], inverse_std[i]);
            store(grads.eps + at, out);
          }
          if (grads.z != nullptr) {
#pragma unroll
            for (int i = 0; i < N; ++i) out[i] = posterior_residual_grad_z(through[i], slope[i]);
            store(grads.z + at, out);
          }
#pragma unroll
          for (int i = 0; i < N; ++i) out[i] = -through[i];
          if (grads.decoder_vjp != nullptr) store(grads.decoder_vjp + at, out);
          if (grads.prior_score != nullptr) store(grads.prior_score + at, out);
        }
        if constexpr (kPrior == Prior::kPolynomial) {
          if (partials == nullptr) continue;
          for (int k = 0; k < first_order; ++k) {
#pragma unroll
            for (int i = 0; i < N; ++i) through[i] *= point[i];
          }
#pragma unroll
          for (int k = 0; k < kSums; ++k) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
              sums[k][i] -= score_weight(through[i], first_order + k + 1);
              through[i] *= point[i];
            }
          }
        }
      }
      if (primary && grads.log_std != nullptr) store(grads.log_std + m * columns + column, to_log_std);
    }
  }
  if constexpr (kPrior == Prior::kPolynomial) {
    if (partials == nullptr) return;
    __shared__ A shared[kBlock * N];
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      if (first_order + k >= order) return;
      const auto sum = reduce_rows(sums[k], shared);
      if (threadIdx.y == 0 && active) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          partials[(blockIdx.y * columns + column + i) * order + first_order + k] = sum[i];
        }
      }
    }
  }
}

Prior prior_of(const std::optional<Tensor>& coefficients, const std::optional<Tensor>& prior_score) {
  if (prior_score.has_value()) return Prior::kGiven;
  return coefficients.has_value() ? Prior::kPolynomial : Prior::kNormal;
}

// Calls body.operator()<kPrior>().
template <typename Body>
void dispatch_prior(Prior prior, Body&& body) {
  switch (prior) {
    case Prior::kNormal:
      return body.template operator()<Prior::kNormal>();
    case Prior::kPolynomial:
      return body.template operator()<Prior::kPolynomial>();
    case Prior::kGiven:
      return body.template operator()<Prior::kGiven>();
  }
}

Tensor posterior_residual(Tensor eps_in, Tensor log_std_in, Tensor z_in,
                          std::optional<Tensor> coefficients_in, Tensor decoder_vjp_in,
                          std::optional<Tensor> prior_score_in) {
  const Launch launch(eps_in);
  const Prior prior = prior_of(coefficients_in, prior_score_in);
  const Tensor eps = as_contiguous(eps_in), log_std = as_contiguous(log_std_in),
               v = as_contiguous(decoder_vjp_in);
  const Tensor point = as_contiguous(prior == Prior::kGiven ? *prior_score_in : z_in);
  const ScalarType type = eps.scalar_type(), accumulate = accumulate_type(type);
  std::optional<Tensor> coefficients;
  if (prior == Prior::kPolynomial) coefficients = as_type(*coefficients_in, accumulate);
  const int order = coefficients.has_value() ? static_cast<int>(coefficients->size(1)) : 0;
  const int64_t rows = eps.size(0), columns = eps.size(1);
  Tensor value = empty(eps, {rows}, accumulate);
  if (rows == 0) return value;
  dispatch_type("posterior_residual", type, [&]<typename T>() {
    using A = Accumulate<T>;
    dispatch_width<T>(columns, {read<T>(eps), read<T>(log_std), read<T>(point), read<T>(v)}, [&]<int N>() {
      dispatch_prior(prior, [&]<Prior kPrior>() {
        const RowGroups groups(rows, columns / N);
        posterior_residual_kernel<T, N, kPrior><<<groups.blocks, kBlock, 0, launch.stream>>>(
            read<T>(eps), read<T>(log_std), read<T>(point), read<A>(coefficients), read<T>(v),
            write<A>(value), rows, log_std.size(0), columns, order, groups.group);
      });
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return value;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> posterior_residual_backward(
    Tensor grad_value_in, Tensor eps_in, Tensor log_std_in, Tensor z_in,
    std::optional<Tensor> coefficients_in, Tensor decoder_vjp_in, std::optional<Tensor> prior_score_in,
    std::vector<bool> output_mask) {
  const Launch launch(eps_in);
  const Prior prior = prior_of(coefficients_in, prior_score_in);
  const Tensor eps = as_contiguous(eps_in), log_std = as_contiguous(log_std_in),
               v = as_contiguous(decoder_vjp_in);
  const Tensor point = as_contiguous(prior == Prior::kGiven ? *prior_score_in : z_in);
  const ScalarType type = eps.scalar_type(), accumulate = accumulate_type(type);
  const Tensor grad_value = as_type(grad_value_in, accumulate);
  std::optional<Tensor> coefficients;
  if (prior == Prior::kPolynomial) coefficients = as_type(*coefficients_in, accumulate);
  const int order = coefficients.has_value() ? static_cast<int>(coefficients->size(1)) : 0;
  const int64_t rows = eps.size(0), columns = eps.size(1), paired_rows = log_std.size(0);
  const bool for_coefficients = output_mask[3] && prior == Prior::kPolynomial;
  Tensor grad_eps = empty_if(output_mask[0], eps), grad_log_std = empty_if(output_mask[1], log_std);
  Tensor grad_z = empty_if(output_mask[2], eps), grad_decoder_vjp = empty_if(output_mask[4], eps);
  Tensor grad_prior_score = empty_if(output_mask[5], eps);
  Tensor grad_coefficients = empty(coefficients_in.value_or(eps), {0});
  dispatch_type("posterior_residual_backward", type, [&]<typename T>() {
    using A = Accumulate<T>;
    dispatch_width<T>(
        columns,
        {read<T>(eps), read<T>(log_std), read<T>(point), read<T>(v), read<T>(grad_eps), read<T>(grad_log_std),
         read<T>(grad_z), read<T>(grad_decoder_vjp), read<T>(grad_prior_score)},
        [&]<int N>() {
          const Tiles tiles(paired_rows, columns / N, for_coefficients ? (order + kOrders - 1) / kOrders : 1);
          Tensor partials =
              empty(eps, {for_coefficients ? int64_t(tiles.grid.y) : 0, columns * order}, accumulate);
          if (tiles.blocks() > 0) {
            const Gradients<T> grads{write<T>(output_mask[0], grad_eps),
                                     write<T>(output_mask[1], grad_log_std), write<T>(output_mask[2], grad_z),
                                     write<T>(output_mask[4], grad_decoder_vjp),
                                     write<T>(output_mask[5], grad_prior_score)};
            dispatch_prior(prior, [&]<Prior kPrior>() {
              posterior_residual_backward_kernel<T, N, kPrior><<<tiles.grid, tiles.block, 0, launch.stream>>>(
                  read<A>(grad_value), read<T>(eps), read<T>(log_std), read<T>(point), read<A>(coefficients),
                  read<T>(v), grads, write<A>(for_coefficients, partials), paired_rows, rows / paired_rows,
                  columns, order);
            });
            STD_CUDA_KERNEL_LAUNCH_CHECK();
          }
          if (for_coefficients) {
            grad_coefficients =
                sum_rows<A>(partials, shape_of(*coefficients), coefficients_in->scalar_type(), launch);
          }
        });
  });
  return {grad_eps, grad_log_std, grad_z, grad_coefficients, grad_decoder_vjp, grad_prior_score};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CUDA, m) {
  m.impl("posterior_residual", TORCH_BOX(&posterior_residual));
  m.impl("posterior_residual_backward", TORCH_BOX(&posterior_residual_backward));
}

}  // namespace fisherkernels::cuda
