"""Which steps make a sample's value depend on other samples of its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .plan import submodule
from .rules import RULES
from .walk import keeps_samples

if TYPE_CHECKING:
    from .linearization import Linearization


def train_mode_batch_norm(module: nn.Module) -> str | None:
    """The path inside ``module`` of a BatchNorm that uses batch statistics, if it has one."""
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or part.running_mean is None):
            return name
    return None


def coupled_steps(lin: Linearization) -> tuple[str, ...]:
    """Names of the steps that couple samples: by rule and, where that leaves it open, by a look at the numbers."""
    record = lin._record
    known, doubtful = [], []
    for i, (step, saved) in enumerate(zip(record.steps, record.saved, strict=True)):
        if not any(slot >= 0 for slot in step.slots):
            continue
        if step.rule == "fallback":
            module = submodule(lin._net, step.target) if step.kind == "module" else None
            inner = None if module is None else train_mode_batch_norm(module)
            if inner is not None:
                known.append(".".join(part for part in (step.target, inner) if part) or lin._name(step))
        elif saved[0] == "rule" and RULES[step.rule].couples_samples(saved[1]):
            known.append(lin._name(step))
        if not keeps_samples(record, i):
            doubtful.append(lin._name(step))
    if known or not doubtful or record.batch < 2 or torch.compiler.is_compiling():
        return tuple(known)
    return tuple(doubtful) if _mixes_samples(lin) else ()


@torch.no_grad()
def _mixes_samples(lin: Linearization) -> bool:
    """Whether cotangents of the first sample, or of every second one, reach the other samples."""
    batch = lin._record.batch
    members = torch.zeros(2, batch, dtype=torch.bool)
    members[0, 0] = True
    members[1, ::2] = True

    def cotangent(value: Tensor) -> Tensor | None:
        if value.dim() == 0 or value.shape[0] != batch:
            return None
        weights = torch.linspace(1, 2, value.numel(), dtype=value.dtype, device=value.device).view(value.shape)
        return weights * members.to(value.device).view(2, batch, *[1] * (value.dim() - 1))

    single = isinstance(lin.value, Tensor)
    cotangents = tuple(cotangent(value) for value in ((lin.value,) if single else lin.value))
    if any(c is None for c in cotangents):
        return True
    pulled = lin.vjp(cotangents[0] if single else cotangents).abs().flatten(2).amax(2)  # [2, N]
    return bool((pulled > 0).logical_and(~members.to(pulled.device)).any())  # a NaN elsewhere is no sign of coupling
