"""The losses as one writes them by hand: plain autograd, double backward, no rules and no kernels.

Tests compare the library with these number by number, and benchmarks use them as the contender. They check no
arguments. This is the only package in the library that uses ``create_graph``.
"""

from fisherkernels.reference.elbo import elbo_loss
from fisherkernels.reference.fisher_ae import fisher_ae_loss
from fisherkernels.reference.fisher_net import fisher_metric, fisher_metric_sample, fisher_net_loss
from fisherkernels.reference.fisher_shannon import fisher_shannon_loss, gaussian_information, mutual_ae_loss
from fisherkernels.reference.score_matching import inference_loss, score_matching_loss
from fisherkernels.reference.scores import decoder_score, stability
from fisherkernels.reference.svgd import svgd

__all__ = [
    "decoder_score",
    "elbo_loss",
    "fisher_ae_loss",
    "fisher_metric",
    "fisher_metric_sample",
    "fisher_net_loss",
    "fisher_shannon_loss",
    "gaussian_information",
    "inference_loss",
    "mutual_ae_loss",
    "score_matching_loss",
    "stability",
    "svgd",
]
