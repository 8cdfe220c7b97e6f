r"""Where KL inference and each objective come to rest on a linear decoder and Gaussian data.

Data of variance lambda_i along d axes, which the decoder f(z) = W z follows, and s^2 along the other D - d; q is the
model's posterior, held constant by the objectives. By L posterior samples, E||s||^2 has the variance of f(z) in full,
and the estimate of ||E s||^2 has 1/L of it. The gradients in W and gamma then vanish where

    |w_i|^2 + gamma = lambda_i / c,    gamma (D - c d) = s^2 (D - d),

with c = 1 for the ELBO and M1, 2 - 1/L for M2 and 1 + 1/L for M3; without bias 2 for M2 and 1 for M3. c = 1
is the maximum of the likelihood (Tipping and Bishop, 1999). With c > 1 the model comes out too narrow along the d axes
and too wide across them; where c d >= D, or gamma >= lambda_i / c, the code empties: f is constant, and gamma the
data's variance.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.score_matching_2d.methods import Method


def factor(method: Method, num_samples: int) -> float:
    """c, of the posterior variance of f(z)."""
    if method.objective in ("elbo", "m1"):
        return 1.0
    bias = 0 if method.unbiased else 1 / num_samples
    return 2 - bias if method.objective == "m2" else 1 + bias


class Gaussian(NamedTuple):
    """Data of these variances along the first axes, and of `noise` along the others, D in all."""

    variances: tuple[float, ...]
    noise: float
    dims: int

    def points(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, D], with the second moments of the distribution."""
        variances = torch.tensor([*self.variances, *[self.noise] * (self.dims - len(self.variances))])
        x = torch.randn(count, self.dims, generator=generator, dtype=torch.float64)
        x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / count)).T
        return x * variances.double().sqrt()

    def rest(self, c: float) -> tuple[Tensor, float]:
        """|w_i|^2 [d] and gamma where they come to rest."""
        latent_dim = len(self.variances)
        if c * latent_dim >= self.dims:
            raise ValueError(f"c: expected less than {self.dims / latent_dim}, received {c}")
        gamma = self.noise * (self.dims - latent_dim) / (self.dims - c * latent_dim)
        return torch.tensor(self.variances, dtype=torch.float64) / c - gamma, gamma


def model(squares: Tensor, gamma: float, dims: int) -> tuple[nn.Module, nn.Module]:
    """f(z) = W z with columns along the axes, and its exact posterior."""
    latent_dim = len(squares)
    decoder = nn.Linear(latent_dim, dims, bias=False, dtype=torch.float64)
    encoder = nn.Linear(dims, 2 * latent_dim, dtype=torch.float64)
    with torch.no_grad():
        decoder.weight.copy_(torch.eye(dims, latent_dim) * squares.sqrt())
        encoder.weight.zero_()
        encoder.weight[:latent_dim] = decoder.weight.T / (squares + gamma)[:, None]
        encoder.bias.zero_()
        encoder.bias[latent_dim:] = 0.5 * (gamma / (squares + gamma)).log()
    return encoder, decoder


def slopes(method: Method, num_samples: int, data: Gaussian, c: float, count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Gradients of the objective in log |w_i| and log gamma, [d + 1], where c is at rest, and their standard errors."""
    generator = torch.Generator().manual_seed(seed)
    squares, gamma = data.rest(c)
    encoder, decoder = model(squares, gamma, data.dims)
    log_gamma = torch.tensor(math.log(gamma), dtype=torch.float64, requires_grad=True)
    gradients = []
    for x in data.points(count, generator).chunk(PARTS):
        noise = torch.randn(num_samples, len(x), len(squares), generator=generator, dtype=torch.float64)
        options = {"variance": log_gamma.exp(), "num_samples": num_samples, "noise": noise}
        weight, last = torch.autograd.grad(
            method.loss(encoder, decoder, x, **options).loss, [decoder.weight, log_gamma]
        )
        scales = (weight * decoder.weight).sum(0)
        gradients.append(torch.cat([scales, last[None]]).detach())
    gradients = torch.stack(gradients)
    return gradients.mean(0), gradients.std(0) / PARTS**0.5


PARTS = 20
