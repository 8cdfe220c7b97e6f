"""BatchNorm with batch statistics or GroupNorm, and the activation behind it: value, product, both backward passes."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sweep_activations import FUNCTIONS as ACTIVATIONS
from sweep_activations import SLOPE

from fisherkernels import ops
from fisherkernels.ops._mlp_plain import SWEEP_ACTIVATIONS
from fisherkernels.ops._norm_plain import IDENTITY

EPS = 1e-3
FUNCTIONS = {"none": lambda x: x, **ACTIVATIONS}
every_kind = pytest.mark.parametrize("kind", FUNCTIONS)
BATCH, GROUPS = 0, 2
both_norms = pytest.mark.parametrize("groups", [BATCH, GROUPS], ids=["batch", "group"])
opset = torch.ops.fisherkernels


def constants(kind):
    return IDENTITY if kind == "none" else SWEEP_ACTIVATIONS.index(kind), SLOPE


def normalised(x, weight, bias, groups):
    sets = x.unflatten(1, (groups, -1)) if groups else x
    over = [d for d in range(sets.dim()) if d > 1 or d == 0] if not groups else list(range(2, sets.dim()))
    variance, mean = torch.var_mean(sets, over, correction=0, keepdim=True)
    y = ((sets - mean) / torch.sqrt(variance + EPS)).reshape(x.shape)
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def oracle(kind, groups, x, weight, bias, cotangent):
    """The value and J^T c, by double backward."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    value = FUNCTIONS[kind](normalised(x, weight, bias, groups))
    return value, torch.autograd.grad(value, x, cotangent, create_graph=True)[0]


def called(kind, groups, x, weight, bias, cotangent):
    value, mean, rstd, _ = opset.norm_value(x, weight, bias, groups, EPS, *constants(kind))
    product = opset.norm_pull(cotangent, None, x, weight, bias, mean, rstd, groups, *constants(kind), False)[0]
    return value, product


def make_arguments(random_tensor, shape, weight=True, bias=True, dtype=torch.float64, device="cpu", layout=None):
    def make(*shape):
        return random_tensor(shape, dtype, device, layout)

    x = make(*shape) * 2 + 1
    return [x, make(shape[1]) if weight else None, make(shape[1]) if bias else None, make(*shape)]


def leaves_of(args):
    return [t for t in args if t is not None]


def with_leaves(args):
    return [t if t is None else t.detach().requires_grad_() for t in args]


@given(
    samples=st.sampled_from([2, 3, 7, 33]),
    channels=st.sampled_from([(1, 0), (2, 0), (5, 0), (17, 0), (1, 1), (4, 2), (6, 6), (17, 1), (24, 3)]),
    size=st.sampled_from([(), (1,), (2,), (3, 3), (5, 7), (16, 16), (17, 19), (2, 3, 5), (4097,)]),
    kind=st.sampled_from(list(FUNCTIONS)),
    weight=st.booleans(),
    bias=st.booleans(),
    used=st.sampled_from([(0,), (1,), (0, 1)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided"]),
)
def test_values_and_gradients(
    device, random_tensor, check_against, samples, channels, size, kind, weight, bias, used, dtype, layout
):
    """Runs that are gathered and others, with and without what does not fill a vector."""
    channels, groups = channels
    args = make_arguments(random_tensor, (samples, channels, *size), weight, bias, dtype, device, layout)
    if dtype is torch.float32 and "relu" in kind:
        assume(normalised(*args[:3], groups).abs().min() > 1e-4)  # else the two may be on different sides of the kink
    count = channels // groups * math.prod(size) if groups else samples * math.prod(size)
    assume(count > 2)  # of two numbers, ±1 but for eps, nothing but rounding is left in the product
    differentiable = [i for i, t in enumerate(args) if t is not None and (i < 3 or used != (0,))]
    if used == (1,) and bias and kind in ("none", "relu", "leaky_relu"):
        differentiable.remove(2)

    def part(function):
        return lambda *a: tuple(function(kind, groups, *a)[i] for i in used)

    check_against(part(called), part(oracle), args, differentiable)


@every_kind
@pytest.mark.parametrize("shape", [(3, 2, 4), (2, 2, 300)])
@pytest.mark.parametrize("weight, bias", [(True, True), (False, True), (True, False)])
@both_norms
def test_gradcheck(device, random_tensor, kind, shape, weight, bias, groups):
    if shape[2] > 4:
        args = with_leaves(make_arguments(random_tensor, shape, weight, bias, device=device))
        for a, b in zip(backward(called, kind, groups, args), backward(oracle, kind, groups, args), strict=True):
            torch.testing.assert_close(a, b)
        return
    args = with_leaves(make_arguments(random_tensor, shape, weight, bias, device=device))

    def run(*tensors):
        given = iter(tensors)
        return called(kind, groups, *(None if t is None else next(given) for t in args))

    assert torch.autograd.gradcheck(run, leaves_of(args))
    assert torch.autograd.gradgradcheck(run, leaves_of(args))


def backward(function, kind, groups, args):
    value, product = function(kind, groups, *args)
    grads = torch.autograd.grad(value.sin().sum() + product.cos().sum(), leaves_of(args), allow_unused=True)
    return [value, product, *grads]


def raw_calls(args, kind, groups):
    x, weight, bias, cotangent = args
    net = x, weight, bias
    yield "norm_value", (*net, groups, EPS, *constants(kind))
    _, mean, rstd, _ = opset.norm_value(*net, groups, EPS, *constants(kind))
    rest = mean, rstd, groups, *constants(kind)
    yield "norm_pull", (cotangent, None, *net, *rest, False)
    yield "norm_pull", (cotangent, x, *net, *rest, True)
    yield "norm_pull_backward", (cotangent.sin(), cotangent, *net, *rest)


@every_kind
@both_norms
@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (2, 6, 17, 31), (3, 2, 16, 16)])
def test_kernels_agree_with_twins(random_tensor, kind, shape, groups):
    if not ops.backends()["cpu"].active:
        pytest.skip("no native cpu library")
    for weight, bias in ((True, True), (False, False)):
        for name, args in raw_calls(make_arguments(random_tensor, shape, weight, bias), kind, groups):
            results = getattr(opset, name)(*args)
            with ops.use_twins():
                torch.testing.assert_close(results, getattr(opset, name)(*args))


@pytest.mark.parametrize("kind", ["none", "leaky_relu", "gelu"])
@both_norms
def test_opcheck(device, random_tensor, kind, groups):
    for name, args in raw_calls(make_arguments(random_tensor, (3, 4, 5), device=device), kind, groups):
        torch.library.opcheck(getattr(opset, name).default, args)
        leaves = [t.detach().requires_grad_() if isinstance(t, torch.Tensor) else t for t in args]
        if name == "norm_value" or (name == "norm_pull" and not args[-1]):
            torch.library.opcheck(getattr(opset, name).default, leaves)


@pytest.mark.parametrize("groups, over", [(BATCH, (0, 2, 3)), (6, (2, 3))])
def test_statistics(device, groups, over):
    """Of numbers far from zero, in float32; variance and mean are as torch's."""
    x = (torch.randn(64, 6, 9, 9, dtype=torch.float64) + 1000).to(device, torch.float32)
    value, mean, rstd, variance = opset.norm_value(x, None, None, groups, EPS, IDENTITY, 0.0)
    expected, centre = torch.var_mean(x.double(), over, correction=0)
    torch.testing.assert_close(mean.double(), centre, rtol=1e-7, atol=0)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(rstd, torch.rsqrt(variance + EPS))
    torch.testing.assert_close(value.double(), normalised(x.double(), None, None, groups), rtol=1e-3, atol=1e-4)


@every_kind
@both_norms
def test_not_a_number(device, kind, groups):
    """One in a set leaves the others as they are."""
    x = torch.randn(4, 4, 5, 5, device=device)
    x[2, 1, 0, 0] = torch.nan
    value = opset.norm_value(x, None, None, groups, EPS, *constants(kind))[0]
    if groups:
        assert value[2, :2].isnan().all() and value[2, 2:].isfinite().all() and value[[0, 1, 3]].isfinite().all()
    else:
        assert value[:, 1].isnan().all() and value[:, [0, 2, 3]].isfinite().all()


@both_norms
def test_infinite_inputs_of_relu(device, groups):
    """A unit that is off for good, and zeros without a sign."""
    x, bias = torch.randn(4, 2, 5, device=device), torch.tensor([-torch.inf, 0.0], device=device)
    value = opset.norm_value(x, None, bias, groups, EPS, *constants("relu"))[0]
    assert torch.equal(value[:, 0], torch.zeros(4, 5, device=device)) and not value.signbit().any()


def test_what_does_not_fit_is_refused():
    if not ops.backends()["cpu"].active:
        pytest.skip("no native cpu library")
    x, c = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    with pytest.raises(RuntimeError, match="for each channel"):
        opset.norm_value(x, torch.ones(1), None, BATCH, EPS, *constants("tanh"))
    with pytest.raises(RuntimeError, match="divisible by the groups"):
        opset.norm_value(x, None, None, 3, EPS, *constants("tanh"))
    with pytest.raises(RuntimeError, match="unknown activation"):
        opset.norm_value(x, None, None, BATCH, EPS, 8, 0.0)
    _, mean, rstd, _ = opset.norm_value(x, None, None, BATCH, EPS, *constants("tanh"))
    rest = mean, rstd, BATCH, *constants("tanh")
    for other in (c.bfloat16(), c[:2], c.double(), c.flatten(1)):
        with pytest.raises(RuntimeError, match="x's shape and dtype"):
            opset.norm_pull(other, None, x, None, None, *rest, False)
        with pytest.raises(RuntimeError, match="x's shape and dtype"):
            opset.norm_pull_backward(c, other, x, None, None, *rest)
    with pytest.raises(RuntimeError, match="for each set"):
        opset.norm_pull(c, None, x, None, None, mean, rstd, 1, *constants("tanh"), False)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0)])
def test_empty(device, shape):
    x = torch.empty(shape, device=device)
    statistics = [torch.full((3,), torch.nan, device=device)] * 2
    results = opset.norm_pull_backward(x, x, x, None, None, *statistics, BATCH, *constants("silu"))
    assert [result.shape for result in results[:3]] == [x.shape] * 3
    assert not any(result.any() for result in results[3:])


@both_norms
def test_zero_variance(device, groups):
    args = [torch.ones(3, 2, 4, device=device), None, None, torch.randn(3, 2, 4, device=device)]
    pairs = (backward(function, "tanh", groups, with_leaves(args)) for function in (called, oracle))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


def test_what_is_backward_alone_has_no_derivative(device, random_tensor):
    for name, args in raw_calls(with_leaves(make_arguments(random_tensor, (3, 2, 4), device=device)), "tanh", BATCH):
        if name == "norm_pull_backward":
            with pytest.raises(RuntimeError, match="linearize builds its graph"):
                opset.norm_pull_backward(*args)
        elif name == "norm_pull" and args[-1]:
            with pytest.raises(RuntimeError, match="without `more` and `value`"):
                opset.norm_pull(*args)


@both_norms
def test_third_derivatives(device, random_tensor, groups):
    args = with_leaves(make_arguments(random_tensor, (3, 2, 4), device=device))

    def derivatives(outputs):
        loss, found = sum(t.sin().sum() for t in outputs), []
        for _ in range(3):
            loss = sum(g.sin().sum() for g in torch.autograd.grad(loss, args, create_graph=True))
            found.append(loss)
        return found

    torch.testing.assert_close(derivatives(called("silu", groups, *args)), derivatives(oracle("silu", groups, *args)))


@both_norms
def test_gradients_in_stacks(device, random_tensor, groups):
    args = with_leaves(make_arguments(random_tensor, (3, 2, 4), device=device))
    found = []
    for run in (called, oracle):
        outputs = run("silu", groups, *args)
        stacks = [torch.eye(t.numel()).to(t).view(-1, *t.shape)[:8] for t in outputs]
        found.append(torch.autograd.grad(outputs, args, stacks, is_grads_batched=True))
    torch.testing.assert_close(*found)
