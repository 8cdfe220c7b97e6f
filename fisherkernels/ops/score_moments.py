"""First and second moment of a stack of score vectors, in one read of it."""

import torch
from torch import Tensor

from fisherkernels.ops._autograd import below_autograd, call, needs_graph, single_backward
from fisherkernels.ops._checks import accumulate_dtype, check_tensor
from fisherkernels.ops._library import define


def score_moments(scores: Tensor) -> tuple[Tensor, Tensor]:
    r"""mean_s ‖s‖² and ‖mean_s s‖² over S samples of a score vector, per data point.

    Their difference is the trace of the scores' covariance, divided by S. With more than one sample
    (S ‖mean_s s‖² - mean_s ‖s‖²) / (S - 1) estimates ‖E s‖² without bias.

    Args:
        scores: shape [S, N, D], S >= 1.

    Returns:
        mean_square [N] and square_mean [N] (float32 for bfloat16 input).

    Raises:
        TypeError: for a dtype other than float32, float64, bfloat16.
        ValueError: for another number of dimensions, or no samples.

    Source: the expectations in Wenliang, "On the failure of variational score matching for VAE models", eq. 13, 15.
    """
    check_tensor("score_moments", "scores", scores)
    if scores.dim() != 3 or scores.shape[0] == 0:
        raise ValueError(
            "score_moments: scores must have shape [samples, rows, columns] with at least one sample, "
            f"got {list(scores.shape)}"
        )
    return call(torch.ops.fisherkernels.score_moments.default, _autograd, scores)


def _forward(scores: Tensor) -> tuple[Tensor, Tensor]:
    wide = scores.to(accumulate_dtype(scores.dtype))
    return wide.square().sum(2).mean(0), wide.mean(0).square().sum(1)


def _backward(grad_mean_square: Tensor, grad_square_mean: Tensor, scores: Tensor) -> Tensor:
    wide = scores.to(accumulate_dtype(scores.dtype))
    through = grad_mean_square[:, None] * wide + grad_square_mean[:, None] * wide.mean(0)  # [S, N, D]
    return (through * (2 / scores.shape[0])).to(scores.dtype).contiguous()


def _forward_fake(scores: Tensor) -> tuple[Tensor, Tensor]:
    rows, dtype = scores.shape[1], accumulate_dtype(scores.dtype)
    return scores.new_empty(rows, dtype=dtype), scores.new_empty(rows, dtype=dtype)


def _backward_fake(grad_mean_square: Tensor, grad_square_mean: Tensor, scores: Tensor) -> Tensor:
    return scores.new_empty(scores.shape)


class _ScoreMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        ctx.save_for_backward(scores)
        return below_autograd(torch.ops.fisherkernels.score_moments.default, scores)

    @staticmethod
    def backward(ctx, grad_mean_square, grad_square_mean):
        sources = (grad_mean_square, grad_square_mean, *ctx.saved_tensors)
        grad = below_autograd(torch.ops.fisherkernels.score_moments_backward.default, *sources)
        return single_backward("score_moments", (True,), (grad,), sources)


def _autograd(scores: Tensor) -> tuple[Tensor, Tensor]:
    if needs_graph(scores):
        return _ScoreMoments.apply(scores)
    return below_autograd(torch.ops.fisherkernels.score_moments.default, scores)


define(
    "score_moments",
    "(Tensor scores) -> (Tensor mean_square, Tensor square_mean)",
    twin=_forward,
    fake=_forward_fake,
    autograd=_autograd,
)
define(
    "score_moments_backward",
    "(Tensor grad_mean_square, Tensor grad_square_mean, Tensor scores) -> Tensor",
    twin=_backward,
    fake=_backward_fake,
)
