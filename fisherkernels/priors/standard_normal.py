"""The standard normal prior."""

import torch

from fisherkernels.priors.factorised import FactorisedPrior


class StandardNormal(FactorisedPrior):
    r"""N(0, I) in d dimensions, with score :math:`-z`; nothing to learn.

    Args:
        d: latent width, >= 1.

    Raises:
        TypeError, ValueError: d is no int, or < 1.

    >>> prior = StandardNormal(3)
    >>> z = torch.randn(4, 3)
    >>> torch.equal(prior.score(z), -z)
    True
    """

    def __init__(self, d: int):
        super().__init__(d)
        self.register_buffer("coefficients", torch.tensor([0.0, -0.5]).repeat(d, 1), persistent=False)

    def score(self, z: torch.Tensor) -> torch.Tensor:
        """Gradient of the log density, -z."""
        self._check(z)
        return -z

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """Log density without its normalising constant, -||z||^2 / 2: ``[..., d] -> [...]``."""
        self._check(z)
        return -0.5 * z.square().sum(-1)

    def extra_repr(self) -> str:
        return f"d={self.d}"
