import torch

from fisherkernels.priors import PolynomialExponentialFamily, StandardNormal
from fisherkernels.report.sampling import is_improper, prior_samples


class Model:
    """Decodes a code to itself."""

    def __init__(self, prior):
        self.prior = prior

    def decode(self, z):
        return z

    def sample(self, n, generator=None):
        return self.prior.sample(n, generator=generator)


def test_an_improper_prior_stays_where_the_codes_are():
    prior = PolynomialExponentialFamily(2, 5)
    with torch.no_grad():
        prior.raw_coefficients[:, 4] = torch.tensor([1e-3, -1e-3])  # grows without end, on one side each
        prior.raw_coefficients[:, 3] = -5e-3
    codes = torch.tensor([[-3.0, -2.0], [1.0, 4.0], [0.0, 0.0]])
    draws = prior_samples(Model(prior), codes, 4000)
    assert is_improper(Model(prior)) and draws.shape == (4000, 2)
    assert (draws >= codes.amin(dim=0)).all() and (draws <= codes.amax(dim=0)).all()
    assert (draws.amin(dim=0) < -1.5).all() and draws[:, 1].max() > 2.5
    assert abs(torch.corrcoef(draws.T)[0, 1]) < 0.05


def test_a_proper_prior_is_sampled_as_it_is():
    for prior in (StandardNormal(3), PolynomialExponentialFamily(3, 4, "normalizable")):
        model = Model(prior)
        assert not is_improper(model)
        draws = prior_samples(model, torch.zeros(2, 3), 2000, seed=5)
        assert torch.equal(draws, model.sample(2000, generator=torch.Generator().manual_seed(5)))
        assert 0.8 < draws.std() < 1.2


def test_a_coordinate_without_range_gives_that_value():
    codes = torch.tensor([[0.5, -1.0], [0.5, 1.0]])
    draws = prior_samples(Model(PolynomialExponentialFamily(2, 5)), codes, 50)
    torch.testing.assert_close(draws[:, 0], torch.full((50,), 0.5), atol=1e-5, rtol=0)
