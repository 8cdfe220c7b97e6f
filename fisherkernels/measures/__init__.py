"""Measures of trained models: bounds and estimates of the likelihood, how far posterior and prior are met.

They take any :class:`~fisherkernels.training.AutoEncoder`; ``fisherkernels test`` reports them (needs ``pip install
'fisherkernels[train]'``).
"""

from fisherkernels.measures.deviations import DeviationHistogram
from fisherkernels.measures.divergence import posterior_fisher_divergence
from fisherkernels.measures.likelihood import importance_sampled_nll, negative_elbo
from fisherkernels.measures.mmd import CubicMMD
from fisherkernels.measures.suite import MeasureSuite, evaluate

__all__ = [
    "CubicMMD",
    "DeviationHistogram",
    "MeasureSuite",
    "evaluate",
    "importance_sampled_nll",
    "negative_elbo",
    "posterior_fisher_divergence",
]
