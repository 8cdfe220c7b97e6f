"""Decoders and noise variances to take the metric of, and the comparison with dense linear algebra."""

from __future__ import annotations

import torch
from torch import nn

from fisherkernels import FisherMetric, reference

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}  # relative root mean square
EXACT = 1e-13  # relative residual of CG in float64 where the comparison is to the last digits


class Residual(nn.Module):
    """A skip connection around a hidden layer and a second head whose output is added."""

    def __init__(self, d, width, features):
        super().__init__()
        self.first, self.second = nn.Linear(d, width), nn.Linear(width, width)
        self.last, self.skip = nn.Linear(width, features), nn.Linear(d, features, bias=False)

    def forward(self, z):
        hidden = torch.tanh(self.first(z))
        hidden = hidden + torch.tanh(self.second(hidden))
        return self.last(hidden) + self.skip(z)


def conv(d, norm):
    return nn.Sequential(
        nn.Linear(d, 16),
        nn.Unflatten(1, (4, 2, 2)),
        nn.ConvTranspose2d(4, 4, 3, 2, 1, 1),
        nn.GroupNorm(2, 4) if norm else nn.Identity(),
        nn.SiLU(),
        nn.Conv2d(4, 2, 3, 1, 1),
    )


DECODERS = {
    "linear": lambda d: nn.Linear(d, 6),
    "mlp": lambda d: nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 6)),
    "relu mlp": lambda d: nn.Sequential(
        nn.Linear(d, 7), nn.ReLU(), nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 12)
    ),
    "wide mlp": lambda d: nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, 60), nn.Unflatten(1, (3, 20))),
    "sigmoid": lambda d: nn.Sequential(nn.Linear(d, 8), nn.ELU(), nn.Linear(8, 7), nn.Sigmoid()),
    "residual": lambda d: Residual(d, 7, 9),
    "conv": lambda d: conv(d, norm=False),
    "group norm": lambda d: conv(d, norm=True),
}
NOISE = ("float", "0-d", "[D]", "trailing", "[N, 1]", "[N, D]", "[N, ...]")


def make_decoder(kind, d, dtype=torch.float64):
    """With derivatives of the size of 1, so that the metric is neither the identity nor far from it."""
    decoder = DECODERS[kind](d).to(dtype)
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                module.weight *= 1.5
    return decoder


def make_noise_variance(kind, decoder, count, d):
    """A float, or a leaf with values around 0.5."""
    if kind == "float":
        return 0.4
    parameter = next(decoder.parameters())
    trailing = decoder(parameter.new_zeros(1, d)).shape[1:]
    shape = {
        "0-d": (),
        "[D]": (trailing.numel(),),
        "trailing": trailing,
        "[N, 1]": (count, 1),
        "[N, D]": (count, trailing.numel()),
        "[N, ...]": (count, *trailing),
    }[kind]
    return (0.2 + 0.6 * torch.rand(shape, dtype=parameter.dtype)).requires_grad_()


def make_noise(decoder, mean, num_draws):
    """Standard normal draws, data side and latent side."""
    columns = decoder(mean.detach()).shape[1:].numel()
    data = torch.randn(num_draws, mean.shape[0], columns, dtype=mean.dtype)
    return data, torch.randn(num_draws, *mean.shape, dtype=mean.dtype)


class Case:
    """A metric and its dense matrix, from the same leaves."""

    def __init__(self, kind="mlp", noise="0-d", count=3, d=4, dtype=torch.float64, **options):
        self.decoder = make_decoder(kind, d, dtype)
        self.mean = torch.randn(count, d, dtype=dtype, requires_grad=True)
        self.noise_variance = make_noise_variance(noise, self.decoder, count, d)
        self.metric = FisherMetric(self.decoder, self.mean, self.noise_variance, **options)

    @property
    def leaves(self):
        leaves = {"mean": self.mean, **dict(self.decoder.named_parameters())}
        if isinstance(self.noise_variance, torch.Tensor):
            leaves["noise_variance"] = self.noise_variance
        return leaves

    def dense(self):
        return reference.fisher_metric(self.decoder, self.mean, self.noise_variance)

    def vectors(self, *stack):
        return torch.randn(*stack, *self.mean.shape, dtype=self.mean.dtype)

    def noise(self, num_draws):
        return make_noise(self.decoder, self.mean, num_draws)


def assert_close(name, ours, theirs, tolerance=None, floor=0.0):
    tolerance = TOLERANCE[ours.dtype] if tolerance is None else tolerance
    assert ours.shape == theirs.shape, f"{name}: {list(ours.shape)} is not {list(theirs.shape)}"
    error, size = (ours - theirs).double().norm().item(), max(theirs.double().norm().item(), floor)
    assert error <= tolerance * size, f"{name}: error {error:.3e} of {size:.3e}"


def gradients(output, leaves, weight):
    found = torch.autograd.grad((output * weight).sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


def assert_same_gradients(ours, theirs, leaves, tolerance=1e-9):
    """Of a random weighting; a gradient that vanishes is judged by the size of the largest."""
    weight = torch.randn_like(theirs)
    ours, theirs = (gradients(output, leaves, weight) for output in (ours, theirs))
    floor = 1e-2 * max(g.norm().item() for g in theirs.values())
    for name in leaves:
        assert_close(f"gradient of {name}", ours[name], theirs[name], tolerance, floor)
