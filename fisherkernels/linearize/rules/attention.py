"""Scaled dot-product attention in primitive operations, and on CPUs by a kernel that keeps no weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fisherkernels.ops._attention_operators import attention_pull
from fisherkernels.ops._library import on_native_cpu
from fisherkernels.transforms import plainly_eager, records

from .base import Rule
from .softmax import softmax_curvature, softmax_product


class Attention(Rule):
    """y = (P m) v, P = softmax(S) over the keys, S = s q k^T + mask, with leading dimensions alike; m drops weights.

    J t = (P m) t_v + (t_P m) v with t_P = P (t_S - E t_S), t_S = s (t_q k^T + q t_k^T); J^T goes the same way back.
    """

    traffic = 4

    def slots(self, args):
        return args[:3]

    def accepts(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None):
        return isinstance(dropout_p, (int, float))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
    ):
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        by_kernel = attn_mask is None and _has_kernel(query, key, value)
        if by_kernel and dropout_p == 0:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
            return out, (query, key, value, None, scale, None, is_causal, by_kernel)
        p = _probabilities(scale * (query @ key.mT), attn_mask, is_causal)
        if dropout_p > 0:
            kept = F.dropout(torch.ones_like(p), dropout_p)  # the draw that torch's own attention makes on CPUs
            return (p * kept) @ value, (query, key, value, p, scale, kept, is_causal, by_kernel)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, scale=scale)
        return out, (query, key, value, p, scale, None, is_causal, by_kernel)

    def vjp(self, saved, cotangent, stacked, needs):
        query, key, value, _, scale, kept, is_causal, by_kernel = saved
        if by_kernel and not stacked and cotangent.dtype is value.dtype and records(cotangent, query, key, value):
            return attention_pull(cotangent, query, key, value, kept, scale, is_causal)
        p = _weights(saved)
        to_scores = scale * softmax_product(p, -1, _dropped(cotangent @ value.mT, kept), stacked)
        return (
            to_scores @ key if needs[0] else None,
            to_scores.mT @ query if needs[1] else None,
            _dropped(p, kept).mT @ cotangent if needs[2] else None,
        )

    def jvp(self, saved, tangents, stacked):
        value, p, kept = saved[2], _weights(saved), saved[5]
        total = None if tangents[2] is None else _dropped(p, kept) @ tangents[2]
        scores = _scores(saved, *tangents[:2])
        if scores is None:
            return total
        part = _dropped(softmax_product(p, -1, scores, stacked), kept) @ value
        return part if total is None else total + part

    def curved(self, active):
        return True

    def curvature(self, saved, tangents):
        """(D^2 P m) v + 2 (t_P m) t_v, D^2 P by the softmax's own second derivative and D^2 S = 2 s t_q t_k^T."""
        value, p, scale, kept = saved[2], _weights(saved), *saved[4:6]
        query, key, values = tangents
        scores = _scores(saved, query, key)
        if scores is None:
            return torch.zeros_like(p @ value)
        second = softmax_curvature(p, -1, scores)
        if query is not None and key is not None:
            bent = 2 * scale * torch.einsum("k...ac,k...bc->...ab", query, key)
            second = second + softmax_product(p, -1, bent, False)
        total = _dropped(second, kept) @ value
        if values is not None:
            first = _dropped(softmax_product(p, -1, scores, True), kept)
            total = total + 2 * torch.einsum("k...ab,k...bc->...ac", first, values)
        return total

    def keeps_samples(self, saved, operands, value):
        ranks = {len(shape) for shape in operands if shape is not None}
        return ranks == {len(value)} and len(value) > 2

    def flops(self, saved, operand, value):
        return 6.0 * value * saved[1].shape[-2]


def _has_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether products are left to :func:`attention_pull`, which makes P again."""
    alike = query.shape[:-2] == key.shape[:-2] == value.shape[:-2] and query.dtype is key.dtype is value.dtype
    return on_native_cpu(query) and alike and query.dim() > 1 and plainly_eager() and records(query, key, value)


def _weights(saved: tuple) -> Tensor:
    """P."""
    query, key, _, p, scale, _, is_causal, _ = saved
    return _probabilities(scale * (query @ key.mT), None, is_causal) if p is None else p


def _scores(saved: tuple, query: Tensor | None, key: Tensor | None) -> Tensor | None:
    """The tangent of S."""
    total = None
    if query is not None:
        total = query @ saved[1].mT
    if key is not None:
        part = saved[0] @ key.mT
        total = part if total is None else total + part
    return None if total is None else saved[4] * total


def _probabilities(scores: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """P, zero for queries whose keys are all masked."""
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return torch.softmax(scores.masked_fill(~causal, -torch.inf), -1)
    if attn_mask is None:
        return torch.softmax(scores, -1)
    boolean = attn_mask.dtype == torch.bool
    scores = scores.masked_fill(~attn_mask, -torch.inf) if boolean else scores + attn_mask
    alone = (scores == -torch.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(alone, 0), -1).masked_fill(alone, 0)


def _dropped(weights: Tensor, kept: Tensor | None) -> Tensor:
    return weights if kept is None else weights * kept


RULES = {"scaled_dot_product_attention": Attention()}
FUNCTIONS = {F.scaled_dot_product_attention: "scaled_dot_product_attention"}
METHODS: dict = {}
MODULES: dict = {}
