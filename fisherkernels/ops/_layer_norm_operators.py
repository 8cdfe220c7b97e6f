"""Vector-Jacobian product of layer normalisation: the operator, its twin, and the node that calls it.

Of a row of n with u = (x - m) r, r = 1/sqrt(v + eps), g = w c and E the mean over the row: c_x = r g', where
g' = g - E g - u E[u g]. In its backward pass a tangent t of c_x gives r w t' for c, r c t' summed over the rows for w,
and -r^2 (u k + E[u t] g' + E[u g] t') for x, with t' made of t as g' is of g, and
k = E[g' t'] + E[u g] E[u t] (1 - E u^2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fisherkernels.ops._autograd import again, below_autograd, not_differentiable, ordinary
from fisherkernels.ops._library import define

opset = torch.ops.fisherkernels


def _rows(x: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """u and r, in the graph; r is rstd's value."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    r = (rstd.unsqueeze(-1) ** -2 + variance - variance.detach()).rsqrt()
    return centred * r, r


def _along(t: Tensor, u: Tensor) -> Tensor:
    """E[u t]."""
    return (t * u).mean(-1, keepdim=True)


def _projected(t: Tensor, u: Tensor) -> Tensor:
    """t'."""
    return t - t.mean(-1, keepdim=True) - u * _along(t, u)


def plain_pull(cotangent, x, weight, rstd):
    """In operations that autograd and torch.func's transforms see through."""
    u, r = _rows(x, rstd)
    return r * _projected(cotangent if weight is None else cotangent * weight, u)


def _pull(cotangent, x, weight, mean, rstd):
    return plain_pull(cotangent, x, weight, rstd).contiguous()


def _pull_backward(tangent, cotangent, x, weight, mean, rstd):
    u, r = _rows(x, rstd)
    g = cotangent if weight is None else cotangent * weight
    of_g, of_t = _projected(g, u), _projected(tangent, u)
    g_along_u, t_along_u = _along(g, u), _along(tangent, u)
    both = _along(of_g, of_t) + g_along_u * t_along_u * (1 - _along(u, u))
    to_x = -r.square() * (u * both + t_along_u * of_g + g_along_u * of_t)
    pulled = r * of_t
    to_weight = x.new_empty(0) if weight is None else (pulled * cotangent).sum(0)
    to_cotangent = pulled if weight is None else pulled * weight
    return to_cotangent.contiguous(), to_x.contiguous(), to_weight


def _pull_fake(cotangent, x, weight, mean, rstd):
    return x.new_empty(x.shape)


def _pull_backward_fake(tangent, cotangent, x, weight, mean, rstd):
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(0 if weight is None else x.shape[1:])


class LayerNormPull(torch.autograd.Function):
    """(c, x, w, m, r) -> c_x; c and x [M, n], w [n] or None, m and r [M], constants."""

    @staticmethod
    def forward(ctx, *tensors):
        ctx.save_for_backward(*tensors)
        return below_autograd(opset.layer_norm_pull.default, *tensors)

    @staticmethod
    def backward(ctx, tangent):
        *inputs, mean, rstd = ctx.saved_tensors
        if not ordinary((tangent,)):
            return *again(lambda *given: (plain_pull(*given, rstd),), tuple(inputs), (tangent,)), None, None
        found = below_autograd(opset.layer_norm_pull_backward.default, tangent, *inputs, mean, rstd)
        needs = ctx.needs_input_grad[:3]
        return *(t if needed else None for t, needed in zip(found, needs, strict=True)), None, None


_REASON = "fisherkernels.linearize builds its graph. Use that"
_NORM = "Tensor cotangent, Tensor x, Tensor? weight, Tensor mean, Tensor rstd"
define(
    "layer_norm_pull",
    f"({_NORM}) -> Tensor",
    twin=_pull,
    fake=_pull_fake,
    autograd=not_differentiable("layer_norm_pull", _REASON),
)
define(
    "layer_norm_pull_backward",
    f"(Tensor tangent, {_NORM}) -> (Tensor to_cotangent, Tensor to_x, Tensor to_weight)",
    twin=_pull_backward,
    fake=_pull_backward_fake,
    autograd=not_differentiable("layer_norm_pull_backward", _REASON),
)
