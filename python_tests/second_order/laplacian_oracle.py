"""Sums of second derivatives by torch.func, forward over forward, in the graph."""

from __future__ import annotations

from unittest import mock

import torch
from linearize_oracle import PRIMITIVE, SEED
from torch.nn import functional as F


def primitive_group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    """F.group_norm in primitive operations: torch's own has no second derivative in forward mode."""
    groups = x.reshape(len(x), num_groups, -1)
    var, mean = torch.var_mean(groups, -1, correction=0, keepdim=True)
    y = ((groups - mean) / torch.sqrt(var + eps)).view(x.shape)
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def primitive_mish(x, inplace=False):
    """F.mish in primitive operations, for the same reason."""
    return x * torch.tanh(F.softplus(x))


def second_derivatives(net, x, tangents):
    """sum_k D^2 net(x)[t_k, t_k] for tangents t_k, each of x's shape."""

    def call(a):
        torch.manual_seed(SEED)
        return net(a)

    def along(t):
        return torch.func.jvp(lambda a: torch.func.jvp(call, (a,), (t,))[1], (x,), (t,))[1]

    primitive = {**PRIMITIVE, "group_norm": primitive_group_norm, "mish": primitive_mish}
    with mock.patch.multiple(F, **primitive), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return sum((along(t) for t in tangents), torch.zeros_like(net(x)))


def laplacian_by_functorch(net, x):
    basis = torch.eye(x[0].numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    return second_derivatives(net, x, [e.expand_as(x) for e in basis])
