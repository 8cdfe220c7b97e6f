import math

import pytest
import torch

from fisherkernels.report import robustness


class Identity:
    def reconstruct(self, x):
        return x


def test_mean_squared_error_by_hand():
    target = torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]])
    prediction = torch.tensor([[[0.5, 0.0]], [[0.5, 0.3]]])
    torch.testing.assert_close(robustness.mean_squared_error(prediction, target), torch.tensor([0.625, 0.02]))


def test_binary_cross_entropy_by_hand():
    target = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    prediction = torch.tensor([[0.25, 0.5], [0.5, 0.9]])
    first = -(math.log(0.25) + math.log(0.5)) / 2
    second = -(math.log(0.5) + 0.5 * math.log(0.9) + 0.5 * math.log(0.1)) / 2
    torch.testing.assert_close(robustness.binary_cross_entropy(prediction, target), torch.tensor([first, second]))


def test_binary_cross_entropy_is_finite_for_a_sure_and_wrong_answer():
    value = robustness.binary_cross_entropy(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
    torch.testing.assert_close(value, torch.tensor([-math.log(robustness.PROBABILITY_FLOOR)]))


def test_the_error_of_the_identity_is_the_noise_variance():
    images = torch.rand(50, 1, 8, 8)
    curve = robustness.robustness_curve(Identity(), images, (0.0, 0.1, 0.5), num_draws=20)
    assert curve.errors["mse"].shape == (3, 20, 50)
    expected = torch.tensor([0.0, 0.1, 0.5])
    torch.testing.assert_close(curve.errors["mse"].mean(dim=(1, 2)), expected, rtol=0.02, atol=0)


def test_every_model_meets_the_same_noise_whatever_the_batch_size():
    images = torch.rand(10, 1, 3, 3)
    first = robustness.robustness_curve(Identity(), images, (0.2,), num_draws=2, batch_size=3)
    torch.rand(7)  # the global stream plays no part
    second = robustness.robustness_curve(Identity(), images, (0.2,), num_draws=2, batch_size=10)
    assert torch.equal(first.errors["mse"], second.errors["mse"])
    assert not torch.equal(first.errors["mse"][0, 0], first.errors["mse"][0, 1])


def test_bad_input_is_named():
    images = torch.rand(2, 1, 3, 3)
    with pytest.raises(ValueError, match=r"variances: .* got \(-0.1,\)"):
        robustness.robustness_curve(Identity(), images, (-0.1,))
    with pytest.raises(ValueError, match="num_draws: .* got 0"):
        robustness.robustness_curve(Identity(), images, (0.1,), num_draws=0)
    with pytest.raises(ValueError, match=r"prediction: .*\(2, 1, 3, 3\), got \(1, 1, 3, 3\)"):
        robustness.mean_squared_error(images[:1], images)
    with pytest.raises(ValueError, match=r"target: expected values in \[0, 1\]"):
        robustness.binary_cross_entropy(images, 2 * images + 1)
