"""The product of layer normalisation with a cotangent, and its backward pass, against double backward."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops
from fisherkernels.ops._layer_norm_operators import LayerNormPull

opset = torch.ops.fisherkernels
EPS = 1e-2
SHAPES = [(1, 3), (5, 4), (7, 16), (3, 17), (130, 64), (600, 33), (2, 1000)]


def make_arguments(random_tensor, shape, weight=True, dtype=torch.float64, device="cpu", layout=None):
    """Cotangent and x [M, n], weight [n] or None."""
    cotangent, x = (random_tensor(shape, dtype, device, layout) for _ in range(2))
    return [cotangent, 2 * x + 1, random_tensor(shape[1:], dtype, device, layout) if weight else None]


def oracle(cotangent, x, weight):
    """What autograd gives for the normalised rows."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    value = (x - mean) / torch.sqrt(variance + EPS)
    value = value if weight is None else value * weight
    return torch.autograd.grad(value, x, cotangent, create_graph=True)


def statistics(x):
    variance, mean = torch.var_mean(x.detach().double(), -1, correction=0)
    return mean.to(x.dtype), torch.rsqrt(variance + EPS).to(x.dtype)


def called(cotangent, x, weight):
    return (LayerNormPull.apply(cotangent, x, weight, *statistics(x)),)


def leaves_of(args):
    return [t for t in args if t is not None]


@given(
    shape=st.sampled_from(SHAPES),
    weight=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_values_and_gradients(device, random_tensor, check_against, shape, weight, dtype, layout):
    check_against(called, oracle, make_arguments(random_tensor, shape, weight, dtype, device, layout))


@pytest.mark.parametrize("weight", [True, False])
def test_gradcheck(device, random_tensor, weight):
    args = [
        t if t is None else t.requires_grad_() for t in make_arguments(random_tensor, (3, 4), weight, device=device)
    ]

    def run(*tensors):
        given = iter(tensors)
        return called(*(None if t is None else next(given) for t in args))

    assert torch.autograd.gradcheck(run, leaves_of(args))
    assert torch.autograd.gradgradcheck(run, leaves_of(args))


@pytest.mark.parametrize("needed", list(itertools.product([True, False], repeat=3))[:-1])
def test_some_need_gradients(device, random_tensor, needed):
    args = make_arguments(random_tensor, (6, 5), device=device)
    args = [t.requires_grad_(n) for t, n in zip(args, needed, strict=True)]
    wanted = [t for t in args if t.requires_grad]
    results = [torch.autograd.grad(run(*args)[0].sin().sum(), wanted) for run in (called, oracle)]
    for result, expected in zip(*results, strict=True):
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty(device, random_tensor, shape):
    args = [t.requires_grad_() for t in make_arguments(random_tensor, shape, device=device)]
    (result,) = called(*args)
    grads = torch.autograd.grad(result.sum(), args)
    assert result.shape == shape and [g.shape for g in grads] == [t.shape for t in args]
    assert not any(g.any() for g in grads)


def test_nan_stays_in_its_row(device, random_tensor):
    args = make_arguments(random_tensor, (5, 19), dtype=torch.float32, device=device)
    (clean,), others = called(*args), [0, 1, 3, 4]
    for position in (0, 1):
        poisoned = [t.clone() for t in args]
        poisoned[position][2, 7] = torch.nan
        (result,) = called(*poisoned)
        assert torch.equal(result[others], clean[others]) and result[2].isnan().all()


def raw_calls(args):
    mean, rstd = statistics(args[1])
    yield "layer_norm_pull", (*args, mean, rstd)
    yield "layer_norm_pull_backward", (args[0].sin(), *args, mean, rstd)


@pytest.mark.parametrize("weight", [True, False])
def test_kernels_agree_with_twins(random_tensor, weight):
    if not ops.backends()["cpu"].active:
        pytest.skip("no native cpu library")
    for shape in SHAPES:
        for name, args in raw_calls(make_arguments(random_tensor, shape, weight)):
            results = getattr(opset, name)(*args)
            with ops.use_twins():
                expected = getattr(opset, name)(*args)
            torch.testing.assert_close(results, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight", [True, False])
def test_opcheck(device, random_tensor, weight):
    for name, args in raw_calls(make_arguments(random_tensor, (3, 5), weight, device=device)):
        torch.library.opcheck(getattr(opset, name).default, args)


def test_not_differentiable_by_themselves(device, random_tensor):
    for name, (first, *rest) in raw_calls(make_arguments(random_tensor, (3, 5), device=device)):
        with pytest.raises(RuntimeError, match=f"{name} has no derivative of its own: fisherkernels.linearize"):
            getattr(opset, name)(first.detach().requires_grad_(), *rest)


def test_results_do_not_depend_on_the_number_of_threads(random_tensor):
    args = [t.requires_grad_() for t in make_arguments(random_tensor, (5000, 33), dtype=torch.float32)]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            (result,) = called(*args)
            found.append([result, *torch.autograd.grad(result.sin().sum(), args)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
