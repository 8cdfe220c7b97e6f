"""Images from a model's prior, also where that prior is no proper density."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherkernels.priors import PolynomialExponentialFamily


def is_improper(model) -> bool:
    """Whether the model's prior may grow without end: the unconstrained polynomial family (the paper's, order 5)."""
    prior = getattr(model, "prior", None)
    return isinstance(prior, PolynomialExponentialFamily) and prior.constraint == "none"


@torch.no_grad()
def prior_samples(model, codes: Tensor, n: int, seed: int = 0) -> Tensor:
    """n images decoded from the model's prior, [n, ...].

    An improper prior was only ever fitted where the training data's codes lie, and may have most of its mass far from
    there. It is truncated, one coordinate at a time, to the range of ``codes`` [N, d] (posterior means of the training
    images); as it factorises, the draws are exact for the truncated density.
    """
    generator = torch.Generator().manual_seed(seed)
    if not is_improper(model):
        return model.sample(n, generator=generator)
    columns = []
    for j, (low, high) in enumerate(zip(codes.amin(dim=0).tolist(), codes.amax(dim=0).tolist(), strict=True)):
        interval = (low, max(high, low + 1e-6))
        columns.append(model.prior.sample(n, interval=interval, generator=generator)[:, j])
    return model.decode(torch.stack(columns, dim=1))
