"""GroupNorm's and LayerNorm's products: derivatives on both routes through a stack, half precision, empty batches."""

import copy
from unittest import mock

import pytest
import torch
from linearize_oracle import PRIMITIVE, all_close, check, close, gradients, scalar_of
from torch import nn
from torch.nn import functional as F

from fisherkernels import linearize
from fisherkernels.linearize import chain
from fisherkernels.linearize.rules import groupnorm


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("member_by_member", [True, False])
@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize(
    ("groups", "shape"), [(2, (3, 2, 4, 3)), (1, (2, 3, 5, 1)), (2, (0, 2, 4, 3)), (2, (2, 0, 4, 3))]
)
def test_product_gradcheck(groups, shape, transpose, member_by_member):
    def random(*shape):
        return torch.randn(shape, dtype=torch.float64).requires_grad_()

    def product(t, input, weight):
        size = input.shape[1] * input.shape[2] // groups
        mean, rstd = groupnorm.statistics(input.reshape(len(input), groups, size), 1e-5)
        return groupnorm.GroupNormProduct.apply(t, input, weight, mean, rstd, transpose)

    with mock.patch.object(groupnorm, "_one_by_one", lambda t: member_by_member):
        assert torch.autograd.gradcheck(product, (random(*shape), random(*shape[1:]), random(shape[2])))
        assert torch.autograd.gradcheck(lambda t, x: product(t, x, None), (random(*shape), random(*shape[1:])))


def test_routes_through_a_stack_agree():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.Tanh())
    with mock.patch.object(groupnorm, "_one_by_one", lambda t: False):
        check(net, (3, 2, 5, 4))


@pytest.mark.parametrize("net", [nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.GroupNorm(2, 4, affine=False)])
def test_second_derivatives(net):
    """Through torch.autograd.grad, which passes by what refuses to be differentiated and is on no path to an input."""
    net = nn.Sequential(nn.Conv1d(2, 4, 2), copy.deepcopy(net), nn.Tanh()).double()
    x = torch.randn(3, 2, 5, dtype=torch.float64).requires_grad_()

    def twice(value, product):
        grads = torch.autograd.grad(scalar_of([value, product]), [*net.parameters(), x], create_graph=True)
        return gradients(scalar_of(grads), net, x)

    with mock.patch.object(chain.SweptChain, "run", lambda self, x: False):
        lin = linearize(net, x)
    with mock.patch.multiple(F, **PRIMITIVE):
        value = net(x)
        expected = twice(value, torch.autograd.grad(value, x, value.sin(), create_graph=True)[0])
    all_close(twice(lin.value, lin.vjp(lin.value.sin())), expected, 1e-9, "both")


@pytest.mark.parametrize("net", [nn.GroupNorm(2, 4), nn.LayerNorm((4, 3, 5))])
def test_jacobian_is_symmetric_up_to_the_weight(net):
    net = copy.deepcopy(net).double()
    nn.init.uniform_(net.weight, 0.5, 1.5)
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    jacobian = linearize(net, x).jacobian()
    weight = net.weight.detach()
    weight = (weight if weight.dim() > 1 else weight.view(4, 1, 1)).expand(4, 3, 5).flatten()
    core = jacobian / weight[:, None]
    close(core, core.transpose(1, 2), 1e-13, "J without its weight")
    assert not torch.allclose(jacobian, jacobian.transpose(1, 2))


@pytest.mark.parametrize(("net", "shape"), [(nn.GroupNorm(2, 4), (5, 4, 3)), (nn.LayerNorm(4), (5, 4))])
class TestPrecision:
    def test_half(self, net, shape):
        half, x = copy.deepcopy(net).bfloat16(), torch.randn(shape, dtype=torch.bfloat16)
        lin, exact = linearize(half, x), linearize(copy.deepcopy(half).double(), x.double())
        t = torch.randn(3, *shape, dtype=torch.bfloat16)
        assert torch.equal(lin.value, half(x))
        for actual, expected in ((lin.vjp(t), exact.vjp(t.double())), (lin.jvp(t), exact.jvp(t.double()))):
            close(actual.double(), expected, 1e-2, "product")
            assert actual.dtype == torch.bfloat16

    def test_autocast(self, net, shape):
        layers = nn.Sequential(nn.Linear(shape[-1], shape[-1]), net)
        x = torch.randn(shape).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            lin = linearize(layers, x)
            assert torch.equal(lin.value, layers(x))
            products = lin.vjp(torch.ones_like(lin.value)), lin.jvp(torch.randn(2, *shape))
        sum(product.float().pow(2).sum() for product in products).backward()
        assert all(p.grad.isfinite().all() for p in [x, layers[0].weight, net.weight])

    def test_empty_batch(self, net, shape):
        x = torch.empty(0, *shape[1:]).requires_grad_()
        lin = linearize(net, x)
        products = lin.vjp(torch.empty(2, *x.shape)), lin.jvp(torch.empty(2, *x.shape))
        assert lin.value.shape == x.shape and all(product.shape == (2, *x.shape) for product in products)
        gradients = torch.autograd.grad(sum(map(torch.sum, (lin.value, *products))), [x, net.weight, net.bias])
        assert not any(gradient.isnan().any() for gradient in gradients)


def test_channels_last():
    net = nn.GroupNorm(2, 4).double()
    x = torch.randn(3, 4, 5, 2, dtype=torch.float64).to(memory_format=torch.channels_last)
    lin, plain = linearize(net, x), linearize(net, x.contiguous())
    close(lin.value, net(x), 1e-14, "value")
    cotangent = x.sin()  # of x itself only what eps leaves would not cancel
    close(lin.vjp(cotangent), plain.vjp(cotangent.contiguous()), 1e-13, "vjp")


def test_layer_norm_over_the_batch_couples_it():
    net = nn.LayerNorm((3, 4))
    assert linearize(net, torch.randn(3, 4)).coupled == ("LayerNorm",)
    assert linearize(net, torch.randn(2, 3, 4)).coupled == ()


def test_bad_input():
    with pytest.raises(ValueError, match=r"GroupNorm: expected an input .* divisible by 3 groups, got shape \[2, 4\]"):
        linearize(nn.GroupNorm(3, 6), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"GroupNorm: expected more than one value per group, got shape \[1, 6\]"):
        linearize(nn.GroupNorm(6, 6), torch.randn(1, 6))
