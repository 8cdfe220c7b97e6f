import math

import pytest
import torch

from fisherkernels.report import verdict

VAE_ERRORS = torch.tensor([[0.10, 0.12], [0.11, 0.13], [0.10, 0.14]])


def shifted(shift):
    return VAE_ERRORS + torch.tensor(shift)[:, None]


def test_t_interval_by_hand():
    # mean 2, standard deviation 1, n = 3: half width 4.302653 / sqrt(3).
    low, high = verdict.t_interval(torch.tensor([1.0, 2.0, 3.0]))
    half_width = 4.302652729911275 / math.sqrt(3)
    assert (low, high) == pytest.approx((2 - half_width, 2 + half_width))


def test_one_difference_has_no_interval():
    assert verdict.t_interval(torch.tensor([0.3])) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="differences"):
        verdict.t_interval(torch.tensor([]))


@pytest.mark.parametrize(
    ("shift", "outcome", "words"),
    [
        ([-0.050, -0.051, -0.049], "win", "the Fisher AE beat the VAE."),
        ([0.050, 0.051, 0.049], "loss", "the Fisher AE did not beat the VAE"),
        ([0.05, -0.06, 0.01], "no clear difference", "no clear difference between"),
        ([0.0, 0.0, 0.0], "no clear difference", "no clear difference between"),
    ],
)
def test_headline_follows_the_numbers(shift, outcome, words):
    comparison = verdict.compare(shifted(shift), VAE_ERRORS)
    assert comparison.outcome == outcome
    assert words in verdict.headline(comparison)


def test_more_is_better_where_said():
    better = verdict.compare(shifted([0.050, 0.051, 0.049]), VAE_ERRORS, lower_is_better=False)
    worse = verdict.compare(shifted([-0.050, -0.051, -0.049]), VAE_ERRORS, lower_is_better=False)
    assert (better.outcome, worse.outcome) == ("win", "loss")


def test_numbers_state_values_difference_and_interval():
    comparison = verdict.Comparison(0.04, 0.05, -0.0123, -0.0077, 5, "training runs")
    sentence = verdict.numbers(comparison, "MSE per pixel")
    assert sentence == (
        "MSE per pixel: 0.0400 for the Fisher AE, 0.0500 for the VAE "
        "(20.0% lower; difference −0.0100, 95% interval −0.0123 to −0.0077 over 5 training runs)."
    )


def test_numbers_without_an_interval():
    comparison = verdict.compare(torch.tensor([[0.5]]), torch.tensor([[0.4]]), lower_is_better=False)
    assert comparison.outcome == "no clear difference"
    assert "25.0% higher; difference +0.1000, no interval from 1 training run" in verdict.numbers(comparison, "NMI")


def test_the_interval_is_over_runs_from_three_runs_on_and_over_images_below():
    runs = verdict.compare(shifted([-0.050, -0.051, -0.049]), VAE_ERRORS)
    assert (runs.count, runs.unit) == (3, "training runs")
    images = verdict.compare(VAE_ERRORS[:2] - 0.01, VAE_ERRORS[:2])
    assert (images.count, images.unit) == (2, "test images")


def test_levels_lists_each_side():
    def at(low, high):
        return verdict.Comparison((low + high) / 2, 0.0, low, high, 3, "training runs")

    text = verdict.levels({0.1: at(0.1, 0.2), 0.2: at(-0.1, 0.1), 0.3: at(-0.3, -0.2), 0.5: at(-0.3, -0.1)})
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    assert text == (
        "Level by level, the Fisher AE was better at σ² = 0.3, 0.5; the VAE was better at σ² = 0.1; "
        "neither was at σ² = 0.2."
    )


def test_small_numbers_keep_a_digit():
    assert [verdict.signed(v) for v in (-0.01, 0.0, -3e-6)] == ["−0.0100", "+0.0000", "−3e−06"]


def test_tables_must_pair():
    with pytest.raises(ValueError, match=r"vae: .*\(3, 2\), got \(2, 2\)"):
        verdict.compare(VAE_ERRORS, VAE_ERRORS[:2])
