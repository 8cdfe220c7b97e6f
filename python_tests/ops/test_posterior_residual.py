import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels import ops


def oracle(eps, log_std, z, coefficients, decoder_vjp, prior_score):
    samples = eps.shape[0] // log_std.shape[0] if log_std.shape[0] else 1
    if prior_score is not None:
        score = prior_score
    elif coefficients is None:
        score = -z
    else:
        score = sum(k * coefficients[:, k - 1] * z ** (k - 1) for k in range(1, coefficients.shape[1] + 1))
    residual = -eps / log_std.exp().repeat(samples, 1) - score - decoder_vjp
    return residual.square().sum(1) / 2


@pytest.fixture
def arguments(random_tensor):
    def make(rows, samples, columns, prior, dtype=torch.float64, device="cpu", layout="contiguous"):
        def data():
            return random_tensor((samples * rows, columns), dtype, device, layout)

        log_std = random_tensor((rows, columns), dtype, device, layout) * 0.5
        coefficients = score = None
        if prior == "score":
            score = data()
        elif prior != "normal":
            coefficients = random_tensor((columns, prior), dtype, device) * 0.3
        return [data(), log_std, data(), coefficients, data(), score]

    return make


@given(
    rows=st.sampled_from([0, 1, 2, 5, 63]),
    samples=st.sampled_from([1, 3]),
    columns=st.sampled_from([0, 1, 8, 31, 300]),
    prior=st.sampled_from(["normal", "score", 1, 2, 3, 4, 5, 9]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    layout=st.sampled_from(["contiguous", "strided", "transposed"]),
)
def test_value_and_gradients(device, arguments, check_against, rows, samples, columns, prior, dtype, layout):
    args = arguments(rows, samples, columns, prior, dtype, device, layout)
    check_against(ops.posterior_residual, oracle, args)


@pytest.mark.parametrize("prior", ["normal", "score", 5])
@pytest.mark.parametrize("position", range(6))
def test_one_gradient(device, arguments, check_against, prior, position):
    args = arguments(4, 2, 9, prior, device=device)
    if args[position] is not None and not (prior == "score" and position == 2):
        check_against(ops.posterior_residual, oracle, args, [position])


def test_given_score_takes_the_place_of_z(device, arguments):
    args = arguments(4, 1, 9, "score", device=device)
    args[2].requires_grad_()
    args[4].requires_grad_()
    value = ops.posterior_residual(*args)
    grad_z, _ = torch.autograd.grad(value.sum(), [args[2], args[4]], allow_unused=True)
    assert grad_z is None
    assert torch.equal(value, ops.posterior_residual(args[0], args[1], 2 * args[2], None, args[4], args[5]))


def test_many_rows(device, arguments, check_against):
    """Rows enough for several chunks of the sums over rows."""
    check_against(ops.posterior_residual, oracle, arguments(1000, 2, 65, 5, torch.float32, device))


DATA, LOG_STD, COEFFICIENTS = torch.zeros(4, 3), torch.zeros(2, 3), torch.zeros(3, 5)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((DATA, LOG_STD, DATA, COEFFICIENTS, DATA, DATA), ValueError, "coefficients or prior_score .*, got both"),
        ((DATA, LOG_STD, DATA[:2], None, DATA), ValueError, r"z must have the shape of eps, \[4, 3\], got \[2, 3\]"),
        ((DATA, LOG_STD, DATA, None, DATA[:, :2]), ValueError, r"decoder_vjp must have the shape of eps"),
        ((DATA, LOG_STD, DATA, None, DATA, LOG_STD), ValueError, r"prior_score must have the shape of eps"),
        ((DATA, LOG_STD[:, :2], DATA, None, DATA), ValueError, r"log_std must have shape \[rows, 3\] beside eps"),
        (
            (DATA, LOG_STD, DATA, COEFFICIENTS[:2], DATA),
            ValueError,
            r"coefficients must have shape \[3, K\] with K >= 1, got \[2, 5\]",
        ),
        (
            (DATA, LOG_STD, DATA, COEFFICIENTS[:, :0], DATA),
            ValueError,
            r"coefficients must have shape \[3, K\] with K >= 1, got \[3, 0\]",
        ),
        ((DATA, LOG_STD, DATA.double(), None, DATA), TypeError, "z must have dtype torch.float32"),
        ((DATA, LOG_STD, DATA, COEFFICIENTS.double(), DATA), TypeError, "coefficients must have dtype"),
        ((DATA, LOG_STD, DATA, None, None), TypeError, "decoder_vjp must be a Tensor, got NoneType"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        ops.posterior_residual(*args)
