"""``fit_density``: one call for every kind of density."""

from __future__ import annotations

import torch
from torch import Tensor

from fisherkernels.sampling.density import Density, whiten
from fisherkernels.sampling.flow import SplineFlow
from fisherkernels.sampling.gaussian import Gaussian
from fisherkernels.sampling.kernel import KernelDensity
from fisherkernels.sampling.matern import MaternDensity
from fisherkernels.sampling.mixture import GaussianMixture

DENSITIES = {
    "gaussian": Gaussian,
    "gmm": GaussianMixture,
    "kde": KernelDensity,
    "flow": SplineFlow,
    "mkde": MaternDensity,
}
EXTRAS = {"gmm": "train", "kde": "train", "flow": "flow", "mkde": "mkde"}  # kind -> the extra that it needs
MIN_POINTS = 20


def fit_density(means: Tensor, kind: str, *, seed: int = 0, **options) -> Density:
    """A density of the points ``means`` [N, d], for example a trained model's latent means.

    Every kind is fitted in coordinates u = L^-1 (z - m), m the points' mean and L L^T their covariance.

    kind: ``gaussian`` (mean and full covariance), ``gmm`` (option ``num_components``), ``kde`` (``bandwidth``),
        ``flow`` (``steps``, ``batch_size``, ``learning_rate``, ``num_transforms``, ``num_bins``, ``hidden``; needs
        zuko) or ``mkde`` (d <= 2; ``num_cells``, ``num_iterations``, ``num_posterior_samples``; needs NIFTy). The
        class ``DENSITIES[kind]`` says by which rule an option left out is chosen.
    seed: what is random while fitting is a function of it.

    Raises:
        ValueError: an unknown kind; means of another shape, not finite, too few (``MIN_POINTS``, and more than d), or
            constant or linearly dependent in a coordinate; d > 2 for mkde; an option out of its range.
        TypeError: an option that the kind does not have.
        ModuleNotFoundError: the kind's library is not installed.

    >>> means = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    >>> density = fit_density(means, "gaussian")
    >>> density.sample(3).shape, density.log_density(means).shape
    (torch.Size([3, 2]), torch.Size([100]))
    """
    if kind not in DENSITIES:
        raise ValueError(f"density: expected one of {', '.join(DENSITIES)}, received {kind!r}")
    if means.ndim != 2 or means.shape[1] < 1:
        raise ValueError(f"means: expected shape [N, d] with d >= 1, received {list(means.shape)}")
    n, d = means.shape
    least = max(MIN_POINTS, d + 1)
    if n < least:
        raise ValueError(f"means: expected at least {least} points in {d} dimensions, received {n}")
    points = means.detach().to("cpu", torch.float64)
    if not points.isfinite().all():
        row = int((~points.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"means: expected finite numbers, received NaN or infinity in row {row}")
    mean = points.mean(dim=0)
    covariance = torch.cov(points.T).reshape(d, d)
    scale, failed = torch.linalg.cholesky_ex(covariance)
    # What varies by less than float32 resolves is constant, or a linear function of the coordinates before it.
    flat = scale.diagonal() < 1e-6 * (covariance.diagonal().sqrt() + mean.abs())
    if failed or flat.any():
        coordinate = int(failed) - 1 if failed else int(flat.nonzero()[0])
        raise ValueError(
            f"means: expected points that vary in every direction, but coordinate {coordinate} is constant or a linear "
            "function of the others: there is no density"
        )
    try:
        estimate = DENSITIES[kind].fit(whiten(points, mean, scale), seed, **options)
    except ModuleNotFoundError as error:
        extra = EXTRAS[kind]
        raise ModuleNotFoundError(
            f"the density {kind!r} needs {error.name}: pip install 'fisherkernels[{extra}]'", name=error.name
        ) from error
    return Density(kind, estimate, mean, scale, means.dtype)
