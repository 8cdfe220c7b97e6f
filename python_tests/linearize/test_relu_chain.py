"""Networks of Linear layers with ReLUs between them, against torch.func."""

import pytest
import torch
from jacobian_cases import by_functorch, linearized
from linearize_oracle import close
from torch import nn
from torch.nn import functional as F

from fisherkernels import linearize


class Functional(nn.Module):
    """Functional forms, a shared layer, and values that are used elsewhere too."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(3, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 8)

    def forward(self, x):
        h = torch.relu(self.first(x))
        h = F.relu(self.shared(h).view(-1, 2, 3)).flatten(1)
        return self.last(self.shared(h).relu()).unflatten(1, (2, 4))


CHAINS = {
    "one hidden layer": (lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 8)), 0),
    "three, with views": (
        lambda: nn.Sequential(
            nn.Linear(3, 6),
            nn.ReLU(),
            nn.Unflatten(1, (2, 3)),
            nn.Flatten(),
            nn.Linear(6, 5),
            nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Linear(5, 7),
            nn.ReLU(),
            nn.Linear(7, 8),
            nn.Unflatten(1, (2, 4)),
        ),
        2,
    ),
    "dropout in eval mode": (
        lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 8)).eval(),
        0,
    ),
    "functional": (Functional, 2),
}
OTHERS = {
    "no hidden layer": lambda: nn.Linear(3, 5),
    "another activation": lambda: nn.Sequential(nn.Linear(3, 6), nn.LeakyReLU(), nn.Linear(6, 8)),
    "another activation first": lambda: nn.Sequential(
        nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 8)
    ),
    "two layers without one between": lambda: nn.Sequential(
        nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 8)
    ),
    "of the input": lambda: nn.Sequential(nn.ReLU(), nn.Linear(3, 6)),
    "at the end": lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 8), nn.Sigmoid()),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 8)),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 8)),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", CHAINS)
def test_the_product_is_the_jacobian(name):
    make, between = CHAINS[name]
    net = make()
    lin, x = linearized(net, (5, 3))
    chain = lin.relu_chain()
    assert len(chain.weights) == between and len(chain.values) == between + 1
    jacobian = torch.diag_embed((chain.values[0] > 0).to(x.dtype)) @ chain.first
    for weight, value in zip(chain.weights, chain.values[1:], strict=True):
        jacobian = torch.diag_embed((value > 0).to(x.dtype)) @ weight @ jacobian
    close(lin.last_linear().weight @ jacobian, by_functorch(net, x), 1e-12, "jacobian")


@pytest.mark.parametrize("name", OTHERS)
def test_none(name):
    assert linearize(OTHERS[name](), torch.randn(4, 3)).relu_chain() is None
