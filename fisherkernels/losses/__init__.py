"""Losses of auto-encoders; each returns a :class:`LossOutput`."""

from fisherkernels.losses.elbo import elbo_loss
from fisherkernels.losses.fisher_ae import fisher_ae_loss
from fisherkernels.losses.fisher_net import fisher_net_loss
from fisherkernels.losses.fisher_shannon import fisher_shannon_loss
from fisherkernels.losses.hyvarinen import hyvarinen_score, sliced_hyvarinen_score
from fisherkernels.losses.inference import inference_loss
from fisherkernels.losses.mutual_information import mutual_ae_loss
from fisherkernels.losses.output import LossOutput
from fisherkernels.losses.score_matching import score_matching_loss
from fisherkernels.losses.scores import decoder_score, stability

__all__ = [
    "LossOutput",
    "decoder_score",
    "elbo_loss",
    "fisher_ae_loss",
    "fisher_net_loss",
    "fisher_shannon_loss",
    "hyvarinen_score",
    "inference_loss",
    "mutual_ae_loss",
    "score_matching_loss",
    "sliced_hyvarinen_score",
    "stability",
]
