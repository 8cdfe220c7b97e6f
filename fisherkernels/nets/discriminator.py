"""Discriminator of latent vectors."""

from collections.abc import Sequence

import torch
from torch import nn

from fisherkernels.nets.layers import check_sizes
from fisherkernels.nets.mlp import fully_connected


class LatentDiscriminator(nn.Module):
    """z [N, d] -> logits [N]: sigmoid(logit) is the probability that z is of the prior.

    With one hidden layer of 256 the WAE-GAN discriminator of Elkhalil et al., "Fisher Auto-Encoders" (AISTATS 2021),
    supplement, Tables 2 and 4; the sigmoid that they print last is left to the loss.

    Args:
        latent_dim: d.
        hidden: widths of the hidden layers, each followed by ReLU.
    """

    def __init__(self, latent_dim: int, hidden: Sequence[int] = (256,)):
        super().__init__()
        check_sizes(latent_dim=latent_dim, hidden=hidden)
        self.layers = nn.Sequential(*fully_connected([latent_dim, *hidden, 1], "relu"), nn.Flatten(0))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z)
