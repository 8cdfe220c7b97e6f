"""Densities fitted to a trained model's latent means, to sample from instead of N(0, I).

Zacherl, Frank and Ensslin, "Probabilistic Autoencoder Using Fisher Information" (Entropy 2021), section 3.3.2.
"""

from fisherkernels.sampling.density import Density, standard_normal
from fisherkernels.sampling.fit import DENSITIES, fit_density

__all__ = ["DENSITIES", "Density", "fit_density", "standard_normal"]
