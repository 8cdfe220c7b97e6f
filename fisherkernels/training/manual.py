"""What the modules with two optimisers share."""

import lightning.pytorch as pl
from torch import Tensor


def update(module: pl.LightningModule, optimizer, loss: Tensor, *, counted: bool) -> None:
    """One step of a Lightning optimiser on the gradient of the loss alone.

    Lightning counts the steps of all optimisers into ``global_step``. Here one batch is one step: only one of the
    optimisers is ``counted``.
    """
    module.zero_grad()
    module.manual_backward(loss)
    if counted:
        optimizer.step()
    else:
        module.trainer.strategy.optimizer_step(optimizer.optimizer, _nothing)


def _nothing() -> None:
    """The gradients are there already."""
