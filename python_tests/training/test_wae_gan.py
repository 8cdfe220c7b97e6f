import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fisherkernels.training import WAEGAN, DigitsDataModule, NonFiniteLossError, seeds


@pytest.fixture
def x():
    return torch.rand(6, 1, 8, 8)


def test_losses(x, run):
    model = run.model(WAEGAN, penalty_weight=3.0).eval()
    z = model.draw_noise(x, torch.Generator().manual_seed(1))
    code = model.encoder(x)
    probability = model.discriminator(code).sigmoid()
    output = model.loss(x, z)
    error = (x - model.decoder(code)).square().sum((1, 2, 3))
    torch.testing.assert_close(output.terms, {"reconstruction": error, "adversarial": -3 * probability.log()})
    torch.testing.assert_close(output.loss, (error - 3 * probability.log()).mean())
    against = model.discriminator_loss(x, z)
    expected = -model.discriminator(z).sigmoid().log() - (1 - probability).log()
    torch.testing.assert_close(against.terms["discriminator"], expected)
    gradient = torch.autograd.grad(against.loss, list(model.encoder.parameters()), allow_unused=True)
    assert all(part is None for part in gradient)


def test_training_updates_the_discriminator_and_then_the_auto_encoder(run, tmp_path):
    model, twin = (run.model(WAEGAN, discriminator_learning_rate=2e-3) for _ in range(2))
    trainer = run.fit(tmp_path, model=model, max_steps=3)
    assert trainer.global_step == 3
    data = DigitsDataModule(batch_size=256, seed=3)
    data.setup()
    nets = [*twin.encoder.parameters(), *twin.decoder.parameters()]
    optimizer = torch.optim.Adam(nets, lr=1e-3, betas=(0.5, 0.999))
    against = torch.optim.Adam(twin.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    twin.train()
    logged = []
    for step, (x, _) in zip(range(3), data.train_dataloader(), strict=False):
        key = (seeds.TRAIN, 3, step, step, 0)
        torch.manual_seed(seeds.fold_seed(*key, 1))
        z = torch.randn(len(x), 3, generator=seeds.generator(*key))
        against.zero_grad()
        fake = twin.discriminator(twin.encoder(x).detach())
        real = twin.discriminator(z)
        loss = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
        loss = loss + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        loss.backward()
        against.step()
        optimizer.zero_grad()
        code = twin.encoder(x)
        logits = twin.discriminator(code)
        adversarial = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        total = (x - twin.decoder(code)).square().sum((1, 2, 3)).mean() + 10 * adversarial
        total.backward()
        optimizer.step()
        logged.append((total.item(), loss.item()))
    for (name, got), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        if name != "encoder.1.bias":  # in front of BatchNorm: its gradient is rounding, and Adam makes steps of it
            torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")
    rows = [row for row in run.rows(tmp_path) if row["train/loss"]]
    got = [(float(row["train/loss"]), float(row["train/discriminator"])) for row in rows]
    for row, expected in zip(got, logged, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


def test_cut_and_resume_is_exact(run, tmp_path):
    run.fit(tmp_path / "whole", model=run.model(WAEGAN), max_steps=8)
    run.fit(tmp_path / "cut", model=run.model(WAEGAN), max_steps=3)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    run.fit(tmp_path / "cut", model=run.model(WAEGAN), max_steps=8, ckpt_path=last)
    run.assert_same(tmp_path / "cut", tmp_path / "whole")


def test_codes_and_predictions(x, run):
    model = run.model(WAEGAN).eval()
    assert model.posterior(x) is None
    noise = model.draw_noise(x, torch.Generator())
    assert torch.equal(model.sample_posterior(x, noise), model.encoder(x)[None])
    assert model.sample(4, torch.Generator().manual_seed(0)).shape == (4, 1, 8, 8)
    predicted = model.predict_step((x, torch.arange(6)), 0)
    assert torch.equal(predicted["mean"], model.encoder(x)) and predicted["reconstruction"].shape == x.shape
    nets = {"encoder": model.encoder, "decoder": model.decoder}
    assert WAEGAN(**nets, **model.hparams).discriminator.layers[0].out_features == 256


@pytest.mark.parametrize(("net", "term"), [("discriminator", "discriminator"), ("decoder", "reconstruction")])
def test_nan_stops_the_run_with_step_and_term(net, term, run, tmp_path):
    class Break(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if pl_module.global_step == 6:
                with torch.no_grad():
                    next(getattr(pl_module, net).parameters()).fill_(math.nan)

    with pytest.raises(NonFiniteLossError, match=f"training step 6, epoch 1, batch 1: .*'{term}' is NaN for 256 of"):
        run.fit(tmp_path, [Break()], model=run.model(WAEGAN))


def test_bad_arguments_are_named(x, run):
    with pytest.raises(ValueError, match="penalty_weight: expected a finite number >= 0, received -1.0"):
        run.model(WAEGAN, penalty_weight=-1.0)
    with pytest.raises(ValueError, match="discriminator_learning_rate: expected a finite number > 0, received 0.0"):
        run.model(WAEGAN, discriminator_learning_rate=0.0)
    model = WAEGAN(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), nn.Linear(3, 64), 3)
    with pytest.raises(ValueError, match=r"the code alone, \[6, 3\], received \[6, 6\].*mean_only=True"):
        model.loss(x, torch.zeros(6, 3))
