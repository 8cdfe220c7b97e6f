import math

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from fisherkernels import losses, nets
from fisherkernels.training import (
    VAE,
    CSVMetrics,
    DigitsDataModule,
    FisherAE,
    FisherNet,
    FisherShannon,
    ImageDataset,
    MutualAE,
    NonFiniteLossError,
    seeds,
)  # fmt: skip

TERMS = {
    FisherAE: ("posterior", "reconstruction", "stability"),
    FisherNet: ("prior", "reconstruction", "noise", "noise_prior"),
    VAE: ("reconstruction", "kl"),
    FisherShannon: ("reconstruction", "kl", "information_z", "information_x"),
    MutualAE: ("reconstruction", "kl", "information", "approximation"),
}


def batch(n=6):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 8, 8, generator=generator), torch.randn(1, n, 3, generator=generator)


class Poison(pl.Callback):
    """Makes one term of the loss bad for one sample, in the given step or in validation."""

    def __init__(self, term: str, step: int, value: float = math.nan, validating: bool = False):
        self.term, self.step, self.value, self.validating = term, step, value, validating

    def on_fit_start(self, trainer, pl_module):
        loss = pl_module.loss

        def poisoned(x, noise):
            _, terms = loss(x, noise)
            if pl_module.global_step == self.step and trainer.validating == self.validating:
                bad = torch.zeros(len(x))
                bad[1] = self.value
                terms = {**terms, self.term: terms[self.term] + bad}
            return losses.LossOutput(sum(terms.values()).mean(), terms)

        pl_module.loss = poisoned


@pytest.mark.parametrize(("kind", "term"), [(kind, term) for kind, terms in TERMS.items() for term in terms])
def test_nan_stops_the_run_with_step_and_term(kind, term, run, tmp_path):
    with pytest.raises(NonFiniteLossError) as error:
        run.fit(tmp_path, [Poison(term, 7)], model=run.model(kind))
    assert str(error.value) == f"training step 7, epoch 1, batch 2: the term '{term}' is NaN for 1 of 256 samples"
    assert [int(row["step"]) for row in run.rows(tmp_path) if row["train/loss"]] == list(range(7))
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_infinite_terms_and_validation_stop_too(run, tmp_path):
    with pytest.raises(NonFiniteLossError, match="training step 0, .* 'stability' is infinite for 1 of 256 samples"):
        run.fit(tmp_path, [Poison("stability", 0, math.inf)])
    with pytest.raises(NonFiniteLossError, match="validation step 5, epoch 0, batch 0: the term 'posterior' is NaN"):
        run.fit(tmp_path, [Poison("posterior", 5, validating=True)])


def test_a_broken_prior_shows_in_the_posterior_term_alone(run):
    model = run.model()
    with torch.no_grad():
        next(model.prior.parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match="the term 'posterior' is NaN for 6 of 6 samples$"):
        model._step(batch()[0], seeds.TRAIN, 0)


@pytest.mark.parametrize("kind", TERMS)
def test_every_term_is_logged(kind, run, tmp_path):
    trainer = run.fit(tmp_path, model=run.model(kind), max_epochs=1)
    rows = run.rows(tmp_path)
    for stage in ("train", "val"):
        complete = [row for row in rows if row[f"{stage}/loss"]]
        assert len(complete) == (5 if stage == "train" else 1)
        for row in complete:
            total = sum(float(row[f"{stage}/{term}"]) for term in TERMS[kind])
            assert float(row[f"{stage}/loss"]) == pytest.approx(total, rel=1e-5)
    assert float(rows[-2]["train/variance"]) < 1  # row of step 4: after four updates
    model = trainer.lightning_module
    assert model.automatic_optimization
    trainer.validate(model, DigitsDataModule(batch_size=256), verbose=False)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(rows[-1]["val/loss"]), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder_gradient": "stopped"},
        {"stability": "log_std"},
        {"stability": "none"},
        {"prior": "standard_normal"},
        {"prior_order": 4, "prior_constraint": "normalizable"},
        {"variance": 0.3},
        {"num_samples": 2},
    ],
)
def test_fisher_ae_hands_its_options_to_the_loss(options, run):
    model = run.model(**options).eval()
    x, noise = batch()
    noise = torch.randn(model.num_samples, 6, 3)
    keywords = {key: options[key] for key in ("decoder_gradient", "stability", "num_samples") if key in options}
    expected = losses.fisher_ae_loss(
        model.encoder,
        model.decoder,
        x,
        prior=model.prior,
        variance=options.get("variance", 1.0),
        noise=noise,
        **keywords,
    )
    got = model.loss(x, noise)
    torch.testing.assert_close(got.loss, expected.loss)
    if "prior_order" in options:
        assert model.prior.coefficients.shape == (3, 4)
    parameters = [*model.encoder.parameters(), *model.decoder.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, parameters), torch.autograd.grad(expected.loss, parameters)
    )


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "bernoulli_logits"])
def test_vae_hands_its_options_to_the_loss(likelihood, run):
    keywords = {"variance": 0.2} if likelihood == "gaussian" else {}
    model = run.model(VAE, likelihood=likelihood, beta=0.5, learn_variance=False, **keywords).eval()
    x, noise = batch()
    expected = losses.elbo_loss(
        model.encoder, model.decoder, x, beta=0.5, likelihood=likelihood, noise=noise, **keywords
    )
    torch.testing.assert_close(model.loss(x, noise).loss, expected.loss)
    mean, _ = model.encode(x)
    decoded = model.decoder(mean)
    torch.testing.assert_close(model.reconstruct(x), decoded.sigmoid() if "logits" in likelihood else decoded)


def test_noise_is_a_function_of_seed_step_and_rank(run, monkeypatch):
    drawn = {}

    def record(seed, step, rank, batch_idx=0, stage=seeds.TRAIN):
        model = run.model(seed=seed)
        monkeypatch.setattr(FisherAE, "global_step", step)
        monkeypatch.setattr(FisherAE, "global_rank", rank)
        loss = model.loss
        model.loss = lambda x, noise: drawn.update({"noise": noise}) or loss(x, noise)
        model._step(batch()[0], stage, batch_idx)
        return drawn["noise"]

    first = record(1, 5, 0)
    assert first.shape == (1, 6, 3)
    assert torch.equal(first, record(1, 5, 0))
    others = [record(2, 5, 0), record(1, 6, 0), record(1, 5, 1), record(1, 5, 0, batch_idx=1)]
    assert not any(torch.equal(first, other) for other in others)
    validation = [record(1, step, 0, stage=seeds.VALIDATION) for step in (5, 6)]
    assert torch.equal(*validation) and not torch.equal(first, validation[0])


def test_optimiser_groups(run):
    model = run.model(learn_variance=True, variance=0.25, learning_rate=2e-4)
    assert model.variance.item() == pytest.approx(0.25)
    optimizer = model.configure_optimizers()
    assert [(group["lr"], group["betas"]) for group in optimizer.param_groups] == [
        (2e-4, (0.5, 0.999)),
        (1e-2, (0.5, 0.999)),
    ]
    assert optimizer.param_groups[1]["params"] == [model.log_variance]
    assert any(p is q for p in model.prior.parameters() for q in optimizer.param_groups[0]["params"])
    fixed = run.model(learn_variance=False)
    assert len(fixed.configure_optimizers().param_groups) == 1
    assert not fixed.log_variance.requires_grad and fixed.variance.item() == 1


@pytest.mark.parametrize("kind", [FisherAE, VAE])
def test_shapes(kind, run):
    model = run.model(kind).eval()
    x, _ = batch()
    assert [part.shape for part in model.encode(x)] == [(6, 3), (6, 3)]
    assert model.reconstruct(x).shape == model(x).shape == x.shape
    samples = [model.sample(4, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert samples[0].shape == (4, 1, 8, 8) and not samples[0].requires_grad
    assert torch.equal(*samples)
    assert not torch.equal(samples[0], model.sample(4, generator=torch.Generator().manual_seed(2)))


def test_samples_of_an_improper_prior_stay_where_the_codes_are(run, tmp_path):
    model = run.model()
    run.fit(tmp_path, model=model, max_epochs=1)
    data = DigitsDataModule()
    data.setup()
    x, _ = data.val_set[:]
    codes = model.eval().encode(x)[0]
    low, high = codes.amin(0), codes.amax(0)
    torch.testing.assert_close(model.code_range, torch.stack([low, high], dim=1))
    with torch.no_grad():  # grows without end, most of it far away
        model.prior.raw_coefficients[:, 4] = 1.0
        model.prior.raw_coefficients[:, 3] = -5.0
    draws = model.draw_latent(500, torch.Generator().manual_seed(0))
    assert ((draws >= low - 1e-5) & (draws <= high + 1e-5)).all() and (draws.std(0) > 0.05 * (high - low)).all()
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["code_range"], model.code_range)
    assert not run.model(prior="standard_normal").truncates_prior
    assert not run.model(prior_order=4, prior_constraint="normalizable").truncates_prior


def test_test_errors_are_means_per_pixel(run):
    model = run.model(VAE, likelihood="bernoulli", learn_variance=False, num_samples=2).eval()
    data = DigitsDataModule(batch_size=128)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (results,) = trainer.test(model, data, verbose=False)
    x, _ = data.test_set[:]
    reconstruction = model.reconstruct(x)
    assert results["test/mse"] == pytest.approx((reconstruction - x).square().mean().item(), rel=1e-5)
    noise = torch.cat([model._noise(batch, seeds.TEST, i) for i, batch in enumerate(x.split(128))], dim=1)
    sampled = torch.stack([model.decode(z) for z in model.sample_posterior(x, noise)])  # [2, N, ...]
    assert results["test/mse_sampled"] == pytest.approx((sampled - x).square().mean().item(), rel=1e-5)
    bce = -(x * reconstruction.log() + (1 - x) * (1 - reconstruction).log()).mean()
    assert results["test/bce"] == pytest.approx(bce.item(), rel=1e-5)
    assert {"test/loss", "test/reconstruction", "test/kl"} <= results.keys()


def test_bad_arguments_are_named(run):
    for name, value in (("latent_dim", 0), ("num_samples", 0)):
        with pytest.raises(ValueError, match=f"{name}: expected an int >= 1, received 0"):
            FisherAE(nn.Identity(), nn.Identity(), **{"latent_dim": 3, name: value})
    for name in ("variance", "learning_rate", "variance_learning_rate"):
        with pytest.raises(ValueError, match=f"{name}: expected a finite number > 0, received -1.0"):
            run.model(**{name: -1.0})
    for options in ({"learn_variance": True}, {"learn_variance": False, "variance": 0.1}):
        with pytest.raises(ValueError, match="variance: expected likelihood='gaussian' with .*, received 'bernoulli'"):
            run.model(VAE, likelihood="bernoulli", **options)


def test_processes_train_as_one(tmp_path):
    """Two processes (gloo) equal the average of both shards' gradients computed in one."""

    def build():
        torch.manual_seed(0)
        return FisherAE(
            nets.MLPEncoder(64, [8], 3, "tanh"), nets.MLPDecoder(3, [8], (1, 8, 8), activation="tanh"), 3,
            learning_rate=1e-2, learn_variance=True,
        )  # fmt: skip

    steps, batch_size = 3, 32
    model, data = build(), DigitsDataModule(batch_size)
    pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", max_steps=steps, logger=CSVMetrics(tmp_path),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        log_every_n_steps=1, default_root_dir=tmp_path,
    ).fit(model, data)  # fmt: skip

    twin = build()
    data.setup()
    assert isinstance(data.train_set, ImageDataset)
    optimizer = twin.configure_optimizers()
    orders = [torch.randperm(1297, generator=seeds.generator(seeds.ORDER, 0, 0))[rank::2] for rank in range(2)]
    logged = []
    for step in range(steps):
        optimizer.zero_grad()
        values = []
        for rank in range(2):
            x, _ = data.train_set[orders[rank][step * batch_size : (step + 1) * batch_size]]
            noise = torch.randn(1, batch_size, 3, generator=seeds.generator(seeds.TRAIN, 0, step, step, rank))
            loss = twin.loss(x, noise).loss
            (loss / 2).backward()
            values.append(loss.item())
        optimizer.step()
        logged.append(sum(values) / 2)
    for (name, got), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")
    with (tmp_path / "metrics.csv").open() as file:
        rows = [line.split(",") for line in file.read().split()]
    column = rows[0].index("train/loss")
    assert [float(row[column]) for row in rows[1:]] == pytest.approx(logged, rel=1e-5)


def test_bce_is_left_out_where_the_data_leave_the_unit_interval(run):
    class Shifted(DigitsDataModule):
        def __init__(self):
            super().__init__(batch_size=128, noise_std=0.1)

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    for data, expected in ((Shifted(), False), (DigitsDataModule(batch_size=128), True)):
        (results,) = trainer.test(run.model(VAE).eval(), data, verbose=False)
        assert ("test/bce" in results) is expected and "test/mse" in results


def test_beta_is_checked(run):
    with pytest.raises(ValueError, match="beta: expected a finite number >= 0, received -1.0"):
        run.model(VAE, beta=-1.0)


def test_the_fisher_aes_prior_is_a_density_where_it_is_sampled(run):
    for options in ({}, {"prior_order": 4, "prior_constraint": "normalizable"}, {"prior": "standard_normal"}):
        model = run.model(**options)
        if options != {"prior": "standard_normal"}:
            with torch.no_grad():
                model.prior.raw_coefficients[:, 0] += 0.3
                model.prior.raw_coefficients[:, 2] += 0.005
        low, high = (-2.0, 1.5) if model.truncates_prior else (-8.0, 8.0)
        model.code_range.copy_(torch.tensor([[low, high]] * 3))
        grid = torch.linspace(low, high, 2001, dtype=torch.float64)
        points = torch.zeros(2001, 3)
        points[:, 1] = grid
        others = model.log_prior(torch.zeros(3)) * 2 / 3  # of the two coordinates at zero
        mass = torch.trapezoid((model.log_prior(points) - others).double().exp(), grid)
        assert mass.item() == pytest.approx(1, abs=1e-3)
        z = torch.randn(4, 3, requires_grad=True)
        (score,) = torch.autograd.grad(model.log_prior(z).sum(), z)
        torch.testing.assert_close(model.prior_score(z), score)
