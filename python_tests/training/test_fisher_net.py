import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from fisherkernels import FisherMetric
from fisherkernels.losses.fisher_net import fisher_net_loss
from fisherkernels.training import DigitsDataModule, FisherNet, NonFiniteLossError, seeds


@pytest.fixture
def x():
    return torch.rand(6, 1, 8, 8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logdet": True, "num_samples": 2},
        {"num_samples": 4, "mirrored": True, "variance": 0.3},
        {"method": "cg", "tol": 1e-6, "max_iter": 9},
        {"gradient": "mean"},
    ],
)
def test_options_reach_the_loss(options, x, run):
    model = run.model(FisherNet, dataset_size=50, **options).eval()
    noise = model.draw_noise(x, torch.Generator().manual_seed(1))
    given = {"method": "cholesky", **options}
    log_variance = torch.tensor(math.log(given.pop("variance", 1.0)), requires_grad=True)
    expected = fisher_net_loss(
        model.encoder, model.decoder, x, log_noise_variance=log_variance, dataset_size=50, noise=noise, **given
    )
    got = model.loss(x, noise)
    torch.testing.assert_close(got.terms, expected.terms)
    nets = [*model.encoder.parameters(), *model.decoder.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, [*nets, model.log_variance]),
        torch.autograd.grad(expected.loss, [*nets, log_variance]),
    )
    prior = 0.5 * model.sample_posterior(x, noise).square().sum(-1).mean(0)
    torch.testing.assert_close(prior, got.terms["prior"])


def test_noise_follows_the_stream_on_both_sides(x, run):
    model = run.model(FisherNet, num_samples=4, mirrored=True)
    first, again, other = (model._noise(x, seeds.TRAIN, batch) for batch in (0, 0, 1))
    assert [side.shape for side in first] == [(2, 6, 64), (2, 6, 3)]
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.fixture
def trainer():
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def test_the_data_module_tells_the_dataset_size(run, tmp_path, trainer, x):
    model = run.model(FisherNet)
    run.fit(tmp_path, model=model, max_steps=3)
    assert model.dataset_size == 1297
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    nets = {"encoder": model.encoder, "decoder": model.decoder}
    loaded = FisherNet.load_from_checkpoint(checkpoint, weights_only=True, **nets)
    assert loaded.dataset_size == 1297 and torch.isfinite(loaded.loss(x, loaded._noise(x, seeds.TEST, 0)).loss)
    assert FisherNet.load_from_checkpoint(checkpoint, dataset_size=7, weights_only=True, **nets).dataset_size == 7

    without = run.model(FisherNet)
    data = DigitsDataModule(batch_size=256)
    data.setup()
    with pytest.raises(ValueError, match="dataset_size: expected the number of training images"):
        trainer.validate(without, data.val_dataloader(), verbose=False)
    trainer.validate(run.model(FisherNet, dataset_size=7), data.val_dataloader(), verbose=False)


def test_principal_axes_and_predictions(run, trainer):
    model = run.model(FisherNet, num_axes=2, variance=0.01).eval()
    data = DigitsDataModule(batch_size=128)
    batches = trainer.predict(model, data)
    predicted = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    images, _ = data.test_set[:]
    with torch.no_grad():
        mean, std, axes = model.principal_axes(images)
        covariance = FisherMetric(model.decoder, model.encoder(images), 0.01).dense().inverse()
    rebuilt = axes.mT @ torch.diag_embed(std.square()) @ axes
    torch.testing.assert_close(rebuilt, covariance, rtol=1e-3, atol=1e-6)
    assert (std.diff(dim=1) <= 0).all()
    torch.testing.assert_close(predicted["mean"], mean)
    assert predicted["principal_axes"].shape == (300, 2, 3)
    torch.testing.assert_close(predicted["principal_axes"], axes[:, :2])
    torch.testing.assert_close(predicted["principal_std"], std)
    torch.testing.assert_close(predicted["std"], covariance.diagonal(dim1=1, dim2=2).sqrt(), rtol=1e-3, atol=1e-5)


def test_cut_and_resume_is_exact(run, tmp_path):
    run.fit(tmp_path / "whole", model=run.model(FisherNet), max_steps=8)
    run.fit(tmp_path / "cut", model=run.model(FisherNet), max_steps=3)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    run.fit(tmp_path / "cut", model=run.model(FisherNet), max_steps=8, ckpt_path=last)
    run.assert_same(tmp_path / "cut", tmp_path / "whole")


def test_a_broken_decoder_stops_the_run_with_step_and_sample(run, x):
    model = run.model(FisherNet, dataset_size=50).eval()
    with torch.no_grad():
        model.decoder[0].bias.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match="training step 0, epoch 0, batch 2: .*sample"):
        model._step(x, seeds.TRAIN, 2)


def test_bad_arguments_are_named(run, x):
    for name in ("dataset_size", "max_iter", "num_axes"):
        with pytest.raises(ValueError, match=f"{name}: expected an int >= 1, received 0"):
            run.model(FisherNet, **{name: 0})
    with pytest.raises(ValueError, match="num_samples: expected an even number with mirrored=True, received 3"):
        run.model(FisherNet, num_samples=3, mirrored=True)
    model = FisherNet(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), nn.Linear(3, 64), 3, dataset_size=5)
    with pytest.raises(ValueError, match=r"the mean alone, \[6, 3\], received \[6, 6\].*mean_only=True"):
        model.loss(x, model._noise(x, seeds.TRAIN, 0))
