"""The networks whose Laplacians are taken."""

import torch
from torch import nn

ACTIVATIONS = {"tanh": nn.Tanh, "SiLU": nn.SiLU}


def mlp(activation, widths):
    """Linear, activation, ..., Linear; the same parameters on every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(widths[0], widths[1])]
        for before, after in zip(widths[1:-1], widths[2:], strict=True):
            layers += [ACTIVATIONS[activation](), nn.Linear(before, after)]
        return nn.Sequential(*layers)


def weights_of(net):
    """(W_1, b_1, ..., W_k, b_k), W_i [out, in]."""
    return tuple(net.parameters())


def activation_of(net):
    """ "tanh" or "SiLU"."""
    return next(name for name, kind in ACTIVATIONS.items() if type(net[1]) is kind)
