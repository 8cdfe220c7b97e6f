"""The model's density p(x) = E_p(z) N(x; f(z), gamma I), and its score, by importance sampling of z.

The samples are a Sobol sequence, whose error falls faster with their number than that of random ones, spread as a
normal wider than the prior, so that the prior's tails have their share. The encoder has no part in it: a bad one makes
no bad estimate.
"""

import math

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

PROPOSAL_STD = 1.5
ROWS = 64  # data points at a time


def weighted_points(count: int, latent_dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """z [count, d] and log weights [count], such that the weighted mean of h(z) is E h over the standard normal."""
    uniform = SobolEngine(latent_dim, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform.clamp(1e-9, 1 - 1e-9) - 1)
    z = PROPOSAL_STD * normal
    log_weight = 0.5 * (normal.square() - z.square()).sum(1) + latent_dim * math.log(PROPOSAL_STD)
    return z.float(), log_weight


@torch.no_grad()
def density_measures(centres: Tensor, log_weight: Tensor, variance: float, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Of the weighted mean of N(centre, variance I): -log p(x), and 1/2 ||s||^2 + div s of its score s = grad log p.

    Centres [K, D], their log weights [K] and x [N, D] give [N] each. The mean of the second over the data's
    distribution is the Fisher divergence from it, less a number that only the data have a part in (Hyvarinen, 2005).
    """
    x, centres = x.double(), centres.double()
    squares = centres.square().sum(1)  # [K]
    table = torch.cat([centres, squares[:, None], torch.ones_like(squares[:, None])], 1).float()  # [K, D + 2]
    offset = (log_weight - 0.5 * squares / variance).float()
    log_sums, moments = [], []
    for rows in x.split(ROWS):
        terms = torch.addmm(offset, (rows / variance).float(), centres.T.float())  # [n, K]
        log_sum = terms.logsumexp(1, keepdim=True)
        moments.append((terms.sub_(log_sum).exp_() @ table).double())
        log_sums.append(log_sum[:, 0].double())
    moments, dims, norms = torch.cat(moments), x.shape[1], x.square().sum(1)
    mean, mean_square = moments[:, :dims] / moments[:, -1:], moments[:, dims] / moments[:, -1]  # over p(z|x)
    constant = math.log(len(centres)) + 0.5 * dims * math.log(2 * math.pi * variance)
    nll = constant + 0.5 * norms / variance - torch.cat(log_sums)
    distance = mean_square - 2 * (x * mean).sum(1) + norms  # E ||x - f||^2
    score_matching = (distance - 0.5 * (x - mean).square().sum(1)) / variance**2 - dims / variance
    return nll, score_matching
