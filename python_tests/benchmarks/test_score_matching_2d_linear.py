import pytest
import torch

import fisherkernels as fk
from benchmarks.score_matching_2d.linear import Gaussian, factor, slopes
from benchmarks.score_matching_2d.methods import METHODS

DATA = Gaussian((9.0, 4.0), noise=0.25, dims=6)
SAMPLES = {"elbo": (1, 2), "m1": (1, 2), "m2": (1, 2, 5), "m3": (1, 2, 5), "m2_unbiased": (2,), "m3_unbiased": (2,)}
pytestmark = pytest.mark.filterwarnings("ignore:score_matching_loss")


@pytest.mark.parametrize("name", SAMPLES)
def test_every_objective_is_at_rest_where_its_factor_says_and_not_elsewhere(name):
    method = METHODS[name]
    for num_samples in SAMPLES[name]:
        c = factor(method, num_samples)
        assert 1 <= c <= 2
        mean, error = slopes(method, num_samples, DATA, c, 20_000)
        assert (mean.abs() < 4 * error).all()
        for other in (c - 0.15, c + 0.15):
            mean, error = slopes(method, num_samples, DATA, other, 20_000)
            assert mean[-1].abs() > 6 * error[-1]


def test_there_is_no_rest_where_the_variance_of_the_code_counts_for_more_than_the_data_have():
    squares, gamma = DATA.rest(2)
    assert gamma == pytest.approx(0.5) and squares.tolist() == pytest.approx([4.0, 1.5])
    with pytest.raises(ValueError, match="c: expected less than 3.0, received 3"):
        DATA.rest(3)


@pytest.mark.parametrize("objective", ["m1", "m2", "m3"])
def test_no_objective_penalises_the_size_of_the_reconstruction(objective):
    """Proposition 4.1 of the paper has 2 E||f(z)||^2 in M2; its own eq. 20 gives 2 tr Cov f(z), as here."""
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(3, 4).double(), torch.nn.Linear(2, 3).double()
    x, noise = torch.randn(6, 3).double(), torch.randn(5, 6, 2).double()
    options = {"objective": objective, "variance": 0.5, "num_samples": 5, "noise": noise}
    loss = fk.score_matching_loss(encoder, decoder, x, **options).loss
    with torch.no_grad():
        decoder.bias += 100
        encoder.bias -= encoder.weight.sum(1) * 100
    assert fk.score_matching_loss(encoder, decoder, x + 100, **options).loss.item() == pytest.approx(loss.item())
