"""Losses of auto-encoders; each returns a :class:`LossOutput`."""

from fisherkernels.losses.elbo import elbo_loss
from fisherkernels.losses.fisher_ae import fisher_ae_loss
from fisherkernels.losses.fisher_net import fisher_net_loss
from fisherkernels.losses.inference import inference_loss
from fisherkernels.losses.output import LossOutput
from fisherkernels.losses.score_matching import score_matching_loss
from fisherkernels.losses.scores import decoder_score, stability

__all__ = [
    "LossOutput",
    "decoder_score",
    "elbo_loss",
    "fisher_ae_loss",
    "fisher_net_loss",
    "inference_loss",
    "score_matching_loss",
    "stability",
]
