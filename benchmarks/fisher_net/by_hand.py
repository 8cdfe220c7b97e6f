"""Linear, ReLU, ..., Linear linearised by hand: J(mean) and its transpose as products with masked weights."""

import torch
from torch import nn
from torch.nn import functional as F

# weights: (W_1, b_1, ..., W_k, b_k), W_i [out, in]


def weights_of(decoder):
    layers = [layer for layer in decoder if isinstance(layer, nn.Linear)]
    return tuple(parameter for layer in layers for parameter in (layer.weight, layer.bias))


def masks_of(weights, mean):
    """The derivatives of the ReLUs at mean [N, d], each [N, h]."""
    masks, h = [], mean
    for W, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        h = F.linear(h, W, b)
        masks.append((h > 0).to(h.dtype))
        h = h * masks[-1]
    return masks


def jvp(weights, masks, tangent):
    """J t for tangents [..., N, d]."""
    for W, mask in zip(weights[:-2:2], masks, strict=True):
        tangent = (tangent @ W.T) * mask
    return tangent @ weights[-2].T


def vjp(weights, masks, cotangent):
    """J^T c for cotangents [N, D]."""
    cotangent = cotangent @ weights[-2]
    for W, mask in zip(reversed(weights[:-2:2]), reversed(masks), strict=True):
        cotangent = (cotangent * mask) @ W
    return cotangent


def transposed_jacobian(weights, masks):
    """J^T, [N, d, D]; the first layer costs no product."""
    tangents = weights[0].T * masks[0][:, None]  # [N, d, h]
    for W, mask in zip(weights[2:-2:2], masks[1:], strict=True):
        tangents = (tangents @ W.T) * mask[:, None]
    return tangents @ weights[-2].T


def direct(weights, mean, variance, data_noise, latent_noise):
    """The sample's offset M^-1 (J^T n + eta) [N, d], and the Cholesky factor of M."""
    Jt = transposed_jacobian(weights, masks_of(weights, mean))
    M = torch.bmm(Jt, Jt.mT) / variance + torch.eye(Jt.shape[1], dtype=Jt.dtype, device=Jt.device)
    rhs = torch.bmm(Jt, data_noise[..., None]) / variance.sqrt() + latent_noise[..., None]
    factor = torch.linalg.cholesky(M)
    return torch.cholesky_solve(rhs, factor)[..., 0], factor


def residual(weights, mean, variance, data_noise, latent_noise, offset):
    """J^T n + eta - M offset, [N, d]."""
    masks = masks_of(weights, mean)
    remaining = data_noise / variance.sqrt() - jvp(weights, masks, offset) / variance
    return vjp(weights, masks, remaining) + latent_noise - offset
