"""Laplacians of whole networks against torch.func and closed forms, and all that fk.laplacian takes."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jacobian_cases import CASES, FALLBACKS, by_functorch
from laplacian_oracle import laplacian_by_functorch, second_derivatives
from linearize_oracle import all_close, close, gradients, scalar_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fisherkernels as fk

ALL = {**CASES, **FALLBACKS, "one wide linear layer": (lambda: nn.Linear(5, 2), (3, 5))}
pytestmark = pytest.mark.filterwarnings("ignore:.*no rule for")


def pair(make, shape, dtype=torch.float64):
    """A network and its twin, each with an input that requires grad."""
    net, x = make().to(dtype), torch.randn(shape, dtype=dtype)
    return net, x.clone().requires_grad_(), copy.deepcopy(net), x.clone().requires_grad_()


@pytest.mark.parametrize("budget", [1, 2**30])
@pytest.mark.parametrize("name", ALL)
def test_network(name, budget):
    net, x, twin, y = pair(*ALL[name])
    value, jacobian, laplacian = fk.laplacian(net, x, memory_budget=budget)
    expected, expected_jacobian = laplacian_by_functorch(twin, y), by_functorch(twin, y)
    close(value, twin(y), 1e-12, "value")
    close(jacobian, expected_jacobian, 1e-12, "jacobian")
    close(laplacian, expected, 1e-11, "laplacian")
    for what, actual, oracle in (("laplacian", laplacian, expected), ("jacobian", jacobian, expected_jacobian)):
        all_close(gradients(scalar_of([actual]), net, x), gradients(scalar_of([oracle]), twin, y), 1e-10, what)
    alone = fk.laplacian(net, x, jacobian=False, memory_budget=budget)
    assert alone.jacobian is None
    close(alone.laplacian, expected, 1e-11, "laplacian without the Jacobian")
    with torch.no_grad():
        close(fk.laplacian(net, x, memory_budget=budget).laplacian, expected, 1e-11, "laplacian without a graph")


@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    net, x, twin, y = pair(*CASES[name], dtype=torch.float32)
    value, jacobian, laplacian = fk.laplacian(net, x)
    assert {t.dtype for t in (value, jacobian, laplacian)} == {torch.float32}
    oracle = laplacian_by_functorch(twin.double(), y.double())
    close(laplacian.double(), oracle, 1e-5, "laplacian", floor=1e-3)


ACTIVATIONS = (nn.Tanh, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.ELU, nn.ReLU, lambda: nn.LayerNorm(6))


class Block(nn.Module):
    """One random layer of width 6, with what goes round it."""

    def __init__(self, activation, around):
        super().__init__()
        self.linear, self.activation, self.around = nn.Linear(6, 6), activation(), around

    def forward(self, x):
        h = self.activation(self.linear(x))
        if self.around == "sum":
            return x + h
        if self.around == "product":
            return x * h
        if self.around == "quotient":
            return x / (2 + h * h)
        if self.around == "join":
            return torch.cat([x[:, :3], h.chunk(2, dim=1)[1]], dim=1)
        return h


@given(st.data())
def test_random_networks(data):
    width, batch = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    layers = st.tuples(st.sampled_from(ACTIVATIONS), st.sampled_from(["", "sum", "product", "quotient", "join"]))
    blocks = data.draw(st.lists(layers, min_size=1, max_size=3))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    make = lambda: nn.Sequential(nn.Linear(width, 6), *(Block(*block) for block in blocks), nn.Linear(6, 2))  # noqa: E731
    net, x, twin, y = pair(make, (batch, width))
    laplacian = fk.laplacian(net, x, jacobian=False).laplacian
    expected = laplacian_by_functorch(twin, y)
    close(laplacian, expected, 1e-10, "laplacian", floor=1e-3)
    all_close(gradients(scalar_of([laplacian]), net, x), gradients(scalar_of([expected]), twin, y), 1e-9, "laplacian")


def test_closed_forms():
    class Gaussian(nn.Module):
        def forward(self, x):
            return -0.5 * (x * x).flatten(1) @ torch.ones(x[0].numel(), dtype=x.dtype) / 0.3

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return x * self.matrix(x)

    class Mixture(nn.Module):
        means = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]], dtype=torch.float64)

        def forward(self, x):
            return torch.logsumexp(-0.5 * (x[:, None, :] - self.means).square().sum(2), dim=1)

    x = torch.randn(5, 2, 3, dtype=torch.float64)
    close(fk.laplacian(Gaussian(), x).laplacian, torch.full((5,), -6 / 0.3, dtype=x.dtype), 1e-13, "Gaussian")
    x = torch.randn(5, 4, dtype=torch.float64)
    net = Quadratic().double()
    twice = 2 * net.matrix.weight.diagonal().expand(5, 4)
    close(fk.laplacian(net, x).laplacian, twice, 1e-13, "x * A x")
    x = torch.randn(5, 3, dtype=torch.float64)
    share = torch.softmax(-0.5 * (x[:, None, :] - Mixture.means).square().sum(2), dim=1)  # [N, 2]
    difference = (Mixture.means[0] - Mixture.means[1]).square().sum()
    close(fk.laplacian(Mixture(), x).laplacian, share.prod(1) * difference - 3, 1e-12, "mixture")


@pytest.mark.parametrize("shared", [True, False])
def test_weights_and_directions(shared):
    for make, shape in (CASES["conv encoder"], CASES["mlp, more inputs than outputs"]):
        net, x, twin, y = pair(make, shape)
        front = () if shared else (len(x),)
        weights = torch.rand(*front, *shape[1:], dtype=x.dtype)
        weights.view(-1)[0] = 0
        directions = torch.randn(9, *front, *shape[1:], dtype=x.dtype)
        basis = torch.eye(x[0].numel(), dtype=x.dtype).view(-1, *shape[1:])
        for options, tangents in (
            ({"weights": weights}, [(e * weights.sqrt()).expand_as(x) for e in basis]),
            ({"directions": directions}, [d.expand_as(x) for d in directions]),
        ):
            value, jacobian, laplacian = fk.laplacian(net, x, **options)
            expected = second_derivatives(twin, y, tangents)
            close(laplacian, expected, 1e-11, "weighted")
            close(jacobian, by_functorch(twin, y), 1e-12, "jacobian beside it")
            ours, oracle = gradients(scalar_of([laplacian]), net, x), gradients(scalar_of([expected]), twin, y)
            all_close(ours, oracle, 1e-10, "weighted")


@pytest.mark.parametrize("zero", ["rows", "one direction"])
def test_first_layer_without_full_rank(zero):
    net, x, twin, y = pair(lambda: nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 2)), (3, 9))
    with torch.no_grad():
        for n in (net, twin):
            n[0].weight[1] = 0 if zero == "rows" else 2 * n[0].weight[0]
    laplacian, expected = fk.laplacian(net, x).laplacian, laplacian_by_functorch(twin, y)
    close(laplacian, expected, 1e-11, "laplacian")
    all_close(gradients(scalar_of([laplacian]), net, x), gradients(scalar_of([expected]), twin, y), 1e-10, "laplacian")


def test_wide_inputs_cost_no_more_than_the_first_layer():
    net = nn.Sequential(nn.Linear(100, 8), nn.Softplus(), nn.Linear(8, 32), nn.Softplus(), nn.Linear(32, 1))
    x = torch.randn(16, 100)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fk.laplacian(net, x, jacobian=False)
    forward = 2 * 16 * (100 * 8 + 8 * 32 + 32)
    sweep = 2 * 16 * 8 * 8 * 32 + 2 * 100 * 8 * 8
    assert counter.get_total_flops() < 2 * forward + sweep


def test_groups_of_tangents_cost_no_further_products():
    net = nn.Sequential(nn.Linear(9, 8), nn.Softplus(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 1))
    flops = []
    for budget in (1, 2**30):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            fk.laplacian(net, torch.randn(4, 9), jacobian=False, memory_budget=budget)
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1]


def test_groups_with_a_curved_tuple():
    class Halves(nn.Module):
        def forward(self, x):
            return torch.tanh(x).chunk(2, dim=1) if x.sum() > -torch.inf else x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.halves = Halves()

        def forward(self, x):
            return self.halves(x)[0] * self.halves(x)[1]

    x = torch.randn(3, 4, dtype=torch.float64)
    expected = fk.laplacian(Net(), x).laplacian
    close(expected, laplacian_by_functorch(Net(), x), 1e-11, "all together")
    close(fk.laplacian(Net(), x, memory_budget=1).laplacian, expected, 1e-12, "one by one")


def test_hutchinson():
    net, x, twin, y = pair(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), (3, 4))
    expected = laplacian_by_functorch(twin, y)
    units = 2 * torch.eye(4, dtype=x.dtype)[:, None, :].expand(4, 3, 4)  # covariance I exactly
    options = {"estimator": "hutchinson", "num_samples": 4}
    close(fk.laplacian(net, x, **options, noise=units).laplacian, expected, 1e-12, "four orthogonal directions")
    noise = torch.randn(4, 3, 4, dtype=x.dtype)
    estimate = fk.laplacian(net, x, **options, noise=noise)
    oracle = second_derivatives(twin, y, list(noise)) / 4
    close(estimate.laplacian, oracle, 1e-12, "given directions")
    ours, theirs = gradients(scalar_of([estimate.laplacian]), net, x), gradients(scalar_of([oracle]), twin, y)
    all_close(ours, theirs, 1e-11, "given directions")
    close(estimate.jacobian, by_functorch(twin, y), 1e-12, "jacobian")
    many = fk.laplacian(net, x, estimator="hutchinson", num_samples=20_000, jacobian=False).laplacian
    assert (many - expected).abs().max() < 0.05 * expected.abs().max()
    weights = torch.rand(4, dtype=x.dtype)
    weighted = fk.laplacian(net, x, **options, weights=weights, noise=units).laplacian
    close(weighted, fk.laplacian(net, x, weights=weights).laplacian, 1e-12, "weights")


def test_gradcheck():
    net = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in net.named_parameters()]

    def of(x, *parameters):
        with torch.nn.utils.stateless._reparametrize_module(net, dict(zip(names, parameters, strict=True))):
            return fk.laplacian(net, x).laplacian

    assert torch.autograd.gradcheck(of, (x, *(p.detach().clone().requires_grad_() for p in net.parameters())))


@pytest.mark.parametrize("name", ["mlp", "mlp, more inputs than outputs", "conv decoder", "residual decoder"])
def test_compiled(name):
    net, x, twin, y = pair(*CASES[name])

    def of(net, x):
        return fk.laplacian(net, x)

    compiled = torch.compile(of, fullgraph=True, backend="aot_eager")(net, x)
    eager = of(twin, y)
    for a, e in zip(compiled, eager, strict=True):
        close(a, e, 1e-11, "compiled")
    ours, oracle = (gradients(scalar_of([out.laplacian]), n, i) for out, n, i in ((compiled, net, x), (eager, twin, y)))
    all_close(ours, oracle, 1e-10, "compiled")


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty(shape):
    net = nn.Sequential(nn.Linear(shape[1], 4), nn.Tanh(), nn.Linear(4, 2))
    value, jacobian, laplacian = fk.laplacian(net, torch.randn(shape))
    assert value.shape == laplacian.shape == (shape[0], 2) and jacobian.shape == (shape[0], 2, shape[1])
    assert not laplacian.any()


def test_strided_input():
    net, x = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1)), torch.randn(3, 3, 2, 4)
    strided = x.permute(3, 2, 0, 1)
    assert not strided.is_contiguous()
    close(fk.laplacian(net, strided).laplacian, fk.laplacian(net, strided.contiguous()).laplacian, 1e-6, "strided")


def test_autocast_is_left_out():
    net, x = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fk.laplacian(net, x).laplacian
    assert torch.equal(inside, fk.laplacian(net, x).laplacian)


def test_frozen_batch_norm():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="1 couples the samples of the batch"):
        fk.laplacian(net, x)
    frozen = fk.laplacian(net, x, batch_statistics="frozen").laplacian
    h = net[0](x)
    net[1].running_mean, net[1].running_var = h.mean(0).detach(), h.var(0, correction=0).detach()
    close(frozen, fk.laplacian(net.eval(), x).laplacian, 1e-12, "frozen statistics")


def test_bad_arguments_are_named():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    for error, message, call in (
        (TypeError, "x: expected float32 or float64, got torch.int64", lambda: fk.laplacian(net, x.long())),
        (TypeError, "got torch.complex64", lambda: fk.laplacian(net, x.to(torch.complex64))),
        (TypeError, "got torch.bfloat16", lambda: fk.laplacian(net, x.bfloat16())),
        (TypeError, "x: expected a tensor, got list", lambda: fk.laplacian(net, [1.0])),
        (ValueError, r"x: expected shape \[N, ...\].*got \[5\]", lambda: fk.laplacian(net, torch.randn(5))),
        (TypeError, "net: expected a torch.nn.Module", lambda: fk.laplacian(torch.tanh, x)),
        (ValueError, r"net: expected a value of shape \[5, ...\]", lambda: fk.laplacian(nn.Flatten(0), x)),
        (ValueError, "weights: expected numbers >= 0, got -1.0", lambda: fk.laplacian(net, x, weights=-torch.ones(3))),
        (ValueError, r"weights: expected shape \[3\] or \[5, 3\], got \[4\]",
         lambda: fk.laplacian(net, x, weights=torch.ones(4))),
        (TypeError, "weights: expected torch.float32", lambda: fk.laplacian(net, x, weights=torch.ones(3).double())),
        (TypeError, "directions: expected a tensor, got int", lambda: fk.laplacian(net, x, directions=2)),
        (ValueError, r"directions: expected a stack .*got \[3\]",
         lambda: fk.laplacian(net, x, directions=torch.ones(3))),
        (ValueError, "directions: expected neither weights nor",
         lambda: fk.laplacian(net, x, directions=torch.ones(1, 3), weights=torch.ones(3))),
        (ValueError, "estimator: expected .*exact", lambda: fk.laplacian(net, x, estimator="trace")),
        (ValueError, "num_samples: expected an int >= 1", lambda: fk.laplacian(net, x, num_samples=0)),
        (ValueError, r"noise: expected shape \[2, 5, 3\]",
         lambda: fk.laplacian(net, x, estimator="hutchinson", num_samples=2, noise=torch.ones(1, 5, 3))),
        (ValueError, "noise: expected None with estimator='exact'", lambda: fk.laplacian(net, x, noise=x[None])),
        (ValueError, "memory_budget: expected a positive", lambda: fk.laplacian(net, x, memory_budget=0)),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()


def test_randomness_without_a_rule_is_refused():
    class Draws(nn.Module):
        def forward(self, x):
            return torch.tanh(x).bernoulli() * torch.special.erf(x)

    with pytest.raises(ValueError, match="draws at random"):
        fk.laplacian(Draws(), torch.rand(4, 3))


def test_memory_does_not_grow_with_the_input():
    """A graph of 4 tangents at a time, made again in backward."""
    held = []

    def pack(t):
        held[-1] += t.numel()
        return t

    for width in (16, 64):
        net = nn.Sequential(nn.Tanh(), nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 1))
        x = torch.randn(8, width)
        numbers = 8 * (2 * width + 2 * 32 + 1)
        held.append(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            fk.laplacian(net, x, jacobian=False, memory_budget=4 * 4 * numbers)
    assert held[1] < 4 * held[0]
