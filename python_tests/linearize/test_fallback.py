"""Layers without a rule whose results are more than tensors: named parts, nested tuples, indices, None."""

import pytest
import torch
from linearize_cases import Function
from linearize_oracle import check, close
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fisherkernels as fk

pytestmark = pytest.mark.filterwarnings("ignore:fisherkernels.linearize. no rule")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class OwnAttention(nn.MultiheadAttention):
    """A subclass, so that no rule covers it."""


class Attending(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.attention, self.weights = OwnAttention(4, 2, batch_first=True), weights

    def forward(self, x):
        out, weights = self.attention(x, x, x, need_weights=self.weights)
        return (x + out, weights) if self.weights else x + out


class Pair(nn.Module):
    """Two tensors and a constant; what torch.fx cannot trace."""

    def forward(self, x):
        return (x.sin(), 3, x.cos()) if x.dim() == 2 else None


class Product(nn.Module):
    """Takes all of a tuple."""

    def forward(self, parts):
        return parts[0] * parts[2] ** parts[1] if parts[0].dim() == 2 else None


def _lstm():
    net = Function(lambda m, x: m.lstm(x)[0] * m.lstm(x)[1][0].movedim(0, 1))
    net.lstm = nn.LSTM(4, 3, batch_first=True)
    return net


def _pairs():
    net = Function(lambda m, x: (lambda parts: m.first(parts) + m.second(parts) * parts[0])(m.pair(x)))
    net.pair, net.first, net.second = Pair(), Product(), Product()
    return net


CASES = {
    "attention without weights": (lambda: Attending(False), (2, 3, 4)),
    "attention with weights": (lambda: Attending(True), (2, 3, 4)),
    "nested tuples": (_lstm, (2, 3, 4)),
    "values and indices": (lambda: Function(lambda m, x: x.max(1)[0]), (3, 4)),
    "named parts": (lambda: Function(lambda m, x: x.sort(1).values), (3, 4)),
    "a mask": (lambda: Function(lambda m, x: x * x.isnan().logical_not()), (3, 4)),
    "a tuple taken whole, twice": (_pairs, (3, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_products_and_gradients(name):
    make, shape = CASES[name]
    check(make(), shape, fallback=True, tolerance=1e-11)


@pytest.mark.parametrize("name", ["attention without weights", "a tuple taken whole, twice"])
def test_jacobian_and_laplacian(name):
    make, shape = CASES[name]
    net, x = make().double(), torch.randn(shape, dtype=torch.float64)
    jacobian_of = torch.func.jacrev(lambda row: net(row[None])[0])
    with sdpa_kernel(SDPBackend.MATH):
        jacobian, hessian = (torch.func.vmap(f)(x) for f in (jacobian_of, torch.func.jacrev(jacobian_of)))
    dims = jacobian[0].numel() // x[0].numel(), x[0].numel()
    close(fk.linearize(net, x).jacobian(), jacobian.reshape(len(x), *dims), 1e-12, "jacobian")
    bent = hessian.reshape(len(x), *dims, dims[1]).diagonal(0, -2, -1).sum(-1)
    close(fk.laplacian(net, x).laplacian.flatten(1), bent, 1e-11, "laplacian")


def test_what_is_neither_tensor_nor_constant_is_refused_by_name():
    class Named(nn.Module):
        def forward(self, x):
            return {"value": x} if x.dim() == 2 else None

    net = Function(lambda m, x: m.named(x)["value"])
    net.named = Named()
    with pytest.raises(TypeError, match="net: expected a tensor, or .* of named, which has no rule; got dict"):
        fk.linearize(net, torch.randn(3, 4))


def test_a_network_gives_tensors_alone():
    with pytest.raises(TypeError, match="net: expected Pair to return .* tuple of tensors, got int in a tuple"):
        fk.linearize(Pair(), torch.randn(3, 4))
    with pytest.raises(TypeError, match="net: expected Pair to return a tensor or .*, got NoneType$"):
        fk.linearize(Pair(), torch.randn(3))
