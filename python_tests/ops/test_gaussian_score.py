import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
LAYOUTS = st.sampled_from(["contiguous", "strided", "transposed"])


def oracle(x, mean, variance):
    samples = mean.shape[0] // x.shape[0] if x.shape[0] else 1
    residual = (x.repeat(samples, 1) - mean) / variance
    trace = (torch.ones(mean.shape[1], dtype=x.dtype, device=x.device) / variance).sum()
    return residual.square().sum(1) / 2 - trace, residual


@given(
    rows=st.sampled_from([0, 1, 2, 5, 63]),
    samples=st.sampled_from([1, 3]),
    columns=st.sampled_from([0, 1, 7, 64, 300, 1000]),
    dtype=DTYPES,
    layout=LAYOUTS,
    per_column=st.booleans(),
)
def test_value_and_gradients(device, random_tensor, check_against, rows, samples, columns, dtype, layout, per_column):
    x = random_tensor((rows, columns), dtype, device, layout)
    mean = random_tensor((samples * rows, columns), dtype, device, layout)
    variance = random_tensor((columns,) if per_column else (), dtype, device).abs() + 0.5
    check_against(ops.gaussian_score, oracle, [x, mean, variance])


@pytest.mark.parametrize("differentiable", [[0], [1], [2], [0, 2]])
def test_some_gradients(device, random_tensor, check_against, differentiable):
    args = [random_tensor((5, 9), device=device), random_tensor((10, 9), device=device)]
    args.append(random_tensor((9,), device=device).abs() + 0.5)
    check_against(ops.gaussian_score, oracle, args, differentiable)


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_output(device, random_tensor, check_against, output):
    args = [random_tensor((5, 9), device=device), random_tensor((5, 9), device=device)]
    args.append(random_tensor((9,), device=device).abs() + 0.5)
    check_against(lambda *a: ops.gaussian_score(*a)[output], lambda *a: oracle(*a)[output], args)


def test_float_variance_and_float32_variance_beside_bfloat16(device, random_tensor):
    x, mean = (random_tensor((4, 6), torch.bfloat16, device) for _ in range(2))
    expected = ops.gaussian_score(x, mean, torch.tensor(0.5, device=device))
    for value, other in zip(ops.gaussian_score(x, mean, 0.5), expected, strict=True):
        assert torch.equal(value, other)
    assert expected[0].dtype is torch.float32 and expected[1].dtype is torch.bfloat16


def test_large_outputs_are_reused_without_being_shared(device, random_tensor):
    """Outputs of megabytes come from a cache of buffers on the CPU: two live ones never overlap."""
    x = random_tensor((1024, 1024), torch.float32, device)
    first, second = ops.gaussian_score(x, -x, 1.0)[1], ops.gaussian_score(x, x, 1.0)[1]
    assert torch.equal(first, 2 * x) and not second.any()
    del first
    third = ops.gaussian_score(x, torch.zeros_like(x), 1.0)[1]
    assert torch.equal(third, x) and not second.any()


X, MEAN, VARIANCE = torch.zeros(2, 3), torch.zeros(4, 3), torch.ones(3)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((X.int(), MEAN, VARIANCE), TypeError, "x must be float32, float64 or bfloat16, got torch.int32"),
        ((X, MEAN.double(), VARIANCE), TypeError, "mean must have dtype torch.float32"),
        ((X, MEAN, VARIANCE.double()), TypeError, "variance must have dtype torch.float32"),
        (([0.0], MEAN, VARIANCE), TypeError, "x must be a Tensor, got list"),
        ((X, MEAN.flatten(), VARIANCE), ValueError, r"mean must have two dimensions .*, got shape \[12\]"),
        ((X[:, :2], MEAN, VARIANCE), ValueError, r"x must have shape \[rows, 3\] beside mean, got \[2, 2\]"),
        ((X, MEAN[:3], VARIANCE), ValueError, "mean's 3 rows must be a multiple of x's rows, got 2"),
        ((X, MEAN, VARIANCE[:2]), ValueError, r"variance must be 0-d or have shape \[3\], got \[2\]"),
        ((X, MEAN, -1.0), ValueError, "variance must be positive, got -1.0"),
        ((X, MEAN.to("meta"), VARIANCE), ValueError, "mean must be on cpu like the other arguments, got meta"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        ops.gaussian_score(*args)
