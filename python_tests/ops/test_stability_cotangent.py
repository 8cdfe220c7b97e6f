import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops


def oracle(eps, log_std):
    samples = eps.shape[0] // log_std.shape[0] if log_std.shape[0] else 1
    return torch.cat([eps / log_std.exp().repeat(samples, 1), eps**2 - 1], dim=1)


@given(
    rows=st.sampled_from([0, 1, 2, 5, 63]),
    samples=st.sampled_from([1, 3]),
    columns=st.sampled_from([0, 1, 7, 64, 300]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_value_and_gradients(device, random_tensor, check_against, rows, samples, columns, dtype, layout):
    eps = random_tensor((samples * rows, columns), dtype, device, layout)
    log_std = random_tensor((rows, columns), dtype, device, layout)
    check_against(ops.stability_cotangent, oracle, [eps, log_std])


@pytest.mark.parametrize("differentiable", [[0], [1]])
def test_some_gradients(device, random_tensor, check_against, differentiable):
    args = [random_tensor((6, 7), device=device), random_tensor((3, 7), device=device)]
    check_against(ops.stability_cotangent, oracle, args, differentiable)


def test_is_the_derivative_of_the_log_density(device, random_tensor):
    """Against autograd of log q(z|x) with respect to (mean, log_std), z held fixed."""
    mean, log_std, eps = (random_tensor((4, 6), device=device) for _ in range(3))
    z = mean + log_std.exp() * eps
    mean.requires_grad_()
    log_std.requires_grad_()
    log_density = torch.distributions.Normal(mean, log_std.exp()).log_prob(z).sum()
    expected = torch.cat(torch.autograd.grad(log_density, [mean, log_std]), dim=1)
    torch.testing.assert_close(ops.stability_cotangent(eps, log_std.detach()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_std(device, dtype):
    """1/σ overflows to infinity and underflows to zero where exp does."""
    log_std = torch.tensor([[-1000.0, -80.0, 0.0, 80.0, 100.0, 1000.0]], dtype=dtype, device=device)
    result = ops.stability_cotangent(torch.ones_like(log_std), log_std)[:, :6]
    torch.testing.assert_close(result, (-log_std).exp(), rtol=1e-6, atol=1e-44)


EPS, LOG_STD = torch.zeros(4, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((EPS.half(), LOG_STD), TypeError, "eps must be float32, float64 or bfloat16, got torch.float16"),
        ((EPS, LOG_STD.double()), TypeError, "log_std must have dtype torch.float32"),
        ((EPS[0], LOG_STD), ValueError, r"eps must have two dimensions .*, got shape \[3\]"),
        ((EPS, LOG_STD[:, :1]), ValueError, r"log_std must have shape \[rows, 3\] beside eps, got \[2, 1\]"),
        ((EPS[:3], LOG_STD), ValueError, "eps's 3 rows must be a multiple of log_std's rows, got 2"),
        ((EPS, LOG_STD[:0]), ValueError, "eps's 4 rows must be a multiple of log_std's rows, got 0"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        ops.stability_cotangent(*args)
