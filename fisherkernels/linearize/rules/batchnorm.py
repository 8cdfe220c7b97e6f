"""Batch normalisation with batch statistics (train mode), running statistics (eval mode), or frozen ones."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fisherkernels.ops._autograd import again
from fisherkernels.ops._norm_plain import product_in_operations
from fisherkernels.transforms import inside_transform

from .base import Layer, SymmetricRule


class BatchNorm(SymmetricRule):
    """y = w (x - m) r + b per channel, r = 1/sqrt(v + eps).

    Running statistics: J is the diagonal w r. Batch statistics: J t = w r (t - mean(t) - u mean(u t)), u = (x - m) r,
    is symmetric, so it serves for J^T too; it couples the samples of a batch, and a stack is the loop of its members.
    Frozen: the value is the one with batch statistics, the linear map is w r with r held constant.
    """

    uses_batch_statistics = True

    def forward(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
        *,
        frozen: bool = False,
    ):
        given = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
        for name, t in given.items():
            if t is not None and t.shape != input.shape[1:2]:
                raise ValueError(
                    f"BatchNorm: expected {name} of shape [{input.shape[1]}], as the input has channels, "
                    f"got {list(t.shape)}"
                )
        if not training:
            value = F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
            return value, (None, weight, None, torch.rsqrt(running_var + eps), eps)
        if input.numel() == input.shape[1]:
            raise ValueError(
                "BatchNorm in train mode: expected more than one value per channel, "
                f"got an input of shape {list(input.shape)}"
            )
        value, mean, rstd = torch.native_batch_norm(input, weight, bias, running_mean, running_var, True, momentum, eps)
        if frozen:
            return value, (None, weight, None, rstd.detach(), eps)
        return value, (input, weight, mean, rstd, eps)

    def apply(self, saved, t, stacked):
        input, weight, mean, rstd, eps = saved
        if input is None:
            scale = rstd if weight is None else rstd * weight
            return t * per_channel(scale, t.dim() - int(stacked))
        if stacked:
            return (
                torch.stack([self._couple(saved, member) for member in t.unbind()]) if len(t) else torch.zeros_like(t)
            )
        return self._couple(saved, t)

    def couples_samples(self, saved):
        return saved[0] is not None

    def of_one_sample(self, saved, active):
        return saved if saved[0] is None else None

    @staticmethod
    def _couple(saved, t: Tensor) -> Tensor:
        input, weight, mean, rstd, eps = saved
        if inside_transform():
            return product_in_operations(t, input, weight, rstd, 0)
        return BatchStatisticsProduct.apply(t, input, weight, mean, rstd, eps)


def per_channel(v: Tensor, dims: int) -> Tensor:
    return v.view(1, -1, *([1] * (dims - 2)))  # [1, C, 1, ...]


def all_but_channels(dims: int) -> list[int]:
    return [d for d in range(dims) if d != 1]


def _backward(t: Tensor, input: Tensor, weight, mean: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, ...]:
    """J t, and the channels' sums of u t and of t."""
    product, scaled, plain = torch.ops.aten.native_batch_norm_backward(
        t, input, weight, None, None, mean, rstd, True, eps, [True, True, True]
    )
    return product, scaled, plain


def _plain_product(rstd: Tensor, t: Tensor, input: Tensor, weight: Tensor | None) -> tuple[Tensor]:
    return (product_in_operations(t, input, weight, rstd, 0),)


class BatchStatisticsProduct(torch.autograd.Function):
    """y = J t of batch statistics, with its derivative written out, in few passes over memory.

    Per channel of n values, means over them: a = mean(t), k = mean(u t), and for the gradient g of y: A = mean(g),
    K = mean(u g), C = mean(g t). From y = w r (t - a - u k), dr = -r^2 mean(u dx) and
    du = r (dx - mean(dx) - u mean(u dx)): dL/dt = J g, dL/dw = n r (C - A a - K k) and
    dL/dx = -w r^2 (k g + K t + u (C - A a - 3 K k) - k A - K a).
    """

    @staticmethod
    def forward(ctx, t, input, weight, mean, rstd, eps):
        product, scaled, plain = _backward(t, input, weight, mean, rstd, eps)
        ctx.save_for_backward(t, input, weight, mean, rstd, scaled, plain)
        ctx.eps = eps
        return product

    @staticmethod
    def backward(ctx, g):
        t, input, weight, mean, rstd, scaled, plain = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return *again(partial(_plain_product, rstd), (t, input, weight), (g,)), None, None, None
        n, dims = t.numel() // t.shape[1], t.dim()
        over = all_but_channels(dims)
        grad_t, scaled_g, plain_g = _backward(g, input, weight, mean, rstd, ctx.eps)
        k, a, big_k, big_a = scaled / n, plain / n, scaled_g / n, plain_g / n
        c = (g * t).sum(over) / n
        grad_weight = None if weight is None else n * rstd * (c - big_a * a - big_k * k)
        factor = -rstd * rstd if weight is None else -weight * rstd * rstd
        slope = factor * rstd * (c - big_a * a - 3 * big_k * k)
        offset = -factor * (k * big_a + big_k * a) - slope * mean
        grad_input = g * per_channel(factor * k, dims)
        grad_input.addcmul_(t, per_channel(factor * big_k, dims))
        grad_input.addcmul_(input, per_channel(slope, dims)).add_(per_channel(offset, dims))
        return grad_t, grad_input, grad_weight, None, None, None


def _batch_norm(module, read):
    momentum = 0.0 if module.momentum is None else module.momentum
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # cumulative average
            momentum = 1.0 / float(module.num_batches_tracked)
    batch = module.training or (module.running_mean is None and module.running_var is None)
    update = not module.training or module.track_running_stats
    return (
        module.running_mean if update else None,
        module.running_var if update else None,
        read("weight"),
        read("bias"),
        batch,
        momentum,
        module.eps,
    )


RULES = {"batch_norm": BatchNorm()}
FUNCTIONS = {F.batch_norm: "batch_norm"}
METHODS: dict = {}
MODULES = {kind: Layer("batch_norm", _batch_norm) for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)}
