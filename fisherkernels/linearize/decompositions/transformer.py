"""Layers of transformer encoders: their forward without the fast paths of inference."""

from __future__ import annotations

from torch import Tensor, nn

from .base import Decomposition


def encoder_layer(
    layer: nn.TransformerEncoderLayer,
    src: Tensor,
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """[N, L, E], or [L, N, E] where ``batch_first`` is false."""

    def attended(x: Tensor) -> Tensor:
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        return layer.dropout1(layer.self_attn(x, x, x, need_weights=False, **masks)[0])

    def fed_forward(x: Tensor) -> Tensor:
        return layer.dropout2(layer.linear2(layer.dropout(layer.activation(layer.linear1(x)))))

    if layer.norm_first:
        x = src + attended(layer.norm1(src))
        return x + fed_forward(layer.norm2(x))
    x = layer.norm1(src + attended(src))
    return layer.norm2(x + fed_forward(x))


def encoder(
    module: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    """The layers in turn, and the norm behind them, if any."""
    for layer in module.layers:
        src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=bool(is_causal))
    return src if module.norm is None else module.norm(src)


DECOMPOSITIONS = {
    nn.TransformerEncoderLayer: Decomposition(encoder_layer),
    nn.TransformerEncoder: Decomposition(encoder),
}
