"""Fused kernels, forward-computed derivatives and losses for Fisher-divergence auto-encoders.

``fisher_ae_loss`` and ``elbo_loss`` drop into a training loop; ``linearize`` is the machine below them and below
``laplacian``; ``ops`` are the fused operators; ``priors`` and ``svgd`` serve learned priors. Training
with Lightning is in ``fisherkernels.training``.
"""

from fisherkernels import ops, priors
from fisherkernels.linearize import ElementwiseRule, Linearization, Rule, linearize, register_rule
from fisherkernels.losses import (
    LossOutput,
    elbo_loss,
    fisher_ae_loss,
    fisher_net_loss,
    fisher_shannon_loss,
    hyvarinen_score,
    inference_loss,
    mutual_ae_loss,
    score_matching_loss,
    sliced_hyvarinen_score,
)
from fisherkernels.losses.scores import decoder_score, stability
from fisherkernels.metric import FisherMetric, SolveInfo
from fisherkernels.second_order import LaplacianOutput, laplacian
from fisherkernels.svgd import svgd

__version__ = "0.1.0"

__all__ = [
    "ElementwiseRule",
    "FisherMetric",
    "LaplacianOutput",
    "Linearization",
    "LossOutput",
    "Rule",
    "SolveInfo",
    "decoder_score",
    "elbo_loss",
    "fisher_ae_loss",
    "fisher_net_loss",
    "fisher_shannon_loss",
    "hyvarinen_score",
    "inference_loss",
    "laplacian",
    "linearize",
    "mutual_ae_loss",
    "ops",
    "priors",
    "register_rule",
    "score_matching_loss",
    "sliced_hyvarinen_score",
    "stability",
    "svgd",
]
