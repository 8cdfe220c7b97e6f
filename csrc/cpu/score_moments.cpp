// score_moments on CPU. Floor: forward reads the scores once; backward reads them once and writes their
// gradient once. The samples of a tile stay in the first-level cache between the sum over them and what
// needs it.
#include "math/score_moments.h"

#include "cpu/buffers.h"
#include "cpu/tensors.h"

namespace fisherkernels {
namespace {

template <typename T>
struct ScoreMoments {
  using A = accumulate_t<T>;
  const T* scores;                 // [S, N, D]
  A* mean_square;                  // [N], forward only
  A* square_mean;                  // [N], forward only
  const A* grad_mean_square;       // [N], backward only
  const A* grad_square_mean;       // [N], backward only
  Output<T> grad;                  // [S, N, D], backward only
  int64_t samples, rows, columns;  // S, N, D
};

// Sum over the samples of a tile that starts at `offset` in each of them.
template <typename T>
FK_INLINE void sum_samples(const ScoreMoments<T>& a, int64_t offset, int64_t n, accumulate_t<T>* sum) {
  std::fill_n(sum, n, accumulate_t<T>(0));
  for (int64_t sample = 0; sample < a.samples; ++sample) {
    const T* scores = a.scores + sample * a.rows * a.columns + offset;
    for (int64_t j = 0; j < n; ++j) sum[j] += load(scores[j]);
  }
}

template <typename T>
FK_INLINE void forward_rows(const ScoreMoments<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const A inverse_samples = A(1) / static_cast<A>(a.samples);
  for (int64_t r = begin; r < end; ++r) {
    Lanes<A> squares, squares_of_sums;
    for (int64_t start = 0; start < a.columns; start += kTile) {
      const int64_t n = std::min(kTile, a.columns - start), offset = r * a.columns + start;
      A sum[kTile];
      sum_samples(a, offset, n, sum);
      squares_of_sums.add_squares(sum, n);
      for (int64_t sample = 0; sample < a.samples; ++sample) {
        squares.add_squares(a.scores + sample * a.rows * a.columns + offset, n);
      }
    }
    a.mean_square[r] = score_moments_mean_square(squares.sum(), inverse_samples);
    a.square_mean[r] = score_moments_square_mean(squares_of_sums.sum(), inverse_samples);
  }
}

template <typename T>
FK_INLINE void backward_rows(const ScoreMoments<T>& a, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const A inverse_samples = A(1) / static_cast<A>(a.samples);
  for (int64_t r = begin; r < end; ++r) {
    const A by_score = score_moments_by_score(a.grad_mean_square[r], inverse_samples);
    const A by_sum = score_moments_by_sum(a.grad_square_mean[r], inverse_samples);
    for (int64_t start = 0; start < a.columns; start += kTile) {
      const int64_t n = std::min(kTile, a.columns - start), offset = r * a.columns + start;
      A sum[kTile], grad[kTile];
      sum_samples(a, offset, n, sum);
      for (int64_t sample = 0; sample < a.samples; ++sample) {
        const int64_t at = sample * a.rows * a.columns + offset;
        const T* scores = a.scores + at;
        for (int64_t j = 0; j < n; ++j) {
          grad[j] = score_moments_grad(by_score, load(scores[j]), by_sum, sum[j]);
        }
        a.grad.write(at, grad, n);
      }
    }
  }
  finish_streams();
}

FK_CLONES void score_moments_rows(const ScoreMoments<float>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void score_moments_rows(const ScoreMoments<double>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void score_moments_rows(const ScoreMoments<BFloat16>& a, int64_t begin, int64_t end) {
  forward_rows(a, begin, end);
}
FK_CLONES void score_moments_backward_rows(const ScoreMoments<float>& a, int64_t begin, int64_t end) {
  backward_rows(a, begin, end);
}
FK_CLONES void score_moments_backward_rows(const ScoreMoments<double>& a, int64_t begin, int64_t end) {
  backward_rows(a, begin, end);
}
FK_CLONES void score_moments_backward_rows(const ScoreMoments<BFloat16>& a, int64_t begin, int64_t end) {
  backward_rows(a, begin, end);
}

template <typename T>
ScoreMoments<T> arguments_of(const Tensor& scores) {
  ScoreMoments<T> a{};
  a.scores = pointer<T>(scores);
  a.samples = scores.size(0);
  a.rows = scores.size(1);
  a.columns = scores.size(2);
  return a;
}

std::tuple<Tensor, Tensor> score_moments(const Tensor& scores_in) {
  const Tensor scores = as_contiguous(scores_in);
  const ScalarType sums = accumulate_type(scores.scalar_type());
  const Tensor mean_square = new_output(scores, {scores.size(1)}, sums);
  const Tensor square_mean = new_output(scores, {scores.size(1)}, sums);
  dispatch(scores, "score_moments", [&](auto element) {
    using T = decltype(element);
    auto a = arguments_of<T>(scores);
    a.mean_square = output_pointer<accumulate_t<T>>(mean_square);
    a.square_mean = output_pointer<accumulate_t<T>>(square_mean);
    for_rows(a.rows, a.samples * a.columns,
             [&](int64_t begin, int64_t end) { score_moments_rows(a, begin, end); });
  });
  return {mean_square, square_mean};
}

Tensor score_moments_backward(const Tensor& grad_mean_square_in, const Tensor& grad_square_mean_in,
                              const Tensor& scores_in) {
  const Tensor scores = as_contiguous(scores_in);
  const Tensor grad_mean_square = as_contiguous(grad_mean_square_in),
               grad_square_mean = as_contiguous(grad_square_mean_in);
  const Tensor grad = new_output(scores, scores.sizes());
  dispatch(scores, "score_moments_backward", [&](auto element) {
    using T = decltype(element);
    auto a = arguments_of<T>(scores);
    a.grad_mean_square = pointer<accumulate_t<T>>(grad_mean_square);
    a.grad_square_mean = pointer<accumulate_t<T>>(grad_square_mean);
    a.grad = output<T>(grad);
    for_rows(a.rows, a.samples * a.columns,
             [&](int64_t begin, int64_t end) { score_moments_backward_rows(a, begin, end); });
  });
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fisherkernels, CPU, m) {
  m.impl("score_moments", TORCH_BOX(&score_moments));
  m.impl("score_moments_backward", TORCH_BOX(&score_moments_backward));
}

}  // namespace fisherkernels
