"""Networks for Jacobians, with the shape of an input, and what torch.func gives for them sample by sample."""

from __future__ import annotations

import torch
from linearize_cases import hooked
from torch import nn

from fisherkernels import linearize


class ResidualDecoder(nn.Module):
    """Sums, products, halves and joins on the way, from the input on."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.gate = nn.Parameter(torch.randn(6))

    def forward(self, x):
        a, b = (2.0 * self.first(x) - x[:, :1] / self.gate).chunk(2, dim=1)
        h = torch.cat([b, -a], dim=1) + 1.0
        h = h + torch.tanh(self.second(h)) * self.gate
        return torch.cat([h, 1 / (2 + torch.sigmoid(x))], dim=1)


class Scalar(nn.Module):
    """One number per sample, [N]."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        return torch.tanh(self.layer(x))[:, 1]


def conv_decoder(d=2):
    return nn.Sequential(
        nn.Linear(d, 8),
        nn.SiLU(),
        nn.Unflatten(1, (4, 1, 2)),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1),
        nn.GroupNorm(2, 6),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(6, 1, 3, padding=1),
        nn.Sigmoid(),
    )


def conv_encoder():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def linear_network():
    """The same Jacobian for every sample."""
    return nn.Sequential(
        nn.Linear(3, 8),
        nn.Dropout(0.5),
        nn.BatchNorm1d(8),
        nn.Unflatten(1, (2, 2, 2)),
        nn.ConvTranspose2d(2, 2, 3),
        nn.AvgPool2d(2),
        nn.Upsample((3, 5), mode="bilinear"),
        nn.Flatten(),
        nn.Identity(),
    ).eval()


CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 5)), (4, 3)),
    "mlp, more inputs than outputs": (lambda: nn.Sequential(nn.Linear(7, 5), nn.SiLU(), nn.Linear(5, 2)), (3, 7)),
    "conv decoder": (conv_decoder, (3, 2)),
    "conv encoder": (conv_encoder, (2, 1, 4, 5)),
    "residual decoder": (ResidualDecoder, (5, 4)),
    "linear": (linear_network, (4, 3)),
    "linear, one sample": (linear_network, (1, 3)),
    "identity": (nn.Identity, (3, 4)),
    "one number per sample": (Scalar, (3, 5)),
    "images to images": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ELU()), (3, 1, 2, 3)),
}
FALLBACKS = {
    "fallback, tangents": (lambda: nn.Sequential(nn.Linear(2, 4), hooked(nn.Mish()), hooked(nn.Softmin(-1))), (3, 2)),
    "fallback, cotangents": (lambda: nn.Sequential(nn.Linear(4, 3), hooked(nn.Mish()), nn.Linear(3, 2)), (3, 4)),
}


def by_functorch(net, x):
    """[N, out, in]; in the graph of the parameters and x."""
    rows = [torch.func.jacrev(lambda sample: net(sample[None])[0])(sample) for sample in x]
    return torch.stack([row.reshape(-1, x[0].numel()) for row in rows])


def linearized(net, shape, dtype=torch.float64, **options):
    """The linearisation of a network at a random input that requires grad, and that input."""
    x = torch.randn(shape, dtype=dtype).requires_grad_()
    return linearize(net.to(dtype), x, **options), x
