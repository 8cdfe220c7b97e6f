"""Group normalisation: mean and variance of each sample's groups of channels."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fisherkernels.ops._autograd import again
from fisherkernels.transforms import inside_transform

from .base import Layer, Rule, lead


class GroupNorm(Rule):
    """y = w (x - m) r + b, m and r = 1/sqrt(v + eps) per sample and group of n values, w and b per channel.

    J t = w P t and J^T c = P (w c) with the symmetric P t = r (t - mean(t) - u mean(u t)), u = (x - m) r.
    """

    traffic = 5

    def forward(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ):
        if input.dim() < 2 or input.shape[1] % num_groups:
            raise ValueError(
                f"GroupNorm: expected an input [N, C, ...] with C divisible by {num_groups} groups, "
                f"got shape {list(input.shape)}"
            )
        batch, channels = input.shape[:2]
        size = math.prod(input.shape[2:])
        if batch * channels * size == num_groups:
            raise ValueError(f"GroupNorm: expected more than one value per group, got shape {list(input.shape)}")
        own, wide = input.dtype, torch.promote_types(input.dtype, torch.float32)
        if own == wide:
            sizes = (batch, channels, size, num_groups, eps)
            value, mean, rstd = torch.native_group_norm(input.contiguous(), weight, bias, *sizes)
        else:  # half precision: the products in float32
            value, input = F.group_norm(input, num_groups, weight, bias, eps), input.to(wide)
            mean, rstd = statistics(input.reshape(batch, num_groups, channels * size // num_groups), eps)
        weight = None if weight is None else weight.to(wide)
        saved = input.reshape(batch, channels, size), weight, mean.detach(), rstd.detach()
        return value, (*saved, own, value.dtype)

    def vjp(self, saved, cotangent, stacked, needs):
        return (self._product(saved, cotangent, stacked, True),)

    def jvp(self, saved, tangents, stacked):
        return self._product(saved, tangents[0], stacked, False)

    def curved(self, active):
        return True

    def curvature(self, saved, tangents):
        """From r' = -r^2 k and r'' = r^3 (3 k^2 - q), k = mean(u t), q = mean(c^2), c = t - mean(t), per group:
        w (-2 r^2 k c + r^2 u (3 k^2 - q)).
        """
        (t,) = tangents
        input, weight, mean, rstd, _, value_type = saved
        groups = rstd.shape[1]
        x = input.reshape(len(input), groups, -1)  # [N, G, n]
        centred = x - x.mean(-1, keepdim=True)
        r = _differentiable_rstd(centred, rstd)  # [N, G, 1]
        u = centred * r
        c = t.to(input.dtype).reshape(len(t), *x.shape)
        c = c - c.mean(-1, keepdim=True)  # [K, N, G, n]
        k = (u * c).mean(-1, keepdim=True)
        total = u * (3 * k.square() - c.square().mean(-1, keepdim=True)).sum(0) - 2 * (k * c).sum(0)
        total = (r.square() * total).reshape(input.shape)  # [N, C, S]
        total = total if weight is None else total * weight.unsqueeze(1)
        return total.reshape(t.shape[1:]).to(value_type)

    @staticmethod
    def _product(saved, t: Tensor, stacked: bool, transpose: bool) -> Tensor:
        input, weight, mean, rstd, input_type, value_type = saved
        stack = t.to(input.dtype).reshape(*(lead(t, stacked) or (1,)), *input.shape)  # [K, N, C, S]
        apply = product_in_operations if inside_transform() else GroupNormProduct.apply
        product = apply(stack, input, weight, mean, rstd, transpose)
        return product.reshape(t.shape).to(input_type if transpose else value_type)


def statistics(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1/sqrt(variance + eps) over the last dimension, without a graph."""
    input = input.detach()
    mean = input.mean(-1)
    return mean, torch.rsqrt((input - mean.unsqueeze(-1)).square().mean(-1) + eps)


def _differentiable_rstd(centred: Tensor, rstd: Tensor) -> Tensor:
    """r [N, G] = 1/sqrt(mean(centred^2) + eps) of centred [N, G, n], [N, G, 1], in the graph."""
    variance = centred.square().mean(-1, keepdim=True)
    r = rstd.unsqueeze(-1)
    return r - 0.5 * r**3 * (variance - variance.detach())


def product_in_operations(t, input, weight, mean, rstd, transpose: bool) -> Tensor:
    """What GroupNormProduct gives, in operations that the transforms of torch.func know, to any order."""
    x = input.reshape(len(input), rstd.shape[1], -1)  # [N, G, n]
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    r = (rstd.unsqueeze(-1) ** -2 + variance - variance.detach()).rsqrt()  # 1/sqrt(variance + eps)
    u = centred * r
    weight = None if weight is None else weight.unsqueeze(1)  # [C, 1]
    s = (t * weight if weight is not None and transpose else t).reshape(len(t), *x.shape)
    product = r * (s - s.mean(-1, keepdim=True) - u * (u * s).mean(-1, keepdim=True))
    product = product.reshape(t.shape)
    return product if weight is None or transpose else product * weight


def _plain_product(mean, rstd, transpose: bool, t, input, weight) -> tuple[Tensor]:
    return (product_in_operations(t, input, weight, mean, rstd, transpose),)


class GroupNormProduct(torch.autograd.Function):
    """J t, or J^T t, with its derivative written out, in few passes over memory.

    y = q P (p t), one of the channels' factors p and q is the weight, the other 1. For the gradient g of y let
    s = p t, h = q g and, means over a group, a = mean(s), k = mean(u s), A = mean(h), K = mean(u h), C = mean(h s).
    From dr = -r^2 mean(u dx) and du = r (dx - mean(dx) - u mean(u dx)): dL/dt = p P (q g),
    dL/dx = -r^2 (k h + K s + u (C - A a - 3 K k) - k A - K a), summed over the stack, and dL/dw = sum(g P t), or
    sum(t P g) for the transpose.
    """

    @staticmethod
    def forward(ctx, t, input, weight, mean, rstd, transpose):
        product, scaled, plain = _product(t, input, weight, mean, rstd, transpose)
        ctx.save_for_backward(t, input, weight, mean, rstd, scaled, plain)
        ctx.transpose = transpose
        return product

    @staticmethod
    def backward(ctx, g):
        t, input, weight, mean, rstd, scaled, plain = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            function = partial(_plain_product, mean, rstd, ctx.transpose)
            return *again(function, (t, input, weight), (g,)), None, None, None
        groups = rstd.shape[1]
        members = input.shape[1] // groups  # channels of a group
        n = max(members * input.shape[2], 1)
        grad_t, scaled_g, plain_g = _product(g, input, weight, mean, rstd, not ctx.transpose)
        both = (g * t).sum(3)  # [K, N, C]
        p, q = (weight, None) if ctx.transpose else (None, weight)

        def means(sums: Tensor, *factors: Tensor | None) -> Tensor:  # [K, N, C] -> [K, N, C], one number per group
            for factor in factors:
                sums = sums if factor is None else sums * factor
            total = sums.unflatten(2, (groups, members)).sum(3, keepdim=True) / n
            return total.expand(*total.shape[:3], members).flatten(2)

        a, k, big_a, big_k = means(plain, p), means(scaled, p), means(plain_g, q), means(scaled_g, q)
        c = means(both, p, q)
        r = rstd.repeat_interleave(members, 1)  # [N, C]
        grad_weight = None
        if weight is not None:
            sums = both - big_a * plain - big_k * scaled if ctx.transpose else both - a * plain_g - k * scaled_g
            grad_weight = (r * sums).sum((0, 1))
        grad_input = None
        if ctx.needs_input_grad[1]:
            r2 = -r * r
            slope = (r2 * r * (c - big_a * a - 3 * big_k * k)).sum(0)
            offset = -(r2 * (k * big_a + big_k * a)).sum(0) - slope * mean.repeat_interleave(members, 1)
            grad_input = torch.addcmul(offset.unsqueeze(2), input, slope.unsqueeze(2))
            for stack, factor, own in ((g, k, q), (t, big_k, p)):
                grad_input = _add_weighted(grad_input, stack, r2 * factor if own is None else r2 * factor * own)
        return grad_t, grad_input, grad_weight, None, None, None


def _one_by_one(t: Tensor) -> bool:
    """Whether a stack is taken member by member: then x stays in the CPU's cache instead of being repeated."""
    return t.device.type == "cpu" and not torch.compiler.is_compiling()


def _product(t: Tensor, input, weight, mean, rstd, transpose: bool) -> tuple[Tensor, Tensor, Tensor]:
    """J t or J^T t of a stack [K, N, C, S], and the sums of u t and of t over S, [K, N, C]."""
    if len(t) > 1 and _one_by_one(t):
        results = torch.empty(t.shape, dtype=t.dtype, device=t.device), *t.new_empty((2, *t.shape[:3])).unbind()
        for k, member in enumerate(t):
            for result, part in zip(results, _product(member[None], input, weight, mean, rstd, transpose), strict=True):
                result[k] = part[0]
        return results
    if t.numel() == 0:
        return torch.zeros_like(t), *t.new_zeros((2, *t.shape[:3])).unbind()
    if t.shape[3] == 1:
        return _product_of_rows(t, input, weight, mean, rstd, transpose)
    stack, batch, channels, size = t.shape
    count, groups = stack * batch, rstd.shape[1]
    scale = t.new_ones(count * channels) if weight is None or not transpose else weight.repeat(count)
    # Each sample's channels as channels of one sample: torch's sums over the batch are then those of each sample.
    product, scaled, plain = torch.ops.aten.native_group_norm_backward(
        t.reshape(1, count * channels, size),
        input.expand(t.shape).reshape(1, count * channels, size),
        mean.expand(stack, batch, groups).reshape(1, -1),
        rstd.expand(stack, batch, groups).reshape(1, -1),
        scale,
        1,
        count * channels,
        size,
        count * groups,
        [True, True, True],
    )
    product = product.view(t.shape)
    if weight is not None and not transpose:
        product = product.mul_(weight.unsqueeze(1))
    return product, scaled.view(t.shape[:3]), plain.view(t.shape[:3])


def _product_of_rows(t, input, weight, mean, rstd, transpose: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same where S = 1: every group is a row of C / G numbers."""
    stack, batch, channels, _ = t.shape
    groups = rstd.shape[1]
    row = channels // groups
    plain = t.squeeze(3)  # [K, N, C]
    x = input.squeeze(2)  # [N, C]
    rows = (stack * batch * groups, row)
    product = torch.ops.aten.native_layer_norm_backward(
        (plain * weight if weight is not None and transpose else plain).reshape(rows),
        x.expand(plain.shape).reshape(rows),
        [row],
        mean.expand(stack, batch, groups).reshape(-1, 1),
        rstd.expand(stack, batch, groups).reshape(-1, 1),
        None,
        None,
        [True, False, False],
    )[0].view(plain.shape)
    if weight is not None and not transpose:
        product = product.mul_(weight)
    u = (x - mean.repeat_interleave(row, 1)) * rstd.repeat_interleave(row, 1)
    return product.unsqueeze(3), plain * u, plain


def _add_weighted(total: Tensor, stack: Tensor, weights: Tensor) -> Tensor:
    """total + sum over k of weights [K, N, C] times stack [K, N, C, S]."""
    if not _one_by_one(stack):
        return total + (weights.unsqueeze(3) * stack).sum(0)
    for weight, member in zip(weights, stack, strict=True):
        total.addcmul_(member, weight.unsqueeze(2))
    return total


RULES = {"group_norm": GroupNorm()}
FUNCTIONS = {F.group_norm: "group_norm"}
METHODS: dict = {}
MODULES = {
    nn.GroupNorm: Layer(
        "group_norm", lambda module, read: (module.num_groups, read("weight"), read("bias"), module.eps)
    )
}
