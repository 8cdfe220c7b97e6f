#include "cuda/triangular.cuh"

namespace fisherkernels::cuda {
namespace {

Tensor factor_solve(Tensor factor_in, Tensor rhs_in) {
  const Launch launch(factor_in);
  const Tensor factor = as_contiguous(factor_in), rhs = as_contiguous(rhs_in);
  const int64_t systems = rhs.size(0), samples = rhs.size(1), size = rhs.size(2);
  Tensor solution = empty(rhs, {systems, samples, size});
  if (systems * samples * size == 0) return solution;
  dispatch_full_precision("factor_solve", rhs.scalar_type(), [&]<typename T>() {
    const Sums<T> none{nullptr, 0, 0, 0};
    solve_kernel<T><<<static_cast<unsigned>(systems * samples), kBlock, 0, launch.stream>>>(
        read<T>(factor), read<T>(rhs), none, write<T>(solution), samples, size);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return solution;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CUDA, m) { m.impl("factor_solve", TORCH_BOX(&factor_solve)); }

}  // namespace fisherkernels::cuda
