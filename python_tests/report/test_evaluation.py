import pytest
import torch

from fisherkernels.report.evaluation import Contender, evaluate, one_of_each_class


def test_shapes_and_comparisons(small_evaluation, stand_in):
    *_, e = small_evaluation([stand_in(0.5), stand_in(0.6)], [stand_in(1.0), stand_in(1.0)])
    assert e.fisher_ae.errors["mse"].shape == (2, 3, 2, 24)
    assert e.fisher_ae.nmi.shape == (2, 3, 1)
    assert e.clean["mse"].vae == 0.0
    assert e.clean["mse"].fisher_ae == pytest.approx(e.fisher_ae.errors["mse"][:, 0].mean().item())
    assert e.under_noise["mse"].vae == pytest.approx(e.vae.errors["mse"][:, 1:].mean().item())
    assert e.per_level["bce"][0.4].vae == pytest.approx(e.vae.errors["bce"][:, 2].mean().item())
    assert set(e.vae.maps) == {0.0, 0.1}


def test_shrinking_wins_under_noise_and_loses_without(small_evaluation, stand_in):
    """x -> (x + 1/2)/2 halves the noise: it must win there, and lose where the identity is exact."""
    *_, e = small_evaluation([stand_in(0.5, 0.25)], [stand_in()])
    assert e.under_noise["mse"].outcome == "win"
    assert e.clean["mse"].outcome == "loss"


def test_the_mean_image_is_the_baseline(small_evaluation, stand_in, images):
    *_, e = small_evaluation([stand_in()], [stand_in()])
    assert e.mean_image_error["mse"] == pytest.approx(images.var(dim=0, correction=0).mean().item())
    assert e.under_noise["mse"].outcome == "no clear difference"


def test_unpaired_runs_are_refused(stand_in, images, labels):
    with pytest.raises(ValueError, match=r"vae: expected as many models as fisher_ae.*\(2\), got 1"):
        evaluate(Contender("Fisher AE", [stand_in()] * 2), Contender("VAE", [stand_in()]), images, labels, images)


def test_noise_levels_are_checked(stand_in, images, labels):
    contenders = Contender("Fisher AE", [stand_in()]), Contender("VAE", [stand_in()])
    with pytest.raises(ValueError, match="variances: expected 0 and"):
        evaluate(*contenders, images, labels, images, variances=(0.1, 0.2))


def test_examples_show_every_class():
    labels = torch.tensor([2, 2, 0, 1, 0, 2])
    assert one_of_each_class(labels, 5).tolist() == [2, 3, 0, 4, 1]
