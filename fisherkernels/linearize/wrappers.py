"""Networks inside a distributed wrapper: refused, as only the wrapper's own forward synchronises gradients."""

from __future__ import annotations

from torch import nn

_DISTRIBUTED = {"DistributedDataParallel", "FullyShardedDataParallel", "DataParallel", "FSDPModule"}


def refuse_distributed(net: nn.Module, argument: str) -> None:
    """Raise a TypeError when ``net`` is wrapped for data-parallel training.

    The loss belongs in the forward of the wrapped module: ``DistributedDataParallel(AutoEncoderWithLoss(...))``.
    """
    for kind in type(net).__mro__:
        if kind.__name__ in _DISTRIBUTED and kind.__module__.startswith("torch."):
            raise TypeError(
                f"{argument}: expected a plain torch.nn.Module, received one wrapped by {kind.__name__}, which "
                "synchronises gradients only through its own forward; the loss belongs inside the wrapped module: "
                "compute it in that module's forward"
            )
