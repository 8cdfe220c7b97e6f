"""PolynomialExponentialFamily and StandardNormal: densities, scores, parametrisation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherkernels.priors import PolynomialExponentialFamily, StandardNormal


@given(
    d=st.integers(1, 5),
    order=st.integers(1, 7),
    constraint=st.sampled_from(["none", "normalizable"]),
    lead=st.sampled_from([(), (0,), (3,), (2, 3)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_score_is_the_gradient_of_the_log_density(d, order, constraint, lead, dtype, seed):
    torch.manual_seed(seed)
    order += order % 2 if constraint == "normalizable" else 0
    prior = PolynomialExponentialFamily(d, order, constraint).to(dtype)
    with torch.no_grad():
        prior.raw_coefficients.normal_()
    z = torch.randn(*lead, d, dtype=dtype, requires_grad=True)
    density = sum(prior.coefficients[:, k - 1] * z**k for k in range(1, order + 1)).sum(-1)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(prior.log_density(z), density, **tolerance)
    (score,) = torch.autograd.grad(density.sum(), z)
    assert prior.score(z).shape == z.shape
    torch.testing.assert_close(prior.score(z), score, **tolerance)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_starts_at_the_standard_normal(order):
    prior = PolynomialExponentialFamily(3, order)
    z = torch.randn(5, 3)
    assert prior.coefficients.shape == (3, order)
    torch.testing.assert_close(prior.score(z), -z)
    assert list(dict(prior.named_parameters())) == ["raw_coefficients"]


def test_order_one_starts_flat():
    assert (PolynomialExponentialFamily(2, 1).coefficients == 0).all()


@pytest.mark.parametrize("order", [2, 4, 6, 8])
def test_normalizable_starts_beside_the_standard_normal(order):
    prior = PolynomialExponentialFamily(1, order, "normalizable").double()
    z = torch.randn(100_000, 1).double()
    shift = prior.log_density(z) + 0.5 * z.square().sum(1)
    expected = 0.0 if order == 2 else -1e-3
    assert shift.mean().item() == pytest.approx(expected, abs=2e-4 if order > 2 else 1e-6)
    (slope,) = torch.autograd.grad(prior.coefficients[0, -1], prior.raw_coefficients)
    assert slope[0, -1].item() == pytest.approx(-1.0 if order == 2 else -0.5, rel=1e-4)


@given(raw=st.floats(-1e4, 1e4, width=32), order=st.sampled_from([2, 4, 6]))
def test_normalizable_leads_with_a_negative_coefficient(raw, order):
    prior = PolynomialExponentialFamily(1, order, "normalizable")
    with torch.no_grad():
        prior.raw_coefficients[0, -1] = raw
    leading = prior.coefficients[0, -1]
    (slope,) = torch.autograd.grad(leading, prior.raw_coefficients)
    assert leading < 0 and slope[0, -1] < 0
    assert torch.isfinite(slope).all()


def test_standard_normal():
    prior, z = StandardNormal(3), torch.randn(4, 3)
    torch.testing.assert_close(prior.score(z), -z)
    torch.testing.assert_close(prior.log_density(z), -0.5 * z.square().sum(1))
    same = PolynomialExponentialFamily(3, 2)
    torch.testing.assert_close(prior.coefficients, same.coefficients.detach())
    assert not list(prior.parameters()) and not prior.state_dict()
    assert prior.double().sample(2).dtype == torch.float64


def test_state_dict_round_trip():
    prior = PolynomialExponentialFamily(2, 4, "normalizable")
    with torch.no_grad():
        prior.raw_coefficients.normal_()
    other = PolynomialExponentialFamily(2, 4, "normalizable")
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.coefficients, prior.coefficients)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PolynomialExponentialFamily(2, 0), ValueError, "order: expected an int >= 1, received 0"),
        (
            lambda: PolynomialExponentialFamily(2, 2.0),
            TypeError,
            "order: expected an int >= 1, received float",
        ),
        (lambda: PolynomialExponentialFamily(0, 2), ValueError, "d: expected an int >= 1, received 0"),
        (lambda: StandardNormal(-1), ValueError, "d: expected an int >= 1, received -1"),
        (
            lambda: PolynomialExponentialFamily(2, 5, "normalizable"),
            ValueError,
            "order: expected an even order.*received 5",
        ),
        (
            lambda: PolynomialExponentialFamily(2, 2, "even"),
            ValueError,
            "constraint: expected 'none'.*'even'",
        ),
        (
            lambda: StandardNormal(2).score(torch.zeros(4, 3)),
            ValueError,
            r"z: expected shape \[..., 2\], received \[4, 3\]",
        ),
        (
            lambda: PolynomialExponentialFamily(2, 2).log_density(torch.zeros(3)),
            ValueError,
            r"z: expected shape \[..., 2\], received \[3\]",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
