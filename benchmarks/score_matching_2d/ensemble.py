"""E auto-encoders trained at once, each as it would be alone.

The product of E models of x_e given z_e is one model of x = (x_1, ..., x_E) given z = (z_1, ..., z_E): its nets are
block diagonal, its posterior and likelihood are diagonal Gaussians, and its variance is one number per member's
coordinates. Every loss here is a sum over coordinates, so that the product's is the sum of the members', and the
gradient of each member's parameters is its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fisherkernels.nets import MLPDecoder, MLPEncoder
from fisherkernels.training import seeds

Pair = tuple[Tensor, Tensor]


def single(data_dim: int, latent_dim: int, hidden: Sequence[int], seed: int) -> tuple[MLPEncoder, MLPDecoder]:
    """The nets that member `seed` starts from: tanh, as in configs/score_matching_rings.yaml."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seeds.fold_seed(seed))
        encoder = MLPEncoder(data_dim, hidden, latent_dim, activation="tanh")
        return encoder, MLPDecoder(latent_dim, hidden, (data_dim,), output="identity", activation="tanh")


class StackedLinear(nn.Module):
    """Linear layers of the same shape, one per member: [E, R, in] -> [E, R, out]."""

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))  # [E, in, out]
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))  # [E, 1, out]

    def forward(self, rows: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, rows, self.weight)


def stacked(nets: Sequence[nn.Module]) -> nn.Sequential:
    """The Linear layers of the nets, member by member, with tanh between them."""
    linear = [[layer for layer in net.modules() if isinstance(layer, nn.Linear)] for net in nets]
    layers = [StackedLinear(same) for same in zip(*linear, strict=True)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])


class Encoder(nn.Module):
    """x [N, E, D] -> mean and log_std, each [N, E * d]."""

    def __init__(self, encoders: Sequence[MLPEncoder]):
        super().__init__()
        self.layers = stacked(encoders)

    def forward(self, x: Tensor) -> Pair:
        output = self.layers(x.transpose(0, 1)).transpose(0, 1)  # [N, E, 2 d]
        mean, log_std = output.chunk(2, dim=2)
        return mean.flatten(1), log_std.flatten(1)


class Decoder(nn.Module):
    """z [R, E * d] -> [R, E, D]."""

    def __init__(self, decoders: Sequence[MLPDecoder]):
        super().__init__()
        self.members = len(decoders)
        self.layers = stacked(decoders)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z.unflatten(1, (self.members, -1)).transpose(0, 1)).transpose(0, 1)
