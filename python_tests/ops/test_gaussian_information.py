import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops, reference

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
LAYOUTS = st.sampled_from(["contiguous", "strided", "transposed"])


@given(
    rows=st.sampled_from([0, 1, 2, 5, 63]),
    columns=st.sampled_from([1, 7, 64, 300, 1000]),
    dtype=DTYPES,
    layouts=st.tuples(LAYOUTS, LAYOUTS),
)
def test_values_and_gradients(device, random_tensor, check_against, rows, columns, dtype, layouts):
    mean, log_std = (random_tensor((rows, columns), dtype, device, layout) for layout in layouts)
    check_against(ops.gaussian_information, reference.gaussian_information, [mean, log_std])


@pytest.mark.parametrize("columns", [16, 21])
def test_bfloat16_gradients_are_rounded_to_nearest(device, columns):
    """The mean's gradient is one product: ties go to even, overflow to infinity, and NaN stays NaN."""
    mean = torch.linspace(-4, 4, 32 * columns, device=device).view(32, columns).bfloat16()
    mean[3, 1], mean[4, 0], mean[5, columns - 1] = torch.nan, 3e38, -torch.inf
    mean.requires_grad_()
    weight = 1.0 + torch.arange(32, device=device) / 64
    (grad,) = torch.autograd.grad(ops.gaussian_information(mean, torch.zeros_like(mean))[0], mean, weight)
    expected = (weight[:, None] * mean.detach().float()).bfloat16()
    torch.testing.assert_close(grad, expected, rtol=0, atol=0, equal_nan=True)


def test_long_rows(device, random_tensor, check_against):
    """Rows for which a whole block of threads adds up."""
    args = [random_tensor((3, 5001), torch.float32, device) for _ in range(2)]
    check_against(ops.gaussian_information, reference.gaussian_information, args)


@pytest.mark.parametrize("differentiable", [[0], [1]])
def test_some_gradients(device, random_tensor, check_against, differentiable):
    args = [random_tensor((5, 9), device=device), random_tensor((5, 9), device=device)]
    check_against(ops.gaussian_information, reference.gaussian_information, args, differentiable)


@pytest.mark.parametrize("output", [0, 1, 2])
def test_gradient_of_one_output(device, random_tensor, check_against, output):
    args = [random_tensor((5, 9), device=device), random_tensor((5, 9), device=device)]
    ours, theirs = ops.gaussian_information, reference.gaussian_information
    check_against(lambda *a: ours(*a)[output], lambda *a: theirs(*a)[output], args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_divergences_keep_their_digits(device, random_tensor, dtype):
    """A posterior next to the prior: σ² - 1 - 2 log σ cancels to the square of log σ."""
    mean, log_std = torch.zeros(4, 7, dtype=dtype, device=device), 1e-3 * random_tensor((4, 7), dtype, device)
    log_std.requires_grad_()
    kl = ops.gaussian_information(mean, log_std)[0]
    (grad,) = torch.autograd.grad(kl.sum(), log_std)
    s = log_std.detach().double()
    expected = (s**2 + 2 * s**3 / 3 + s**4 / 3 + 2 * s**5 / 15).sum(1)
    # expm1 of the twin is rounded before 2 log σ is taken off it
    torch.testing.assert_close(kl.double(), expected, rtol=2e-4 if dtype is torch.float32 else 1e-10, atol=0)
    torch.testing.assert_close(grad.double(), torch.expm1(2 * s), rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_std(device, dtype):
    """σ² and 1/σ² overflow to infinity and underflow to zero, in divergence and trace alike."""
    values = [-1000.0, -370.0, -52.0, -44.0, -40.0, 0.0, 40.0, 44.0, 52.0, 370.0, 1000.0]
    log_std = torch.tensor(values, dtype=dtype, device=device)[:, None]
    kl, trace, power = ops.gaussian_information(torch.zeros_like(log_std), log_std)
    doubled = 2 * log_std[:, 0]
    smallest = torch.finfo(dtype).tiny  # below it a result may be zero
    torch.testing.assert_close(kl, (doubled.exp() - 1 - doubled) / 2, rtol=1e-6, atol=smallest)
    torch.testing.assert_close(trace, (-doubled).exp(), rtol=1e-6, atol=smallest)
    torch.testing.assert_close(power, doubled.exp(), rtol=1e-6, atol=smallest)


def test_what_is_not_asked_for_may_overflow(device):
    """The divergence's gradient is finite where 1/σ² is not."""
    mean, log_std = torch.ones(2, 3, device=device), torch.full((2, 3), -60.0, device=device)
    log_std.requires_grad_()
    kl, trace, _ = ops.gaussian_information(mean, log_std)
    assert trace.isinf().all()
    for outputs, weights in (((kl,), (torch.ones_like(kl),)), ((kl, trace), (torch.ones_like(kl), 0 * kl.detach()))):
        (grad,) = torch.autograd.grad(outputs, log_std, weights, retain_graph=True)
        torch.testing.assert_close(grad, torch.full_like(grad, -1.0))


@pytest.mark.parametrize("rows, columns", [(37, 64), (37, 61), (20, 3), (33000, 64)])
def test_overflow_stays_in_its_row(device, random_tensor, rows, columns):
    """The rows around it are computed in the same block; the largest gradients are written past the caches."""
    log_std = 0.5 * random_tensor((rows, columns), torch.float32, device)
    log_std[7, 1], log_std[12, columns - 1], log_std[rows - 1, 2] = 60.0, -60.0, torch.nan
    args = [random_tensor((rows, columns), torch.float32, device), log_std]
    weights = [torch.rand(rows, device=device) for _ in range(3)]
    results = []
    for function, dtype in ((ops.gaussian_information, torch.float32), (reference.gaussian_information, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in args]
        outputs = function(*leaves)
        results.append((*outputs, *torch.autograd.grad(outputs, leaves, [w.to(dtype) for w in weights])))
    assert results[0][0][7].isposinf() and results[0][1][12].isposinf()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs.to(torch.float32), rtol=1e-4, atol=1e-4, equal_nan=True)


@given(columns=st.sampled_from([1, 2, 40]), spread=st.sampled_from([0.0, 1.0]))
def test_the_plane_has_a_border(device, random_tensor, columns, spread):
    """N tr J >= d, with equality where all standard deviations are equal."""
    log_std = random_tensor((6, 1), device=device) + spread * random_tensor((6, columns), device=device)
    _, trace, power = ops.gaussian_information(torch.zeros_like(log_std), log_std)
    if columns == 1 or spread == 0:
        torch.testing.assert_close(power * trace, torch.full_like(trace, columns))
    else:
        assert (power * trace > columns).all()


MEAN, LOG_STD = torch.zeros(2, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((MEAN.half(), LOG_STD), TypeError, "mean must be float32, float64 or bfloat16, got torch.float16"),
        ((MEAN, LOG_STD.double()), TypeError, "log_std must have dtype torch.float32"),
        ((MEAN, [0.0]), TypeError, "log_std must be a Tensor, got list"),
        ((MEAN[0], LOG_STD), ValueError, r"mean must have two dimensions .*, got shape \[3\]"),
        ((MEAN, LOG_STD[:1]), ValueError, r"log_std must have the shape of mean, \[2, 3\], got \[1, 3\]"),
        ((MEAN[:, :0], LOG_STD[:, :0]), ValueError, r"mean must have at least one column, got shape \[2, 0\]"),
        ((MEAN, LOG_STD.to("meta")), ValueError, "log_std must be on cpu like the other arguments, got meta"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        ops.gaussian_information(*args)
