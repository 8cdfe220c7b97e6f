"""Which networks' Laplacians are one operator, and that it gives what the rules give."""

from types import SimpleNamespace

import pytest
import torch
from laplacian_oracle import laplacian_by_functorch
from linearize_oracle import all_close, close, gradients, scalar_of
from torch import nn

import fisherkernels as fk
from fisherkernels import ops
from fisherkernels.second_order import mlp as mlp_module
from fisherkernels.second_order.mlp import mlp_of


def net(*activations, width=6, outputs=2):
    layers = [nn.Linear(4, width)]
    for activation in activations[:-1]:
        layers += [activation, nn.Linear(width, width, bias=False)]
    return nn.Sequential(*layers, activations[-1], nn.Linear(width, outputs)).double()


def test_layers_are_found():
    found = net(nn.Tanh(), nn.SiLU(), nn.Sigmoid())
    mlp = mlp_of(found, torch.randn(3, 4, dtype=torch.float64))
    assert mlp.activations == ("tanh", "silu", "sigmoid")
    assert [weight.data_ptr() for weight in mlp.weights] == [found[i].weight.data_ptr() for i in (0, 2, 4, 6)]
    assert [bias is None for bias in mlp.biases] == [False, True, True, False]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net(nn.Tanh(), outputs=4)

    def forward(self, x):
        return x + self.net(x)


@pytest.mark.parametrize(
    "other", [net(nn.Softplus()), net(nn.ReLU()), nn.Linear(4, 2).double(), Residual(), net(nn.Tanh())[:2]]
)
def test_other_networks_are_left_to_the_rules(other):
    assert mlp_of(other, torch.randn(3, 4, dtype=torch.float64)) is None


def test_other_inputs_are_left_to_the_rules():
    assert mlp_of(net(nn.Tanh()), torch.randn(3, 5, 4, dtype=torch.float64)) is None
    assert mlp_of(net(nn.Tanh()), torch.randn(3, 4)) is None


@pytest.mark.parametrize("budget, kept", [(1, None), (4 * 6 * 8 * 6, False), (2**30, True)])
def test_budget(monkeypatch, budget, kept):
    """Of a sample's rows, and of all rows before the second activation."""
    calls = []

    def counted(*args, **keywords):
        calls.append(keywords["keep_hidden"])
        return ops.mlp_laplacian(*args, **keywords)

    monkeypatch.setattr(mlp_module, "ops", SimpleNamespace(mlp_laplacian=counted))
    function, x = net(nn.Tanh(), nn.SiLU()), torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    result = fk.laplacian(function, x, jacobian=False, memory_budget=budget).laplacian
    assert calls == ([] if kept is None else [kept])
    expected = laplacian_by_functorch(function, x)
    close(result, expected, 1e-11, "laplacian")
    all_close(gradients(scalar_of([result]), function, x), gradients(scalar_of([expected]), function, x), 1e-10, "")


@pytest.mark.parametrize("width", [3, 6])
def test_jacobian(width):
    """Of the operator's tangents, or, where there are fewer units than inputs, of the linear map."""
    function, x = net(nn.Tanh(), nn.SiLU(), width=width), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    value, jacobian, laplacian = fk.laplacian(function, x)
    close(value, function(x), 1e-12, "value")
    close(jacobian, torch.func.vmap(torch.func.jacrev(function))(x), 1e-12, "jacobian")
    expected = laplacian_by_functorch(function, x)
    close(laplacian, expected, 1e-11, "laplacian")
    squares = jacobian.square().sum() + value.square().sum()
    twice = torch.func.vmap(torch.func.jacrev(function))(x).square().sum() + function(x).square().sum()
    all_close(gradients(squares, function, x), gradients(twice, function, x), 1e-10, "jacobian")


def test_weights_and_directions():
    function, x = net(nn.SiLU(), width=9), torch.randn(5, 4, dtype=torch.float64)
    hessian = torch.func.vmap(torch.func.hessian(function))(x)  # [N, m, n, n]
    weights, directions = torch.rand(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    weighted = torch.einsum("njii,ni->nj", hessian, weights)
    close(fk.laplacian(function, x, weights=weights).laplacian, weighted, 1e-11, "weights")
    along = torch.einsum("njik,ri,rk->nj", hessian, directions, directions)
    close(fk.laplacian(function, x, directions=directions).laplacian, along, 1e-11, "directions")
