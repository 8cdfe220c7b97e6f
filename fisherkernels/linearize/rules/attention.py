"""Scaled dot-product attention in primitive operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Rule
from .softmax import softmax_curvature, softmax_product


class Attention(Rule):
    """y = P v, P = softmax(S) over the keys, S = s q k^T + mask, with leading dimensions alike.

    J t = P t_v + t_P v with t_P = P (t_S - E t_S), t_S = s (t_q k^T + q t_k^T); J^T goes the same way back.
    """

    traffic = 4

    def slots(self, args):
        return args[:3]

    def accepts(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None):
        return isinstance(dropout_p, (int, float)) and dropout_p == 0

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
        out = F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = scale * (query @ key.mT)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return out, (query, key, value, torch.softmax(scores, -1), scale)

    def vjp(self, saved, cotangent, stacked, needs):
        query, key, value, p, scale = saved
        to_scores = scale * softmax_product(p, -1, cotangent @ value.mT, stacked)
        return (
            to_scores @ key if needs[0] else None,
            to_scores.mT @ query if needs[1] else None,
            p.mT @ cotangent if needs[2] else None,
        )

    def jvp(self, saved, tangents, stacked):
        value, p = saved[2:4]
        total = None if tangents[2] is None else p @ tangents[2]
        scores = _scores(saved, *tangents[:2])
        if scores is None:
            return total
        part = softmax_product(p, -1, scores, stacked) @ value
        return part if total is None else total + part

    def curved(self, active):
        return True

    def curvature(self, saved, tangents):
        """D^2 P v + 2 t_P t_v, D^2 P by the softmax's own second derivative and by D^2 S = 2 s t_q t_k^T."""
        _, _, value, p, scale = saved
        query, key, values = tangents
        scores = _scores(saved, query, key)
        if scores is None:
            return torch.zeros_like(p @ value)
        second = softmax_curvature(p, -1, scores)
        if query is not None and key is not None:
            bent = 2 * scale * torch.einsum("k...ac,k...bc->...ab", query, key)
            second = second + softmax_product(p, -1, bent, False)
        total = second @ value
        if values is not None:
            total = total + 2 * torch.einsum("k...ab,k...bc->...ac", softmax_product(p, -1, scores, True), values)
        return total

    def keeps_samples(self, saved, operands, value):
        ranks = {len(shape) for shape in operands if shape is not None}
        return ranks == {len(value)} and len(value) > 2

    def flops(self, saved, operand, value):
        return 6.0 * value * saved[1].shape[-2]


def _scores(saved: tuple, query: Tensor | None, key: Tensor | None) -> Tensor | None:
    """The tangent of S."""
    total = None
    if query is not None:
        total = query @ saved[1].mT
    if key is not None:
        part = saved[0] @ key.mT
        total = part if total is None else total + part
    return None if total is None else saved[4] * total


RULES = {"scaled_dot_product_attention": Attention()}
FUNCTIONS = {F.scaled_dot_product_attention: "scaled_dot_product_attention"}
METHODS: dict = {}
MODULES: dict = {}
