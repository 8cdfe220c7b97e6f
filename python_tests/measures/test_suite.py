"""The measures of every model over a test set, in Lightning and without."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fisherkernels import measures, nets, training
from fisherkernels.measures.callback import TestMeasures

DENSITIES = {"negative_elbo", "nll", "posterior_fisher_divergence", "posterior_std"}
KINDS = ("VAE", "FisherAE", "FisherNet", "ScoreMatching", "FisherShannon", "MutualAE", "WAEGAN")


def build(name):
    torch.manual_seed(0)
    kind = getattr(training, name)
    mean_only = name in ("FisherNet", "WAEGAN")
    encoder = nets.MLPEncoder(64, [16], 3, mean_only=mean_only)
    decoder = nets.MLPDecoder(3, [16], (1, 8, 8))
    return kind(encoder, decoder, 3, **({"dataset_size": 9} if name == "FisherNet" else {}))


@pytest.mark.parametrize("name", KINDS)
def test_every_model_is_measured(name, trainer):
    model, data = build(name), training.DigitsDataModule(batch_size=128)
    nll_samples = 0 if name == "WAEGAN" else 4
    trainer.callbacks.append(TestMeasures(nll_samples=nll_samples))
    (results,) = trainer.test(model, data, verbose=False)
    expected = {"mse", "bce", "loss", "mmd"} | (set() if name == "WAEGAN" else DENSITIES)
    assert {f"test/{measure}" for measure in expected} <= results.keys()
    assert all(torch.isfinite(torch.tensor(value)) for value in results.values())
    folder = Path(trainer.default_root_dir)
    assert all((folder / f"posterior_std.{end}").exists() is (name != "WAEGAN") for end in ("csv", "png"))
    if name == "WAEGAN":
        assert not DENSITIES & {key.removeprefix("test/") for key in results}
        return
    again = measures.evaluate(model, data.test_dataloader(), nll_samples=4)
    assert again.keys() == DENSITIES | {"mse", "mmd"}
    for measure, value in again.items():
        assert results[f"test/{measure}"] == pytest.approx(value, rel=1e-4, abs=1e-6)
    if name not in ("FisherAE", "FisherNet"):
        assert results["test/nll"] < results["test/negative_elbo"]


def test_measures_are_means_over_the_images():
    model, data = build("VAE"), training.DigitsDataModule(batch_size=128)
    data.setup()
    x = data.test_set[:][0]
    got = measures.evaluate(model, data.test_dataloader(), elbo_samples=200, mmd=False)
    model.eval()
    bound = measures.negative_elbo(model, x, num_samples=200).mean()
    assert got["negative_elbo"] == pytest.approx(bound.item(), rel=1e-3)
    assert got["posterior_std"] == pytest.approx(model.posterior(x).stddev.mean().item(), rel=1e-5)
    assert got["mse"] == pytest.approx((model.reconstruct(x) - x).square().mean().item(), rel=1e-5)


def test_the_mode_of_the_model_is_kept(linear):
    model = linear.vae().train()
    batches = [(linear.data(4), torch.zeros(4))]
    options = {"elbo_samples": 0, "fisher_divergence_samples": 0, "deviations": False}
    assert measures.evaluate(model, batches, **options).keys() == {"mse", "mmd"} and model.training
    assert not measures.evaluate(model.eval(), batches, mmd=False).keys() & {"mmd"} and not model.training


def test_a_nan_is_not_averaged_away(linear):
    x = linear.data(4)
    x[1] = torch.nan
    values = measures.evaluate(linear.vae(), [(x, torch.zeros(4))])
    assert all(torch.isnan(torch.tensor(values[name])) for name in ("mse", "negative_elbo", "mmd"))


def test_bad_options_are_named(linear):
    for name in ("elbo_samples", "nll_samples", "fisher_divergence_samples"):
        with pytest.raises(ValueError, match=f"{name}: expected an int >= 0, received -1"):
            measures.MeasureSuite(linear.vae(), **{name: -1})
    with pytest.raises(ValueError, match="rows: expected an int >= 1, received 0"):
        measures.MeasureSuite(linear.vae(), rows=0)
    points = training.WAEGAN(nn.Linear(5, 2), nn.Linear(2, 5), 2)
    with pytest.raises(ValueError, match="nll_samples: expected 0 for a WAEGAN, which has no posterior density, rec"):
        measures.evaluate(points, [(linear.data(4).float(), torch.zeros(4))], nll_samples=5)
