"""The nets of the paper (appendix A), trained for a few hundred steps so that the metric is ill-conditioned."""

import os
from pathlib import Path

import torch
from torch import nn

from . import images

PIXELS, HIDDEN = images.SIDE**2, (448, 448, 448)
NOISE_VARIANCE = 0.02
STEPS, BATCH, LEARNING_RATE, CODES = 500, 128, 1e-3, 4096
CACHE = Path(__file__).parent / ".cache"  # ignored by git


def mlp(widths):
    """Linear, ReLU, ..., Linear."""
    layers = [nn.Linear(widths[0], widths[1])]
    for before, after in zip(widths[1:-1], widths[2:], strict=True):
        layers += [nn.ReLU(), nn.Linear(before, after)]
    return nn.Sequential(*layers)


class AutoEncoder(nn.Module):
    """encoder: x [N, 784] -> mean and log_std [N, 2 d]; decoder: z [N, d] -> [N, 784]; codes: means of some images."""

    def __init__(self, latent_dim, hidden=HIDDEN):
        super().__init__()
        self.encoder = mlp([PIXELS, *hidden, 2 * latent_dim])
        self.decoder = mlp([latent_dim, *hidden[::-1], PIXELS])
        self.register_buffer("codes", torch.zeros(CODES, latent_dim))


def auto_encoder(latent_dim):
    """Trained once per latent size and data set, then read from the cache; the same on every call."""
    model = AutoEncoder(latent_dim)
    name = "mnist" if images.source() == "MNIST" else "digits"
    path = CACHE / f"{name}-{latent_dim}-{STEPS}.pt"
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoEncoder(latent_dim)
        train(model, images.load(), STEPS)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    torch.save(model.state_dict(), partial)
    os.replace(partial, path)
    return model


def train(model, x, steps):
    """A variational auto-encoder's steps at NOISE_VARIANCE, then the codes.

    Without the variational noise the codes shrink, and the metric is worse conditioned than that of a trained model.
    """
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (BATCH,))]
        mean, log_std = model.encoder(batch).chunk(2, dim=1)
        z = mean + log_std.exp() * torch.randn_like(mean)
        divergence = mean.square() + (2 * log_std).exp() - 2 * log_std
        loss = (batch - model.decoder(z)).square().sum() / NOISE_VARIANCE + divergence.sum()
        optimizer.zero_grad()
        (0.5 * loss / BATCH).backward()
        optimizer.step()
    with torch.no_grad():
        model.codes.copy_(model.encoder(x[torch.randint(len(x), (CODES,))]).chunk(2, dim=1)[0])
