"""The four ways every op is computed."""

import torch

from ..case import Contender


def four_ways(with_backward, ours, users):
    """with_backward(forward) gives the function timed; `ours` and `users` are forwards of the same values."""

    def eager(forward):
        return lambda device, dtype: with_backward(forward)

    def compiled(forward):
        return lambda device, dtype: with_backward(torch.compile(forward, fullgraph=True))

    return (
        Contender("ours", eager(ours)),
        Contender("ours, compiled", compiled(ours)),
        Contender("eager autograd", eager(users)),
        Contender("torch.compile", compiled(users)),
    )


def reference(with_backward, users):
    return lambda device, dtype: with_backward(users)
