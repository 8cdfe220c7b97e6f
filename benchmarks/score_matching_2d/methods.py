"""What is compared: an inference divergence for the encoder and an objective for the decoder."""

from typing import NamedTuple

from torch import Tensor

import fisherkernels as fk
from fisherkernels.losses import LossOutput


class Method(NamedTuple):
    """`inference_loss` and `loss` take the nets, x and the losses' options variance, num_samples and noise."""

    label: str
    color: str
    objective: str  # m1, m2, m3 or elbo
    divergence: str = "kl"
    reparametrize: bool = True
    unbiased: bool = False

    def inference_loss(self, encoder, decoder, x: Tensor, **options) -> LossOutput:
        """What the encoder minimises."""
        options |= {"divergence": self.divergence, "reparametrize": self.reparametrize}
        return fk.inference_loss(encoder, decoder, x, **options)

    def loss(self, encoder, decoder, x: Tensor, **options) -> LossOutput:
        """What the decoder and its variance minimise."""
        if self.objective == "elbo":
            return fk.elbo_loss(encoder, decoder, x, **options)
        options |= {"objective": self.objective, "unbiased": self.unbiased}
        return fk.score_matching_loss(encoder, decoder, x, **options)

    def runs_at(self, num_samples: int) -> bool:
        return num_samples > 1 or not self.unbiased


METHODS = {
    "elbo": Method("KL + ELBO", "#000000", "elbo"),
    "m1": Method("KL + M1", "#0072b2", "m1"),
    "m2": Method("KL + M2", "#d55e00", "m2"),
    "m3": Method("KL + M3", "#009e73", "m3"),
    "fd_m1": Method("FD + M1", "#cc79a7", "m1", "fisher", reparametrize=False),
    "fd_reparametrized_m1": Method("FD reparametrised + M1", "#e69f00", "m1", "fisher"),
    "fd_m2": Method("FD + M2", "#a65628", "m2", "fisher", reparametrize=False),
    "fd_m3": Method("FD + M3", "#56b4e9", "m3", "fisher", reparametrize=False),
    "m2_unbiased": Method("KL + M2, unbiased", "#d55e00", "m2", unbiased=True),
    "m3_unbiased": Method("KL + M3, unbiased", "#009e73", "m3", unbiased=True),
}
