"""Ways to compute Laplacians: prepare(net, example) gives laplacian(x), [N, 1] at x [N, n], in the graph of the net's
parameters where gradients are enabled. `example` is one input, [n].
"""

from functools import partial

import torch
from torch import func, nn

import fisherkernels as fk

from . import by_hand
from .nets import activation_of, weights_of


def ours(net, example):
    return lambda x: fk.laplacian(net, x, jacobian=False).laplacian


def compiled(prepare):
    return lambda net, example: torch.compile(prepare(net, example), fullgraph=True)


class _SiLU(nn.Module):
    """In operations that have what F.silu lacks: a second derivative in forward mode, rules in torch-jet."""

    def forward(self, x):
        return x * torch.sigmoid(x)


def _in_primitives(net):
    return nn.Sequential(*(_SiLU() if isinstance(layer, nn.SiLU) else layer for layer in net))


def hessian_trace(net, example):
    """vmap of torch.func.hessian."""
    net = _in_primitives(net)

    def one(x):
        return func.hessian(lambda item: net(item)[0])(x).trace()[None]

    return func.vmap(one)


def hessian_vector_products(net, example):
    """A loop over the input's dimensions, each by double backward for the batch."""

    def laplacian(x):
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)  # [N, n]
            total = 0
            for i in range(x.shape[1]):
                (row,) = torch.autograd.grad(gradient[:, i].sum(), x, create_graph=keep, retain_graph=True)
                total = total + row[:, i]
        return total[:, None]

    return laplacian


def forward_by_hand(net, example, reduced=False):
    weights, activation = weights_of(net), activation_of(net)
    return lambda x: by_hand.laplacian(activation, weights, x, reduced)


reduced_by_hand = partial(forward_by_hand, reduced=True)


def torch_jet(net, example):
    """torch-jet's Laplacian, its graph simplified (sums pulled up: the collapsed Taylor mode of its paper)."""
    from jet.laplacian import laplacian
    from jet.simplify import simplify

    of_one = laplacian(_in_primitives(net), example)
    return func.vmap(simplify(lambda x: of_one(x)[2], example, pull_sum=True))


TORCH_JET = {"requires": ("jet.laplacian", "jet.simplify"), "install": "jet-for-pytorch (Python 3.12 or newer)"}
