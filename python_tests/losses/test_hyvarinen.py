"""Hyvärinen scores against closed forms and double backward, exact and sliced."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fisherkernels as fk


def network(squeeze, dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), nn.Softplus(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 1)]
    return nn.Sequential(*layers, *([nn.Flatten(0)] if squeeze else [])).to(dtype)


def by_double_backward(net, x):
    """½ ‖s‖² + tr of the Jacobian of s, [N]; and s [N, n]."""
    x = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    rows = [torch.autograd.grad(score[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])]
    return 0.5 * score.square().sum(1) + sum(rows), score


def relative(actual, expected):
    return ((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt()).item()


def gradients(loss, net):
    found = torch.autograd.grad(loss.sum(), list(net.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, net.parameters(), strict=True)]


@pytest.mark.parametrize("squeeze", [False, True])
def test_value_and_gradients(squeeze):
    net, x = network(squeeze), torch.randn(6, 5, dtype=torch.float64)
    score = fk.hyvarinen_score(net, x)
    expected, _ = by_double_backward(net, x)
    assert score.shape == (6,) and relative(score, expected) < 1e-12
    for got, oracle in zip(gradients(score, net), gradients(expected, net), strict=True):
        torch.testing.assert_close(got, oracle, rtol=1e-10, atol=1e-12)
    single = network(squeeze, torch.float32)
    assert relative(fk.hyvarinen_score(single, x.float()).double(), expected) < 1e-5


def test_gaussian():
    """log p = -‖x‖² / 2γ: ‖x‖² / 2γ² - n / γ."""

    class Gaussian(nn.Module):
        def forward(self, x):
            return -0.5 / 0.4 * (x * x).flatten(1) @ torch.ones(12, dtype=x.dtype)

    x = torch.randn(7, 3, 4, dtype=torch.float64)
    expected = 0.5 * x.square().flatten(1).sum(1) / 0.4**2 - 12 / 0.4
    torch.testing.assert_close(fk.hyvarinen_score(Gaussian(), x), expected)


@pytest.mark.parametrize("variance_reduction", [True, False])
def test_sliced(variance_reduction):
    net, x = network(False), torch.randn(6, 5, dtype=torch.float64)
    noise = torch.randn(3, 6, 5, dtype=torch.float64)
    options = {"num_slices": 3, "variance_reduction": variance_reduction}
    sliced = fk.sliced_hyvarinen_score(net, x, noise=noise, **options)

    leaf = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(net(leaf).sum(), leaf, create_graph=True)
    expected = 0.0
    for v in noise:
        (hv,) = torch.autograd.grad((score * v).sum(), leaf, create_graph=True)
        square = score.square().sum(1) if variance_reduction else (score * v).sum(1).square()
        expected = expected + ((hv * v).sum(1) + 0.5 * square) / 3
    assert relative(sliced, expected) < 1e-12
    for got, oracle in zip(gradients(sliced, net), gradients(expected, net), strict=True):
        torch.testing.assert_close(got, oracle, rtol=1e-10, atol=1e-12)

    orthogonal = 5**0.5 * torch.eye(5, dtype=torch.float64)[:, None].expand(5, 6, 5)  # covariance I exactly
    exact = fk.sliced_hyvarinen_score(net, x, 5, noise=orthogonal, variance_reduction=variance_reduction)
    assert relative(exact, fk.hyvarinen_score(net, x)) < 1e-12


def test_sliced_draws_signs():
    net, x = network(False), torch.randn(6, 5, dtype=torch.float64)
    torch.manual_seed(3)
    first = fk.sliced_hyvarinen_score(net, x, 2)
    assert not torch.equal(first, fk.sliced_hyvarinen_score(net, x, 2))
    torch.manual_seed(3)
    assert torch.equal(first, fk.sliced_hyvarinen_score(net, x, 2))
    many = torch.stack([fk.sliced_hyvarinen_score(net, x, 1000).detach() for _ in range(3)]).mean(0)
    exact = fk.hyvarinen_score(net, x)
    assert (many - exact).abs().max() < 0.1 * exact.abs().max()


def test_one_slice_costs_three_forward_passes():
    """The value, a tangent, and the score pulled back."""
    net, x = network(False), torch.randn(6, 5, dtype=torch.float64)
    flops = []
    for call in (net, lambda x: fk.sliced_hyvarinen_score(net, x)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call(x)
        flops.append(counter.get_total_flops())
    assert flops[1] <= 3 * flops[0]


def test_bad_arguments_are_named():
    x = torch.randn(4, 5)
    with pytest.raises(ValueError, match=r"log_density: expected a value of shape \[4\] or \[4, 1\], got \[4, 2\]"):
        fk.hyvarinen_score(nn.Linear(5, 2), x)
    with pytest.raises(ValueError, match="num_slices: expected an int >= 1, received 0"):
        fk.sliced_hyvarinen_score(network(False), x, 0)
    with pytest.raises(TypeError, match="log_density: expected a torch.nn.Module, got function"):
        fk.hyvarinen_score(lambda x: x, x)
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        fk.sliced_hyvarinen_score(network(False), [1.0])
    with pytest.raises(ValueError, match=r"noise: expected shape \[1, 4, 5\]"):
        fk.sliced_hyvarinen_score(network(False, torch.float32), x, noise=torch.ones(4, 5))
