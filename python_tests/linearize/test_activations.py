"""Elementwise activations where they are hard: at their kinks, and far out in float32."""

import pytest
import torch
from linearize_cases import Function, hooked
from linearize_oracle import close
from torch import nn
from torch.nn import functional as F

import fisherkernels as fk

KINKS = [-3.0, -1.0, -0.5, 0.0, 0.2, 0.5, 3.0]


def falling():
    layer = nn.PReLU()
    layer.weight.data.fill_(-0.7)
    return layer


ACTIVATIONS = {
    "ELU": lambda: nn.ELU(0.7),
    "SELU": nn.SELU,
    "CELU": lambda: nn.CELU(2.0),
    "Mish": nn.Mish,
    "Hardswish": nn.Hardswish,
    "Softsign": nn.Softsign,
    "LogSigmoid": nn.LogSigmoid,
    "Tanhshrink": nn.Tanhshrink,
}
PIECEWISE = {
    "Hardsigmoid": nn.Hardsigmoid,
    "Threshold": lambda: nn.Threshold(0.2, -1.0),
    "Softshrink": nn.Softshrink,
    "Hardshrink": nn.Hardshrink,
    "PReLU": nn.PReLU,
    "PReLU, falling": falling,
    "RReLU": lambda: nn.RReLU().eval(),
}


def slope_and_curvature(layer, x):
    """Of each number by itself, x [N]; with what a step trains by: its gradient with respect to x."""
    x = x.clone()[:, None].requires_grad_()
    _, slope, curvature = fk.laplacian(layer, x)
    (trained,) = torch.autograd.grad(slope.sum() + curvature.sum(), x)
    return slope.flatten(), curvature.flatten(), trained.flatten()


@pytest.mark.parametrize("name", {**ACTIVATIONS, **PIECEWISE})
def test_kinks(name):
    """Torch's own derivative at each, and next to it."""
    net = {**ACTIVATIONS, **PIECEWISE}[name]().double()
    at = torch.tensor(KINKS, dtype=torch.float64)
    x = torch.cat([at, torch.nextafter(at, at - 1), torch.nextafter(at, at + 1)]).requires_grad_()
    lin = fk.linearize(net, x)
    (slope,) = torch.autograd.grad(net(x).sum(), x)
    c = torch.linspace(1, 2, len(x), dtype=torch.float64)
    tolerance = 1e-7 if name == "Hardsigmoid" else 1e-14  # torch takes 1/6 from float32
    for product in (lin.vjp(c), lin.jvp(c)):
        torch.testing.assert_close(product, slope * c, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["ELU", "SELU", "CELU", "Hardswish", "Softsign"])
def test_kinks_of_laplacians(name):
    net, x = ACTIVATIONS[name]().double(), torch.tensor(KINKS, dtype=torch.float64)
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(at).sum(), at, create_graph=True)
    (expected,) = torch.autograd.grad(slope.sum(), at)
    actual = slope_and_curvature(net, x)
    close(actual[0], slope, 1e-14, "derivative")
    close(actual[1], expected, 1e-14, "second derivative")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_out(name):
    """Float32 as good as float64 to a few digits, in the tails too, and never NaN."""
    net = ACTIVATIONS[name]()
    x = torch.linspace(-20, 20, 81)
    pairs = zip(slope_and_curvature(net, x), slope_and_curvature(net, x.double()), strict=True)
    for (actual, expected), floor in zip(pairs, (1e-12, 1e-6 if name == "Tanhshrink" else 1e-12, 1e-6), strict=True):
        assert expected.isfinite().all()
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=floor)
    far = torch.tensor([-1e38, -1e30, -200.0, 200.0, 1e30, 1e38])
    assert not any(part.isnan().any() for part in slope_and_curvature(net, far))


def test_far_out_numbers_have_no_slope_but_one():
    x = torch.tensor([-1e30, 1e30])
    for layer in (nn.Mish(), nn.Hardswish(), nn.CELU()):
        assert fk.linearize(layer, x).vjp(torch.ones(2)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("net", [nn.RReLU(), Function(lambda m, x: F.rrelu(x, training=True))])
def test_rrelu_that_draws_has_no_rule(net):
    x = -torch.rand(50, dtype=torch.float64) - 1
    with pytest.warns(UserWarning, match="no rule for"):
        lin = fk.linearize(net, x)
    drawn = lin.value / x
    assert drawn.unique().numel() == 50
    close(lin.vjp(x), drawn * x, 1e-12, "the slopes that were drawn")


def test_prelu_of_activations_has_no_rule():
    x = torch.randn(4, 3, dtype=torch.float64)
    net = Function(lambda m, x: F.prelu(x, x[0].tanh()))
    with pytest.warns(UserWarning, match="no rule for prelu"):
        lin = fk.linearize(net, x)
    close(lin.vjp(x), torch.func.vjp(net, x)[1](x)[0], 1e-12, "vjp")


@pytest.mark.filterwarnings("ignore:.*no rule for")
@pytest.mark.parametrize("name", {**ACTIVATIONS, **PIECEWISE})
def test_same_as_without_a_rule(name):
    """In float32, the value to the last digits."""
    net, x = {**ACTIVATIONS, **PIECEWISE}[name](), torch.linspace(-6, 6, 61)
    by_rule, without = fk.linearize(net, x), fk.linearize(hooked(net), x)
    assert "fallback" not in str(by_rule.rules) and "fallback" in str(without.rules)
    torch.testing.assert_close(by_rule.value, without.value, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(by_rule.vjp(x), without.vjp(x), rtol=1e-5, atol=1e-6)
