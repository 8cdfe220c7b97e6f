"""An activation by itself in a sweep: its value, and what is pulled through it, against autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sweep_activations import FUNCTIONS, SLOPE

from fisherkernels import ops
from fisherkernels.ops._mlp_plain import CURVED, KEEP_INPUT, SWEEP_ACTIVATIONS

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}  # relative root mean square
every_kind = pytest.mark.parametrize("kind", FUNCTIONS)
opset = torch.ops.fisherkernels


def constants(kind):
    return SWEEP_ACTIVATIONS.index(kind), SLOPE


def by_input(kind):
    return SWEEP_ACTIVATIONS.index(kind) in KEEP_INPUT


def key_of(kind, x):
    return x if by_input(kind) else FUNCTIONS[kind](x)


def assert_close(result, expected, dtype, *factors):
    """Held against what the slopes, at most about one, are multiplied by: near a limit little is left of these."""
    expected = expected.to(dtype)
    assert result.shape == expected.shape and result.dtype == dtype
    assert (result - expected).norm() <= TOLERANCE[dtype] * max(expected.norm(), math.prod(factors).norm())


shapes = st.sampled_from([(0, 3), (1,), (3, 5), (17,), (2, 3, 7, 7), (4096,), (3, 4097), (2, 2, 64, 64)])


@given(
    kind=st.sampled_from(list(FUNCTIONS)),
    shape=shapes,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided"]),
    more=st.booleans(),
)
def test_values_and_products(device, random_tensor, kind, shape, dtype, layout, more):
    """Against the formulas' own derivatives in float64."""
    x, gradient, added, tangent = (random_tensor(shape, dtype, device, layout) * 2 for _ in range(4))
    wide = x.to(torch.float64, copy=True).requires_grad_()
    value = FUNCTIONS[kind](wide)
    assert_close(opset.activation_value(x, *constants(kind)), value, dtype, x)

    key = key_of(kind, x)
    at_key = added.double() if more else torch.zeros_like(wide)
    (expected,) = torch.autograd.grad(
        value, wide, gradient.double() + (0 if by_input(kind) else at_key), retain_graph=True
    )
    expected = expected + at_key if by_input(kind) else expected
    again = by_input(kind) and more
    pulled, y = opset.activation_pull(gradient, added if more else None, key, *constants(kind), again)
    assert_close(pulled, expected, dtype, gradient)
    if again:
        assert_close(y, value, dtype, x)

    cotangent = gradient.to(torch.float64, copy=True).requires_grad_()
    (product,) = torch.autograd.grad(value, wide, cotangent, create_graph=True)
    to_cotangent, to_key, product_again = opset.activation_pull_backward(tangent, gradient, key, *constants(kind))
    assert_close(product_again, product, dtype, gradient)
    (slopes,) = torch.autograd.grad(product, cotangent, tangent.double(), retain_graph=True)
    assert_close(to_cotangent, slopes, dtype, tangent)
    if SWEEP_ACTIVATIONS.index(kind) in CURVED:
        (to_input,) = torch.autograd.grad(product, wide, tangent.double(), retain_graph=True)
        through = to_key if by_input(kind) else opset.activation_pull(to_key, None, key, *constants(kind), False)[0]
        assert_close(through, to_input, dtype, gradient, tangent)
    else:
        assert to_key.numel() == 0


def raw_calls(kind, x, gradient, more):
    key = key_of(kind, x)
    yield "activation_value", (x, *constants(kind))
    yield "activation_pull", (gradient, None, key, *constants(kind), False)
    yield "activation_pull", (gradient, more, key, *constants(kind), by_input(kind))
    yield "activation_pull_backward", (more, gradient, key, *constants(kind))


@every_kind
def test_kernels_agree_with_twins(random_tensor, kind):
    if not ops.backends()["cpu"].active:
        pytest.skip("no native cpu library")
    for name, args in raw_calls(kind, *(random_tensor((3, 5, 37), torch.float64, "cpu", None) * 3 for _ in range(3))):
        results = getattr(opset, name)(*args)
        with ops.use_twins():
            torch.testing.assert_close(results, getattr(opset, name)(*args))


@every_kind
def test_opcheck(device, random_tensor, kind):
    for name, args in raw_calls(kind, *(random_tensor((3, 5), torch.float64, device, None) for _ in range(3))):
        torch.library.opcheck(getattr(opset, name).default, args)


@every_kind
def test_not_a_number_stays_one(device, kind):
    x = torch.tensor([0.5, torch.nan, -0.5], device=device)
    ones = torch.ones_like(x)
    results = [opset.activation_value(x, *constants(kind))]
    results += [opset.activation_pull(ones, None, key_of(kind, x), *constants(kind), False)[0]]
    for result in results[: 1 if "relu" in kind else 2]:  # torch's own takes a slope of the two
        assert result.isnan().tolist() == [False, True, False]


def test_units_of_relu_that_are_off(device):
    """Nothing comes through them, be it infinite."""
    key, infinite = torch.tensor([0.0, 2.0], device=device), torch.full((2,), torch.inf, device=device)
    pulled, _ = opset.activation_pull(infinite, None, key, *constants("relu"), False)
    to_cotangent, _, again = opset.activation_pull_backward(infinite, infinite, key, *constants("relu"))
    for result in (pulled, to_cotangent, again):
        assert result.tolist() == [0.0, torch.inf]


def test_they_have_no_derivatives(device):
    x = torch.randn(4, device=device, requires_grad=True)
    for name, args in raw_calls("silu", x, x, x):
        with pytest.raises(RuntimeError, match="linearize builds its graph"):
            getattr(opset, name)(*args)


def test_what_does_not_fit_is_refused():
    if not ops.backends()["cpu"].active:
        pytest.skip("no native cpu library")
    x = torch.randn(3, 4)
    for other in (x[:2], x.double(), x.flatten(), x.bfloat16()):
        with pytest.raises(RuntimeError, match="key's shape and dtype"):
            opset.activation_pull(other, None, x, *constants("silu"), False)
        with pytest.raises(RuntimeError, match="key's shape and dtype"):
            opset.activation_pull_backward(x, other, x, *constants("silu"))
    with pytest.raises(RuntimeError, match="the key is the value"):
        opset.activation_pull(x, None, x, *constants("tanh"), True)
    with pytest.raises(RuntimeError, match="unknown activation"):
        opset.activation_value(x, 8, 0.0)
