"""What the factorised priors share: score, log density and sampling from their coefficients."""

import torch
from torch import nn

from fisherkernels.priors.inverse_cdf import sample_inverse_cdf
from fisherkernels.priors.normalizer import log_mass
from fisherkernels.priors.truncation import truncation_bounds
from fisherkernels.svgd import svgd


def check_size(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int >= 1, received {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected an int >= 1, received {value}")


class FactorisedPrior(nn.Module):
    r"""log p(z) = :math:`\sum_j \sum_k \eta_{jk} z_j^k` + const; a subclass gives `coefficients` [d, K]."""

    coefficients: torch.Tensor

    def __init__(self, d: int):
        super().__init__()
        check_size("d", d)
        self.d = d

    def _check(self, z: torch.Tensor) -> None:
        if z.dim() < 1 or z.shape[-1] != self.d:
            raise ValueError(f"z: expected shape [..., {self.d}], received {list(z.shape)}")

    def score(self, z: torch.Tensor) -> torch.Tensor:
        r"""Gradient of the log density, :math:`\sum_k k\,\eta_{jk} z_j^{k-1}`: ``[..., d] -> [..., d]``."""
        self._check(z)
        coefficients = self.coefficients
        order = coefficients.shape[1]
        total = (order * coefficients[:, order - 1]).expand_as(z)
        for power in range(order - 1, 0, -1):
            total = total * z + power * coefficients[:, power - 1]
        return total.to(z.dtype)

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        r"""Log density up to a constant, :math:`\sum_j \sum_k \eta_{jk} z_j^k`: ``[..., d] -> [...]``."""
        self._check(z)
        coefficients = self.coefficients
        total = torch.zeros_like(z)
        for power in range(coefficients.shape[1], 0, -1):
            total = (total + coefficients[:, power - 1]) * z
        return total.sum(-1)

    @torch.no_grad()
    def truncation(self, interval: tuple[float, float] | torch.Tensor | None = None) -> torch.Tensor:
        """The interval per dimension on which ``sample(method="inverse_cdf")`` draws: float64 ``[d, 2]``.

        It is cut where the density falls to e^-40 of its maximum. Towards a side on which the density grows
        without end (the prior is improper there) it ends at the outermost minimum of the density; if the
        density has no maximum in between, at -5 or 5. `interval` replaces these outer ends.
        """
        return truncation_bounds(self.coefficients.detach().double().cpu(), interval)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        method: str = "inverse_cdf",
        interval: tuple[float, float] | torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        steps: int = 15_000,
        step_size: float = 1e-3,
    ) -> torch.Tensor:
        """Draw n latent vectors, ``[n, d]``, without a graph.

        Args:
            n: number of draws, >= 0.
            method: ``"inverse_cdf"``: independent draws, exact up to a grid of 4,096 cells per dimension
                (float64, log-linear within a cell), from the density truncated to :meth:`truncation`.
                ``"svgd"``: particles started at N(0, I) and moved by :func:`fisherkernels.svgd`, as the
                paper does, with the RMS-normalised steps of its released code.
            interval: outer ends of the truncation, (low, high) for every dimension or a tensor [d, 2];
                inverse_cdf only. An improper prior was only fitted where the codes of the training data lie
                and may have most of its mass far from there: give their range.
            generator: source of randomness; the global one when None.
            steps, step_size: of svgd; the defaults are the paper's.

        Raises:
            ValueError: unknown method, n < 0, low >= high, or an interval given with svgd.
        """
        if method not in ("inverse_cdf", "svgd"):
            raise ValueError(f"method: expected 'inverse_cdf' or 'svgd', received {method!r}")
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"n: expected an int >= 0, received {n!r}")
        coefficients = self.coefficients
        if method == "inverse_cdf":
            draws = sample_inverse_cdf(coefficients.double(), self.truncation(interval), n, generator)
            return draws.to(coefficients.dtype)
        if interval is not None:
            raise ValueError(f"interval: expected None with method='svgd', received {interval!r}")
        device = coefficients.device if generator is None else generator.device
        start = torch.randn(n, self.d, dtype=coefficients.dtype, device=device, generator=generator)
        return svgd(self.score, start.to(coefficients.device), steps, step_size, step_rule="rms")

    @torch.no_grad()
    def log_normalizer(self, interval: tuple[float, float] | torch.Tensor | None = None) -> torch.Tensor:
        r"""log of the integral of exp(log_density) over :meth:`truncation`, 0-d: what makes ``log_density`` that of the
        distribution ``sample`` draws from. `interval` as there.
        """
        coefficients = self.coefficients.detach()
        total = log_mass(coefficients.double().cpu(), self.truncation(interval)).sum()
        return total.to(coefficients)
