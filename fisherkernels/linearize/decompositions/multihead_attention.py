"""Multi-head attention as projections, scaled dot-product attention, and a projection."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..rules.layout import sequence_first
from .base import Decomposition, optional

fx.wrap("sequence_first")


def multihead_attention(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The output, shape of the query [N, L, E], and the weights [N, L, S], [N, H, L, S] for each head, or None.

    [L, N, E] where ``batch_first`` is false; without N where the query is [L, E]. The rank is not known while tracing:
    dimensions are counted from the end, but for a leading L.
    """
    if is_causal and attn_mask is None:
        raise ValueError("attn_mask: expected the mask that is_causal=True is a hint for, got None")
    q, k, v = _heads(module, query, key, value)
    dropout = module.dropout if module.training else 0.0
    is_causal = is_causal and key_padding_mask is None and not need_weights
    mask = None
    if not is_causal and (attn_mask is not None or key_padding_mask is not None):
        mask = additive_mask(attn_mask, key_padding_mask, q.shape, q.dtype)
    if need_weights:
        scores = (q * math.sqrt(1 / module.head_dim)) @ k.transpose(-2, -1)
        weights = F.softmax(scores if mask is None else scores + mask, -1)
        weights = F.dropout(weights, dropout) if dropout > 0 else weights
        out = weights @ v
        weights = optional(weights.mean(-3)) if average_attn_weights else weights
    else:
        out, weights = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal), None
    out = out.movedim(-2, -3 if module.batch_first else 0).flatten(-2)
    out = F.linear(out, module.out_proj.weight, module.out_proj.bias)
    if module.batch_first and module.training:
        out = sequence_first(out)  # as torch computes it: a dropout behind it draws the same
    return out, weights


def _heads(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [N, H, L, E / H], keys and values [N, H, S, E / H]."""
    weight, bias, width = module.in_proj_weight, module.in_proj_bias, module.embed_dim
    heads = module.num_heads, module.head_dim
    if query is key is value and weight is not None:
        packed = F.linear(query, weight, bias).unflatten(-1, (3, *heads))
        parts = packed.movedim(-4 if module.batch_first else 0, -2).unbind(-4)
        return parts[0], parts[1], parts[2]
    thirds = [slice(i * width, (i + 1) * width) for i in range(3)]
    weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    if weight is not None:
        weights = [weight[third] for third in thirds]
    biases = [None if bias is None else bias[third] for third in thirds]
    q, k, v = (
        F.linear(t, w, b).unflatten(-1, heads).movedim(-3 if module.batch_first else 0, -2)
        for t, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    return q, k, v


@fx.wrap
def additive_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """What is added to the scores [N, H, L, S] of queries of this shape, [N, H, L, E / H]."""
    total = None
    if attn_mask is not None:  # [L, S] or [N H, L, S]
        total = _additive(attn_mask, dtype)
        total = total if total.dim() == 2 else total.reshape(*shape[:-2], *total.shape[1:])
    if key_padding_mask is not None:  # [N, S]
        padding = _additive(key_padding_mask, dtype)[..., None, None, :]
        total = padding if total is None else total + padding
    return total


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
    if not mask.is_floating_point():
        raise TypeError(f"mask of nn.MultiheadAttention: expected booleans or floating point, got {mask.dtype}")
    return mask


def _accepts(module: nn.MultiheadAttention) -> bool:
    plain = type(module.out_proj) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return plain and module.bias_k is None and module.bias_v is None and not module.add_zero_attn


DECOMPOSITIONS = {nn.MultiheadAttention: Decomposition(multihead_attention, _accepts)}
