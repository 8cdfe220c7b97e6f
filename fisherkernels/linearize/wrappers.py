"""What several processes share: wrappers around networks, which only synchronise in their own forward, and layers."""

from __future__ import annotations

from torch import distributed, nn

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


def synchronised_batch_norm(module: nn.Module) -> str | None:
    """The path inside ``module`` of a SyncBatchNorm that takes its statistics from several processes, if it has one."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return None
    for name, part in module.named_modules():
        if isinstance(part, nn.SyncBatchNorm) and (part.training or part.running_mean is None):
            return name
    return None
