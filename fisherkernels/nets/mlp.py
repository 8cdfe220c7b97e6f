"""Fully connected encoder and decoder."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from fisherkernels.nets.layers import check_sizes, initialize, make_activation, make_output


def fully_connected(widths: Sequence[int], activation: str, initialization: str = "torch") -> list[nn.Module]:
    """``Linear, activation, ..., Linear`` through the given widths."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        if i:
            layers.append(make_activation(activation))
        layers.append(nn.Linear(widths[i], widths[i + 1]))
    initialize([layer for layer in layers if isinstance(layer, nn.Linear)], initialization)
    return layers


class MLPEncoder(nn.Module):
    """x of any trailing shape -> [N, 2 d] = (mean, log_std), or the mean [N, d] alone.

    Args:
        in_features: number of values in one sample of x.
        hidden: widths of the hidden layers.
        latent_dim: d.
        activation: one of ``relu, leaky_relu, elu, silu, softplus, tanh``.
        mean_only: leave log_std out, as FisherNet does.
        repeat: how often the hidden layers follow one another: ``hidden=[300], repeat=20`` are 20 layers of 300.
        initialization: ``torch`` (nn.Linear's own, which shrinks a signal layer by layer) or ``kaiming`` (He et al.,
            "Delving Deep into Rectifiers", 2015, eq. 10: weights N(0, 2 / fan_in), biases 0), which deep nets need.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        latent_dim: int,
        activation: str = "relu",
        mean_only: bool = False,
        repeat: int = 1,
        initialization: str = "torch",
    ):
        super().__init__()
        check_sizes(in_features=in_features, latent_dim=latent_dim, hidden=hidden, repeat=repeat)
        out_features = latent_dim if mean_only else 2 * latent_dim
        widths = [in_features, *repeat * list(hidden), out_features]
        self.layers = nn.Sequential(nn.Flatten(), *fully_connected(widths, activation, initialization))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class MLPDecoder(nn.Module):
    """z [N, d] -> [N, *out_shape].

    Args:
        latent_dim: d.
        hidden: widths of the hidden layers.
        out_shape: shape of one sample of x.
        output: ``sigmoid`` (values in [0, 1]), ``tanh`` or ``identity``.
        activation, repeat, initialization: as for :class:`MLPEncoder`.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden: Sequence[int],
        out_shape: Sequence[int],
        output: str = "sigmoid",
        activation: str = "relu",
        repeat: int = 1,
        initialization: str = "torch",
    ):
        super().__init__()
        check_sizes(latent_dim=latent_dim, out_shape=out_shape, hidden=hidden, repeat=repeat)
        widths = [latent_dim, *repeat * list(hidden), math.prod(out_shape)]
        self.layers = nn.Sequential(
            *fully_connected(widths, activation, initialization),
            make_output(output),
            nn.Unflatten(1, tuple(out_shape)),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)
