"""Laplacians where the input goes several ways: each takes no more tangents than it needs, unless they meet."""

import copy

import pytest
import torch
from jacobian_cases import by_functorch
from laplacian_oracle import laplacian_by_functorch
from linearize_oracle import all_close, close, gradients, scalar_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fisherkernels as fk
from fisherkernels.second_order.first_tangents import classes_of_entries, count_of

WIDTH = 12


class Branches(nn.Module):
    """Two small networks, of 3 and 4 hidden units, put together by ``join(x, first, second)``."""

    def __init__(self, join):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(WIDTH, 3), nn.Tanh(), nn.Linear(3, 1))
        self.second = nn.Sequential(nn.Linear(WIDTH, 4), nn.SiLU(), nn.Linear(4, 1))
        self.linear = nn.Linear(WIDTH, 1)
        self.mean = nn.Parameter(torch.randn(WIDTH))
        self.join = [join]

    def forward(self, x):
        return self.join[0](self, x)


def one(m, x):
    return m.first(x)


# join, and the number of tangents of every class of values to start at
CASES = {
    "one network": (one, [3]),
    "beside a Gaussian": (lambda m, x: m.first(x)[:, 0] - 0.5 * x.square().sum(-1), [3, WIDTH]),
    "beside a product of the input": (lambda m, x: m.first(x) - 0.5 * (x * x).sum(-1, keepdim=True), [3, WIDTH]),
    "beside a linear layer": (lambda m, x: m.first(x) + m.linear(x), [3]),
    "beside the input": (lambda m, x: m.first(x) + x, [3]),
    "two sums": (lambda m, x: m.first(x) - 2 * m.second(x), [3, 4]),
    "joined": (lambda m, x: torch.cat([m.first(x), x[:, :2], m.second(x)], dim=1), [3, 4]),
    "product": (lambda m, x: m.first(x) * m.second(x), [7]),
    "product with the input": (lambda m, x: m.first(x) * x, [WIDTH]),
    "product, and a Gaussian": (lambda m, x: m.first(x) * m.second(x) - x.square().mean(1, True), [7, WIDTH]),
    "curved sum": (lambda m, x: torch.tanh(m.first(x) + m.second(x) + m.linear(x)), [8]),
    "standardised": (lambda m, x: m.first((x - m.mean) / (1 + m.mean.square())), [3]),
    "linear and standardised": (lambda m, x: m.first(x) * m.second(2 * x - m.mean), [7]),
    "permuted": (lambda m, x: m.first(x.view(-1, 3, 4).permute(0, 2, 1).flatten(1)), [3]),
    "the same layer twice": (lambda m, x: m.first(x) + m.first(-x), [3, 3]),
    "nothing curved": (lambda m, x: m.linear(x) + x, []),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pair(name):
    net, x = Branches(CASES[name][0]).double(), torch.randn(3, WIDTH, dtype=torch.float64)
    return net, x.clone().requires_grad_(), copy.deepcopy(net), x.clone().requires_grad_()


@pytest.mark.parametrize("budget", [1, 2**30])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name, budget):
    net, x, twin, y = pair(name)
    _, jacobian, laplacian = fk.laplacian(net, x, memory_budget=budget)
    expected = laplacian_by_functorch(twin, y)
    close(laplacian, expected, 1e-11, "laplacian")
    ours, oracle = gradients(scalar_of([laplacian]), net, x), gradients(scalar_of([expected]), twin, y)
    all_close(ours, oracle, 1e-10, "laplacian")
    close(jacobian, by_functorch(twin, y), 1e-12, "jacobian")
    close(fk.laplacian(net, x, jacobian=False, memory_budget=budget).laplacian, expected, 1e-11, "without the Jacobian")
    ones = torch.ones(WIDTH, dtype=x.dtype)
    for stack in (ones, ones.expand(3, WIDTH)):
        close(fk.laplacian(net, x, weights=stack, memory_budget=budget).laplacian, expected, 1e-11, "weights of 1")


@pytest.mark.parametrize("name", CASES)
def test_tangents_of_every_class(name):
    net, x, *_ = pair(name)
    lin = fk.linearize(net, x)
    counts = sorted(count_of(lin, members, WIDTH) for members in classes_of_entries(lin, False))
    assert counts == CASES[name][1]


@pytest.mark.parametrize("name", ["beside a Gaussian", "two sums", "curved sum"])
def test_compiled(name):
    net, x, *_ = pair(name)
    laplacian = torch.compile(lambda net, x: fk.laplacian(net, x).laplacian, fullgraph=True, backend="aot_eager")
    close(laplacian(net, x), fk.laplacian(net, x).laplacian, 1e-11, "compiled")


def test_a_gaussian_beside_a_network_costs_no_products():
    net = nn.Sequential(nn.Linear(100, 8), nn.Softplus(), nn.Linear(8, 32), nn.Softplus(), nn.Linear(32, 1))

    class Density(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).squeeze(1) - 0.5 * x.square().sum(1)

    flops = []  # of layers, one by one: tanh would take the operator for whole networks
    for density in (net, Density()):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            fk.laplacian(density, torch.randn(16, 100), jacobian=False)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1]
