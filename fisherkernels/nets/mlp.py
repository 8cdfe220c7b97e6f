"""Fully connected encoder and decoder."""

import math
from collections.abc import Sequence

import torch
from torch import nn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
OUTPUTS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "identity": nn.Identity}


def _lookup(table: dict, name: str, argument: str):
    if name not in table:
        raise ValueError(f"{argument} must be one of {', '.join(table)}; got {name!r}")
    return table[name]


def _check_widths(hidden: Sequence[int], **sizes: int) -> None:
    for name, size in [*sizes.items(), *((f"hidden[{i}]", width) for i, width in enumerate(hidden))]:
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")


def _stack(widths: Sequence[int], activation: str) -> list[nn.Module]:
    """``Linear, activation, ..., Linear`` through the given widths."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        if i:
            layers.append(_lookup(ACTIVATIONS, activation, "activation")())
        layers.append(nn.Linear(widths[i], widths[i + 1]))
    return layers


class MLPEncoder(nn.Module):
    """x of any trailing shape -> [N, 2 d] = (mean, log_std).

    Args:
        in_features: number of values in one sample of x.
        hidden: widths of the hidden layers.
        latent_dim: d.
        activation: one of ``relu, leaky_relu, elu, silu, softplus, tanh``.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], latent_dim: int, activation: str = "relu"):
        super().__init__()
        _check_widths(hidden, in_features=in_features, latent_dim=latent_dim)
        self.layers = nn.Sequential(nn.Flatten(), *_stack([in_features, *hidden, 2 * latent_dim], activation))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class MLPDecoder(nn.Module):
    """z [N, d] -> [N, *out_shape].

    Args:
        latent_dim: d.
        hidden: widths of the hidden layers.
        out_shape: shape of one sample of x.
        output: ``sigmoid`` (values in [0, 1]), ``tanh`` or ``identity``.
        activation: as for :class:`MLPEncoder`.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden: Sequence[int],
        out_shape: Sequence[int],
        output: str = "sigmoid",
        activation: str = "relu",
    ):
        super().__init__()
        out_features = math.prod(out_shape)
        _check_widths(hidden, latent_dim=latent_dim, out_features=out_features)
        self.layers = nn.Sequential(
            *_stack([latent_dim, *hidden, out_features], activation),
            _lookup(OUTPUTS, output, "output")(),
            nn.Unflatten(1, tuple(out_shape)),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)
