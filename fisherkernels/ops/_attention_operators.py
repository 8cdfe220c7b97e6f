"""Vector-Jacobian product of scaled dot-product attention: the operator, its twin, and the node that calls it.

y = P v, P = softmax(s q k^T) over the keys. With a cotangent c of y, a = c v^T, and E the mean over the keys, weighted
by P: c_q = D k, c_k = D^T q, c_v = P^T c, D = s P (a - E a). In the backward pass of that tangents t of c_q, c_k, c_v
come in, which make b = s (t_q k^T + q t_k^T) of the scores and w = c t_v^T. With t_P = P (b - E b) the gradients are
t_P v + P t_v for c, t_P^T c for v, G k + D t_k for q, and G^T q + D^T t_q for k, where
G = s P ((a - E a) (b - E b) - E (a - E a) (b - E b) + w - E w). With dropout m of the weights P m stands in y and c_v,
m (c v^T) and m (c t_v^T) for a and w, and m t_P and m P in the gradients for c and v.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from fisherkernels.ops._autograd import again, below_autograd, not_differentiable, ordinary
from fisherkernels.ops._library import define

opset = torch.ops.fisherkernels


def _weights(query: Tensor, key: Tensor, scale: float, causal: bool) -> Tensor:
    """P."""
    scores = scale * (query @ key.mT)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, -1)


def _centred(t: Tensor, p: Tensor) -> Tensor:
    """t - E t."""
    return t - (p * t).sum(-1, keepdim=True)


def _dropped(t: Tensor, kept: Tensor | None) -> Tensor:
    return t if kept is None else t * kept


def plain_pull(cotangent, query, key, value, kept, scale, causal):
    """In operations that autograd and torch.func's transforms see through."""
    p = _weights(query, key, scale, causal)
    to_scores = scale * p * _centred(_dropped(cotangent @ value.mT, kept), p)
    return to_scores @ key, to_scores.mT @ query, _dropped(p, kept).mT @ cotangent


def _pull(*arguments):
    return tuple(t.contiguous() for t in plain_pull(*arguments))


def _pull_backward(tangent_query, tangent_key, tangent_value, cotangent, query, key, value, kept, scale, causal):
    tangents = zip((tangent_query, tangent_key, tangent_value), (query, key, value), strict=True)
    t_query, t_key, t_value = (torch.zeros_like(like) if t is None else t for t, like in tangents)
    p = _weights(query, key, scale, causal)
    a = _centred(_dropped(cotangent @ value.mT, kept), p)
    b = _centred(scale * (t_query @ key.mT + query @ t_key.mT), p)
    to_scores = scale * p * (_centred(a * b, p) + _centred(_dropped(cotangent @ t_value.mT, kept), p))
    pulled, tangent, p = scale * p * a, _dropped(p * b, kept), _dropped(p, kept)
    found = (
        tangent @ value + p @ t_value,
        to_scores @ key + pulled @ t_key,
        to_scores.mT @ query + pulled.mT @ t_query,
        tangent.mT @ cotangent,
    )
    return tuple(t.contiguous() for t in found)


def _pull_fake(cotangent, query, key, value, kept, scale, causal):
    return tuple(t.new_empty(t.shape) for t in (query, key, value))


def _pull_backward_fake(tangent_query, tangent_key, tangent_value, cotangent, query, key, value, kept, scale, causal):
    return tuple(t.new_empty(t.shape) for t in (cotangent, query, key, value))


class AttentionPull(torch.autograd.Function):
    """(scale, causal, c, q, k, v, m) -> c_q, c_k, c_v, each [N, L or S, width]; m [N, L, S] or None, a constant."""

    @staticmethod
    def forward(ctx, scale, causal, *tensors):
        ctx.constants = scale, causal
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return below_autograd(opset.attention_pull.default, *tensors, scale, causal)

    @staticmethod
    def backward(ctx, *tangents):
        tensors, (scale, causal) = ctx.saved_tensors, ctx.constants
        if all(t is None for t in tangents):
            return (None,) * 7
        if not ordinary(tangents):
            return None, None, *again(partial(plain_pull, scale=scale, causal=causal), tensors, tangents)
        found = below_autograd(opset.attention_pull_backward.default, *tangents, *tensors, scale, causal)
        needs = ctx.needs_input_grad[2:6]
        return None, None, *(t if needed else None for t, needed in zip(found, needs, strict=True)), None


def attention_pull(
    cotangent: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kept: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, ...]:
    """The cotangents of query, key and value, [..., L or S, width] with the same leading dimensions; ``kept`` is what
    dropout multiplies the weights [..., L, S] with.
    """
    front = query.shape[:-2]
    given = (cotangent, query, key, value, kept)
    rows = [t if t is None else t.reshape(math.prod(front), *t.shape[-2:]) for t in given]
    return tuple(t.unflatten(0, front) if front else t[0] for t in AttentionPull.apply(scale, causal, *rows))


_REASON = "fisherkernels.linearize builds its graph. Use that"
_ATTENTION = "Tensor cotangent, Tensor query, Tensor key, Tensor value, Tensor? kept, float scale, bool causal"
define(
    "attention_pull",
    f"({_ATTENTION}) -> (Tensor to_query, Tensor to_key, Tensor to_value)",
    twin=_pull,
    fake=_pull_fake,
    autograd=not_differentiable("attention_pull", _REASON),
)
define(
    "attention_pull_backward",
    f"(Tensor? tangent_query, Tensor? tangent_key, Tensor? tangent_value, {_ATTENTION})"
    " -> (Tensor to_cotangent, Tensor to_query, Tensor to_key, Tensor to_value)",
    twin=_pull_backward,
    fake=_pull_backward_fake,
    autograd=not_differentiable("attention_pull_backward", _REASON),
)
