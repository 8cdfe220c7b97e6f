"""Prior distributions of the latent variable, as modules with a score."""

from fisherkernels.priors.polynomial import PolynomialExponentialFamily
from fisherkernels.priors.standard_normal import StandardNormal

__all__ = ["PolynomialExponentialFamily", "StandardNormal"]
